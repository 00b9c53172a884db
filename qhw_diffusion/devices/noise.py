"""Noise of a device, built only for the gates and qubits asked for.

The gate error is Aer's device model (`qiskit_aer.noise.NoiseModel.from_backend`): thermal relaxation over the gate's
duration from T1 and T2 of its qubits, then as much depolarizing error as brings the average gate fidelity down to the
calibrated one. `from_backend` builds this for every gate of the device (seconds for 156 qubits); the same Aer function
is applied here to a target cut down to the qubits in question, which gives identical channels.

Readout differs on purpose: `from_backend` takes the mean of the two readout errors, while the device reads 0 wrongly
and 1 wrongly with different probabilities, and so does `FakeBackendV2.run`. The properties have both.

Idle time carries no error by itself: relaxation while waiting exists only in scheduled circuits (explicit delays), see
`relaxation_superop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from qiskit.quantum_info import SuperOp
from qiskit.transpiler import Target

from qhw_diffusion.devices.given_noise import GivenNoise

# One qubit's entry of the backend properties: a list of {"name", "value", "unit", "date"}.
QubitRecords = list[dict[str, Any]]


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
    """``(name, qubits, QuantumError)`` of every noisy instruction of a (reduced) target."""
    from qiskit_aer.noise.device.models import basic_device_gate_errors

    return [(name, tuple(qubits), error) for name, qubits, error in basic_device_gate_errors(target=target)]


def gate_superop(target: Target, name: str, qubits: tuple[int, ...]) -> SuperOp | None:
    """Error channel of one instruction on physical `qubits` (in the gate's order), None if it has no error."""
    wanted = tuple(range(len(qubits)))
    for _, place, error in device_gate_errors(reduced_target(target, qubits, [name])):
        if place == wanted:
            return SuperOp(error)
    return None


def relaxation_superop(t1: float | None, t2: float | None, seconds: float) -> SuperOp | None:
    """Thermal relaxation to |0> over `seconds`: exp(-t/T1) of the population and exp(-t/T2) of the coherence remain.

    As in Aer's device model: T2 is cut to 2·T1, a missing T2 means 2·T1, a missing T1 means no decay of the population.
    None if nothing is left to happen. T1 and T2 in seconds.
    """
    from qiskit_aer.noise import thermal_relaxation_error

    if seconds == 0 or (t1 is None and t2 is None):
        return None
    t1 = math.inf if t1 is None else t1
    t2 = 2 * t1 if t2 is None else min(t2, 2 * t1)
    return SuperOp(thermal_relaxation_error(t1, t2, seconds))


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
    """Aer noise model of the physical `qubits`, relabelled ``0..k-1``; `readout` holds (p10, p01) of each."""
    from qiskit_aer.noise import NoiseModel

    names = list(target.operation_names)
    model = NoiseModel(basis_gates=names)
    for name, place, error in device_gate_errors(reduced_target(target, qubits, names)):
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
