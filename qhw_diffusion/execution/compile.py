"""QuantumCircuit + Device → CompiledCircuit: transpiled once with a seed, observables laid out, parameters grouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import Gate, Parameter
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.circuits.observables import ADAPTIVE, MAX_LOCALITY, AdaptiveObservables
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.admission import (
    check_feed_forward,
    check_measurements,
    check_operations,
    flat,
    listed_observables,
    listed_parameters,
)
from qhw_diffusion.execution.conditions import FLOW, instructions
from qhw_diffusion.execution.measurement import Member, Terms, measurement_groups
from qhw_diffusion.execution.program import Program, check_angles, check_supported, lower, reduced_terms
from qhw_diffusion.execution.transpile import transpiled


@dataclass(frozen=True, eq=False)
class CompiledCircuit:
    """One circuit compiled for one device: what every engine evaluates and what a job on hardware would carry.

    Attributes:
        isa: the ISA circuit at the device's width with its layout attached (parameters unbound; those that no gate
            has any more are not among them).
        device: the device it was compiled for.
        inputs: circuit parameters fed from data, in order.
        weights: trainable circuit parameters, in order.
        observables: Pauli sums laid out on the ISA circuit's qubits.
        physical_qubits: device qubits in use, ascending (every other qubit stays in |0⟩ and is dropped).
        scheduled: whether the ISA circuit has delays wherever a qubit waits.
        postselect: (classical bit, outcome) of the measurements in mid-circuit whose other outcomes are discarded.
        adaptive: what a layer combines the observables into, which are Pauli strings then; None where they are
            themselves what is asked for.
    """

    isa: QuantumCircuit
    device: Device
    inputs: tuple[Parameter, ...]
    weights: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]
    physical_qubits: tuple[int, ...]
    seed: int = 0
    optimization_level: int = 3
    scheduled: bool = False
    postselect: tuple[tuple[int, int], ...] = ()
    logical: QuantumCircuit = field(repr=False, default_factory=QuantumCircuit)
    logical_observables: tuple[SparsePauliOp, ...] = field(repr=False, default=())
    adaptive: AdaptiveObservables | None = field(repr=False, default=None)

    @property
    def n_inputs(self) -> int:
        """Number of parameters fed from data."""
        return len(self.inputs)

    @property
    def n_weights(self) -> int:
        """Number of trainable parameters."""
        return len(self.weights)

    @property
    def n_observables(self) -> int:
        """Number of observables M that engines evaluate."""
        return len(self.observables)

    @property
    def n_values(self) -> int:
        """Number of values that a layer gives: M, or the number of adaptive observables."""
        return self.n_observables if self.adaptive is None else len(self.adaptive)

    @property
    def depth(self) -> int:
        """Depth of the ISA circuit, every gate counted."""
        return self.isa.depth()

    @property
    def two_qubit_gates(self) -> int:
        """Number of two-qubit gates in the ISA circuit, those of every branch of a condition included."""
        return sum(isinstance(i.operation, Gate) and len(i.qubits) > 1 for i in instructions(self.isa))

    @cached_property
    def duration(self) -> float | None:
        """Seconds from the first to the last gate (no measurement); None where the device states no durations.

        None with feed-forward too: no target states how long a condition takes.
        """
        conditions = any(isinstance(i.operation, FLOW) for i in self.isa.data)
        if self.device.target is None or not self.device.has_durations or conditions:
            return None
        bound = self.isa.assign_parameters(dict.fromkeys(self.isa.parameters, 0.0))  # durations do not depend on angles
        return float(bound.estimate_duration(self.device.target, unit="s"))

    @cached_property
    def program(self) -> Program:
        """The circuit as pure data for the simulating engines (lowered on first use)."""
        return lower(
            self.isa,
            self.device,
            self.physical_qubits,
            self.inputs,
            self.weights,
            self.observables,
            dict(self.postselect),
        )

    @cached_property
    def terms(self) -> tuple[Terms, ...]:
        """Per observable its (coefficient, Pauli label) on the qubits in use; label[q] is for physical_qubits[q]."""
        return tuple(reduced_terms(observable, self.physical_qubits) for observable in self.observables)

    @cached_property
    def measurement_groups(self) -> list[tuple[str, list[Member]]]:
        """The observables' Pauli strings in groups that are measured together (`measurement.measurement_groups`)."""
        return measurement_groups(self.terms)

    @cached_property
    def simulators(self) -> dict[Any, Any]:
        """Simulators made for this circuit so far (see `exact.simulator_of`)."""
        return {}

    def __deepcopy__(self, memo: object) -> CompiledCircuit:
        """The same object: nothing in it changes, and simulators made for it are shared."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the simulators made so far, which are large and made again in a moment."""
        return {name: value for name, value in self.__dict__.items() if name != "simulators"}

    def compile_for(self, device: Device) -> CompiledCircuit:
        """The same logical circuit, parameters and observables compiled for another device."""
        return compile_circuit(
            self.logical,
            device,
            inputs=self.inputs,
            weights=self.weights,
            observables=self.logical_observables if self.adaptive is None else self.adaptive,
            seed=self.seed,
            optimization_level=self.optimization_level,
            scheduled=self.scheduled and device.has_durations,
            postselect=dict(self.postselect),
        )

    def summary(self, snapshot: str | None = None) -> dict[str, Any]:
        """Device, layout and cost as JSON types; `snapshot` names the file the device was saved in."""
        return {
            "name": self.device.name,
            "provenance": self.device.provenance,
            "physical_qubits": list(self.physical_qubits),
            "depth": self.depth,
            "two_qubit_gates": self.two_qubit_gates,
            "duration_seconds": self.duration,
            "snapshot": snapshot,
        }

    def __repr__(self) -> str:
        return (
            f"CompiledCircuit({self.device.name}, qubits {list(self.physical_qubits)}, depth {self.depth}, "
            f"{self.two_qubit_gates} two-qubit gates, {self.n_inputs} inputs, {self.n_weights} weights, "
            f"{self.n_values} observables)"
        )


