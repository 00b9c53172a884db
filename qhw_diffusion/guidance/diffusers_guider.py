"""Policies inside diffusers' own pipelines: a guider for modular ones, a callback for classic ones.

| | guider | callback |
|---|---|---|
| pipelines | modular (SDXL, SD3, Qwen-Image, …) | Stable Diffusion, SDXL, Stable Diffusion 3 |
| acts from | the first step | the second step; the first is at g₀ |
| batches | yes, one g an image | one image a call |
| g ≤ 1 | yes | no, held just above 1 |
| seventh state entry | yes | no |

`guidance.sample` drives a pipeline's parts itself and has none of these limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from qhw_diffusion.diffusion.sampler import guided
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.card import CARD, model_card
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.saving import fetch, push, save_policy_model
from qhw_diffusion.guidance.scorers import as_scorer, score, scorer_name
from qhw_diffusion.guidance.steering import CENTRE, AnyPolicy, Confidence, Steering
from qhw_diffusion.runs import atomic_write_text, read_json

if TYPE_CHECKING:
    from diffusers.modular_pipelines import BlockState

POLICY = "policy"
"""Folder of the policy inside a saved guider."""
FLOOR = 1.0 + 1e-6
"""Smallest scale that a callback sets: a classic pipeline guides only while its `guidance_scale` is above 1."""
CLASSIC = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
"""Classic pipelines that the callback is for: one network call a step on [unconditional, conditional] rows."""

_OTHER_GUIDANCE = (
    "the pipeline was called with {}, which changes the guided prediction besides the scale; the policy's state is "
    "that of plain classifier-free guidance: leave it out"
)
_DISTILLED = (
    "this {} is distilled: it takes the guidance scale as an input ({}) and makes no unconditional prediction, so "
    "there is nothing to guide by; supported are networks with classifier-free guidance"
)


class PolicyGuidance(BaseGuidance):
    """A guider of diffusers' modular pipelines whose scale a policy of ours sets: one g for every image and step.

        guider = PolicyGuidance(load_policy("runs/mine"), scheduler=pipeline.scheduler)
        pipeline.update_components(guider=guider)
        pipeline(prompt=…, num_inference_steps=6, output="images")

    At a number g its images are those of diffusers' `ClassifierFreeGuidance(g)`, bit for bit. `g` holds the scales of
    the last run, [T, B]. Guiders are an experimental part of diffusers; this one is tested with version 0.42.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012 (diffusers' own declaration)

    def __init__(
        self,
        policy: AnyPolicy | None = None,
        scheduler: Any = None,
        guidance: GuidanceConfig | None = None,
        confidence: Confidence | str | None = None,
    ) -> None:
        """Make the guider.

        Args:
            policy: a trained policy, its folder or name on the Hub; a bare policy; a schedule [n_steps]; or a number.
            scheduler: the pipeline's; a policy's state needs it, a schedule or a number does not.
            guidance: settings of a bare policy.
            confidence: the sixth state entry: `scorer_confidence(pipeline, scorer, labels)`, or "centre", which holds
                it at its centre. A policy trained with the entry needs one of them.

        Raises:
            InvalidInputError: what is missing or does not fit (see `Steering`).
        """
        super().__init__()
        if policy is None:
            raise InvalidInputError(
                "the configuration of a guider holds no policy's weights: give policy=, or load the folder that "
                "save_pretrained wrote, PolicyGuidance.from_pretrained(folder)"
            )
        self._steering = Steering(policy, scheduler=scheduler, guidance=guidance, confidence=confidence)
        self._hook: Any = None
        self._input: Tensor | None = None
        steering = self._steering
        numbers = steering.constant if steering.schedule is None else steering.schedule.tolist()
        self.register_to_config(policy=numbers, confidence=CENTRE if steering.confidence == CENTRE else None)

    @property
    def g(self) -> Tensor:
        """Guidance scales of the present or last run, [T, B]."""
        return torch.stack(self._steering.g) if self._steering.g else torch.empty(0, 0)

    @property
    def guidance_scale(self) -> float:
        """Asked for by blocks of distilled networks alone, which take the scale as an input: refused."""
        raise InvalidInputError(_DISTILLED.format("network of this pipeline", "time_cond_proj_dim"))

    # -- what the denoise block calls ------------------------------------------------------------------------------

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Start step `step` of `num_inference_steps`; the first one begins a run."""
        super().set_state(step, num_inference_steps, timestep)
        self._release()
        if step == 0:
            levels = self._steering.levels
            self._steering.begin(num_inference_steps, num_inference_steps if levels is None else levels.n_steps)
        if self._steering.levels is not None:
            self._check_scheduler(step, num_inference_steps, timestep)

    def _check_scheduler(self, step: int, n_steps: int, timestep: Tensor) -> None:
        assert self._steering.levels is not None
        scheduler = self._steering.levels.scheduler
        known = scheduler.timesteps
        same = scheduler.num_inference_steps == n_steps and step < len(known) and float(known[step]) == float(timestep)
        if not same:
            raise InvalidInputError(
                f"step {step} of {n_steps} is at timestep {float(timestep):g}, which is not so in the scheduler given: "
                "it is not the pipeline's (give scheduler=pipeline.scheduler), or the run does not start from noise "
                "(image to image), which policies are not for"
            )

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Watch the network's input, which holds the latents that the state is made of."""
        super().prepare_models(denoiser)
        self._release()
        _refuse_distilled(denoiser)
        if self._steering.policy is not None:
            self._hook = denoiser.register_forward_pre_hook(self._watch, with_kwargs=True)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Stop watching."""
        self._release()

    def _release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _watch(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input = _latents(args, kwargs)

    def prepare_inputs(self, data: dict[str, Any]) -> list[BlockState]:
        """The block's inputs, once with the prompt and once without.

        Raises:
            InvalidInputError: there is nothing to predict without the prompt from.
        """
        names = self._input_predictions[: self.num_conditions]
        if len(names) == 2:
            _check_unconditional(value for value in data.values() if isinstance(value, tuple))
        return [self._prepare_batch(data, i, name) for i, name in enumerate(names)]

    def prepare_inputs_from_block_state(self, data: BlockState, input_fields: dict[str, Any]) -> list[BlockState]:
        """The same, from the fields of a block's state."""
        names = self._input_predictions[: self.num_conditions]
        if len(names) == 2:
            pairs = (field for field in input_fields.values() if isinstance(field, tuple))
            _check_unconditional(tuple(getattr(data, name, None) for name in pair) for pair in pairs)
        return [self._prepare_batch_from_block_state(input_fields, data, i, name) for i, name in enumerate(names)]

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction of two predictions [B, …]."""
        if pred_uncond is None:
            self._steering.g.append(torch.ones(len(pred_cond)))
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
        x = pred_cond
        if self._steering.policy is not None:
            if self._input is None:
                raise InvalidInputError(
                    "the guider has not seen the network's input: the denoise block must call prepare_models(network) "
                    "before each prediction"
                )
            # inpainting and editing models see further channels or tokens behind the latents
            x, self._input = self._input[:, : pred_cond.shape[1]], None
        g = self._steering.scale(self._step, x, pred_cond, pred_uncond)
        return GuiderOutput(pred=guided(pred_cond, pred_uncond, g), pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self) -> bool:
        """Whether the network is called with the prompt now (the first of a step's calls)."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """Predictions a step: 2, or 1 without guidance."""
        return 2 if self._is_cfg_enabled() else 1

    def _is_cfg_enabled(self) -> bool:
        # as ClassifierFreeGuidance: at the number 1 the unconditional prediction has no weight and is not made
        constant = self._steering.constant
        return bool(self._enabled) and not (constant is not None and math.isclose(constant, 1.0))

    # -- on disk ---------------------------------------------------------------------------------------------------

    def new(self, **changes: Any) -> PolicyGuidance:
        """A copy with the same policy, settings changed as given."""
        steering = self._steering
        if "policy" in changes:
            return type(self)(**changes)
        numbers = steering.constant if steering.schedule is None else steering.schedule
        same: dict[str, Any] = {
            "policy": numbers if steering.policy is None else steering.policy,
            "scheduler": None if steering.levels is None else steering.levels.scheduler,
            "guidance": steering.guidance,
            "confidence": steering.confidence,
        }
        made = type(self)(**{**same, **changes})
        made._steering.settings = {**steering.settings, **made._steering.settings}
        return made

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **how: Any) -> None:
        """Write guider_config.json, and the policy with its weights and settings into policy/.

        A function given as `confidence` is not saved; give it again to `from_pretrained`.

        Args:
            save_directory: where to.
            push_to_hub: upload it too, to `repo_id` (default: the folder's name).
            how: repo_id and the arguments of `push_to_hub`.
        """
        folder = Path(save_directory)
        self._write(folder, folder.name)
        if push_to_hub:
            self.push_to_hub(how.pop("repo_id", folder.name), **how)

    def _write(self, folder: Path, name: str) -> None:
        policy, settings = self._steering.policy, self._steering.settings
        if policy is not None:
            save_policy_model(policy, folder / POLICY, settings)
            atomic_write_text(folder / CARD, model_card(policy, settings, name, guider=True))
        self.save_config(str(folder))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        *,
        scheduler: Any = None,
        confidence: Confidence | str | None = None,
        **where: Any,
    ) -> PolicyGuidance:
        """The guider that `save_pretrained` wrote or `push_to_hub` uploaded.

        Args:
            pretrained_model_name_or_path: folder, or name on the Hub.
            subfolder: folder in it.
            scheduler: the pipeline's, where the guider holds a policy.
            confidence: in place of the one saved.
            where: revision, token, cache_dir, local_files_only, force_download (`saving.fetch`).
        """
        folder = fetch(pretrained_model_name_or_path, **where) / (subfolder or "")
        if not (folder / cls.config_name).is_file():
            raise InvalidInputError(f"{folder} holds no saved guider: {cls.config_name} is missing")
        config = read_json(folder / cls.config_name)
        policy = folder / POLICY if (folder / POLICY).is_dir() else config["policy"]
        return cls(policy, scheduler=scheduler, confidence=confidence or config["confidence"])

    def push_to_hub(self, repo_id: str, **how: Any) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit. `how`: as `saving.push`."""
        return push(lambda folder: self._write(folder, repo_id), repo_id, **how)


class PolicyCallback:
    """`callback_on_step_end` of a classic pipeline; made by `policy_callback`.

    Attributes:
        guidance_scale: what the pipeline is called with: the scale of the first step.
        floored: steps of the last run whose scale was held just above 1.
    """

    def __init__(self, pipeline: Any, steering: Steering) -> None:
        self._pipeline, self._steering = pipeline, steering
        self._seen: tuple[Tensor, Tensor] | None = None
        self._action = torch.zeros(1)
        self._calls = 0  # of the network since the last step
        self.floored = 0
        if steering.policy is None:
            self.guidance_scale = steering.of_schedule(0)
        else:
            assert steering.guidance is not None
            self.guidance_scale = float(steering.guidance.base_scales(steering.guidance.n_steps)[0])
        network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        self._hook = None
        if steering.policy is not None:
            assert network is not None
            self._hook = network.register_forward_hook(self._watch, with_kwargs=True)

    @property
    def n_steps(self) -> int | None:
        """What `num_inference_steps` must be; None where a number steers."""
        return self._steering.n_steps

    @property
    def g(self) -> Tensor:
        """Guidance scales of the present or last run, [T, 1]."""
        return torch.stack(self._steering.g) if self._steering.g else torch.empty(0, 0)

    def close(self) -> None:
        """Stop watching the network."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def __enter__(self) -> PolicyCallback:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _watch(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        prediction = output[0] if isinstance(output, tuple) else output.sample
        x = _latents(args, kwargs)
        self._seen = x[:, : prediction.shape[1]], prediction
        self._calls += 1

    def __call__(self, pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        """Set the scale of the step after `step`."""
        if pipeline is not self._pipeline:
            raise InvalidInputError("this callback was made for another pipeline: policy_callback(pipeline, policy)")
        steering = self._steering
        if step == 0:
            self._begin(float(pipeline.guidance_scale), int(pipeline.num_timesteps))
        calls, self._calls = self._calls, 0
        if step > 0 and calls > 1:  # before the first step there may be those of a run that failed
            raise InvalidInputError(_OTHER_GUIDANCE.format("skip_guidance_layers or another second call a step"))
        last = step + 1 == int(pipeline.num_timesteps)
        if steering.policy is not None and self._hook is None:
            raise InvalidInputError("the callback is closed: make another one")
        if not last:
            wanted = steering.of_schedule(step + 1) if steering.policy is None else self._decided(step, tensors)
            self.floored += wanted < FLOOR
            pipeline._guidance_scale = max(wanted, FLOOR)
            steering.g.append(torch.tensor([pipeline._guidance_scale]))
        self._seen = None
        return tensors

    def _begin(self, given: float, n_steps: int) -> None:
        if given != self.guidance_scale:
            raise InvalidInputError(
                f"the pipeline was called with guidance_scale={given:g}; the first step runs before a callback can "
                f"act, so call it with guidance_scale={self.guidance_scale!r} (callback.guidance_scale)"
            )
        if self._steering.policy is not None and getattr(self._pipeline, "guidance_rescale", False):
            raise InvalidInputError(_OTHER_GUIDANCE.format("guidance_rescale"))
        levels = self._steering.levels
        if levels is not None and levels.scheduler is not self._pipeline.scheduler:
            raise InvalidInputError("the pipeline has another scheduler than when the callback was made: make another")
        asked = getattr(self._pipeline.scheduler, "num_inference_steps", None) or n_steps
        self._steering.begin(int(asked), n_steps)
        self._steering.g.append(torch.tensor([given]))
        self._action, self.floored = torch.zeros(1), 0

    def _decided(self, step: int, tensors: dict[str, Any]) -> float:
        """The next step's g, by what the network saw and predicted at this one."""
        assert self._seen is not None
        x, prediction = self._seen
        if len(prediction) != 2:
            raise InvalidInputError(
                f"the network was called on {len(prediction)} rows: a classic pipeline has one guidance scale for a "
                "whole call, so the callback takes one prompt and one image a call. guidance.sample takes batches, "
                "each image with its own scale"
            )
        if "latents" not in tensors:
            raise InvalidInputError("the callback needs the latents: callback_on_step_end_tensor_inputs=['latents', …]")
        eps_null, eps_cond = prediction.chunk(2)
        scale = float(self._pipeline.guidance_scale)
        self._steering.remember(step, x[1:], guided(eps_cond, eps_null, scale), self._action)
        scheduler = self._pipeline.scheduler
        after = tensors["latents"]
        if hasattr(scheduler, "scale_model_input"):
            after = scheduler.scale_model_input(after, scheduler.timesteps[step + 1])
        self._action, g = self._steering.decide(step + 1, after, None)
        return float(g)


def policy_callback(
    pipeline: Any,
    policy: AnyPolicy,
    *,
    guidance: GuidanceConfig | None = None,
    confidence: Confidence | str | None = None,
) -> PolicyCallback:
    """A policy as `callback_on_step_end` of a classic pipeline. `guidance.sample` does the same without its limits.

        with policy_callback(pipeline, trained) as callback:
            pipeline(prompt, num_inference_steps=callback.n_steps, guidance_scale=callback.guidance_scale,
                     callback_on_step_end=callback)

    A callback acts on the next step only, so the first step runs at g₀. A classic pipeline has one scale for a call:
    one prompt and one image a call. It guides only while the scale is above 1: lower ones are held just above
    (`floored` counts them).

    Args:
        pipeline: a `StableDiffusionPipeline`, `StableDiffusionXLPipeline` or `StableDiffusion3Pipeline`.
        policy: see `PolicyGuidance`.
        guidance: settings of a bare policy.
        confidence: see `PolicyGuidance`.

    Returns:
        The callback. While it is open it watches the pipeline's network; `close()` or `with` ends that.

    Raises:
        InvalidInputError: another pipeline, a policy whose state has the seventh entry, a first scale of 1 or less, a
            schedule with such a scale.
    """
    names = [cls.__name__ for cls in type(pipeline).__mro__]
    if not set(names) & set(CLASSIC):
        also = (
            "; for a modular pipeline: update_components(guider=PolicyGuidance(policy))"
            if "Modular" in names[0]
            else ""
        )
        raise InvalidInputError(
            f"a {names[0]} is none of the pipelines the callback is for: {', '.join(CLASSIC)}{also}"
        )
    _refuse_distilled(getattr(pipeline, "unet", None) or pipeline.transformer)
    steering = Steering(policy, scheduler=pipeline.scheduler, guidance=guidance, confidence=confidence)
    if steering.guidance is not None and steering.guidance.extra_state:
        raise InvalidInputError(
            "the policy sees the seventh state entry, ‖ε_c − ε_∅‖ of the step it acts on, which is not known when a "
            "callback acts: use PolicyGuidance with a modular pipeline, or guidance.sample"
        )
    callback = PolicyCallback(pipeline, steering)
    scales = [callback.guidance_scale] if steering.schedule is None else steering.schedule.tolist()
    if min(scales) < FLOOR:
        callback.close()
        raise InvalidInputError(
            f"a classic pipeline guides only while guidance_scale is above 1, and the "
            f"{'schedule falls to' if steering.schedule is not None else 'first step is at'} {min(scales):g}: use "
            "guidance.sample, which takes any scale"
        )
    return callback


def scorer_confidence(pipeline: Any, scorer: Any, labels: Any, *, temperature: float | None = None) -> Confidence:
    """The sixth state entry from a scorer that looks at x̂₀, decoded by a pipeline's VAE.

    Args:
        pipeline: whose `vae` is used (classic or modular).
        scorer: of images [B, 3, H, W] in [−1, 1], as in training.
        labels: what each image of the call asks for, [B]: numbers of the scorer's own, or prompts for a scorer with
            ``for_prompts(prompts)``.
        temperature: of the softened confidence; None: the default of `GuidanceConfig`.

    Raises:
        InvalidInputError: no scorer, no VAE, or prompts for a scorer that knows numbers only.
    """
    found = as_scorer(scorer)
    wanted = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if wanted and isinstance(wanted[0], str):
        if not callable(getattr(found, "for_prompts", None)):
            raise InvalidInputError(
                f"scorer {scorer_name(found)!r} has no for_prompts(prompts): give the labels as its own numbers"
            )
        found, wanted = as_scorer(found.for_prompts(wanted)), list(range(len(wanted)))  # type: ignore[union-attr]
    rows = torch.tensor(wanted, dtype=torch.int64)
    softened = GuidanceConfig().confidence_temperature if temperature is None else temperature
    if getattr(pipeline, "vae", None) is None:
        raise InvalidInputError(f"a {type(pipeline).__name__} has no VAE to decode x̂₀ with")

    def confidence(x0: Tensor) -> Tensor:
        if len(x0) != len(rows):
            raise InvalidInputError(f"{len(x0)} images are sampled, {len(rows)} labels were given")
        vae = pipeline.vae
        latents = x0 / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float().clamp(-1.0, 1.0)
        return score(found, images, rows.to(images.device), softened).confidence

    return confidence


def _latents(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    if not isinstance(x, Tensor):
        raise InvalidInputError("the network was called without latents as first argument, hidden_states or sample")
    return x


def _check_unconditional(pairs: Iterable[tuple[Any, ...]]) -> None:
    """Refuse inputs that are the same with the prompt and without: guidance would have no effect, and nobody told."""
    given = [pair for pair in pairs if pair[0] is not None]
    if not given or any(pair[1] is None for pair in given):
        raise InvalidInputError(
            "the pipeline made no unconditional embeddings, so there is nothing to guide by: pass negative_prompt='' "
            "(Stable Diffusion 3 makes them only then), or give the negative embeddings beside the prompt's"
        )


def _refuse_distilled(network: Any) -> None:
    config = getattr(network, "config", {})
    for name in ("guidance_embeds", "time_cond_proj_dim"):
        if config.get(name):
            raise InvalidInputError(_DISTILLED.format(type(network).__name__, name))
