"""Configurations of a guidance training, saved as JSON in every run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from qhw_diffusion.circuits.observables import check_observables_text
from qhw_diffusion.circuits.policy import PAPER_ANSATZ, check_policy_ansatz
from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.resnet import ENDINGS, is_published
from qhw_diffusion.diffusion.sampler import OWN_SPACING, SPACINGS
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.execution import check_engine_text
from qhw_diffusion.extensions import is_extension

if TYPE_CHECKING:
    from torch import Tensor

Weight: TypeAlias = float
"""Type of a field of `RewardConfig` that is the weight of the built-in reward term of its name."""
STEPWISE_KINDS = ("confidence", "ssim", "lpips")
KERNELS = ("distance", "polynomial")
FEATURES = ("classifier", "layers", "pixels")
POLICY_KINDS = ("quantum", "frozen", "frozen_head", "unentangled", "matched", "mlp", "annealing")
QUANTUM_KINDS = ("quantum", "frozen", "frozen_head", "unentangled")
METHODS = ("ppo", "pathwise")
"""How a policy is trained: by proximal policy optimisation, or by the exact gradient through the sampler."""
BUILT_IN_SCORER = "classifier"
"""The scorer of a configuration that names no other: the reward classifier of its data set."""
OBJECT = "object:"
"""Marks, in a saved configuration, what was passed as an object in Python: ``object:name``."""
FIXED = "fixed"
"""Observables of a policy that are those of its ansatz."""


RENAMED: dict[str, dict[str, str]] = {
    "run": {"actor": "policy"},
    "ModelConfig": {"judge": "evaluation_classifier"},
    "GuidanceConfig": {"starts": "noise_pool"},
    "PPOConfig": {
        "updates": "num_iterations",
        "rollout_steps": "num_steps",
        "clip": "clip_coef",
        "entropy": "ent_coef",
        "value": "vf_coef",
        "epochs": "update_epochs",
        "minibatches": "num_minibatches",
        "lr_circuit": "learning_rate_circuit",
        "lr_head": "learning_rate_head",
        "lr_critic": "learning_rate_critic",
        "lr_final": "learning_rate_final",
    },
}
"""Names in run folders of earlier versions → today's: the parts of config.json ("run") and the fields of each part."""


