"""What a guidance training is made of: frozen settings, each documented, saved as JSON in every run folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from qhw_diffusion.diffusion.sampler import SPACINGS
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import check_engine_text

STEPWISE_KINDS = ("confidence", "ssim", "lpips")
KERNELS = ("distance", "polynomial")
ACTOR_KINDS = ("quantum", "frozen", "unentangled", "matched", "mlp", "annealing")
QUANTUM_KINDS = ("quantum", "frozen", "unentangled")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidInputError(message)


def _whole(config: Any, *names: str) -> None:
    """Each of these settings is a whole number from 1."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value >= 1, f"{name} must be at least 1, a whole number, got {value!r}")


def _finite(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float):
            _require(math.isfinite(value), f"{type(config).__name__}.{field.name} must be finite, got {value}")


@dataclass(frozen=True)
class _JsonConfig:
    """Round trip through plain JSON types; unknown keys are refused, so that a typo never becomes a default."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types (tuples become lists)."""
        return {
            f.name: list(value) if isinstance(value := getattr(self, f.name), tuple) else value
            for f in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises UnknownNameError for a setting that does not exist."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise UnknownNameError.of(f"{cls.__name__} setting", key, names)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed (validated again)."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class GuidanceConfig(_JsonConfig):
    """The sampler and the controller's view of it: g_t = clip(g0 + a_t, g_min, g_max), a_t ∈ [−limit, limit].

    The paper (arXiv 2509.14163) has g0 = 5 and [1, 12]; a good base differs by data set, so take both from
    `sweep_constants` (digits: about 1.2).
    """

    dataset: str = "digits"
    """Name (or folder) of the backbone and its data set."""
    n_steps: int = 6
    """DDIM steps of one episode."""
    spacing: str = "leading"
    """How the timesteps are spread: "leading" (from 4 steps; the first of 6 is timestep 830 of 999), "trailing" or
    "linspace" (both start at the noisiest level)."""
    g0: float = 1.2
    """Base guidance scale: what a_t = 0 gives."""
    g_min: float = 0.0
    """Lowest guidance scale."""
    g_max: float = 4.0
    """Highest guidance scale."""
    action_limit: float = 2.0
    """|a_t| is at most this."""
    extra_state: bool = False
    """Adds the seventh state entry, ‖ε_c − ε_∅‖/√d."""
    confidence_temperature: float = 4.0
    """Softens the proxy confidence of the sixth state entry (logits are divided by it); at 1 it sits at its upper
    bound in most states of a well-trained backbone. Rewards always use temperature 1."""
    starts: int = 1000
    """Number of different starting points (label and noise) a training environment draws its episodes from. For each
    one the image of the base scale is sampled once, so that the distribution term can be read against it: a base line
    that depends on the starting point and not on the action takes most of the noise out of the policy gradient and no
    bias in. 0: fresh starting points for every episode, and no base line."""
    state_centre: tuple[float, ...] = ()
    """Centre of each state entry; empty: measured once on random-action rollouts (`calibrate_state`)."""
    state_width: tuple[float, ...] = ()
    """Half-width of each state entry (two standard deviations); the actor sees (entry − centre) / width."""

    def __post_init__(self) -> None:
        _finite(self)
        _whole(self, "n_steps")
        if self.spacing not in SPACINGS:
            raise UnknownNameError.of("spacing", str(self.spacing), SPACINGS)
        _require(
            self.g_min <= self.g0 <= self.g_max and self.g_min < self.g_max,
            f"the guidance scale needs g_min ≤ g0 ≤ g_max and g_min < g_max, "
            f"got g_min={self.g_min}, g0={self.g0}, g_max={self.g_max}",
        )
        _require(self.starts >= 0, f"starts must not be negative, got {self.starts}")
        _require(self.action_limit > 0, f"action_limit must be positive, got {self.action_limit}")
        _require(self.confidence_temperature > 0, f"confidence_temperature must be > 0: {self.confidence_temperature}")
        for name in ("state_centre", "state_width"):
            values = getattr(self, name)
            _require(
                len(values) in (0, self.n_state),
                f"{name} needs {self.n_state} entries (or none, to be measured), got {len(values)}",
            )
        _require(bool(self.state_centre) == bool(self.state_width), "give state_centre and state_width together")
        _require(all(w > 0 for w in self.state_width), f"state_width must be positive, got {self.state_width}")

    @property
    def n_state(self) -> int:
        """Number of state entries: 6, or 7 with `extra_state`."""
        return 7 if self.extra_state else 6

    @property
    def calibrated(self) -> bool:
        """Whether centre and width of the state entries are known."""
        return bool(self.state_centre)


@dataclass(frozen=True)
class RewardConfig(_JsonConfig):
    """Weights of the reward terms, R = Σ weight · term; a weight of 0 leaves the term out.

    The published weights are in `RewardConfig.published()`. The default rewards the distribution instead of one
    classifier's confidence, because a controller that chases confidence fools the classifier.
    """

    confidence: float = 0.0
    """α of log p(y | x̂₀) at the last step."""
    stepwise: float = 0.0
    """β of the improvement of x̂₀ from one step to the next."""
    stepwise_kind: str = "confidence"
    """What improves: "confidence" (Δp), "ssim" or "lpips" (against the class's mean training image)."""
    lpips_weights: str | None = None
    """For "lpips": safetensors file of SqueezeNet 1.1 with trained weights, in torchvision's or lpips' names."""
    action_penalty: float = 0.005
    """λ_act of −‖a_t‖²."""
    total_variation: float = 0.0
    """λ_tv of −TV(x̂₀)."""
    distribution: float = 1.0
    """Weight of the kernel-MMD witness of the final images. Its mean says how much nearer they are to the real ones
    than those of the base scale g0 (from the same starting points where there is a pool of them): half the fall of
    MMD², in units of the witness's standard deviation between controllers that act at random."""
    distribution_by_class: bool = True
    """Compare images of the same label only: the joint distribution of image and label."""
    distribution_kernel: str = "distance"
    """Kernel of the witness: "distance" (energy distance on standardised features) or "polynomial" (KID's)."""
    distribution_offset: float | None = None
    """MMD² of the images of the base scale; None: measured before training."""
    distribution_scale: float | None = None
    """Standard deviation of the witness (less the base line) under random actions; None: measured before training."""

    def __post_init__(self) -> None:
        _finite(self)
        if self.stepwise_kind not in STEPWISE_KINDS:
            raise UnknownNameError.of("stepwise_kind", self.stepwise_kind, STEPWISE_KINDS)
        if self.distribution_kernel not in KERNELS:
            raise UnknownNameError.of("distribution_kernel", self.distribution_kernel, KERNELS)
        for name in ("confidence", "stepwise", "action_penalty", "total_variation", "distribution"):
            value = getattr(self, name)
            _require(value >= 0, f"the weight {name} must not be negative (the terms carry the sign), got {value}")
        _require(
            self.lpips_weights is None or (self.stepwise_kind == "lpips" and self.stepwise > 0),
            "lpips_weights are used by the stepwise term of kind lpips alone: give stepwise_kind lpips and a positive "
            f"weight stepwise with them, not {self.stepwise_kind} and {self.stepwise:g}",
        )
        _require(
            any((self.confidence, self.stepwise, self.total_variation, self.distribution)),
            "a reward needs at least one term besides the action penalty with a positive weight",
        )
        _require(
            (self.distribution_offset is None) == (self.distribution_scale is None),
            "give distribution_offset and distribution_scale together, or neither",
        )
        if self.distribution_scale is not None:
            _require(self.distribution_scale > 0, f"distribution_scale must be positive: {self.distribution_scale}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON types; `lpips_weights` only if given, so that runs begun before it existed go on."""
        return {name: value for name, value in super().to_dict().items() if name != "lpips_weights" or value}

    @classmethod
    def published(cls) -> RewardConfig:
        """The weights of arXiv 2509.14163: α 1, β .2, λ_act .005, no distribution term."""
        return cls(confidence=1.0, stepwise=0.2, action_penalty=0.005, distribution=0.0)


@dataclass(frozen=True)
class PPOConfig(_JsonConfig):
    """Proximal policy optimisation (arXiv 1707.06347). γ, λ, clip, entropy, value and gradient norm are the paper's."""

    updates: int = 60
    """Number of updates (one rollout each)."""
    num_envs: int = 128
    """B: environments stepped together."""
    rollout_steps: int | None = None
    """T: steps of one rollout; None: one whole episode (`env.n_steps`)."""
    gamma: float = 0.995
    """Discount γ."""
    gae_lambda: float = 0.95
    """λ of the generalised advantage estimate."""
    clip: float = 0.1
    """Clipping range of the probability ratio."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    value: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradient norm (all parameters together) is clipped to this."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Minibatches per pass, of sizes that differ by one at most, each of two rows (environment and step) or more."""
    lr_circuit: float = 3e-3
    """Learning rate of the quantum part (weights and input scaling)."""
    lr_head: float = 1e-3
    """Learning rate of the actor's classical part."""
    lr_critic: float = 1e-3
    """Learning rate of the critic."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    lr_final: float = 0.0
    """The cosine decay ends at this fraction of each learning rate; 1 keeps it constant."""
    adam_eps: float = 1e-5
    """Adam's ε (CleanRL's and Stable-Baselines3's value)."""
    seed: int = 0
    """Seed of action noise, minibatch order and network initialisation."""
    checkpoint_every: int = 10
    """Updates between two checkpoints."""

    def __post_init__(self) -> None:
        _finite(self)
        _whole(self, "updates", "num_envs", "epochs", "minibatches", "checkpoint_every")
        if self.rollout_steps is not None:
            _whole(self, "rollout_steps")
            self.check_minibatches(self.rollout_steps)
        for name in ("gamma", "gae_lambda", "lr_final"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("clip", "max_grad_norm", "adam_eps"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("entropy", "value", "lr_circuit", "lr_head", "lr_critic", "weight_decay"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require(0 <= self.seed < 2**63, f"seed must be a non-negative 63-bit integer, got {self.seed}")

    @classmethod
    def short(cls, **changes: Any) -> PPOConfig:
        """Settings for runs of some tens of updates (measured on digits, 6 steps): larger rates and smaller
        minibatches, no discount, a wider clip, no entropy bonus, since the action noise need not last.
        """
        settings: dict[str, Any] = {
            "updates": 32,
            "num_envs": 192,
            "minibatches": 8,
            "gamma": 1.0,
            "clip": 0.2,
            "entropy": 0.0,
            "lr_circuit": 5e-2,
            "lr_head": 1e-2,
            "lr_critic": 3e-3,
            "lr_final": 0.1,
        }
        return cls(**{**settings, **changes})

    def check_minibatches(self, steps: int) -> None:
        """Refuse minibatches of less than two rows, whose advantages have no standard deviation to be divided by.

        Args:
            steps: T, the steps of one rollout.

        Raises:
            InvalidInputError: less than 2 · `minibatches` rows in a rollout.
        """
        rows = self.num_envs * steps
        _require(
            rows >= 2 * self.minibatches,
            f"{self.minibatches} minibatches of {self.num_envs} environments × {steps} steps = {rows} rows: each needs "
            f"two rows or more to normalise its advantages; allowed are at most {rows // 2} minibatches",
        )

    def lr_factor(self, update: int) -> float:
        """Cosine decay from 1 at update 0 to `lr_final` at the last update."""
        progress = update / max(1, self.updates - 1)
        return self.lr_final + (1.0 - self.lr_final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class ActorConfig(_JsonConfig):
    """Which controller, and for a quantum one the circuit, the device it is compiled for and the engine.

    kind: "quantum" · "frozen" (the quantum part stays random, the head is trained) · "unentangled" (no CNOTs) ·
    "matched" (MLP with the quantum actor's parameter count) · "mlp" (9,282 parameters) · "annealing" (2506.24108).
    """

    kind: str = "quantum"
    """See above."""
    device: str = "fake_marrakesh"
    """Device name or path of a snapshot the circuit is compiled for."""
    engine: str = "noisy"
    """Engine the circuit is trained on: "ideal", "noisy" or "shots[:N][:seed=S][:ideal]" (sampled values, exact
    gradients; ideal: without noise), mitigated: "noisy+readout+zne:linear:1,3"."""
    n_qubits: int = 4
    """Qubits of the policy circuit."""
    depth: int = 2
    """Layers of the policy circuit."""
    entanglement: str = "ring"
    """"ring", "chain" or "none" ("unentangled" always has "none")."""
    reuploading: bool = False
    """Repeat the encoding before every layer."""
    output_scaling: bool = False
    """Train one factor per expectation value."""
    initial_std: float = 0.7
    """Standard deviation of the actions before training."""
    gain: float = 1.0
    """Size of the head's last layer before training. Near 0 the controller starts as the base scale, but then hardly
    any gradient reaches the circuit at first."""
    optimization_level: int = 3
    """Qiskit's preset level for compiling."""
    scheduled: bool = False
    """Schedule the circuit with delays, so that waiting qubits relax under the noisy engine."""
    transpile_seed: int = 0
    """Seed of the transpiler; part of the circuit's definition, so the same for every training seed."""

    def __post_init__(self) -> None:
        _finite(self)
        if self.kind not in ACTOR_KINDS:
            raise UnknownNameError.of("actor kind", self.kind, ACTOR_KINDS)
        check_engine_text(self.engine)
        _require(self.n_qubits >= 1 and self.depth >= 1, f"n_qubits and depth ≥ 1: {self.n_qubits}, {self.depth}")
        _require(self.initial_std > 0 and self.gain > 0, f"initial_std and gain > 0: {self.initial_std}, {self.gain}")

    @property
    def uses_circuit(self) -> bool:
        """Whether the actor holds a circuit."""
        return self.kind in QUANTUM_KINDS
