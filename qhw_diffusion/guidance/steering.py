"""What a guider and a callback share: the guidance scale of each step of a run that diffusers' own code samples.

`GuidedEpisode` drives the sampler itself. Here somebody else does, and shows the network's input and its two
predictions; the state that the policy sees is made of these by the same function (`raw_state`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion.sampler import SPACINGS, guided
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig
from qhw_diffusion.guidance.episode import STATE_NAMES, raw_state
from qhw_diffusion.guidance.policies import Policy
from qhw_diffusion.guidance.saving import fetch, load_policy_model, saved_settings
from qhw_diffusion.guidance.training import TrainedPolicy, is_run, load_policy

AnyPolicy = TrainedPolicy | Policy | Tensor | Sequence[float] | float | str | Path
"""What steers: a trained policy, its folder or its name on the Hub; a bare policy (with its `GuidanceConfig`); an
open-loop schedule of g, [n_steps]; or one number."""

CENTRE = "centre"
Confidence = Callable[[Tensor], Tensor]
"""p(prompt | x̂₀), softened as in training, [B], of the estimate x̂₀ [B, …] in latents: the sixth state entry."""

_CONFIDENCE = STATE_NAMES.index("confidence")
_KINDS = ("epsilon", "v_prediction", "sample", "flow")


class Levels:
    """What a diffusers scheduler knows of its steps: how x_t is made of x₀ and ε, and what the network predicts.

    Everything is in the scale √ᾱ x₀ + √(1−ᾱ) ε. Flow matching, x_t = (1−σ) x₀ + σ ε, is brought to it by a factor.
    """

    def __init__(self, scheduler: Any) -> None:
        """Take a scheduler; its steps are read when a run has begun.

        Raises:
            InvalidInputError: one that does not say what the network predicts.
        """
        self.scheduler = scheduler
        name = type(scheduler).__name__
        config = getattr(scheduler, "config", None)
        if config is None or not hasattr(scheduler, "set_timesteps"):
            raise InvalidInputError(f"a {name} is no diffusers scheduler: give scheduler=pipeline.scheduler")
        flow = "Flow" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
        self.kind = "flow" if flow else config.get("prediction_type", "epsilon")
        if self.kind not in _KINDS:
            raise InvalidInputError(f"the network of a {name} predicts {self.kind!r}; allowed: {', '.join(_KINDS)}")

    @property
    def n_steps(self) -> int:
        """Predictions of the present run."""
        return len(self.scheduler.timesteps)

    def at(self, step: int) -> tuple[float, float, float]:
        """√ᾱ, √(1−ᾱ), and the factor from the network's input to that scale."""
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigmas is None:
            alpha = float(self.scheduler.alphas_cumprod[int(self.scheduler.timesteps[step])])
        elif self.kind == "flow":
            sigma = float(sigmas[step])
            norm = math.hypot(1.0 - sigma, sigma)
            return (1.0 - sigma) / norm, sigma / norm, 1.0 / norm
        else:
            alpha = 1.0 / (1.0 + float(sigmas[step]) ** 2)
        return math.sqrt(alpha), math.sqrt(1.0 - alpha), 1.0

    def seen(self, x: Tensor, step: int) -> Tensor:
        """x_t = √ᾱ x₀ + √(1−ᾱ) ε of the network's input x, [B, …]."""
        factor = self.at(step)[2]
        return x if factor == 1.0 else x * factor

    def noise(self, x: Tensor, step: int, output: Tensor) -> Tensor:
        """ε̂ [B, …] of the network's input and output."""
        signal, spread, factor = self.at(step)
        if self.kind == "epsilon":
            return output
        if self.kind == "flow":  # the output is ε − x₀; x_t = x₀ + σ (ε − x₀)
            return x + signal / factor * output
        if self.kind == "v_prediction":
            return signal * output + spread * x
        return (x - signal * output) / spread

    def estimate(self, x: Tensor, step: int, output: Tensor) -> Tensor:
        """The estimate x̂₀ [B, …] of the network's input and output."""
        signal, spread, factor = self.at(step)
        if self.kind == "sample":
            return output
        if self.kind == "flow":
            return x - spread / factor * output
        if self.kind == "v_prediction":
            return signal * x - spread * output
        return (x - spread * output) / signal