def today(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Saved entries under today's names (see `RENAMED`)."""
    return {RENAMED[what].get(name, name): value for name, value in values.items()}


class _Renamed(Config):
    """A configuration some of whose fields had other names in earlier versions."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration from what `to_dict` wrote, in this version or an earlier one (see `Config.from_dict`)."""
        return super().from_dict(today(values, cls.__name__) if isinstance(values, Mapping) else values)


@dataclass(frozen=True)
class GuidanceConfig(_Renamed):
    """The sampler and the policy's view of it: g_t = clip(g0 + a_t, g_min, g_max), a_t ∈ [−limit, limit].

    The paper (arXiv 2509.14163) has g0 = 5 and [1, 12]; a good base differs by data set, so take both from
    `sweep_constants` (digits: about 1.2).
    """

    dataset: str = "digits"
    """Backbone and data set: a name, or a folder."""
    n_steps: int = 6
    """DDIM steps of one episode."""
    spacing: str = "leading"
    """Spacing of the timesteps: "leading" (from 4 steps; the first of 6 is timestep 830 of 999), "trailing" or
    "linspace" (both start at the noisiest level), or "scheduler": that of the model's own diffusers scheduler."""
    g0: float = 1.2
    """Base guidance scale: what a_t = 0 gives."""
    base_schedule: tuple[float, ...] = ()
    """Base scale of every step in place of g0, the noisiest step first: a schedule that the policy corrects. At another
    number of steps it is interpolated in the share of the steps done. Empty: g0 at every step."""
    g_min: float = 0.0
    """Lowest guidance scale."""
    g_max: float = 4.0
    """Highest guidance scale."""
    action_limit: float = 2.0
    """Largest |a_t|."""
    extra_state: bool = False
    """Seventh state entry, ‖ε_c − ε_∅‖/√d."""
    confidence_entry: bool = True
    """The scorer's confidence as sixth state entry. Without it the entry is held at its centre, and the policy needs no
    scorer where it is used: for prompts that no scorer knows."""
    pooled_features: bool = False
    """Behind the entries the pooled features of the U-Net: the output of its middle block with the prompt or label,
    averaged over positions, as many numbers as the block has channels. The policy takes them in by its embedding, which
    sets this."""
    confidence_temperature: float = 4.0
    """Temperature of the confidence in the sixth state entry (logits are divided by it); at 1 it sits at its upper
    bound in most states of a well-trained backbone. Rewards always use temperature 1."""
    scorer: str = BUILT_IN_SCORER
    """What the state's confidence and the reward look through: "classifier" (the reward classifier of the data set), or
    an own scorer as module:name or file.py:name."""
    noise_pool: int = 1000
    """Size of the initial-noise pool: pairs of label and noise that a training environment draws its episodes from. For
    each the image of the base scale is sampled once, so that the distribution term can be read against it: a base line
    that depends on label and noise and not on the action takes most of the noise out of the policy gradient and no bias
    in. 0: fresh labels and noise for every episode, and no base line."""
    state_centre: tuple[float, ...] = ()
    """Centre of each state entry; empty: measured once on random-action rollouts (`calibrate_state`)."""
    state_width: tuple[float, ...] = ()
    """Half-width of each state entry (two standard deviations); the policy sees (entry − centre) / width."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_whole(self, "n_steps")
        if self.spacing not in (*SPACINGS, OWN_SPACING):
            raise UnknownNameError.of("spacing", str(self.spacing), (*SPACINGS, OWN_SPACING))
        require(
            self.g_min <= self.g0 <= self.g_max and self.g_min < self.g_max,
            f"the guidance scale needs g_min ≤ g0 ≤ g_max and g_min < g_max, "
            f"got g_min={self.g_min}, g0={self.g0}, g_max={self.g_max}",
        )
        outside = [g for g in self.base_schedule if not self.g_min <= g <= self.g_max]
        require(
            not outside,
            f"base_schedule holds {outside}, outside g_min={self.g_min} and g_max={self.g_max}: widen the range",
        )
        check_scorer_text(self.scorer)
        require(self.noise_pool >= 0, f"noise_pool must not be negative, got {self.noise_pool}")
        require(self.action_limit > 0, f"action_limit must be positive, got {self.action_limit}")
        require(self.confidence_temperature > 0, f"confidence_temperature must be > 0: {self.confidence_temperature}")
        for name in ("state_centre", "state_width"):
            given, entries = len(getattr(self, name)), self.n_entries
            fits = given == 0 or (given > entries if self.pooled_features else given == entries)
            wanted = f"{entries} entries{' and one for each pooled feature' if self.pooled_features else ''}"
            require(fits, f"{name} needs {wanted} (or none, to be measured), got {given}")
        require(bool(self.state_centre) == bool(self.state_width), "give state_centre and state_width together")
        require(
            len(self.state_centre) == len(self.state_width),
            f"state_centre has {len(self.state_centre)} numbers and state_width {len(self.state_width)}",
        )
        require(all(w > 0 for w in self.state_width), f"state_width must be positive, got {self.state_width}")

    @property
    def n_entries(self) -> int:
        """Number of state entries: 6, or 7 with `extra_state`."""
        return 7 if self.extra_state else 6

    @property
    def n_pooled(self) -> int:
        """Number F of pooled features behind the entries; 0 without them, and as long as they are not calibrated."""
        return len(self.state_centre) - self.n_entries if self.pooled_features and self.calibrated else 0

    @property
    def n_state(self) -> int:
        """Length of the state: its entries and the pooled features."""
        return self.n_entries + self.n_pooled

    def base_scales(self, n_steps: int) -> Tensor:
        """Base scale of each step, float64 [n_steps]: what a_t = 0 gives."""
        import torch  # the settings alone are read where nothing is computed

        from qhw_diffusion.guidance.schedules import resampled

        if not self.base_schedule:
            return torch.full((n_steps,), self.g0, dtype=torch.float64)
        return resampled(torch.tensor(self.base_schedule, dtype=torch.float64), n_steps)

    @property
    def base_name(self) -> str:
        """What sampling at the base scales is called in tables."""
        return "base schedule" if self.base_schedule else f"constant g = {self.g0:g}"

    def scale(self, action: Tensor, base: Tensor | float) -> Tensor:
        """Guidance scale g = clip(base + clip(a, ± limit), g_min, g_max) of actions a (ΔCFG) of any shape.

        Args:
            action: the actions.
            base: base scale of their step (`base_scales`), or of each.
        """
        return (base + self.applied(action)).clamp(self.g_min, self.g_max)

    def applied(self, action: Tensor) -> Tensor:
        """ΔCFG as applied: the action clipped to ± the limit."""
        return action.clamp(-self.action_limit, self.action_limit)

    @staticmethod
    def around(g0: float, limit: float, schedule: Sequence[float] = ()) -> dict[str, Any]:
        """The settings g0, g_min and g_max of base scales and the reach of the action: base ± limit, not below 0."""
        bases = (g0, *schedule)
        return {"g0": g0, "g_min": max(0.0, min(bases) - limit), "g_max": max(bases) + limit}

    @property
    def calibrated(self) -> bool:
        """Whether centre and width of the state entries are known."""
        return bool(self.state_centre)


@dataclass(frozen=True)
class RewardConfig(Config):
    """Weights of the reward terms, R = Σ weight · term; a weight of 0 leaves the term out.

    The published weights are in `RewardConfig.published()`. The default rewards the distribution instead of one
    classifier's confidence, because a policy that chases confidence fools the classifier.
    """

    confidence: Weight = 0.0
    """Weight α of log p(y | image) of the final images."""
    stepwise: Weight = 0.0
    """Weight β of the improvement of x̂₀ from one step to the next."""
    stepwise_kind: str = "confidence"
    """What improves: "confidence" (Δp), "ssim" or "lpips" (against the class's mean training image)."""
    lpips_weights: str | None = None
    """Weights of the LPIPS network, for "lpips": safetensors file of SqueezeNet 1.1 with trained weights, in
    torchvision's or lpips' names."""
    action_penalty: Weight = 0.005
    """Weight λ_act of −‖a_t‖²."""
    total_variation: Weight = 0.0
    """Weight λ_tv of −TV(x̂₀)."""
    distribution: Weight = 1.0
    """Weight of the kernel-MMD witness of the final images. Its mean says how much nearer they are to the real ones
    than those of the base scale g0 (from the same labels and noise where there is a pool of them): half the fall of
    MMD², in units of the witness's standard deviation between policies that act at random."""
    distribution_by_class: bool = True
    """Compare images of the same label only: the joint distribution of image and label."""
    distribution_kernel: str = "distance"
    """Kernel of the witness: "distance" (energy distance on standardised features) or "polynomial" (KID's)."""
    distribution_features: str = "classifier"
    """What the distribution term compares images in: "classifier" (the scorer's features), "layers" (several layers of
    the scorer), "pixels", the folder of another reward classifier, a file of published weights (as an evaluation
    classifier's, and never the same one), or own features as module:name or file.py:name; several joined by +:
    "classifier+pixels", or an ensemble of networks. What is gained in some features is not always gained in others."""
    distribution_offset: float | None = None
    """MMD² of the images of the base scale; without it measured before training."""
    distribution_scale: float | None = None
    """Standard deviation of the witness (less the base line) under random actions; without it measured before
    training."""
    extra: tuple[str, ...] = ()
    """Own terms with their weights: weight*module:name or weight*file.py:name (without weight: 1)."""

    def __post_init__(self) -> None:
        check_finite(self)
        if self.stepwise_kind not in STEPWISE_KINDS:
            raise UnknownNameError.of("stepwise_kind", self.stepwise_kind, STEPWISE_KINDS)
        if self.distribution_kernel not in KERNELS:
            raise UnknownNameError.of("distribution_kernel", self.distribution_kernel, KERNELS)
        check_features_text(self.distribution_features)
        for name in self.weights():
            value = getattr(self, name)
            require(value >= 0, f"the weight {name} must not be negative (the terms carry the sign), got {value}")
        require(
            self.lpips_weights is None or (self.stepwise_kind == "lpips" and self.stepwise > 0),
            "lpips_weights are used by the stepwise term of kind lpips alone: give stepwise_kind lpips and a positive "
            f"weight stepwise with them, not {self.stepwise_kind} and {self.stepwise:g}",
        )
        self.extra_terms()
        require(
            (self.distribution_offset is None) == (self.distribution_scale is None),
            "give distribution_offset and distribution_scale together, or neither",
        )
        if self.distribution_scale is not None:
            require(self.distribution_scale > 0, f"distribution_scale must be positive: {self.distribution_scale}")

    def extra_terms(self) -> list[tuple[float, str]]:
        """Weight and ``module:name`` of every own term.

        Raises:
            InvalidInputError: an entry that is not written so, or a negative weight.
        """
        found = []
        for entry in self.extra:
            before, star, after = str(entry).partition("*")
            text = after if star else before
            try:
                weight = float(before) if star else 1.0
            except ValueError:
                weight = math.nan
            flag = f"--reward-{text.replace('_', '-')}"
            built_in = f"; {text} is built in, its weight is {flag}" if text in self.weights() else ""
            require(
                math.isfinite(weight) and weight >= 0 and (text.startswith(OBJECT) or is_extension(text)),
                f"an own reward term is written weight*module:name or weight*file.py:name, the weight a number from 0 "
                f"(the term carries the sign), got {entry!r}{built_in}",
            )
            found.append((weight, text))
        return found

    @classmethod
    def weights(cls) -> tuple[str, ...]:
        """Names of the fields that are weights: those of the built-in terms."""
        return tuple(f.name for f in fields(cls) if f.type == "Weight")

    @classmethod
    def published(cls) -> RewardConfig:
        """The weights of arXiv 2509.14163: α 1, β .2, λ_act .005, no distribution term."""
        return cls(confidence=1.0, stepwise=0.2, action_penalty=0.005, distribution=0.0)


def check_features_text(text: str) -> None:
    """Refuse a text that names no features of the distribution term (`RewardConfig.distribution_features`).

    Raises:
        UnknownNameError: a part that is neither built in, a folder, a file of weights, nor ``module:name``.
    """
    for part in text.split("+"):
        # a file of weights is looked for when it is loaded: a study's record is read where there is none
        there = bool(part) and (Path(part).is_dir() or Path(part).suffix in ENDINGS)
        if part not in FEATURES and not is_extension(part) and not there:
            raise UnknownNameError(
                f"unknown features {part!r} in {text!r}; allowed: {', '.join(FEATURES)}, the folder of a reward "
                "classifier or a file of published weights, own features as module:name or file.py:name, and several "
                "of them joined by +"
            )
    parts = text.split("+")
    require(len(set(parts)) == len(parts), f"features named twice: {text}")


def check_apart(models: ModelConfig, reward: RewardConfig) -> None:
    """Refuse an evaluation classifier that the reward looks through.

    A folder keeps its role, and is refused by it; a file of published weights has none.

    Raises:
        InvalidInputError: it is the reward classifier's file, or one of the distribution term's features.
    """
    if models.evaluation_classifier is None or not is_published(models.evaluation_classifier):
        return
    judge = Path(models.evaluation_classifier).resolve()
    for name in (models.reward_classifier or "", *reward.distribution_features.split("+")):
        require(
            not is_published(name) or Path(name).resolve() != judge,
            f"{name} is given for the evaluation classifier and for the reward: what evaluates must stay unseen; name "
            "another network for one of them",
        )


def check_scorer_text(text: str) -> None:
    """Refuse a text that names no scorer.

    Raises:
        UnknownNameError: neither the built-in scorer nor ``module:name``.
    """
    if text != BUILT_IN_SCORER and not text.startswith(OBJECT) and not is_extension(text):
        raise UnknownNameError.of("scorer", text, [BUILT_IN_SCORER], own=True)


def cosine_decay(iteration: int, iterations: int, final: float) -> float:
    """Factor of a learning rate that falls by a cosine from 1 at iteration 0 to `final` at the last one."""
    progress = iteration / max(1, iterations - 1)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class PPOConfig(_Renamed):
    """Proximal policy optimisation (arXiv 1707.06347), with CleanRL's names.

    γ, λ and the coefficients of clipping, entropy, value and gradient norm are those of arXiv 2509.14163.
    """

    num_iterations: int = 60
    """Iterations: one rollout and its updates each."""
    num_envs: int = 128
    """Environments stepped together, B."""
    num_steps: int | None = None
    """Steps of one rollout, T; without it one whole episode."""
    gamma: float = 0.995
    """Discount γ."""
    gae_lambda: float = 0.95
    """Parameter λ of the generalised advantage estimate."""
    clip_coef: float = 0.1
    """Clipping range of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Largest gradient norm (all parameters together); clipped to it."""
    update_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Minibatches per pass, of sizes that differ by one at most, each of two rows (environment and step) or more."""
    learning_rate_circuit: float = 3e-3
    """Learning rate of the quantum part (weights and input scaling)."""
    learning_rate_head: float = 1e-3
    """Learning rate of the policy's classical part."""
    learning_rate_critic: float = 1e-3
    """Learning rate of the critic."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    learning_rate_final: float = 0.0
    """Fraction of each learning rate at which the cosine decay ends; 1 keeps it constant."""
    adam_eps: float = 1e-5
    """Adam's ε (CleanRL's and Stable-Baselines3's value)."""
    seed: int = 0
    """Seed of action noise, minibatch order and network initialisation."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_whole(self, "num_iterations", "num_envs", "update_epochs", "num_minibatches", "checkpoint_every")
        if self.num_steps is not None:
            check_whole(self, "num_steps")
            self.check_minibatches(self.num_steps)
        for name in ("gamma", "gae_lambda", "learning_rate_final"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("clip_coef", "max_grad_norm", "adam_eps"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "ent_coef",
            "vf_coef",
            "learning_rate_circuit",
            "learning_rate_head",
            "learning_rate_critic",
            "weight_decay",
        ):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(0 <= self.seed < 2**63, f"seed must be a non-negative 63-bit integer, got {self.seed}")

    @classmethod
    def short(cls, **changes: Any) -> PPOConfig:
        """Settings for runs of some tens of iterations (measured on digits, 6 steps).

        Larger rates and smaller minibatches, no discount, a wider clip, no entropy bonus, since the action noise need
        not last.
        """
        settings: dict[str, Any] = {
            "num_iterations": 32,
            "num_envs": 192,
            "num_minibatches": 8,
            "gamma": 1.0,
            "clip_coef": 0.2,
            "ent_coef": 0.0,
            "learning_rate_circuit": 5e-2,
            "learning_rate_head": 1e-2,
            "learning_rate_critic": 3e-3,
            "learning_rate_final": 0.1,
        }
        return cls(**{**settings, **changes})

    def check_minibatches(self, steps: int) -> None:
        """Refuse minibatches of less than two rows, whose advantages have no standard deviation to be divided by.

        Args:
            steps: T, the steps of one rollout.

        Raises:
            InvalidInputError: less than 2 · `num_minibatches` rows in a rollout.
        """
        rows = self.num_envs * steps
        require(
            rows >= 2 * self.num_minibatches,
            f"{self.num_minibatches} minibatches of {self.num_envs} environments × {steps} steps = {rows} rows: each "
            f"needs two rows or more to normalise its advantages; allowed are at most {rows // 2} minibatches",
        )

    def learning_rate_factor(self, iteration: int) -> float:
        """Cosine decay from 1 at iteration 0 to `learning_rate_final` at the last one."""
        return cosine_decay(iteration, self.num_iterations, self.learning_rate_final)


@dataclass(frozen=True)
class PathwiseConfig(Config):
    """Training by the exact gradient of the mean reward through sampler, diffusion model, scorer and policy.

    The gradient runs through all sampling steps, as in DRaFT (arXiv 2309.17400), and through the policy's circuit with
    its device noise. The policy acts by its mean action, which is also what is evaluated.
    """

    num_iterations: int = 60
    """Iterations: one batch of images and one update each."""
    num_images: int = 160
    """Images per iteration, B: fresh labels and noise, every class as often as the others."""
    truncate_steps: int | None = None
    """Last sampling steps K that the gradient runs through (DRaFT-K); without it all of them."""
    gradient_checkpointing: bool = False
    """Activations of the diffusion model recomputed in the backward pass, step by step, instead of kept: memory of
    one step in place of all, for one more evaluation a step."""
    learning_rate_circuit: float = 5e-2
    """Learning rate of the quantum part (weights and input scaling)."""
    learning_rate_head: float = 1e-2
    """Learning rate of the policy's classical part."""
    learning_rate_schedule: float = 1e-2
    """Learning rate of a free schedule's scales."""
    learning_rate_final: float = 0.1
    """Fraction of each learning rate at which the cosine decay ends; 1 keeps it constant."""
    max_grad_norm: float = 0.5
    """Largest gradient norm (all parameters together); clipped to it."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    adam_eps: float = 1e-8
    """Adam's ε."""
    seed: int = 0
    """Seed of labels, noise and network initialisation."""
    checkpoint_every: int = 10
    """Iterations between two checkpoints."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_whole(self, "num_iterations", "num_images", "checkpoint_every")
        if self.truncate_steps is not None:
            check_whole(self, "truncate_steps")
        for name in ("max_grad_norm", "adam_eps"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("learning_rate_circuit", "learning_rate_head", "learning_rate_schedule", "weight_decay"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(
            0 <= self.learning_rate_final <= 1,
            f"learning_rate_final must lie in [0, 1], got {self.learning_rate_final}",
        )
        require(0 <= self.seed < 2**63, f"seed must be a non-negative 63-bit integer, got {self.seed}")

    def learning_rate_factor(self, iteration: int) -> float:
        """Cosine decay from 1 at iteration 0 to `learning_rate_final` at the last one."""
        return cosine_decay(iteration, self.num_iterations, self.learning_rate_final)


@dataclass(frozen=True)
class PolicyConfig(Config):
    """Which policy, and for a quantum one the circuit, the device it is compiled for and the engine."""

    kind: str = "quantum"
    """Kind of the policy: "quantum", "frozen" (the quantum part stays random, the head is trained), "frozen_head" (the
    head stays random, the quantum part is trained), "unentangled" (no CNOTs), "matched" (MLP with as many parameters as
    the quantum policy), "mlp" (9,282 parameters) or "annealing" (arXiv 2506.24108)."""
    device: str = "fake_marrakesh"
    """Device the circuit is compiled for: a name, a snapshot file, or your own as module:name or file.py:name."""
    engine: str = "noisy"
    """Engine the circuit is trained on: "ideal", "noisy" or `shots[:N][:seed=S][:ideal]` (sampled values, exact
    gradients; ideal: without noise), mitigated: "noisy+readout+zne:linear:1,3"."""
    ansatz: str = PAPER_ANSATZ
    """Ansatz of the policy circuit: "paper" (arXiv 2509.14163), or an own function as module:name or file.py:name."""
    n_qubits: int = 4
    """Qubits of the policy circuit."""
    depth: int = 2
    """Layers of the policy circuit."""
    entanglement: str = "ring"
    """Entanglement of the circuit: "ring", "chain" or "none" (always "none" for the kind "unentangled")."""
    reuploading: bool = False
    """Encoding repeated before every layer."""
    observables: str = "fixed"
    """Observables of the circuit: "fixed" (those of the ansatz, ⟨Z⟩ of every qubit unless it brings others), or
    "adaptive:K" (trained Hermitian ones on K neighbouring qubits of a ring; "adaptive:K:chain": of a chain)."""
    output_scaling: bool = False
    """Trainable factor for each expectation value."""
    linear_head: bool = False
    """Head of a quantum policy that is one linear layer, in place of an MLP with 64 and 32 hidden units. Of the kind
    "mlp": a linear policy."""
    embedding: int = 0
    """Learned entries of the state, besides its six or seven: a linear layer with tanh makes so many of the U-Net's
    pooled features (pooled_features), and is trained with the head. A circuit of n qubits takes 2n entries in all, of
    two qubits eight."""
    discrete_actions: tuple[float, ...] = ()
    """Discrete actions: ΔCFG values that the policy chooses among, such as -1,-0.5,0,0.5,1 (categorical; trained by
    PPO); without them its action is a Gaussian ΔCFG."""
    initial_std: float = 0.7
    """Standard deviation of the actions before training."""
    gain: float = 1.0
    """Size of the head's last layer before training. Near 0 the policy starts as the base scale, but then hardly
    any gradient reaches the circuit at first."""
    optimization_level: int = 3
    """Qiskit's preset level for compiling."""
    scheduled: bool = False
    """Circuit scheduled with delays, so that waiting qubits relax under the noisy engine."""
    transpile_seed: int = 0
    """Seed of the transpiler; part of the circuit's definition, so the same for every training seed."""

    def __post_init__(self) -> None:
        check_finite(self)
        if self.kind not in POLICY_KINDS:
            raise UnknownNameError.of("policy kind", self.kind, POLICY_KINDS)
        check_engine_text(self.engine)
        if not self.ansatz.startswith(OBJECT):
            check_policy_ansatz(self.ansatz)
        if self.observables != FIXED:
            check_observables_text(self.observables)
        require(self.n_qubits >= 1 and self.depth >= 1, f"n_qubits and depth ≥ 1: {self.n_qubits}, {self.depth}")
        check_whole(self, "embedding", least=0)
        require(
            self.kind != "annealing" or self.embedding == 0,
            f"the annealing policy sees two state entries and no others; leave out embedding, got {self.embedding}",
        )
        require(
            len(self.discrete_actions) != 1 and len(set(self.discrete_actions)) == len(self.discrete_actions),
            f"discrete_actions are two or more different values, or none, got {self.discrete_actions}",
        )
        require(
            not (self.linear_head and self.kind == "annealing"),
            "the annealing policy is an MLP of two entries and has no linear_head; allowed: the other kinds",
        )
        require(self.initial_std > 0 and self.gain > 0, f"initial_std and gain > 0: {self.initial_std}, {self.gain}")

    @property
    def uses_circuit(self) -> bool:
        """Whether the policy holds a circuit."""
        return self.kind in QUANTUM_KINDS


@dataclass(frozen=True)
class ModelConfig(_Renamed):
    """Data set, backbone and the two classifiers. A shipped one is named by its data set, others by their folder."""

    data: str = "digits"
    """Data set: digits, mnist16 or another built-in name, module:name or file.py:name. With a pipeline: own images of
    the prompts, label i those of prompt i (a function that takes prompts= is given the table); without it there are
    none."""
    data_root: str | None = None
    """Folder of the data set, in torchvision's layout; digits need none."""
    backbone: str | None = None
    """Folder of a trained backbone; without it the one shipped for the data set."""
    pipeline: str | None = None
    """Stable Diffusion pipeline in place of a backbone: folder in diffusers' format, or name of one that comes with the
    package."""
    prompts: str | None = None
    """Prompts of the pipeline: text file, one a line, or an own table as module:name or file.py:name; without it the
    table that the pipeline's folder holds."""
    pipeline_batch: int = 16
    """Images that the pipeline's networks are given at once, at most; less takes less memory."""
    reward_classifier: str | None = None
    """Folder of the reward classifier; without it the shipped one."""
    evaluation_classifier: str | None = None
    """Folder of the evaluation (held-out) classifier; without it the shipped one. With a pipeline: a scorer that no
    training saw, as module:name or file.py:name."""
    reference_images: int = 5000
    """Training images (at most) that the reward side compares with, a fixed random choice."""

    def __post_init__(self) -> None:
        require(self.reference_images >= 10, f"reference_images must be at least 10, got {self.reference_images}")
        require(self.pipeline_batch >= 1, f"pipeline_batch must be at least 1, got {self.pipeline_batch}")
        require(
            self.pipeline is None or self.backbone is None, "a pipeline takes the place of a backbone: give one of them"
        )
        require(self.prompts is None or self.pipeline is not None, "prompts are for a pipeline: give its folder too")

    @property
    def images_of_prompts(self) -> bool:
        """Whether there are real images of a pipeline's prompts."""
        return self.pipeline is not None and self.data != "digits"


@dataclass(frozen=True)
class GuidanceTraining(Config):
    """Everything that decides one training of a guidance policy."""

    models: ModelConfig = field(default_factory=ModelConfig)
    """Data set, backbone and classifiers."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Sampler and state; its data set is that of `models`."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Reward terms."""
    method: str = "ppo"
    """Training method: "ppo" (proximal policy optimisation: samples actions, takes any reward) or "pathwise" (the exact
    gradient through sampler, diffusion model, scorer and noisy circuit: needs reward terms with a gradient)."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Training by PPO."""
    pathwise: PathwiseConfig = field(default_factory=PathwiseConfig)
    """Pathwise training."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Policy, device and engine."""
    sweep_images: int = 512
    """Images per constant in the sweep that finds g0 and the range; 0 for no sweep, as where g0 is given."""

    def __post_init__(self) -> None:
        extra = self.policy.kind == "annealing" or self.guidance.extra_state
        pooled = self.policy.embedding > 0 or self.guidance.pooled_features
        dataset = self.models.pipeline or self.models.data
        guidance = self.guidance.replace(dataset=dataset, extra_state=extra, pooled_features=pooled)
        object.__setattr__(self, "guidance", guidance)
        check_apart(self.models, self.reward)
        require(self.sweep_images >= 0, f"sweep_images must not be negative, got {self.sweep_images}")
        if self.method not in METHODS:
            raise UnknownNameError.of("method", self.method, METHODS)
        if self.method == "ppo":  # told now, not after the sweep
            self.ppo.check_minibatches(self.ppo.num_steps or guidance.n_steps)

    @property
    def method_config(self) -> PPOConfig | PathwiseConfig:
        """Settings of the method asked for."""
        return self.ppo if self.method == "ppo" else self.pathwise

    @classmethod
    def for_pipeline(cls, pipeline: str) -> GuidanceTraining:
        """The settings that a training on a pipeline starts from.

        The timesteps are those of the pipeline's own scheduler. Without real images nothing is compared with images of
        the base scale, so there is no pool of initial noise and no sweep.
        """
        return cls(
            models=ModelConfig(pipeline=pipeline),
            guidance=GuidanceConfig(spacing=OWN_SPACING, noise_pool=0),
            sweep_images=0,
        )
