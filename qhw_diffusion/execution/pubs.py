"""Compiled circuits and rows of parameters → broadcast PUBs, and what primitives and devices answer → estimates."""

from __future__ import annotations

import math

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.errors import EngineError, UnsupportedCircuitError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Estimate, Usage, check_parameters
from qhw_diffusion.execution.program import rows_within_limits
from qhw_diffusion.hardware.aer import on_qubits
from qhw_diffusion.hardware.service import Measured, Pub, precision_of
from qhw_diffusion.hardware.split import bases, bases_of


def check_no_measurements(compiled: CompiledCircuit) -> None:
    """Raise UnsupportedCircuitError for a circuit that measures in mid-circuit: devices' estimators take none."""
    if any(instruction.operation.name == "measure" for instruction in compiled.isa.data):
        raise UnsupportedCircuitError(
            "devices' Estimator primitives do not take circuits that measure in mid-circuit: use engine 'ideal' or "
            "'noisy'"
        )


def check_no_postselection(compiled: CompiledCircuit) -> None:
    """Raise UnsupportedCircuitError for a circuit that is post-selected on outcomes: no Estimator primitive does it."""
    if compiled.postselect:
        raise UnsupportedCircuitError("Estimator primitives do not post-select: use engine 'ideal' or 'noisy'")


def on_used_qubits(compiled: CompiledCircuit) -> tuple[QuantumCircuit, tuple[SparsePauliOp, ...]]:
    """The ISA circuit and its observables on the qubits in use, relabelled 0…k−1 in ascending order."""
    return on_qubits(compiled.isa, compiled.observables, compiled.physical_qubits)


def pub_of(compiled: CompiledCircuit, parameters: Tensor, precision: float, *, reduced: bool = False) -> Pub:
    """One broadcast PUB: M observables against B rows; values are bound by parameter, never by position.

    Args:
        compiled: the circuit with its observables.
        parameters: [B, inputs + weights] radians.
        precision: target standard error.
        reduced: on the qubits in use only, relabelled 0…k−1 in ascending order; False at the device's width.

    Raises:
        InvalidInputError: parameters of another shape or not finite, or angles the device does not take.
    """
    rows = rows_within_limits(compiled.program, check_parameters(compiled, parameters).detach().cpu().numpy())
    circuit, observables = compiled.isa, compiled.observables
    if reduced:
        circuit, observables = on_used_qubits(compiled)
    left = set(circuit.parameters)  # compiling may have taken some out of every gate
    columns = {i: p for i, p in enumerate((*compiled.inputs, *compiled.weights)) if p in left}
    return Pub(circuit, observables, tuple(columns.values()), rows[:, list(columns)], precision)


def sent_circuits(compiled: CompiledCircuit, rows: int) -> int:
    """Circuits that a primitive executes for so many rows: each in as many bases as the observables need."""
    return (rows if compiled.isa.parameters else 1) * bases_of(compiled.observables)


def planned_pub(compiled: CompiledCircuit, rows: int, shots: int) -> Pub:
    """The PUB of so many rows with zeros for values, to count what it takes; not to be sent."""
    parameters = tuple(p for p in (*compiled.inputs, *compiled.weights) if p in set(compiled.isa.parameters))
    return Pub(compiled.isa, compiled.observables, parameters, np.zeros((rows, len(parameters))), precision_of(shots))


def estimate_of(compiled: CompiledCircuit, parameters: Tensor, pub: Pub, measured: Measured, who: str) -> Estimate:
    """What was answered to `pub`, as [B, M] in the dtype and on the device of `parameters`.

    A standard error that is infinite stays so: the client's extrapolation gives such for single values. One that is
    NaN is not known either, and infinite too. Standard errors that are all zero (StatevectorEstimator draws but states
    none) are the precision. Usage: for each row and each group of observables that are measured together, the shots
    stated, or else what the precision means.

    Raises:
        EngineError: values of another shape, NaN or infinity, or negative standard errors.
    """
    values, errors, stated = measured
    shape = (len(pub.observables), pub.rows)
    asked = asked_of(pub)
    if values.shape != shape:
        raise EngineError(f"{who} answered with shape {values.shape} to {asked}; {shape} was expected")
    if not np.isfinite(values).all():
        raise EngineError(
            f"{who} answered with {int((~np.isfinite(values)).sum())} values that are NaN or infinite to {asked}"
        )
    errors = np.where(np.isnan(errors), np.inf, errors)
    if errors.shape != shape or not (errors >= 0).all():
        raise EngineError(f"{who} answered with standard errors that are none to {asked}")
    errors = errors if errors.any() else np.full(shape, pub.precision)
    circuits = pub.rows * bases(pub)
    return Estimate(
        torch.from_numpy(values.T.copy()).to(parameters).expand(len(parameters), -1),
        torch.from_numpy(errors.T.copy()).to(parameters).expand(len(parameters), -1),
        Usage(circuits, circuits * (stated or math.ceil(1 / pub.precision**2))),
    )


def asked_of(pub: Pub) -> str:
    """What a PUB asks for, in words."""
    return f"{len(pub.observables)} observables at {pub.rows} rows of parameters, precision {pub.precision:g}"
