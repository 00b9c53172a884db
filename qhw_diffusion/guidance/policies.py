"""Policies: state → distribution of ΔCFG, a Gaussian or one over a few values; quantum and classical; the critic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import frozen_parameters, put_state
from qhw_diffusion.circuits import PolicyCircuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Engine, QuantumLayer, compile_circuit

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
_HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def mlp(sizes: Sequence[int], generator: torch.Generator, *, gain: float) -> nn.Sequential:
    """Linear layers with tanh between, orthogonal weights (gain √2, last layer `gain`), zero biases, seeded."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        linear = nn.Linear(a, b)
        last = i == len(sizes) - 2
        nn.init.orthogonal_(linear.weight, gain if last else math.sqrt(2.0), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


def mlp_parameters(sizes: Sequence[int]) -> int:
    """Number of parameters of `mlp(sizes)`: weights and biases."""
    return sum((a + 1) * b for a, b in pairwise(sizes))


class Embedding(nn.Module):
    """A few learned entries behind those of the state: tanh of a linear layer on its pooled features."""

    def __init__(self, n_pooled: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.n_pooled, self.size = n_pooled, size
        self.linear = nn.Linear(n_pooled, size)
        nn.init.orthogonal_(self.linear.weight, 1.0, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """[B, entries + n_pooled] → [B, entries + size]."""
        entries, pooled = obs[:, : -self.n_pooled], obs[:, -self.n_pooled :]
        return torch.cat([entries, self.linear(pooled).tanh()], dim=1)


def embedding_of(n_pooled: int, size: int, generator: torch.Generator) -> Embedding | None:
    """The embedding of a policy; None of one that sees no pooled features.

    Args:
        n_pooled: pooled features in its state.
        size: entries made of them.
        generator: draws the initial weights.

    Raises:
        InvalidInputError: one without the other.
    """
    if (n_pooled > 0) != (size > 0) or min(n_pooled, size) < 0:
        raise InvalidInputError(
            f"an embedding of {size} entries and {n_pooled} pooled features: a policy has both, or neither; set "
            "embedding in PolicyConfig and pooled_features in GuidanceConfig"
        )
    return Embedding(n_pooled, size, generator) if size else None


class Policy(nn.Module):
    """A stochastic policy. Subclasses give `_outputs`, [B, n_features] → what their head gives.

    Gaussian: [B, 2·action_dim], means, then log σ. With `choices`, values of ΔCFG, the policy is categorical over
    these: [B, len(choices)], logits. "The action" of a state is then the most probable value.

    Every policy is built from `config()` alone, so it can be saved and loaded; `kind` is its name there.
    """

    kind: ClassVar[str]
    uses_circuit: ClassVar[bool] = False
    n_features: int
    action_dim: int
    choices: tuple[float, ...] = ()
    embedding: Embedding | None

    def embedded(self, obs: Tensor) -> Tensor:
        """What circuit or head see, [B, entries]: the state, with learned entries in the place of pooled features."""
        return obs if self.embedding is None else self.embedding(obs)  # type: ignore[no-any-return]

    def _embedding_settings(self) -> dict[str, int]:
        """For `config`; nothing without an embedding, so that such a policy's file is as it was."""
        found = self.embedding
        return {} if found is None else {"n_pooled": found.n_pooled, "embedding": found.size}

    def _outputs(self, obs: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how it acts: define _outputs")

    def config(self) -> dict[str, Any]:
        """What `save_pretrained` writes beside the weights: JSON types."""
        raise TypeError(f"{type(self).__name__} cannot be saved: define config")

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised states [B, n_features] → action [B, action_dim], log σ [B, action_dim] within [−20, 2].

        The action is the mean of a Gaussian, or the most probable of the choices; σ the standard deviation.
        """
        return self.action_of(self._checked_outputs(obs))

    def action_of(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of what the head gives for each state, [B, outputs]."""
        if not self.choices:
            mean, log_std = outputs.chunk(2, dim=1)
            return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        values, probability = outputs.new_tensor(self.choices), outputs.softmax(1)
        mean = probability @ values
        variance = (probability * (values - mean[:, None]).square()).sum(1, keepdim=True)
        return values[outputs.argmax(1)][:, None], (0.5 * variance.log()).clamp(LOG_STD_MIN, LOG_STD_MAX)

    def _checked_outputs(self, obs: Tensor) -> Tensor:
        if obs.ndim != 2 or obs.shape[1] != self.n_features:
            raise InvalidInputError(f"the policy takes states [B, {self.n_features}], got {tuple(obs.shape)}")
        return self._outputs(obs)

    def sample(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action [B, A] (CPU generator); with its log probability [B] and the action of `forward` [B, A]."""
        if self.choices:
            outputs = self._checked_outputs(obs)
            row = torch.multinomial(outputs.softmax(1).cpu(), 1, generator=generator).to(outputs.device)
            drawn = outputs.new_tensor(self.choices)[row]
            return drawn, outputs.log_softmax(1).gather(1, row)[:, 0], self.action_of(outputs)[0]
        mean, log_std = self(obs)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
        return mean + log_std.exp() * noise, log_prob(noise, log_std), mean

    def evaluate(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability and entropy of given actions [B, A], [B] each; differentiable.

        Of a policy with choices the actions are among these.
        """
        if self.choices:
            log_probability = self._checked_outputs(obs).log_softmax(1)
            row = (action - log_probability.new_tensor(self.choices)).abs().argmin(1, keepdim=True)
            entropy = -(log_probability.exp() * log_probability).sum(1)
            return log_probability.gather(1, row)[:, 0], entropy
        mean, log_std = self(obs)
        return log_prob((action - mean) / log_std.exp(), log_std), (log_std + 0.5 + _HALF_LOG_TAU).sum(1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by learning rate: "circuit" (the quantum part) and "head" (the rest)."""
        return {"circuit": [], "head": [p for p in self.parameters() if p.requires_grad]}

    def parameter_counts(self) -> dict[str, int]:
        """Trainable parameters: circuit (with input and output scaling), head, total."""
        counts = {name: sum(p.numel() for p in group) for name, group in self.parameter_groups().items()}
        return {**counts, "total": sum(counts.values())}

    @property
    def circuits_per_state(self) -> int:
        """Circuits one action costs on a device: 1 for a quantum policy (all ⟨Z⟩ from one run), 0 for a classical."""
        return 1 if self.uses_circuit else 0


def log_prob(standardised: Tensor, log_std: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian at (a − μ)/σ, [B, A] → [B]."""
    return (-0.5 * standardised.square() - log_std - _HALF_LOG_TAU).sum(1)


class GaussianHead(nn.Module):
    """MLP to 2·action_dim outputs that starts near μ = 0 and σ = initial_std whatever its input."""

    def __init__(
        self, sizes: Sequence[int], action_dim: int, generator: torch.Generator, *, initial_std: float, gain: float
    ) -> None:
        super().__init__()
        if not 0 < initial_std <= math.exp(LOG_STD_MAX):
            raise InvalidInputError(f"initial_std must lie in (0, {math.exp(LOG_STD_MAX):.2f}], got {initial_std}")
        if action_dim < 1 or any(size < 1 for size in sizes):
            raise InvalidInputError(f"layer sizes must be positive, got {tuple(sizes)} and {action_dim} actions")
        self.layers = mlp([*sizes, 2 * action_dim], generator, gain=gain)
        with torch.no_grad():
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            last.bias[action_dim:] = math.log(initial_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, sizes[0]] → [B, 2·action_dim]."""
        out: Tensor = self.layers(x)
        return out


class CategoricalHead(nn.Module):
    """MLP to a logit for each choice, which starts near a Gaussian of the standard deviation initial_std around 0."""

    def __init__(
        self,
        sizes: Sequence[int],
        choices: Sequence[float],
        generator: torch.Generator,
        *,
        initial_std: float,
        gain: float,
    ) -> None:
        super().__init__()
        if any(size < 1 for size in sizes):
            raise InvalidInputError(f"layer sizes must be positive, got {tuple(sizes)}")
        if len(choices) < 2 or len(set(choices)) != len(choices) or not all(math.isfinite(v) for v in choices):
            raise InvalidInputError(
                f"a policy with choices chooses among two or more different finite values, got {tuple(choices)}"
            )
        if not initial_std > 0:
            raise InvalidInputError(f"initial_std must be positive, got {initial_std}")
        self.layers = mlp([*sizes, len(choices)], generator, gain=gain)
        with torch.no_grad():
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            last.bias[:] = -0.5 * (torch.tensor(choices) / initial_std).square()

    def forward(self, x: Tensor) -> Tensor:
        """[B, sizes[0]] → [B, len(choices)]."""
        out: Tensor = self.layers(x)
        return out


def policy_head(
    sizes: Sequence[int],
    action_dim: int,
    choices: Sequence[float],
    generator: torch.Generator,
    *,
    initial_std: float,
    gain: float,
) -> GaussianHead | CategoricalHead:
    """The head of a policy: categorical over the choices where there are some, Gaussian else.

    Raises:
        InvalidInputError: choices with more than one action, or settings that the head does not take.
    """
    if not choices:
        return GaussianHead(sizes, action_dim, generator, initial_std=initial_std, gain=gain)
    if action_dim != 1:
        raise InvalidInputError(f"a policy with choices has one action, not {action_dim}")
    return CategoricalHead(sizes, choices, generator, initial_std=initial_std, gain=gain)


class MLPPolicy(Policy):
    """The classical policy. The default, 6→128→64→2, is the published one: 9,282 parameters (arXiv 2509.14163).

    n_features is the length of the state; its last n_pooled numbers are pooled features, of which the embedding makes
    that many learned entries.
    """

    kind = "mlp"
    HIDDEN = (128, 64)
    """Hidden widths unless others are given."""

    def __init__(
        self,
        hidden: Sequence[int] = HIDDEN,
        *,
        n_features: int = 6,
        n_pooled: int = 0,
        embedding: int = 0,
        action_dim: int = 1,
        choices: Sequence[float] = (),
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_features, self.action_dim, self.hidden = n_features, action_dim, tuple(hidden)
        self.choices = tuple(choices)
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        generator = torch.Generator().manual_seed(seed)
        sizes = [n_features - n_pooled + embedding, *self.hidden]
        self.head = policy_head(sizes, action_dim, self.choices, generator, initial_std=initial_std, gain=gain)
        self.embedding = embedding_of(n_pooled, embedding, generator)

    def _outputs(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedded(obs))
        return out

    def config(self) -> dict[str, Any]:
        """What the saved policy is built from again."""
        return {
            "kind": self.kind,
            "hidden": list(self.hidden),
            "n_features": self.n_features,
            **self._embedding_settings(),
            "action_dim": self.action_dim,
            "choices": list(self.choices),
            "initial_std": self.initial_std,
            "gain": self.gain,
            "seed": self.seed,
        }


def matched_hidden(n_parameters: int, *, n_features: int = 6, n_outputs: int = 2) -> tuple[int, int]:
    """Two hidden widths whose MLP has as nearly as possible `n_parameters`; among equals the one nearest to 2:1."""
    if n_parameters < mlp_parameters([n_features, 1, 1, n_outputs]):
        raise InvalidInputError(f"no MLP with two hidden layers has only {n_parameters} parameters")
    widest = n_parameters // (n_features + 1) + 1
    best: tuple[float, float, tuple[int, int]] | None = None
    for first in range(1, widest + 1):
        fixed, slope = (n_features + 1) * first + n_outputs, first + 1 + n_outputs
        exact = (n_parameters - fixed) / slope
        for second in {max(1, math.floor(exact)), max(1, math.ceil(exact))}:
            miss = abs(mlp_parameters([n_features, first, second, n_outputs]) - n_parameters)
            candidate = (miss, abs(math.log(first / second / 2.0)), (first, second))
            # an MLP with a bottleneck of a few neurons is no fair opponent: stay within 1:1 … 4:1
            if 1.0 <= first / second <= 4.0 and (best is None or candidate < best):
                best = candidate
    if best is None:
        return (1, 1)
    return best[2]


def matched_mlp(
    n_parameters: int, *, n_features: int = 6, n_pooled: int = 0, embedding: int = 0, **settings: Any
) -> MLPPolicy:
    """The MLP policy with as nearly as possible `n_parameters` trainable parameters (`parameter_counts` tells).

    They count an embedding, which is the same as that of the policy matched.
    """
    n_outputs = len(settings.get("choices", ())) or 2 * settings.get("action_dim", 1)
    inputs, embeds = n_features - n_pooled + embedding, mlp_parameters([n_pooled, embedding])
    hidden = matched_hidden(n_parameters - embeds, n_features=inputs, n_outputs=n_outputs)
    return MLPPolicy(hidden, n_features=n_features, n_pooled=n_pooled, embedding=embedding, **settings)


class AnnealingPolicy(Policy):
    """The policy of annealing guidance (arXiv 2506.24108), a baseline: a small MLP that sees two state entries.

    They are t/T and ‖ε_c − ε_∅‖/√d, entries 0 and 6 of the seven, so the configuration needs `extra_state=True`. It is
    trained by the same PPO as the others.
    """

    kind = "annealing"
    ENTRIES = (0, 6)

    def __init__(
        self,
        hidden: Sequence[int] = (32, 32),
        *,
        n_features: int = 7,
        action_dim: int = 1,
        choices: Sequence[float] = (),
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n_features != 7:
            raise InvalidInputError(
                "the annealing policy needs the seventh state entry: GuidanceConfig(extra_state=True)"
            )
        self.n_features, self.action_dim, self.hidden = n_features, action_dim, tuple(hidden)
        self.choices, self.embedding = tuple(choices), None
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        generator = torch.Generator().manual_seed(seed)
        sizes = [len(self.ENTRIES), *self.hidden]
        self.head = policy_head(sizes, action_dim, self.choices, generator, initial_std=initial_std, gain=gain)

    def _outputs(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(obs[:, self.ENTRIES])
        return out

    config = MLPPolicy.config


def compile_policy(
    circuit: PolicyCircuit, device: Device, *, seed: int = 0, optimization_level: int = 3, scheduled: bool = False
) -> CompiledCircuit:
    """The policy circuit compiled for a device (see `compile_circuit`)."""
    return compile_circuit(
        circuit.circuit,
        device,
        inputs=circuit.inputs,
        weights=circuit.weights,
        observables=circuit.observables,
        seed=seed,
        optimization_level=optimization_level,
        scheduled=scheduled,
    )


class QuantumPolicy(Policy):
    """Angle encoding with trainable scales, the policy circuit, and a head n→64→32→2 on the n expectation values.

    The angle of state entry j is input_scale_j · s_j; it starts at π/2 per unit, so that the calibrated range of
    ± two standard deviations covers ± π/2, and four standard deviations stay within the circle. The gradient runs
    through the circuit to its weights and to the input scales; nothing is detached. `freeze_circuit=True` leaves the
    whole quantum part (weights and scales) at its random values: the control that tells whether training the circuit
    mattered. `freeze_head=True` leaves the head at its random values instead: what the circuit learns alone. With an
    embedding the circuit's last inputs are its entries; it is trained with the head.
    """

    kind = "quantum"
    uses_circuit = True
    HIDDEN = (64, 32)
    """Hidden widths of the head."""

    def __init__(
        self,
        layer: QuantumLayer,
        circuit: PolicyCircuit,
        *,
        hidden: Sequence[int] = HIDDEN,
        action_dim: int = 1,
        choices: Sequence[float] = (),
        output_scaling: bool = False,
        freeze_circuit: bool = False,
        freeze_head: bool = False,
        initial_std: float = 0.5,
        gain: float = 0.1,
        seed: int = 0,
        initial_scale: float = math.pi / 2,
        n_pooled: int = 0,
        embedding: int = 0,
    ) -> None:
        """Put the head on a compiled circuit.

        Args:
            layer: the compiled `circuit` on some engine.
            circuit: the policy circuit.
            hidden: hidden widths of the head; none: a linear layer.
            action_dim: A.
            choices: values of ΔCFG that the policy chooses among; none: a Gaussian.
            output_scaling: train one factor per expectation value.
            freeze_circuit: leave weights and scales as they are.
            freeze_head: leave the head as it is.
            initial_std: standard deviation of the actions before training.
            gain: size of the head's last layer before training.
            seed: seed of the head (the layer has its own).
            initial_scale: encoding angle per unit of a state entry, radians.
            n_pooled: pooled features at the end of the state.
            embedding: learned entries made of them.

        Raises:
            InvalidInputError: a layer of another circuit, or an embedding that does not fit.
        """
        super().__init__()
        compiled = layer.compiled
        wanted = len(circuit.inputs), len(circuit.weights), len(circuit.observables)
        given = compiled.n_inputs, compiled.n_weights, compiled.n_values
        if wanted != given:
            raise InvalidInputError(
                f"the layer has (inputs, weights, observables) = {given}, the circuit {wanted}; "
                f"compile this circuit: compile_policy(circuit, device)"
            )
        self.layer, self.circuit = layer, circuit
        self.n_features, self.action_dim = len(circuit.inputs) - embedding + n_pooled, action_dim
        self.choices = tuple(choices)
        self.hidden, self.output_scaling = tuple(hidden), output_scaling
        self.freeze_circuit, self.freeze_head = freeze_circuit, freeze_head
        self.initial_std, self.gain, self.seed = initial_std, gain, seed
        self.input_scale = nn.Parameter(torch.full((len(circuit.inputs),), initial_scale))
        n_out = len(circuit.observables)
        self.output_scale = nn.Parameter(torch.ones(n_out)) if output_scaling else None
        generator = torch.Generator().manual_seed(seed)
        sizes = [n_out, *self.hidden]
        self.head = policy_head(sizes, action_dim, self.choices, generator, initial_std=initial_std, gain=gain)
        self.embedding = embedding_of(n_pooled, embedding, generator)
        for parameter in (
            *(self._quantum() if freeze_circuit else ()),
            *(self.head.parameters() if freeze_head else ()),
        ):
            parameter.requires_grad_(False)

    def _quantum(self) -> list[nn.Parameter]:
        own = [self.layer.weight, self.input_scale]
        if self.layer.coefficients is not None:
            own.append(self.layer.coefficients)
        return own if self.output_scale is None else [*own, self.output_scale]

    def angles(self, obs: Tensor) -> Tensor:
        """Encoding angles [B, inputs of the circuit] in radians, of states [B, n_features]."""
        return self.embedded(obs) * self.input_scale

    def expectations(self, obs: Tensor) -> Tensor:
        """The circuit's observables, ⟨Z⟩ of each qubit (times the output scale, if trained), [B, n_qubits]."""
        values: Tensor = self.layer(self.angles(obs))
        return values if self.output_scale is None else values * self.output_scale

    def _outputs(self, obs: Tensor) -> Tensor:
        out: Tensor = self.head(self.expectations(obs).to(obs.dtype))
        return out

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by learning rate: "circuit" (weights, scales, observables), "head" (with embedding)."""
        circuit = [p for p in self._quantum() if p.requires_grad]
        embedding = [] if self.embedding is None else list(self.embedding.parameters())
        head = [p for p in self.head.parameters() if p.requires_grad]
        return {"circuit": circuit, "head": [*head, *embedding]}

    @property
    def circuits_per_state(self) -> int:
        """Circuits one action costs on a device: one for each basis that the observables are measured in."""
        return len(self.layer.compiled.measurement_groups)

    def on(self, device: Device | None = None, engine: str | Engine | None = None) -> QuantumPolicy:
        """The same policy, weights copied, on another device (compiled anew) or engine; None keeps the present one."""
        compiled = self.layer.compiled
        if device is not None:
            compiled = compiled.compile_for(device)
        other = QuantumPolicy(self.layer.with_compiled(compiled, engine), self.circuit, **self._settings())
        put_state(other, {name: value.clone() for name, value in self.state_dict().items()}, frozen_parameters(self))
        return other

    def _settings(self) -> dict[str, Any]:
        return {
            "hidden": list(self.hidden),
            "action_dim": self.action_dim,
            "choices": list(self.choices),
            "output_scaling": self.output_scaling,
            "freeze_circuit": self.freeze_circuit,
            "freeze_head": self.freeze_head,
            "initial_std": self.initial_std,
            "gain": self.gain,
            "seed": self.seed,
            **self._embedding_settings(),
        }

    def config(self) -> dict[str, Any]:
        """What the saved policy is built from again, besides its layer."""
        return {"kind": self.kind, "n_features": self.n_features, "engine": self.layer.engine.label, **self._settings()}


class Critic(nn.Module):
    """State → value, a classical MLP: [B, n_features] → [B]."""

    def __init__(self, n_features: int = 6, hidden: Sequence[int] = (64, 64), *, seed: int = 0) -> None:
        super().__init__()
        self.n_features, self.hidden = n_features, tuple(hidden)
        self.layers = mlp([n_features, *hidden, 1], torch.Generator().manual_seed(seed), gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """Values [B] of normalised states [B, n_features]."""
        value: Tensor = self.layers(obs)
        return value.squeeze(-1)
