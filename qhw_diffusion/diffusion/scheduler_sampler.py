"""Sampling by a diffusers scheduler's own steps, so that a diffusers pipeline's own images come out."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion.sampler import (
    MAX_START_SIGNAL,
    OWN_SPACING,
    SPACINGS,
    Denoiser,
    GuidedDDIM,
    Sampler,
    check_denoiser,
    check_scale,
    is_latent,
    latent_shape_of,
    whole_steps,
)
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What the network of a denoiser with a diffusers scheduler may predict: ε, v = √ᾱ ε − √(1−ᾱ) x₀, or x₀."""


def sampler_of(denoiser: Denoiser, n_steps: int = 10, *, spacing: str = "leading") -> Sampler:
    """The sampler of a denoiser: that of its diffusers scheduler, or `GuidedDDIM` where it brings none.

    Args:
        denoiser: a `Backbone` or any other `Denoiser`.
        n_steps: sampling steps.
        spacing: one of `SPACINGS`, or `OWN_SPACING`.

    Raises:
        UnknownNameError: no such spacing.
        InvalidInputError: what `GuidedDDIM` or `SchedulerSampler` refuses.
    """
    if getattr(denoiser, "scheduler", None) is not None:
        return SchedulerSampler(denoiser, n_steps, spacing=spacing)
    return GuidedDDIM(denoiser, n_steps, spacing=spacing)


