"""Sampling from a diffusers text-to-image pipeline with a policy, a schedule or a number: `guidance.sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion.pipeline import PROMPTS_FILE, PipelineDenoiser, check_prompts, load_pipeline, read_prompts
from qhw_diffusion.diffusion.sampler import OWN_SPACING
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.extensions import load_extension
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import GuidedEpisode
from qhw_diffusion.guidance.policies import Policy
from qhw_diffusion.guidance.rollout import rollout
from qhw_diffusion.guidance.scorers import (
    Scorer,
    as_scorer,
    check_scorer,
    check_scorer_fit,
    score,
    scorer_for,
    scorer_name,
    scorer_of,
)
from qhw_diffusion.guidance.training import TrainedPolicy
from qhw_diffusion.runs import atomic_folder, atomic_write_json, check_writable, progress

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_STEPS = 50
"""Steps where none are asked for and no policy says how many it was trained with; as in diffusers' pipelines."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Images of prompts, and how they were guided.

    Attributes:
        images: [B, 3, H, W] in [−1, 1].
        prompts: the prompt of each image.
        g: guidance scales, [T, B].
        timesteps: timestep of each of the T steps.
        confidence: p(prompt | image) by the scorer, [B]; None without a policy.
        blanked: whether the pipeline's safety checker has made an image black, one for each.
    """

    images: Tensor
    prompts: tuple[str, ...]
    g: Tensor
    timesteps: tuple[float, ...]
    confidence: Tensor | None
    blanked: tuple[bool, ...]

    def pictures(self) -> list[Image.Image]:
        """The images as the pipeline itself gives them (PIL)."""
        from PIL import Image

        pixels = (self.images * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        return [Image.fromarray((one * 255).round().astype("uint8").squeeze()) for one in pixels]


def sample(
    pipeline: Any,
    policy: TrainedPolicy | str | Path | Tensor | Sequence[float] | float,
    prompts: str | Sequence[str],
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    steps: int | None = None,
    negative_prompt: str = "",
    scorer: Any = None,
    batch: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Samples:
    """Images of prompts from a `StableDiffusionPipeline`, steered at every step.

    At one number g the images are those of ``pipeline(prompts, guidance_scale=g, num_inference_steps=steps,
    generator=torch.Generator().manual_seed(seed))``, bit for bit; here g may be any number, and another one for each
    image and step.

    Args:
        pipeline: the pipeline, or its folder or name (`load_pipeline`).
        policy: a trained policy, its folder, or its name on the Hub; a number; scales [T] of the steps, or [1, B] or
            [T, B] of the images.
        prompts: one prompt, or one for each image.
        seed: seed of the generator of the latents.
        generator: a generator in place of a seed.
        steps: sampling steps; None: those the policy was trained with, or 50.
        negative_prompt: what guidance leads away from.
        scorer: what the policy's state looks through; None: the scorer that the policy was trained with, or none where
            its state has no confidence entry.
        batch: images, at most, that go through the networks at once; None: all of them.
        on_step: called after every step with (steps taken, steps in all).

    Returns:
        Images and scales.

    Raises:
        InvalidInputError: a pipeline that is not supported (`check_pipeline`), scales that do not fit, a seed and a
            generator or neither, a policy whose scorer knows the prompts of its training only by their number.
        MissingDependencyError: transformers is not installed.
    """
    if isinstance(pipeline, str | Path):
        pipeline = load_pipeline(pipeline)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if (seed is None) == (generator is None):
        raise InvalidInputError("give a seed of the latents or a generator, one of the two")
    if batch is not None and batch < 1:
        raise InvalidInputError(f"batch must be at least 1, got {batch}")
    generator = generator if generator is not None else torch.Generator().manual_seed(_seed(seed))
    folder = Path(policy) if isinstance(policy, str | Path) else None
    steering = TrainedPolicy.from_pretrained(policy) if isinstance(policy, str | Path) else policy
    denoiser = PipelineDenoiser(pipeline, texts, negative_prompt=negative_prompt, batch=batch)
    if isinstance(steering, TrainedPolicy):
        config = steering.config if steps is None else steering.config.replace(n_steps=steps)
        needed = config.confidence_entry or scorer is not None
        looks_through = _scorer(steering, scorer, denoiser, folder) if needed else None
        acts: Any = steering.policy
    else:
        if isinstance(steering, Policy):
            raise InvalidInputError("a bare policy has no settings: give the TrainedPolicy or its run folder")
        acts, looks_through = steering, None
        config = GuidanceConfig(n_steps=DEFAULT_STEPS if steps is None else steps, spacing=OWN_SPACING)
    if not isinstance(acts, Policy):
        acts = _scales(acts)
    noise = _latents(denoiser, len(texts), generator)
    labels = torch.arange(len(texts), device=noise.device)
    at_once = batch or len(texts)
    done, timesteps = 0, tuple[float, ...]()

    def tell(episode: GuidedEpisode) -> None:
        nonlocal done, timesteps
        done, timesteps = done + 1, tuple(episode.sampler.timesteps)
        if on_step is not None:
            on_step(done, episode.n_steps * -(-len(texts) // at_once))

    played = rollout(denoiser, config, labels, noise, acts, scorer=looks_through, batch=at_once, on_step=tell)
    images, blanked = _checked(pipeline, played.images)
    return Samples(images, denoiser.prompts, played.g, timesteps, played.confidence, blanked)


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed is {seed!r}, need a whole number from 0 of 63 bits")
    return seed


def _scales(given: Any) -> Tensor:
    try:
        return torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"a {type(given).__name__} steers nothing; give a trained policy or its run folder, a number, or scales "
            "[T] of the steps, [1, B] of the images or [T, B] of both"
        ) from error


def _latents(denoiser: PipelineDenoiser, n: int, generator: torch.Generator) -> Tensor:
    """Standard normal latents, drawn as diffusers' pipelines draw them."""
    from diffusers.utils.torch_utils import randn_tensor

    shape = (n, *denoiser.latent_shape)
    return randn_tensor(shape, generator=generator, device=denoiser.device, dtype=denoiser.dtype)  # type: ignore[no-any-return]