class Steering:
    """One policy over one sampling run after the other.

    Attributes:
        policy: the policy; None for a schedule or a number.
        guidance: settings that the policy's states and actions refer to; None for a schedule or a number.
        schedule: the scales g, [n_steps], of a schedule; None otherwise.
        constant: the number g; None otherwise.
        settings: what is saved with the policy, as far as known.
        g: scales of the present or last run, one tensor [B] a step.
    """

    def __init__(
        self,
        policy: AnyPolicy,
        *,
        scheduler: Any = None,
        guidance: GuidanceConfig | None = None,
        confidence: Confidence | str | None = None,
    ) -> None:
        """Check that everything needed is there.

        Args:
            policy: see `AnyPolicy`.
            scheduler: the pipeline's; a policy's state needs it.
            guidance: settings of a bare policy.
            confidence: makes the sixth state entry, or "centre": the entry is held at the centre of its calibration.

        Raises:
            InvalidInputError: settings that are missing, not calibrated, or given where none are needed.
        """
        self.policy: Policy | None = None
        self.schedule: Tensor | None = None
        self.constant: float | None = None
        self.settings: dict[str, Any] = {}
        if isinstance(policy, str | Path):
            folder = fetch(policy)
            if is_run(folder):
                policy = load_policy(folder)
            else:
                self.settings = saved_settings(folder)
                guidance = GuidanceConfig.from_dict(self.settings["guidance"])
                policy = load_policy_model(folder)
        if isinstance(policy, TrainedPolicy):
            guidance, self.settings = policy.config, policy.settings()
            policy = policy.policy
        if isinstance(policy, Policy):
            self.policy = policy
        else:
            self._take_numbers(policy)
        self.guidance, self.confidence = guidance, confidence
        self.levels = None if scheduler is None else Levels(scheduler)
        if self.policy is not None and guidance is not None:
            self.settings = {**self.settings, "guidance": guidance.to_dict()}
        self.g: list[Tensor] = []
        self._check()

    def _take_numbers(self, numbers: Any) -> None:
        try:
            values = torch.as_tensor(numbers, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"a {type(numbers).__name__} steers nothing; give a trained policy or its folder, a schedule of g "
                "[n_steps], or a number"
            ) from error
        if values.ndim > 1 or values.numel() == 0 or not bool(values.isfinite().all()):
            raise InvalidInputError(
                f"a schedule holds one finite scale a step, [n_steps], got {list(values.shape)}; scales of single "
                "images are for guidance.sample"
            )
        if values.ndim == 0:
            self.constant = float(values)
        else:
            self.schedule = values

    def _check(self) -> None:
        guidance, confidence = self.guidance, self.confidence
        if self.policy is None:
            if guidance is not None or confidence is not None:
                raise InvalidInputError("a number or a schedule needs neither guidance settings nor a confidence")
            return
        if guidance is None or not guidance.calibrated:
            raise InvalidInputError(
                "the policy's states and actions refer to settings that are not given: pass the TrainedPolicy "
                "(load_policy(run), TrainedPolicy.from_pretrained(folder)), or guidance=, calibrated, with the policy"
            )
        if guidance.pooled_features:
            raise InvalidInputError(
                "the policy sees pooled features of the U-Net's middle block (an embedding), which a guider or a "
                "callback does not see: use guidance.sample (qhw sample), which drives the network itself, or a policy "
                "without embedding"
            )
        if self.policy.n_features != guidance.n_state:
            raise InvalidInputError(
                f"the policy sees {self.policy.n_features} state entries, the settings make {guidance.n_state}"
            )
        if self.levels is None:
            raise InvalidInputError(
                "a policy's state needs the pipeline's scheduler, which says what the network predicts and how noisy "
                "each step is: give scheduler=pipeline.scheduler"
            )
        own = self.levels.scheduler.config.get("timestep_spacing")
        if guidance.spacing in SPACINGS and own not in (None, guidance.spacing):
            raise InvalidInputError(
                f"the policy is for timesteps spaced {guidance.spacing!r}, the pipeline's scheduler spaces {own!r}: "
                "pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, "
                f"timestep_spacing={guidance.spacing!r})"
            )
        if isinstance(confidence, str) and confidence != CENTRE:
            raise InvalidInputError(f"confidence is {confidence!r}; allowed: {CENTRE!r} or a function")
        if guidance.confidence_entry and confidence is None:
            raise InvalidInputError(
                "the policy was trained with a scorer's confidence as its sixth state entry, and there is no scorer "
                f"here. Give confidence=scorer_confidence(pipeline, scorer, labels), or confidence={CENTRE!r}, which "
                "holds the entry at its mean of the calibration: the policy then acts on a state it was not trained "
                "on. A policy trained with GuidanceConfig(confidence_entry=False) needs neither"
            )
        if not guidance.confidence_entry and confidence is not None:
            raise InvalidInputError("the policy was trained without the confidence entry: leave out confidence")

    @property
    def n_steps(self) -> int | None:
        """Steps a run is asked for (`num_inference_steps`); None where any number will do."""
        return None if self.guidance is None else self.guidance.n_steps

    def begin(self, asked: int, n_steps: int) -> None:
        """Start a run.

        Args:
            asked: steps the pipeline was asked for.
            n_steps: predictions it makes; PNDM makes one more than it is asked for.

        Raises:
            InvalidInputError: another number than the policy or the schedule is for.
        """
        if self.guidance is not None and asked != self.guidance.n_steps:
            raise InvalidInputError(
                f"the policy is for {self.guidance.n_steps} steps and the pipeline makes {asked}: pass "
                f"num_inference_steps={self.guidance.n_steps}. To use the policy at another number all the same: "
                "dataclasses.replace(trained, config=trained.config.replace(n_steps=…))"
            )
        if self.schedule is not None and n_steps != len(self.schedule):
            raise InvalidInputError(
                f"the schedule holds {len(self.schedule)} scales and this run makes {n_steps} predictions"
            )
        self._n_steps, self.g = n_steps, []
        self._bases: list[float] = [] if self.guidance is None else self.guidance.base_scales(n_steps).tolist()

    def scale(self, step: int, x: Tensor, cond: Tensor, null: Tensor) -> float | Tensor:
        """Guidance scale of a step whose predictions are made: a number, or [B] in the predictions' dtype.

        Args:
            step: index of the step.
            x: the network's input, [B, …].
            cond: the network's output with the prompt, [B, …].
            null: its output without, [B, …].
        """
        if self.policy is None:
            g = self.of_schedule(step)
            self.g.append(torch.full((len(cond),), g))
            return g
        assert self.guidance is not None
        if step == 0:  # before the first step the prediction at the base scale stands in for the last one
            self.remember(0, x, guided(cond, null, self._bases[0]), torch.zeros(len(x)))
        action, g_rows = self.decide(step, x, cond - null)
        self.g.append(g_rows.cpu())
        if step + 1 < self._n_steps:
            self.remember(step, x, guided(cond, null, g_rows.to(cond)), action)
        return g_rows.to(cond)

    def of_schedule(self, step: int) -> float:
        """The number, or the schedule's scale of a step."""
        if self.constant is not None:
            return self.constant
        assert self.schedule is not None
        return float(self.schedule[step])

    def remember(self, step: int, x: Tensor, output: Tensor, action: Tensor) -> None:
        """Keep what the next state needs of a step: ε̂ of its guided output, its action, the confidence of its x̂₀."""
        assert self.levels is not None
        x, output = _single(x), _single(output)
        self._last, self._action = self.levels.noise(x, step, output), action
        self._looked = self.confidence(self.levels.estimate(x, step, output)) if callable(self.confidence) else None

    def decide(self, step: int, x: Tensor, difference: Tensor | None) -> tuple[Tensor, Tensor]:
        """Applied ΔCFG and guidance scale g, float [B] each, of a step.

        Args:
            step: index of the step.
            x: the network's input there, [B, …].
            difference: its output with the prompt less that without, [B, …]; not needed by six state entries.
        """
        assert self.levels is not None
        guidance, policy = self.guidance, self.policy
        assert guidance is not None
        assert policy is not None
        if x.shape != self._last.shape:
            raise InvalidInputError(
                f"the batch is {list(x.shape)} now and was {list(self._last.shape)} a step before; one run at a time"
            )
        centre, width = torch.tensor(guidance.state_centre), torch.tensor(guidance.state_width)
        moved = None
        if guidance.extra_state and difference is not None:  # ε̂ is linear in the output, so x falls out
            moved = self.levels.noise(torch.zeros_like(_single(x)), step, _single(difference))
        looked = centre[_CONFIDENCE].expand(len(x)) if self._looked is None else self._looked
        raw = raw_state(
            remaining=(self._n_steps - step) / self._n_steps,
            x=self.levels.seen(_single(x), step),
            eps_last=self._last,
            action_last=self._action.to(x.device) / guidance.action_limit,
            confidence=looked.to(device=x.device, dtype=torch.float32),
            eps_difference=moved,
        )
        state = (raw - centre.to(raw)) / width.to(raw)
        own = next(policy.parameters(), state)
        mean = policy(state.to(device=own.device, dtype=own.dtype))[0][:, 0].to(state)
        return guidance.applied(mean), guidance.scale(mean, self._bases[step])


def _single(x: Tensor) -> Tensor:
    """Norms of half-precision tensors in single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