def compile_circuit(
    circuit: QuantumCircuit,
    device: Device,
    *,
    inputs: Sequence[Parameter],
    weights: Sequence[Parameter],
    observables: Sequence[SparsePauliOp] | AdaptiveObservables | str,
    seed: int = 0,
    optimization_level: int = 3,
    scheduled: bool = False,
    postselect: Mapping[int, int] | None = None,
) -> CompiledCircuit:
    """Transpile `circuit` to `device` once, reproducibly, and lay the observables out on the result.

    Any Qiskit circuit of rotations and fixed gates is taken as long as every gate angle is affine in the parameters.
    Resets and measurements in mid-circuit are taken as channels: an outcome is forgotten, unless it is post-selected
    on (`postselect`), a later condition reads it, or the layer is asked to sample (`QuantumLayer.sample`). What
    `if_else` and `switch_case` do after a measurement is evaluated for every outcome (`feed_forward`). Parameters that
    cancel (x − x) or stand in the global phase only are taken, with gradient 0.

    Args:
        circuit: logical circuit; the observables are not measured in it: a qubit that one of them acts on does not
            end with a measurement, unless post-selected on.
        device: `Device.load(...)`; on the ideal device nothing is routed.
        inputs: parameters fed from data, in the order of the layer's input columns.
        weights: trainable parameters, in the order of the layer's flat `weight`.
        observables: Pauli sums on the logical qubits, simplified: equal strings are added up, and coefficients below
            1e-8 count as 0. Constants are allowed. Or observables whose coefficients the layer trains,
            `AdaptiveObservables` or their text (``"adaptive:2"``): the circuit is then measured in their Pauli strings.
        seed: transpiler seed.
        optimization_level: Qiskit's preset level, 0 to 3.
        scheduled: schedule as late as possible and fill every wait with a delay; the noisy engine then lets waiting
            qubits relax (without delays it does not, as in Aer).
        postselect: {index of a classical bit: outcome kept}; expectation values are then those of the runs that read
            these outcomes.

    Raises:
        InvalidInputError: parameters that do not match the circuit's, observables of another width or with
            coefficients that are not real and finite, a level outside 0–3, a circuit wider than the device, scheduling
            on the ideal device, a classical bit that is not measured exactly once, a measurement at the end where an
            observable acts, or a circuit that cannot do without gates that are out of use (error 1).
        UnsupportedCircuitError: an angle that is not affine, real and finite, an operation that is not a gate, or a
            circuit the transpiler fails on (the operation is named in the message).
    """
    inputs, weights = listed_parameters(inputs, "inputs"), listed_parameters(weights, "weights")
    adaptive = _adaptive(circuit, observables)
    observables = listed_observables(observables if adaptive is None else adaptive.strings)  # type: ignore[arg-type]
    _check(circuit, device, inputs, weights, observables, optimization_level)
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise InvalidInputError(f"seed is {seed!r}; allowed: whole numbers from 0")
    observables = tuple(observable.simplify() for observable in observables)
    kept = _check_postselect(circuit, postselect or {})
    if scheduled and not device.has_durations:
        which = "the ideal device has not: load a real one" if device.is_ideal else f"{device.name} does not state"
        raise InvalidInputError(f"scheduled=True needs gate durations, which {which}")
    check_measurements(circuit, observables, dict(kept))
    check_feed_forward(circuit, dict(kept), scheduled)
    isa = transpiled(circuit, device, optimization_level=optimization_level, seed=seed, scheduled=scheduled)
    check_supported(isa)
    laid_out = tuple(o.apply_layout(isa.layout) if isa.layout is not None else o for o in observables)
    # A scheduled circuit has delays on every qubit of the device; one that only waits stays in |0⟩.
    used = {isa.find_bit(q).index for i in isa.data if i.operation.name not in ("delay", "barrier") for q in i.qubits}
    for observable in laid_out:
        used.update(int(q) for q in (observable.paulis.x | observable.paulis.z).any(axis=0).nonzero()[0])
    if not used:
        raise InvalidInputError("the circuit has no gates and the observables are constants: there is nothing to run")
    return CompiledCircuit(
        isa=isa,
        device=device,
        inputs=inputs,
        weights=weights,
        observables=laid_out,
        physical_qubits=tuple(sorted(used)),
        seed=seed,
        optimization_level=optimization_level,
        scheduled=scheduled,
        postselect=kept,
        logical=circuit.copy(),
        logical_observables=observables,
        adaptive=adaptive,
    )


