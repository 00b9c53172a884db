"""Noise of a device, built only for the gates and qubits asked for.

The gate error is Aer's device model (`qiskit_aer.noise.NoiseModel.from_backend`): thermal relaxation over the gate's
duration from T1 and T2 of its qubits, then as much depolarizing error as brings the average gate fidelity down to the
calibrated one. `from_backend` builds this for every gate of the device (seconds for 156 qubits). Channels of single
gates are written down here from their closed form, and tested against Aer's; a noise model for Aer is made by Aer's own
function, applied to a target cut down to the qubits in question.

Readout differs on purpose: `from_backend` takes the mean of the two readout errors, while the device reads 0 wrongly
and 1 wrongly with different probabilities, and so does `FakeBackendV2.run`. The properties have both.

Idle time carries no error by itself: relaxation while waiting exists only in scheduled circuits (explicit delays), see
`relaxation_superop`.

A user's own Aer `NoiseModel` is kept as `GivenNoise`, which says what of it is used and what cannot be.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from qiskit.circuit import Delay, Gate
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import SuperOp, average_gate_fidelity
from qiskit.transpiler import Target

from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import InvalidInputError

# One qubit's entry of the backend properties: a list of {"name", "value", "unit", "date"}.
QubitRecords = list[dict[str, Any]]
# Where an error is not what follows an instruction
_NO_QUANTUM_ERROR = (*MEASUREMENTS, "delay")
# Aer's errors that were made, each in up to a tenth of a second, by all that decides them
_ERRORS: dict[tuple[Any, ...], Any] = {}


def reduced_target(target: Target, qubits: Sequence[int], names: Iterable[str]) -> Target:
    """The instructions `names` of `target` within `qubits`, relabelled to ``0..len(qubits)-1`` in that order."""
    label = {qubit: index for index, qubit in enumerate(qubits)}
    properties = target.qubit_properties
    small = Target(
        num_qubits=len(qubits),
        dt=target.dt,
        qubit_properties=None if properties is None else [properties[qubit] for qubit in qubits],
    )
    for name in names:
        entries = target[name]
        # Control flow and other instructions without qubits have no properties, hence no error.
        if entries is None or None in entries:
            continue
        kept = {
            tuple(label[q] for q in place): properties
            for place, properties in entries.items()
            if label.keys() >= set(place)
        }
        if kept:
            small.add_instruction(target.operation_from_name(name), kept, name=name)
    return small


def device_gate_errors(target: Target) -> list[tuple[str, tuple[int, ...], Any]]:
    """``(name, qubits, QuantumError)`` of every noisy instruction of a (reduced) target, in its order."""
    from qiskit_aer.noise.device.models import basic_device_gate_errors

    known, found = target.qubit_properties, []
    for name in target.operation_names:
        for place, entry in (target[name] or {}).items():
            if place is None or entry is None:
                continue
            times = known and tuple((known[q].t1, known[q].t2) for q in place)
            key = (type(target.operation_from_name(name)), times, entry.duration, entry.error)
            if key not in _ERRORS:
                of_place = basic_device_gate_errors(target=reduced_target(target, place, [name]))
                in_order = tuple(range(len(place)))  # there may be one of the other direction
                _ERRORS[key] = next((error for _, where, error in of_place if tuple(where) == in_order), None)
            if _ERRORS[key] is not None:
                found.append((name, tuple(place), _ERRORS[key]))
    return found


def gate_superop(target: Target, name: str, qubits: tuple[int, ...]) -> SuperOp | None:
    """Error channel of one instruction on physical `qubits` (in the gate's order), None if it has no error.

    Written down from its closed form, since Aer takes a tenth of a second for a gate on two qubits. The composition of
    relaxation R with depolarizing, (1 − p)·id + p·D, has average gate fidelity F(R) − p·(d·F(R) − 1)/d, and p is what
    makes that the calibrated one, cut to a physical value as Aer cuts it.
    """
    if name in MEASUREMENTS or name not in target.operation_names:
        return None
    entry = (target[name] or {}).get(qubits)
    if entry is None:
        return None
    relaxation, fidelity = None, 1.0
    if entry.duration:
        known = (target.qubit_properties[qubit] for qubit in qubits)
        ones = (SuperOp(relaxation_matrix(each.t1, each.t2, entry.duration)) for each in known)
        # later qubits are the more significant
        relaxation = functools.reduce(lambda low, high: high.tensor(low), ones).data.real
        fidelity = _gate_fidelity(relaxation)
    dim = 2 ** len(qubits)
    matrix = relaxation
    is_gate = isinstance(target.operation_from_name(name), Gate)
    if is_gate and entry.error and entry.error > 1 - fidelity:
        error = min(entry.error, dim / (dim + 1))
        p = min(dim * (error - (1 - fidelity)) / (dim * fidelity - 1), dim**2 / (dim**2 - 1))
        mixed = np.outer(np.eye(dim).ravel(), np.eye(dim).ravel()) / dim
        depolarizing = (1 - p) * np.eye(dim**2) + p * mixed
        matrix = depolarizing if relaxation is None else relaxation @ depolarizing
    return None if matrix is None else SuperOp(matrix)


def relaxation_matrix(t1: float | None, t2: float | None, seconds: float) -> np.ndarray:
    """Thermal relaxation to |0> of one qubit, [4, 4] on density matrices whose columns are stacked.

    exp(-t/T1) of the population and exp(-t/T2) of the coherence remain. As in Aer's device model: T2 is cut to 2·T1, a
    missing T2 means 2·T1, a missing T1 means no decay of the population. T1 and T2 in seconds.

    Raises:
        InvalidInputError: T1 or T2 is not above 0.
    """
    for time, which in ((t1, "T1"), (t2, "T2")):
        if time is not None and not time > 0:
            raise InvalidInputError(f"{which} of a qubit is {time} s; allowed: above 0, or none in the calibration")
    t1 = math.inf if t1 is None else t1
    t2 = 2 * t1 if t2 is None else min(t2, 2 * t1)
    excited, coherent = math.exp(-seconds / t1), math.exp(-seconds / t2)
    matrix = np.diag([1.0, coherent, coherent, excited])
    matrix[0, 3] = 1 - excited
    return matrix


def _gate_fidelity(matrix: np.ndarray) -> float:
    """Average gate fidelity to the identity."""
    dim = round(math.sqrt(len(matrix)))
    return (float(np.trace(matrix)) / dim + 1) / (dim + 1)


def relaxation_superop(t1: float | None, t2: float | None, seconds: float) -> SuperOp | None:
    """`relaxation_matrix` as a channel; None if nothing is left to happen."""
    if seconds == 0 or (t1 is None and t2 is None):
        return None
    return SuperOp(relaxation_matrix(t1, t2, seconds))


def readout_probabilities(records: QubitRecords) -> tuple[float, float] | None:
    """``(p10, p01)`` = (P(read 1 | prepared 0), P(read 0 | prepared 1)) from one qubit's records.

    Devices that publish only the mean `readout_error` get it for both. None without any readout calibration.
    """
    value = {record["name"]: float(record["value"]) for record in records}
    if "prob_meas1_prep0" in value and "prob_meas0_prep1" in value:
        return value["prob_meas1_prep0"], value["prob_meas0_prep1"]
    if "readout_error" not in value:
        return None
    return value["readout_error"], value["readout_error"]


def aer_noise_model(target: Target, qubits: Sequence[int], readout: Sequence[tuple[float, float]]) -> Any:
    """Aer noise model of the physical `qubits`, relabelled ``0..k-1``; `readout` holds (p10, p01) of each.

    `readout` may go on with further labels, which have no other errors.
    """
    from qiskit_aer.noise import NoiseModel

    names = list(target.operation_names)
    model = NoiseModel(basis_gates=names)
    # Aer would let a qubit relax during measure_2, which it does not know for a measurement, and not during measure
    noisy = [name for name in names if name not in MEASUREMENTS]
    for name, place, error in device_gate_errors(reduced_target(target, qubits, noisy)):
        model.add_quantum_error(error, name, place)
    return with_readout(model, readout)


def with_readout(model: Any, readout: Sequence[tuple[float, float]]) -> Any:
    """The noise model with (p10, p01) of its qubits added."""
    from qiskit_aer.noise import ReadoutError

    for index, (p10, p01) in enumerate(readout):
        if p10 or p01:
            model.add_readout_error(ReadoutError([[1 - p10, p10], [p01, 1 - p01]]), [index])
    return model


def relabelled_noise_model(
    target: Target, qubits: Sequence[int], readout: Sequence[tuple[float, float]], own: GivenNoise
) -> Any:
    """As `aer_noise_model`, with the errors of a given noise model."""
    from qiskit_aer.noise import NoiseModel

    names = list(target.operation_names)
    model = NoiseModel(basis_gates=names)
    label = {qubit: index for index, qubit in enumerate(qubits)}
    for name in names:
        for place in target[name] or {}:
            if place is not None and label.keys() >= set(place):
                error = own.error(name, place)
                if error is not None:
                    model.add_quantum_error(error, name, [label[q] for q in place])
    return with_readout(model, readout)


@dataclass(frozen=True, eq=False)
class GivenNoise:
    """The errors of an Aer noise model by instruction and physical qubits. Make one with `GivenNoise.of`.

    Attributes:
        model: a copy of the noise model, which nobody changes any more.
        t1s, t2s: of every qubit while it waits, seconds; empty where the model has no relaxation of delays.
    """

    model: Any
    t1s: tuple[float, ...]
    t2s: tuple[float, ...]
    _channels: dict[Any, SuperOp] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Any, target: Target) -> GivenNoise:
        """Check and copy a noise model for devices with this target.

        Raises:
            InvalidInputError: no noise model, or a part of it that cannot be represented (named in the message):
                quantum errors on measurements or delays, errors on labels, readout errors of several qubits together,
                noise passes other than the relaxation of delays, qubits that the target does not have.
        """
        from copy import deepcopy

        from qiskit_aer.noise import NoiseModel

        if not isinstance(model, NoiseModel):
            raise InvalidInputError(f"noise_model is a {type(model).__name__}; give a qiskit_aer.noise.NoiseModel")
        model = deepcopy(model)
        for finding in _not_represented(model, target):
            raise InvalidInputError(f"the noise model has {finding}, which cannot be represented; leave it out")
        t1s, t2s = _relaxation(model, target.num_qubits or 0)
        return cls(model, t1s, t2s)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all error channels, readout errors and relaxation times."""
        model, digest = self.model, hashlib.sha256(repr((self.t1s, self.t2s)).encode())
        channels = [(name, (), error) for name, error in model._default_quantum_errors.items()]
        channels += [(n, p, error) for n, errors in model._local_quantum_errors.items() for p, error in errors.items()]
        for name, place, _ in sorted(channels, key=lambda entry: entry[:2]):
            channel = self.channel(name, place)
            assert channel is not None
            digest.update(repr((name, place)).encode() + np.ascontiguousarray(channel.data).tobytes())
        readout = list(model._local_readout_errors.items())
        readout += [] if model._default_readout_error is None else [((), model._default_readout_error)]
        for place, error in sorted(readout, key=lambda entry: entry[0]):
            digest.update(repr(place).encode() + np.ascontiguousarray(error.probabilities, dtype=float).tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenNoise) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def error(self, name: str, place: Sequence[int]) -> Any:
        """Aer's `QuantumError` after an instruction on physical qubits, None if there is none."""
        local = self.model._local_quantum_errors.get(name, {}).get(tuple(place))
        return self.model._default_quantum_errors.get(name) if local is None else local

    def channel(self, name: str, place: Sequence[int]) -> SuperOp | None:
        """The same as a channel; its subsystem i is ``place[i]``."""
        error = self.error(name, place)
        if error is None:
            return None
        if id(error) not in self._channels:  # the model lives as long as this, so ids stay their own
            self._channels[id(error)] = SuperOp(error)
        return self._channels[id(error)]

    def infidelity(self, name: str, place: Sequence[int]) -> float:
        """Average gate infidelity of the error."""
        channel = self.channel(name, place)
        return 0.0 if channel is None else max(0.0, 1.0 - float(average_gate_fidelity(channel)))

    def readout(self, qubit: int) -> tuple[float, float]:
        """(p10, p01): P(read 1 | prepared 0), P(read 0 | prepared 1)."""
        error = self.model._local_readout_errors.get((qubit,), self.model._default_readout_error)
        if error is None:
            return 0.0, 0.0
        return float(error.probabilities[0][1]), float(error.probabilities[1][0])

    def relaxation_times(self, qubit: int) -> tuple[float | None, float | None]:
        """(T1, T2) of a qubit that waits, seconds; None where nothing happens to it."""
        if not self.t1s:
            return None, None
        times = self.t1s[qubit], self.t2s[qubit]
        return tuple(None if math.isinf(t) else t for t in times)  # type: ignore[return-value]

    def check_used(self, names: set[str]) -> None:
        """Refuse a model none of whose errors is on an instruction that circuits for the device have."""
        noisy = set(self.model.noise_instructions)
        if noisy and not noisy & names:
            raise InvalidInputError(
                f"the noise model has errors of {', '.join(sorted(noisy))} only, and the target none of these "
                f"instructions: it has {', '.join(sorted(names))}"
            )


def _not_represented(model: Any, target: Target) -> list[str]:
    known = get_standard_gate_name_mapping()
    found = []
    for name in {**model._default_quantum_errors, **model._local_quantum_errors}:
        if name in _NO_QUANTUM_ERROR:
            found.append(f"a quantum error of {name!r}")
        elif name not in known and name not in target.operation_names:
            found.append(f"an error of the label {name!r}")
    n_qubits = target.num_qubits or 0
    for name, errors in model._local_quantum_errors.items():
        found += [f"an error of {name!r} on {place}" for place in errors if any(q >= n_qubits for q in place)]
    for place in model._local_readout_errors:
        if len(place) > 1:
            found.append(f"a readout error of the qubits {place} together")
    for step in model._custom_noise_passes:
        if not _relaxes_delays(step):
            found.append(f"the noise pass {type(step).__name__}")
    return found


def _relaxes_delays(step: Any) -> bool:
    from qiskit_aer.noise import RelaxationNoisePass

    types = getattr(step, "_ops", None)
    return type(step) is RelaxationNoisePass and types == (Delay,) and not np.any(step._p1s)


def _relaxation(model: Any, n_qubits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    steps = model._custom_noise_passes
    if not steps:
        return (), ()
    if len(steps) > 1 or len(steps[0]._t1s) < n_qubits:
        raise InvalidInputError("the noise model must have one relaxation pass with T1 and T2 of every qubit, or none")
    t1s, t2s = steps[0]._t1s, steps[0]._t2s
    return tuple(map(float, t1s[:n_qubits])), tuple(map(float, t2s[:n_qubits]))
