"""Our loop over a Stable Diffusion pipeline's parts against the pipeline's own call, and the policy's share of a step.

`python -m benchmarks.pipelines [FOLDER_OR_NAME]` prints it for any pipeline; without one for the coloured digits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PROMPT = "a red seven on a blue ground"
BATCHES = (1, 8, 64)
STEPS = 10
SCALE = 4.0


def run(say: Callable[[str], None], name: str = "coloured-digits", rounds: int = 15) -> list[dict[str, Any]]:
    """A row per batch: milliseconds of a step of the pipeline's own call, of ours, of the U-Net and of the policy.

    The two loops are timed in turn, prompts to images, prompts encoded in both; medians of processor time.
    """
    import torch

    from qhw_diffusion import Device, guidance
    from qhw_diffusion.diffusion import PipelineDenoiser, load_pipeline

    pipeline = load_pipeline(name, device="cpu")
    policy = guidance.build_policy(guidance.PolicyConfig(), device=Device.load("fake_marrakesh"))
    rows = []
    for batch in BATCHES:
        prompts = [PROMPT] * batch

        def theirs(prompts: list[str] = prompts) -> Any:
            return pipeline(
                prompts,
                guidance_scale=SCALE,
                num_inference_steps=STEPS,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images

        def ours(prompts: list[str] = prompts) -> Any:
            return guidance.sample(pipeline, SCALE, prompts, seed=0, steps=STEPS).images * 0.5 + 0.5

        denoiser = PipelineDenoiser(pipeline, prompts)
        labels, x, t = torch.arange(batch), torch.randn(batch, *denoiser.latent_shape), pipeline.scheduler.timesteps[0]
        states = torch.randn(batch, 6)
        tasks: dict[str, Callable[[], Any]] = {
            "pipeline": theirs,
            "ours": ours,
            "unet": lambda d=denoiser, x=x, t=t, y=labels: d.predict(x, t, y),
            "policy": lambda s=states: policy(s),
        }
        with torch.no_grad():
            if not torch.equal(theirs(), ours()):
                raise SystemExit("the two loops give different images: the times would mean nothing")
            times: dict[str, list[float]] = {task: [] for task in tasks}
            for done in range(rounds + 1):
                for task, call in tasks.items():
                    start = time.process_time()
                    call()
                    if done:  # the first round warms up
                        times[task].append(time.process_time() - start)
        ms = {task: 1e3 * float(np.median(values)) for task, values in times.items()}
        row = {"batch": batch, "pipeline": ms["pipeline"] / STEPS, "ours": ms["ours"] / STEPS}
        row |= {"unet": ms["unet"], "policy": ms["policy"], "share": ms["policy"] / ms["unet"]}
        row["ratio"] = float(np.median(np.array(times["pipeline"]) / np.array(times["ours"])))
        row["best_ratio"] = min(times["pipeline"]) / min(times["ours"])
        rows.append(row)
        say(
            f"pipeline {name}, {batch} images: a step takes {row['pipeline']:.2f} ms by its own call, "
            f"{row['ours']:.2f} ms by ours ({row['ratio']:.3f} ×, best against best "
            f"{row['best_ratio']:.3f} ×); U-Net {row['unet']:.2f} ms, policy under noise "
            f"{row['policy']:.2f} ms ({row['share']:.1%})"
        )
    return rows


if __name__ == "__main__":
    from benchmarks.__main__ import one_core

    one_core(None)
    run(print, *sys.argv[1:2])