class SchedulerSampler(Sampler):
    """Sampling by a diffusers scheduler's own steps, ``scheduler.step(output, t, x)``, without noise of their own.

    DDIM (η = 0), Euler, DPM-Solver++ and PNDM are tested; any other that predicts once a step, draws no noise and knows
    ᾱ will do. What is guided is the network's output of the scheduler's prediction type, as diffusers' pipelines do it:
    at a constant scale the images are the pipeline's own, bit for bit.

    The scheduler is copied: the denoiser's own stays as it is, and every batch begins with a fresh copy, since some
    schedulers remember earlier steps. So steps are taken in order, and one batch at a time.

    Where the scheduler clips x̂₀ of a model that works on pixels, the noise is recomputed from the clipped x̂₀ (see
    `GuidedDDIM`); x̂₀ of a model that works on latents is treated as diffusers' pipelines do.

    Attributes: those of `Sampler`; `scheduler` (the running copy).
    """

    def __init__(self, denoiser: Denoiser, n_steps: int = 10, *, spacing: str = OWN_SPACING) -> None:
        """Prepare the scheduler; nothing is sampled.

        Args:
            denoiser: one with a scheduler.
            n_steps: what the scheduler's ``set_timesteps`` gets; PNDM makes one prediction more.
            spacing: one of `SPACINGS`; `OWN_SPACING`: what the scheduler is configured with.

        Raises:
            UnknownNameError: no such spacing.
            InvalidInputError: no denoiser, a scheduler that is not as this class says, steps that it does not take, or
                timesteps that start where a noised image keeps more than `MAX_START_SIGNAL` of its signal.
        """
        check_denoiser(denoiser)
        if spacing not in (*SPACINGS, OWN_SPACING):
            raise UnknownNameError.of("spacing", str(spacing), (*SPACINGS, OWN_SPACING))
        given = denoiser.scheduler  # type: ignore[attr-defined]
        self.denoiser, self.spacing = denoiser, spacing
        asked = whole_steps(n_steps, len(denoiser.alphas_cumprod))
        self._kind = check_scheduler(given)
        self._fresh = _respaced(given, spacing)
        self._who = f"{type(given).__name__} of denoiser {type(denoiser).__name__}"
        try:
            self._fresh.set_timesteps(asked, device=denoiser.alphas_cumprod.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"the {self._who} does not take {asked} steps: {error}") from error
        self._places = list(self._fresh.timesteps)
        self.timesteps = self._fresh.timesteps.tolist()
        if min(self.timesteps) < 0:  # numpy.arange's rounding, with some numbers of "trailing" steps
            raise InvalidInputError(f"the {self._who} places {asked} steps down to timestep -1: take {asked + 1} steps")
        self.n_steps = len(self.timesteps)
        self.init_noise_sigma = self._fresh.init_noise_sigma
        self._levels()
        self._refuse_noise()
        clips = self._fresh.config.get("clip_sample") or self._fresh.config.get("thresholding")
        known = inspect.signature(self._fresh.step).parameters
        recompute = clips and not is_latent(denoiser) and "use_clipped_model_output" in known
        self._options: dict[str, Any] = {"use_clipped_model_output": True} if recompute else {}
        self._taken, self._start, self._outputs = 0, torch.empty(0), list[Tensor]()
        self.scheduler = copy.deepcopy(self._fresh)

    def _levels(self) -> None:
        """√ᾱ and √(1−ᾱ) at each timestep, and whether the scheduler's x is x₀ + σ ε."""
        scheduler = self._fresh
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is None:
            alpha = scheduler.alphas_cumprod.double().cpu()[torch.tensor(self.timesteps).long()]
        else:
            alpha = 1 / (1 + torch.as_tensor(sigmas).double().cpu()[: self.n_steps].square())
        self._signal: list[float] = alpha.sqrt().tolist()
        self._spread: list[float] = (1 - alpha).sqrt().tolist()
        probe = torch.ones(1, dtype=torch.float64)
        scaled = float(copy.deepcopy(scheduler).scale_model_input(probe, self._places[0]))
        self._scaled = not math.isclose(scaled, 1.0)
        if self._signal[0] > MAX_START_SIGNAL and self.timesteps[0] < len(self.denoiser.alphas_cumprod) - 1:
            raise InvalidInputError(
                f"the {self._who} starts at timestep {self.timesteps[0]:g} of {len(self.denoiser.alphas_cumprod) - 1}, "
                f"where a noised image keeps {self._signal[0]:.0%} of its amplitude (√ᾱ; allowed: "
                f"{MAX_START_SIGNAL:.0%}), but sampling starts from pure noise. Take spacing='trailing', or more steps"
            )

    def _refuse_noise(self) -> None:
        """Refuse a scheduler that draws noise: two steps from one state must give one result."""
        kind, config = type(self._fresh), dict(self._fresh.config)
        settings = f"{kind.__module__}.{kind.__name__} {self.n_steps} {config}"
        if settings in _NO_NOISE:
            return
        shape, results = (1, *latent_shape_of(self.denoiser)), []
        for seed in (0, 1):
            scheduler = copy.deepcopy(self._fresh)
            place, x = self._places[0], torch.ones(shape, device=self.denoiser.alphas_cumprod.device)
            with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.no_grad():
                torch.manual_seed(seed)
                scheduler.scale_model_input(x, place)
                results.append(scheduler.step(torch.zeros_like(x), place, x, return_dict=False)[0])
        if torch.equal(*results):
            _NO_NOISE.add(settings)
        else:
            raise InvalidInputError(
                f"the {self._who} draws noise at every step; {_SUPPORTED}. Give the model another scheduler: "
                "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)"
            )

    def begin(self, noise: Tensor) -> Tensor:
        """Start anew, with a fresh copy of the scheduler: x_T of standard normal noise [B, *latent_shape]."""
        self.scheduler = copy.deepcopy(self._fresh)
        self._taken, self._outputs = 0, []
        self._start = noise * self.init_noise_sigma
        return self._start

    def seen(self, x_t: Tensor, i: int) -> Tensor:
        """x_t at step `i` as √ᾱ x₀ + √(1−ᾱ) ε, the scale that the network sees; after the last step x itself."""
        return x_t * self._signal[i] if self._scaled and i < self.n_steps else x_t

    def output(self, x_t: Tensor, i: int, labels: Tensor) -> Any:
        """The denoiser's outputs with the labels and without at step `i`."""
        self._in_order(i)
        t = self._places[i]
        return self._ask(self.scheduler.scale_model_input(x_t, t), t, labels)

    def guided(self, output_cond: Tensor, output_null: Tensor, g: float | Tensor) -> Tensor:
        """The guided output of the two, by the operations of diffusers' pipelines; `g`: a number or [B]."""
        difference = output_cond - output_null
        if not isinstance(g, Tensor):
            return output_null + g * difference
        check_scale(g, output_cond)
        # in half precision the product of a number and a tensor is rounded once, and so is this one
        scaled = g.view(-1, *([1] * (output_cond.ndim - 1))) * difference
        return output_null + scaled.to(difference.dtype)

    def noise(self, x_t: Tensor, i: int, output: Tensor) -> Tensor:
        """ε̂ [B, …] of an output of the network for x_t at step `i`, by the scheduler's prediction type."""
        if self._kind == "epsilon":
            return output
        signal, spread, seen = self._signal[i], self._spread[i], self.seen(x_t, i)
        if self._kind == "v_prediction":
            return signal * output + spread * seen
        return (seen - signal * output) / spread

    def estimate(self, x_t: Tensor, i: int, output: Tensor) -> Tensor:
        """The estimate x̂₀ [B, …] by the scheduler's formula and prediction type, clipped where the scheduler clips."""
        signal, spread, seen = self._signal[i], self._spread[i], self.seen(x_t, i)
        if self._kind == "sample":
            x0_hat = output
        elif self._kind == "v_prediction":
            x0_hat = signal * seen - spread * output
        else:
            x0_hat = (seen - spread * output) / signal
        settings = self.scheduler.config
        if settings.get("thresholding"):
            return self.scheduler._threshold_sample(x0_hat)  # type: ignore[no-any-return]
        if settings.get("clip_sample"):
            limit = settings.get("clip_sample_range", 1.0)
            return x0_hat.clamp(-limit, limit)
        return x0_hat

    def step(self, x_t: Tensor, i: int, output: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the scheduler: (x at the next timestep, the estimate x̂₀), both [B, *latent_shape].

        Args:
            x_t: [B, *latent_shape] at timestep `timesteps[i]`.
            i: index of the step; steps are taken in order.
            output: the guided output of the network, [B, *latent_shape].
        """
        self._check_step(x_t, i, output)
        self._in_order(i)
        x_prev = self.scheduler.step(output, self._places[i], x_t, **self._options, return_dict=False)[0]
        self._taken += 1
        self._outputs.append(output)
        return x_prev, self.estimate(x_t, i, output)

    def _in_order(self, i: int) -> None:
        if i != self._taken:
            raise InvalidInputError(
                f"step {i} of the {self._who} cannot follow on {self._taken} steps: it takes its steps in order, from "
                "begin(noise)"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """x_T and the guided outputs of the steps taken: taken again, they leave the scheduler as it is."""
        return {"start": self._start.clone(), **{f"output{j}": one.clone() for j, one in enumerate(self._outputs)}}

    def load_state_dict(self, tensors: dict[str, Tensor], i: int) -> None:
        """Be as after `i` steps: inverse of `state_dict`.

        Raises:
            DamagedFileError: the outputs of so many steps are not in `tensors`.
        """
        try:
            start, outputs = tensors["start"], [tensors[f"output{j}"] for j in range(i)]
        except KeyError as error:
            raise DamagedFileError(f"the saved sampling run lacks {error}: {self._who} cannot go on") from error
        self.scheduler = copy.deepcopy(self._fresh)
        self._start = x = start.clone()
        self._taken, self._outputs = i, [one.clone() for one in outputs]
        for place, output in zip(self._places, self._outputs, strict=False):
            self.scheduler.scale_model_input(x, place)
            x = self.scheduler.step(output, place, x, **self._options, return_dict=False)[0]


_NO_NOISE: set[str] = set()  # schedulers, by class and settings, that were seen to draw none
_SUPPORTED = (
    "supported are diffusers schedulers that predict once a step, draw no noise and know ᾱ: DDIMScheduler, "
    "EulerDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler and their like"
)


def check_scheduler(scheduler: Any) -> str:
    """Check that `SchedulerSampler` drives a diffusers scheduler, as far as it can be told without a step.

    Returns:
        What the network predicts: one of `PREDICTION_TYPES`.

    Raises:
        InvalidInputError: it does not; the message names what is supported.
    """
    who = f"a {type(scheduler).__name__}"
    lacking = [n for n in ("step", "set_timesteps", "scale_model_input", "alphas_cumprod") if not hasattr(scheduler, n)]
    if lacking or not hasattr(scheduler, "config"):
        raise InvalidInputError(f"{who} has no {', '.join(lacking or ['config'])}; {_SUPPORTED}")
    if getattr(scheduler, "order", 1) != 1:
        raise InvalidInputError(f"{who} predicts {scheduler.order} times a step; {_SUPPORTED}")
    kind = scheduler.config.get("prediction_type", "epsilon")
    flow = " of a flow" if scheduler.config.get("use_flow_sigmas") else ""
    if kind not in PREDICTION_TYPES or flow:
        raise InvalidInputError(
            f"{who} is for networks that predict {kind!r}{flow}; allowed: {', '.join(map(repr, PREDICTION_TYPES))} of "
            "a diffusion"
        )
    return str(kind)


def _respaced(scheduler: Any, spacing: str) -> Any:
    """A copy of a scheduler with this spacing of its timesteps."""
    if spacing == OWN_SPACING or scheduler.config.get("timestep_spacing") == spacing:
        return copy.deepcopy(scheduler)
    if "timestep_spacing" not in scheduler.config:
        raise InvalidInputError(
            f"a {type(scheduler).__name__} has no timestep_spacing to set to {spacing!r}: take spacing={OWN_SPACING!r}"
        )
    return type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