def _adaptive(circuit: QuantumCircuit, observables: Any) -> AdaptiveObservables | None:
    """The adaptive observables that were given, or those of a text; None for others, text that is none among them."""
    if isinstance(observables, str) and observables.startswith(ADAPTIVE):
        return AdaptiveObservables.of(observables, getattr(circuit, "num_qubits", MAX_LOCALITY))
    return observables if isinstance(observables, AdaptiveObservables) else None


def _check(
    circuit: QuantumCircuit,
    device: Device,
    inputs: tuple[Parameter, ...],
    weights: tuple[Parameter, ...],
    observables: tuple[SparsePauliOp, ...],
    optimization_level: int,
) -> None:
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    if not isinstance(device, Device):
        raise InvalidInputError(
            f"device must be a Device, not {type(device).__name__}: use Device.load('fake_marrakesh')"
        )
    if optimization_level not in (0, 1, 2, 3):
        raise InvalidInputError(f"optimization_level is {optimization_level!r}; allowed: 0, 1, 2, 3")
    if device.n_qubits is not None and circuit.num_qubits > device.n_qubits:
        raise InvalidInputError(
            f"the circuit has {circuit.num_qubits} qubits but {device.name} has {device.n_qubits}; use a larger device"
        )
    if device.target is not None and circuit.num_qubits > len(device.usable_qubits):
        raise InvalidInputError(
            f"the circuit has {circuit.num_qubits} qubits but only {len(device.usable_qubits)} of the "
            f"{device.n_qubits} qubits of {device.name} are calibrated and not faulty; use a larger device"
        )
    given = [*inputs, *weights]
    names = [p.name for p in given]
    if len(set(given)) != len(given):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InvalidInputError(f"parameters listed more than once in inputs and weights: {', '.join(twice)}")
    held = set(circuit.parameters)  # sorted anew at every look
    missing = sorted(p.name for p in held - set(given))
    if missing:
        same = "; another Parameter of that name is not the same one" if set(missing) & set(names) else ""
        raise InvalidInputError(f"circuit parameters in neither inputs nor weights: {', '.join(missing)}{same}")
    unused = [p.name for p in given if p not in held]
    if unused:
        raise InvalidInputError(f"inputs or weights that the circuit does not contain: {', '.join(unused)}")
    if not observables:
        raise InvalidInputError("observables is empty; give at least one SparsePauliOp")
    for i, observable in enumerate(observables):
        if observable.num_qubits != circuit.num_qubits:
            raise InvalidInputError(
                f"observable {i} acts on {observable.num_qubits} qubits, the circuit has {circuit.num_qubits}"
            )
        coefficients = observable.coeffs
        if not np.isfinite(coefficients).all():
            raise InvalidInputError(f"observable {i} has coefficients that are NaN or infinite: {observable!r}")
        if abs(coefficients.imag).max(initial=0.0) > 1e-12:
            raise InvalidInputError(f"observable {i} has complex coefficients; an expectation value needs real ones")
    check_operations(circuit)
    check_angles(circuit)


def _check_postselect(circuit: QuantumCircuit, postselect: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    if not isinstance(postselect, Mapping):
        raise InvalidInputError(f"postselect is {postselect!r}; give {{classical bit: 0 or 1}}")
    measured = [clbits[0] for name, _, clbits in flat(circuit) if name in MEASUREMENTS]
    for clbit, outcome in postselect.items():
        if measured.count(clbit) != 1 or outcome not in (0, 1):
            raise InvalidInputError(
                f"postselect={{{clbit}: {outcome}}}: give {{classical bit: 0 or 1}} for bits measured exactly once; "
                f"this circuit measures {sorted(measured) or 'none'}"
            )
    return tuple(sorted((int(clbit), int(outcome)) for clbit, outcome in postselect.items()))