class _Renumbered:
    """A scorer that knows prompts by their number in the table of a training, for images of other numbers."""

    def __init__(self, scorer: Scorer, rows: Tensor) -> None:
        self.scorer, self.rows, self.name = scorer, rows, scorer_name(scorer)

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        """Probability of the prompts, [B]."""
        return score(self.scorer, images, self.rows.to(labels.device)[labels]).probability


def _scorer(trained: TrainedPolicy, given: Any, denoiser: PipelineDenoiser, folder: Path | None) -> Scorer:
    """The scorer of a policy for the prompts of this denoiser."""
    raw = as_scorer(given) if given is not None else scorer_of(trained.config.scorer, trained.config.dataset)
    bound = scorer_for(raw, denoiser)
    if bound is raw:
        table = read_prompts(folder / PROMPTS_FILE) if folder and (folder / PROMPTS_FILE).exists() else ()
        unknown = [text for text in denoiser.prompts if text not in table]
        if unknown:
            raise InvalidInputError(
                f"scorer {scorer_name(raw)!r} knows the prompts by their number in the table of the training, and "
                f"{unknown[0]!r} is not among them; take prompts of {PROMPTS_FILE} in the run folder, or a scorer "
                "with for_prompts(prompts), which is asked for the scorer of a table"
            )
        bound = _Renumbered(raw, torch.tensor([table.index(text) for text in denoiser.prompts]))
    check_scorer_fit(pipeline=denoiser, scorer=raw if bound is raw else bound)
    check_scorer(bound, denoiser.image_shape, denoiser.n_classes, device=denoiser.alphas_cumprod.device)
    return bound


def _checked(pipeline: Any, images: Tensor) -> tuple[Tensor, tuple[bool, ...]]:
    """Images [B, 3, H, W] after the pipeline's safety checker, and which of them it has made black."""
    if getattr(pipeline, "safety_checker", None) is None:
        return images, (False,) * len(images)
    _, found = pipeline.run_safety_checker(images.clone(), images.device, images.dtype)
    blanked = torch.tensor([bool(one) for one in found], device=images.device)
    return images.masked_fill(blanked[:, None, None, None], -1.0), tuple(blanked.tolist())


def write_samples(
    pipeline: str, policy: Path | float, prompts: Path | Sequence[str], out: Path, *, scorer: str | None, **given: Any
) -> str:
    """What `qhw sample` does: images (000.png …), guidance.json and guidance.png in a new folder; returns a text.

    Args:
        pipeline: folder or name.
        policy: run folder, or a guidance scale.
        prompts: text file, or the prompts.
        out: folder to write.
        scorer: what the policy looks through (``module:name``).
        given: the other arguments of `sample`.

    Raises:
        InvalidInputError: `out` holds something; a word that the tokenizer does not know, or a prompt that it cuts; see
            `sample`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is no empty folder; choose another one (--out)")
    check_writable(out)
    texts = read_prompts(prompts) if isinstance(prompts, Path) else tuple(prompts)
    _seed(given["seed"])
    loaded = load_pipeline(pipeline)
    negative = given.get("negative_prompt") or ""
    check_prompts(loaded.tokenizer, [*texts, negative])
    with progress(desc="sampling", unit="step") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = load_extension(scorer, what="scorer") if scorer is not None else None
        sampled = sample(loaded, policy, texts, scorer=made, on_step=on_step, **given)
    width = max(3, len(str(len(texts) - 1)))
    files = [f"{index:0{width}d}.png" for index in range(len(texts))]
    record = {
        "pipeline": pipeline,
        "scheduler": type(loaded.scheduler).__name__,
        "policy": str(policy) if isinstance(policy, Path) else None,
        "guidance": None if isinstance(policy, Path) else policy,
        **{name: value for name, value in given.items() if name not in ("batch", "steps")},
        "timesteps": list(sampled.timesteps),
        "images": [
            {
                "file": file,
                "prompt": text,
                "g": sampled.g[:, index].tolist(),
                "confidence": None if sampled.confidence is None else float(sampled.confidence[index]),
                "blanked": sampled.blanked[index],
            }
            for index, (file, text) in enumerate(zip(files, texts, strict=True))
        ],
    }
    with atomic_folder(out) as aside:
        for file, picture in zip(files, sampled.pictures(), strict=True):
            picture.save(aside / file)
        atomic_write_json(aside / "guidance.json", record)
        _plot(sampled).savefig(aside / "guidance.png", dpi=110, bbox_inches="tight")
    blanked = sum(sampled.blanked)
    notes = [f"the pipeline's safety checker made {blanked} of them black"] * bool(blanked)
    return "; ".join([f"{len(files)} images, guidance.json and guidance.png in {out}", *notes])


def _plot(sampled: Samples) -> Any:
    """G over the steps: a line an image up to eight of them, else mean and spread."""
    from qhw_diffusion.experiment.plots import guidance_trajectories

    g, count = sampled.g, len(sampled.prompts)
    if count > 8:
        return guidance_trajectories({f"{count} images": g}, n_steps=len(g))
    lines = {f"{k}: {text[:40]}": g[:, k : k + 1] for k, text in enumerate(sampled.prompts)}
    return guidance_trajectories(lines, n_steps=len(g))
