"""Evaluate through any Estimator primitive: Qiskit's, Aer's, a fake backend's in local mode, IBM's. One PUB a call."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.primitives import BackendEstimatorV2, BaseEstimatorV2
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.errors import EngineError, InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Usage, check_parameters
from qhw_diffusion.execution.program import angles_of, check_limits
from qhw_diffusion.execution.shots import measurement_groups


@dataclass(frozen=True)
class Primitive(Engine):
    """Expectation values from a `BaseEstimatorV2`, all rows and observables in one broadcast PUB.

    The precision is part of every PUB, so that no primitive's default is relied upon. No gradients of its own: give the
    layer a gradient method (`ParameterShift`, `SPSA`, `Surrogate`).

    Args:
        estimator: for example ``StatevectorEstimator()``, `aer_estimator(compiled)`, `runtime_estimator(backend)`.
        precision: target standard error of each expectation value, > 0.
        reduced: send the ISA circuit on the qubits in use only, relabelled 0…k−1 in ascending order, for simulators;
            False sends it at the device's width, as hardware and fake backends need it.

    Raises:
        InvalidInputError: something that is no Estimator primitive, or a precision that is not positive and finite.
    """

    estimator: Any
    precision: float = 0.01
    reduced: bool = False
    name: ClassVar[str] = "primitive"

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, BaseEstimatorV2):
            raise InvalidInputError(
                f"estimator is a {type(self.estimator).__name__}; give an Estimator primitive (BaseEstimatorV2)"
            )
        if not (isinstance(self.precision, (int, float)) and math.isfinite(self.precision) and self.precision > 0):
            raise InvalidInputError(
                f"precision is {self.precision!r}; it must be positive: at 0 primitives switch to exact values, which "
                "leave readout errors out. For exact values use engine='ideal' or 'noisy'"
            )

    def check(self, compiled: CompiledCircuit) -> None:
        if any(instruction.operation.name == "measure" for instruction in compiled.isa.data):
            raise UnsupportedCircuitError(
                "Estimator primitives do not take circuits that measure in mid-circuit: use engine 'ideal' or 'noisy'"
            )

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        check_parameters(compiled, parameters)
        self.check(compiled)
        rows = parameters.detach().cpu().numpy().astype(np.float64)
        if compiled.program.limits:
            check_limits(compiled.program, angles_of(compiled.program.by_rows(), rows, rows[0, :0]))
        circuit, observables = on_used_qubits(compiled) if self.reduced else (compiled.isa, compiled.observables)
        order = (*compiled.inputs, *compiled.weights)
        # observables [M, 1] against rows [B]: values [M, B]; values are bound by parameter, never by position
        pub = (circuit, [[o] for o in observables], {order: rows} if order else None, self.precision)
        values, errors = self._run(pub, len(observables), len(rows) if order else 1)
        groups = len(measurement_groups(compiled.program.observables))
        circuits = values.shape[1] * groups
        shots = circuits * math.ceil(1 / self.precision**2)
        return Estimate(
            torch.from_numpy(values.T.copy()).to(parameters).expand(len(rows), -1),
            torch.from_numpy(errors.T.copy()).to(parameters).expand(len(rows), -1),
            Usage(circuits, shots),
        )

    def _run(self, pub: tuple, observables: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """[M, B] values and standard errors; EngineError for anything else."""
        asked = f"{observables} observables at {rows} rows of parameters, precision {self.precision:g}"
        who = f"{type(self.estimator).__module__.split('.')[0]}'s {type(self.estimator).__name__}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the legacy runtime estimator
                data = self.estimator.run([pub]).result()[0].data
            values, errors = np.asarray(data.evs, dtype=float), np.asarray(data.stds, dtype=float)
        except Exception as error:
            raise EngineError(f"{who} failed on {asked}: {type(error).__name__}: {error}") from error
        shape = (observables, rows)
        if values.shape != shape:
            raise EngineError(f"{who} answered with shape {values.shape} to {asked}; {shape} was expected")
        if not np.isfinite(values).all():
            raise EngineError(
                f"{who} answered with {int((~np.isfinite(values)).sum())} values that are NaN or infinite"
            )
        # StatevectorEstimator draws with this spread but states none
        return values, errors if errors.any() else np.full(shape, self.precision)


def on_used_qubits(compiled: CompiledCircuit) -> tuple[QuantumCircuit, tuple[SparsePauliOp, ...]]:
    """The ISA circuit and its observables on the qubits in use, relabelled 0…k−1 in ascending order."""
    qubits = list(compiled.physical_qubits)
    circuit = QuantumCircuit(len(qubits), compiled.isa.num_clbits, global_phase=compiled.isa.global_phase)
    for instruction in compiled.isa.data:
        where = [compiled.isa.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name != "barrier" and set(where) <= set(qubits):
            clbits = [compiled.isa.find_bit(c).index for c in instruction.clbits]
            circuit.append(instruction.operation, [qubits.index(q) for q in where], clbits)
    observables = tuple(
        SparsePauliOp.from_list([(label[::-1], c) for c, label in terms]) for terms in compiled.program.observables
    )
    return circuit, observables


def aer_estimator(compiled: CompiledCircuit, *, seed: int | None = None) -> BackendEstimatorV2:
    """A sampling estimator on Aer with the device's noise and readout errors, for ``Primitive(…, reduced=True)``.

    The noise model holds the qubits in use only: with the whole device's, Aer spends seconds a call. Aer's own
    EstimatorV2 is not used, since it never applies readout errors.
    """
    from qiskit_aer import AerSimulator

    simulator = AerSimulator(noise_model=compiled.device.noise_model(compiled.physical_qubits), max_parallel_threads=1)
    return BackendEstimatorV2(backend=simulator, options={"seed_simulator": seed})


def runtime_estimator(mode: Any, *, options: Any = None, legacy: bool = False) -> BaseEstimatorV2:
    """The runtime client's estimator for a backend, session or batch; with a fake backend it runs locally.

    Args:
        mode: backend (fake or real), ``Session`` or ``Batch``.
        options: the estimator's options, as a dictionary or the client's own object.
        legacy: the deprecated ``qiskit_ibm_runtime.EstimatorV2``. In local mode it ignores resilience options and has
            the device's asymmetric readout errors; the new one (``qiskit_ibm_runtime.executor_estimator``) applies the
            options and takes the mean of the two errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if legacy:
            from qiskit_ibm_runtime import EstimatorV2

            return EstimatorV2(mode=mode, options=options)
        from qiskit_ibm_runtime.executor_estimator import Estimator

        estimator: BaseEstimatorV2 = Estimator(mode=mode, options=options)
        return estimator
