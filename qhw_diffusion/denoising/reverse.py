"""The reverse process: T steps of a compiled circuit, its weights, and how states pass through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from qiskit import QuantumCircuit
from torch import Tensor, nn

from qhw_diffusion import diffusion
from qhw_diffusion.checkpoints import frozen_parameters, put_state
from qhw_diffusion.circuits.ansatz import ansatz_label, is_own_ansatz
from qhw_diffusion.circuits.reverse import ReverseCircuit, dynamic_circuit, reverse_circuit, step_of
from qhw_diffusion.denoising.config import RENAMED_WEIGHTS, ReverseConfig
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit, Engine, compile_circuit, spec_of
from qhw_diffusion.execution.evolution import Branches, Evolution, state_engine_of

RAREST = 1e-6  # success probabilities below this are rounding errors in single precision


@dataclass(frozen=True)
class Trajectory:
    """States that went through the reverse process, with what was measured on the way.

    Attributes:
        states: [B, d] or [B, d, d] at t = 0.
        log_probability: [B] log of the product of all steps' outcome probabilities; differentiable if the weights are.
            Post-selected: of the success. Measured: of the outcomes drawn.
        outcomes: int64 [B, T], the outcome history: the outcome of each step, first column t = T.
        path: states at t = T, T−1, …, 0, each as `states`, or empty.
    """

    states: Tensor
    log_probability: Tensor
    outcomes: Tensor
    path: tuple[Tensor, ...] = ()

    @property
    def probability(self) -> Tensor:
        """[B]: cumulative probability of the outcomes."""
        return self.log_probability.exp()

    @property
    def importance(self) -> Tensor:
        """[B] of value 1, whose gradient is that of log_probability.

        As weights of a loss over sampled outcomes they give its gradient in expectation (score function). Where the
        loss divides them by their sum, that is a baseline: less variance, and a bias of order 1/B.
        """
        return (self.log_probability - self.log_probability.detach()).exp()


class ReverseProcess(nn.Module):
    """T reverse steps, each a Qiskit circuit compiled once, with one bank of weights.

    Attributes:
        config: what it was built from.
        circuit: the `circuits.ReverseCircuit`.
        compiled: the same compiled for the device.
        weight: [steps, labels, outcomes, W] angles; an axis has size 1 where nothing depends on it.
        step_angles: [T, C] ancilla angles of the steps (``weight_sharing="time_embedding"``), else None.
        label_angles: [steps, labels, C] ancilla angles of the labels (``conditioning="angles"``), else None.
        hypernetwork_in, hypernetwork_out: [4, H] and [H, W], layers of the hypernetwork, else None.

    Args:
        config: settings.
        device: what the circuit is compiled for; None loads the one `config` names.
        compiled: the circuit of such a process, compiled already. With an ansatz of one's own the step is taken from
            it, and the ansatz is not called.
        dtype: of the weights.

    Raises:
        UnknownNameError: no such device.
        InvalidInputError: noise on the ideal device, an own ansatz that is not as `circuits.ansatz` says, or a
            compiled circuit of another process.
        UnsupportedCircuitError: an own ansatz with gates that cannot be evaluated; the message names it.
        MemoryBudgetError: one sample would not fit into memory.
    """

    def __init__(
        self,
        config: ReverseConfig,
        *,
        device: Device | None = None,
        compiled: CompiledCircuit | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.circuit = _circuit_of(config, compiled)
        if compiled is None:
            compiled = _compiled(self.circuit, config, device)
        counts = [(len(c.inputs), len(c.weights)) for c in (self.circuit, compiled)]
        if counts[0] != counts[1]:
            raise InvalidInputError(
                f"the compiled circuit has (inputs, weights) = {counts[1]}, a step of this process {counts[0]}: "
                "compile the circuit of a ReverseProcess with these settings"
            )
        self.compiled = compiled
        measured = () if config.kind == "reset" else self.circuit.measured
        self.evolution = Evolution(compiled, data=self.circuit.data, measured=measured, engine=config.engine)
        self._within = self.evolution  # of the steps before the last one, see `on`
        generator = torch.Generator().manual_seed(config.seed)
        steps = config.n_steps if config.weight_sharing == "per_step" else 1
        labels = config.n_labels if config.conditioning == "weights" else 1
        outcomes = config.n_outcomes if config.feed_forward else 1
        n_weights, n_angles, width = len(self.circuit.weights), self.circuit.n_conditioning, config.hypernetwork_width
        embedded, hypernetwork = (config.weight_sharing == name for name in ("time_embedding", "hypernetwork"))

        def table(*shape: int) -> nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * config.init_scale
            return nn.Parameter(values.to(dtype))

        self.weight = table(steps, labels, outcomes, n_weights)
        self.step_angles = table(config.n_steps, n_angles) if embedded else None
        self.label_angles = table(steps, config.n_labels, n_angles) if config.conditioning == "angles" else None
        self.hypernetwork_in = table(4, width) if hypernetwork else None
        self.hypernetwork_out = table(width, n_weights) if hypernetwork else None
        self.register_load_state_dict_pre_hook(_rename_weights)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, classical tables and the hypernetwork included."""
        return sum(p.numel() for p in self.parameters())

    @property
    def n_circuit_parameters(self) -> int:
        """Trainable angles of the circuits' gates, without tables of conditioning angles and hypernetwork."""
        return self.weight.numel()

    def on(
        self, *, device: str | Device | None = None, engine: str | Engine | None = None, mid_circuit: bool = False
    ) -> ReverseProcess:
        """A copy with the same weights on another device or engine.

        Args:
            device: name, path of a snapshot, or Device, for which the circuit is compiled anew; None: as it is.
            engine: one that simulates states; None: as it is.
            mid_circuit: whether ancillas are read, before the last step, by the device's own measurement for
                mid-circuit where it has one, as in a dynamic circuit; else all as at the end of a circuit.

        Raises:
            UnknownNameError, InvalidInputError: a device or engine that does not exist or does not fit.
        """
        compiled = self.compiled
        if device is not None:
            compiled = compiled.compile_for(device if isinstance(device, Device) else Device.load(device))
        text = self.config.engine if engine is None else spec_of(state_engine_of(engine))
        config = self.config.replace(device=compiled.device.name, engine=text)
        copy = ReverseProcess(config, compiled=compiled)
        if mid_circuit:
            evolution = copy.evolution
            copy._within = Evolution(
                compiled, data=evolution.data, measured=evolution.measured, engine=text, mid_circuit=True
            )
        put_state(copy, {name: value.clone() for name, value in self.state_dict().items()}, frozen_parameters(self))
        return copy

    def outcome_probabilities(self, states: Tensor) -> Tensor:
        """Probabilities [B, d] of the outcomes of the data qubits, with readout errors if the engine is noisy.

        Args:
            states: [B, d] or [B, d, d]. The result has no gradient.
        """
        states = states.detach()
        exact = states.abs().square() if states.ndim == 2 else torch.diagonal(states, dim1=1, dim2=2).real
        return self.evolution.read_data(exact)

    def weights_of(self, t: int, label: int = 0, outcome: int = 0) -> Tensor:
        """[W] angles of step t for a label and the outcome of the step before.

        Raises:
            InvalidInputError: one of them out of range.
        """
        c = self.config
        self._check_step(t)
        for what, value, count in (("label", label, c.n_labels), ("outcome", outcome, c.n_outcomes)):
            if not 0 <= value < count:
                raise InvalidInputError(f"{what} {value}; allowed: 0 to {count - 1}")
        weight = self.weight[
            t - 1 if c.weight_sharing == "per_step" else 0,
            label if c.conditioning == "weights" else 0,
            outcome if c.feed_forward else 0,
        ]
        if self.hypernetwork_in is None or self.hypernetwork_out is None:
            return weight
        angle = math.pi * t / c.n_steps
        features = torch.tensor([1.0, t / c.n_steps, math.sin(angle), math.cos(angle)], dtype=weight.dtype)
        return weight + torch.tanh(features.to(weight.device) @ self.hypernetwork_in) @ self.hypernetwork_out

    def inputs_of(self, t: int, labels: Tensor) -> Tensor:
        """[B, I] inputs of step t for labels [B], radians, on the CPU: of label qubits, then the conditioning angles.

        Raises:
            InvalidInputError: the step or a label out of range.
        """
        self._check_step(t)
        labels = check_labels(labels, len(labels), self.config.n_labels).cpu()
        parts = []
        if self.config.label_qubits:
            bits = labels[:, None] >> torch.arange(self.config.label_qubits) & 1
            parts.append(torch.pi * bits.to(self.weight.dtype))
        if self.config.conditioning_angles:
            angles = torch.zeros(len(labels), self.circuit.n_conditioning, dtype=self.weight.dtype)
            if self.step_angles is not None:
                angles = angles + self.step_angles[t - 1].cpu()
            if self.label_angles is not None:
                table = self.label_angles[t - 1 if self.config.weight_sharing == "per_step" else 0]
                angles = angles + table.cpu()[labels]
            parts.append(angles)
        return torch.cat(parts, 1) if parts else torch.zeros(len(labels), 0, dtype=self.weight.dtype)

    def _check_step(self, t: int) -> None:
        if not 1 <= t <= self.config.n_steps:
            raise InvalidInputError(f"step {t}; allowed: 1 to {self.config.n_steps}")

    def dynamic_circuit(self, label: int = 0, prior: QuantumCircuit | None = None) -> QuantumCircuit:
        """All T steps, weights bound, as one circuit: mid-circuit measurements, resets, and `if_else` to feed forward.

        Ancillas of step t are read into the register ``m{t}``, the data into ``x``. Post-selected: keep the shots that
        read 0 in every m{t}. Transpile it to a device before use.

        Args:
            label: of the image asked for.
            prior: circuit on the data qubits that prepares x_T; None: they start in |0…0⟩.

        Raises:
            InvalidInputError: a label out of range, or a prior of another width.
        """
        labels = check_labels(torch.tensor([label]), 1, self.config.n_labels)

        def angles(t: int, outcome: int) -> list[float]:
            with torch.no_grad():
                inputs, weights = self.inputs_of(t, labels)[0], self.weights_of(t, label, outcome)
            return [*inputs.tolist(), *weights.tolist()]

        return dynamic_circuit(
            self.circuit, self.config.n_steps, angles, prior=prior, feed_forward=self.config.feed_forward
        )

    def step(
        self,
        states: Tensor,
        t: int,
        labels: Tensor | None = None,
        before: Tensor | None = None,
        *,
        paths: bool = False,
    ) -> Branches:
        """States at t → every branch at t−1.

        Args:
            states: [B, d] or [B, d, d].
            t: 1 … T.
            labels: [B] int64; needed if the process has labels.
            before: [B] int64, outcomes of step t+1 (zeros if not given); used with feed-forward.
            paths: one trajectory of every state, on the engine ``"trajectories:N"`` (`Evolution.paths`), not the mean.

        Raises:
            InvalidInputError: a step, labels or outcomes out of range.
        """
        evolution = self.evolution if t == 1 else self._within
        evolve = evolution.paths if paths else evolution
        labels = check_labels(labels, len(states), self.config.n_labels).cpu()
        before = (
            torch.zeros_like(labels)
            if before is None
            else check_outcomes(before, len(states), self.config.n_outcomes).cpu()
        )
        inputs = self.inputs_of(t, labels)
        # samples that share their weights go through together, which is much faster than weights for every sample
        group = torch.zeros_like(labels)
        if self.config.conditioning == "weights":
            group = labels * self.config.n_outcomes
        if self.config.feed_forward:
            group = group + before
        keys = torch.unique(group)
        if len(keys) == 1:
            return evolve(states, self.weights_of(t, int(labels[0]), int(before[0])), inputs)
        order, branches = [], []
        for key in keys:
            index = torch.nonzero(group == key)[:, 0]
            weights = self.weights_of(t, int(labels[index[0]]), int(before[index[0]]))
            branches.append(evolve(states[index.to(states.device)], weights, inputs[index]))
            order.append(index)
        back = torch.argsort(torch.cat(order)).to(states.device)
        return Branches(
            torch.cat([b.states for b in branches], 1)[:, back],
            torch.cat([b.probabilities for b in branches], 1)[:, back],
        )

    def advance(
        self,
        states: Tensor,
        t: int,
        labels: Tensor | None = None,
        before: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step as the process's kind has it: states at t → states at t−1, log-probabilities [B], outcomes [B].

        Raises:
            InvalidInputError: outcomes to be drawn without a generator, or a post-selection that (next to) never
                succeeds.
        """
        branches = self.step(states, t, labels, before)
        batch = len(states)
        if self.config.kind in ("unitary", "reset"):
            zeros = torch.zeros(batch).to(branches.probabilities)
            return branches.states[0], zeros, zeros.long()
        if self.config.kind == "postselected":
            outcomes = torch.zeros(batch, dtype=torch.long, device=states.device)
        elif generator is None:
            raise InvalidInputError("outcomes are drawn: give a torch.Generator")
        else:
            outcomes = branches.sample(generator)
        states, probabilities = branches.select(outcomes)
        lowest = float(probabilities.detach().min())
        if self.config.kind == "postselected" and lowest < RAREST:
            raise InvalidInputError(
                f"step {t} succeeds with probability {lowest:.1e} for some sample: about {1 / max(lowest, 1e-300):.0e} "
                "shots for one success. Train with a probability_weight, or use kind='measured'"
            )
        return states, probabilities.log(), outcomes

    def run(
        self,
        states: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        stop: int = 0,
        keep_path: bool = False,
    ) -> Trajectory:
        """States at T through all steps.

        On the engine ``"trajectories:N"`` every state goes N times through all steps, as a pure state, and the mean
        comes out: density matrices, weighted by the probability of what is kept. A quotient of two means has a bias of
        order 1/N.

        Args:
            states: [B, d] or [B, d, d].
            labels: int64 [B]; needed if the process has labels.
            generator: of the outcomes, if they are drawn.
            stop: step t of the states to end with.
            keep_path: keep the states of every step.

        Raises:
            InvalidInputError: as `step` and `advance`; outcomes to be drawn, or ancillas reset, on trajectories.
        """
        labels = check_labels(labels, len(states), self.config.n_labels)
        if self.evolution.trajectories:
            return self._run_paths(states, labels, stop, keep_path)
        before, total = None, torch.zeros(len(states), dtype=self.weight.dtype, device=states.device)
        path, outcomes = [states], []
        for t in range(self.config.n_steps, stop, -1):
            states, log_probability, before = self.advance(states, t, labels, before, generator)
            total = total + log_probability
            outcomes.append(before)
            if keep_path:
                path.append(states)
        none = torch.zeros(len(states), 0, dtype=torch.long, device=states.device)
        drawn = torch.stack(outcomes, 1) if outcomes else none
        return Trajectory(states, total, drawn, tuple(path) if keep_path else ())

    def _run_paths(self, states: Tensor, labels: Tensor, stop: int, keep_path: bool) -> Trajectory:
        """`run` with N trajectories of every state."""
        n, batch = self.evolution.trajectories, len(states)
        if self.config.kind not in ("unitary", "postselected"):
            raise InvalidInputError(
                f"a process of kind {self.config.kind!r} does not run on trajectories, which follow one outcome "
                "without drawing it: use engine 'noisy', or kind='postselected'"
            )
        each, labels = states.repeat_interleave(n, 0), labels.repeat_interleave(n, 0)
        total = torch.zeros(len(each), dtype=self.weight.dtype, device=states.device)
        path = [states]

        def mean() -> tuple[Tensor, Tensor]:
            shares = total.unflatten(0, (batch, n))
            weights = torch.softmax(shares, 1).sqrt().to(each.dtype).unsqueeze(-1)
            parts = each.unflatten(0, (batch, n)) * weights
            return torch.einsum("bnd,bne->bde", parts, parts.conj()), torch.logsumexp(shares, 1) - math.log(n)

        for t in range(self.config.n_steps, stop, -1):
            branches = self.step(each, t, labels, paths=True)
            each, chances = branches.states[0], branches.probabilities[0]
            total = total + chances.clamp_min(RAREST**2).log()
            if keep_path:
                path.append(mean()[0])
        averages, log_probability = mean()
        lowest = float(log_probability.detach().exp().min())
        if lowest < RAREST:
            raise InvalidInputError(
                f"the steps succeed together with probability {lowest:.1e} for some sample: about "
                f"{1 / max(lowest, 1e-300):.0e} shots for one success. Train with a probability_weight"
            )
        drawn = torch.zeros(batch, self.config.n_steps - stop, dtype=torch.long, device=states.device)
        return Trajectory(averages, log_probability, drawn, tuple(path) if keep_path else ())


def _circuit_of(config: ReverseConfig, compiled: CompiledCircuit | None) -> ReverseCircuit:
    if compiled is not None and is_own_ansatz(config.ansatz):
        n_inputs = config.label_qubits + (2 * config.ancillas * config.depth if config.conditioning_angles else 0)
        wanted = config.n_qubits + config.label_qubits + config.ancillas, n_inputs
        found = compiled.logical.num_qubits, len(compiled.inputs)
        if found != wanted:
            raise InvalidInputError(
                f"the compiled circuit has (qubits, inputs) = {found}, a step of this process {wanted}: compile the "
                "circuit of a ReverseProcess with these settings"
            )
        return step_of(compiled.logical, compiled.inputs, compiled.weights, config.n_qubits, config.label_qubits)
    return reverse_circuit(
        config.n_qubits,
        config.ancillas,
        config.depth,
        outer=config.outer,
        ansatz=config.ansatz,
        label_qubits=config.label_qubits,
        conditioning_angles=config.conditioning_angles,
    )


def _compiled(step: ReverseCircuit, config: ReverseConfig, device: Device | None) -> CompiledCircuit:
    target = device or Device.load(config.device)
    try:
        return compile_circuit(
            step.circuit,
            target,
            inputs=step.inputs,
            weights=step.weights,
            observables=step.observables,
            seed=config.seed,
        )
    except UnsupportedCircuitError as error:
        if not is_own_ansatz(config.ansatz):
            raise
        raise UnsupportedCircuitError(f"ansatz {ansatz_label(config.ansatz)!r}: {error}") from error


def _rename_weights(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give weights of earlier versions the names of today (`config.RENAMED_WEIGHTS`), in place."""
    for old, new in RENAMED_WEIGHTS.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)


def check_labels(labels: Tensor | None, batch: int, n: int) -> Tensor:
    """[B] int64 of labels from 0 to n − 1; zeros if there is only one label and none are given.

    Raises:
        InvalidInputError: labels missing, of another shape or type, or out of range.
    """
    if labels is None:
        if n > 1:
            raise InvalidInputError(f"this process is conditioned on {n} labels: give labels, [B] from 0 to {n - 1}")
        return torch.zeros(batch, dtype=torch.long)
    diffusion.check_labels(labels, n, batch)
    return labels


def check_outcomes(before: Tensor, batch: int, n: int) -> Tensor:
    """Outcomes of the step before as int64 [batch].

    Raises:
        InvalidInputError: another shape, no whole numbers, or not from 0 to n − 1.
    """
    if before.shape != (batch,) or before.is_floating_point() or not bool(((before >= 0) & (before < n)).all()):
        raise InvalidInputError(f"before holds outcomes: give int64 ({batch},), from 0 to {n - 1}")
    return before.long()
