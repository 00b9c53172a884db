"""`qhw sample`: images of prompts from a text-to-image pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from qhw_diffusion.cli.flags import Repeated
from qhw_diffusion.errors import InvalidInputError


def sample(
    *,
    pipeline: str,
    out: Path,
    prompt: Annotated[tuple[str, ...], Repeated] = (),
    prompts: Path | None = None,
    policy: Path | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    negative_prompt: str = "",
    scorer: str | None = None,
    batch: int | None = None,
) -> int:
    """Sample a text-to-image pipeline, steered by a trained policy or a guidance scale.

    Writes a PNG for each prompt, and the guidance scales of every step as guidance.json and guidance.png. With
    --guidance the PNGs are those that the pipeline itself makes with a generator of this seed, all prompts in one call.

    Args:
        pipeline: folder of a Stable Diffusion pipeline in diffusers' format, or name of one that comes with the
            package.
        out: folder to write; new or empty.
        prompt: prompt of an image; the flag is given once for each.
        prompts: text file of prompts, one a line.
        policy: run folder of `qhw train guidance` whose policy sets the guidance scale of every image at every step.
        guidance: one guidance scale for all images and steps, any number.
        steps: sampling steps; without it those the policy was trained with, or 50.
        seed: seed of the generator of the latents.
        negative_prompt: prompt that guidance leads away from.
        scorer: what the policy's state looks through, as module:name or file.py:name; without it the scorer that the
            policy was trained with.
        batch: images that go through the networks at once, at most; without it all of them.
    """
    if (policy is None) == (guidance is None):
        raise InvalidInputError(
            "give a trained policy (--policy RUN) or a guidance scale (--guidance G), one of the two"
        )
    if bool(prompt) == (prompts is not None):
        raise InvalidInputError('give prompts (--prompt "…", once for each) or a file of them (--prompts FILE)')
    if scorer is not None and policy is None:
        raise InvalidInputError("--scorer is what a policy looks through: it is for --policy")
    from qhw_diffusion.guidance.sampling import write_samples

    steering = policy if policy is not None else float(guidance or 0.0)
    found = write_samples(
        pipeline,
        steering,
        prompts if prompts is not None else tuple(prompt),
        out,
        scorer=scorer,
        seed=seed,
        negative_prompt=negative_prompt,
        batch=batch,
        steps=steps,
    )
    print(found)
    return 0
