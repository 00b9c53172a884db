"""Evaluate through any Estimator primitive: Qiskit's, Aer's, a fake backend's in local mode, IBM's. One PUB a call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Delay
from qiskit.primitives import BackendEstimatorV2, BaseEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.errors import EngineError, InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Estimate, Usage, check_parameters
from qhw_diffusion.execution.program import angles_of, check_limits
from qhw_diffusion.execution.shots import measurement_groups

if TYPE_CHECKING:
    from qiskit_aer import AerSimulator

# Wider than any state a simulator holds
_TOO_WIDE = 30


@dataclass(frozen=True)
class Primitive(Engine):
    """Expectation values from a `BaseEstimatorV2`, all rows and observables in one broadcast PUB.

    The precision is part of every PUB, so that no primitive's default is relied upon. No gradients of its own: give the
    layer a gradient method (`ParameterShift`, `SPSA`, `Surrogate`).

    Usage: for each row and each group of observables that are measured together, the shots the primitive states, or
    else what the precision means to all of them, ceil(1/precision²). What an estimator adds for error mitigation is not
    in it.

    Beware of estimators with a seed of their own: most repeat the same draws in every call (`aer_estimator` does not).

    Args:
        estimator: for example ``StatevectorEstimator()``, `aer_estimator(compiled)`, `runtime_estimator(backend)`.
        precision: target standard error of each expectation value, > 0.
        reduced: send the ISA circuit on the qubits in use only, relabelled 0…k−1 in ascending order, for simulators;
            False sends it at the device's width, as hardware and fake backends need it.

    Raises:
        InvalidInputError: something that is no Estimator primitive, a precision that is not positive and finite, or
            Aer's own EstimatorV2 with readout errors, which it would leave out.
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
        if type(self.estimator).__module__.startswith("qiskit_aer"):
            model = getattr(self.estimator._backend.options, "noise_model", None)
            if model is not None and "measure" in model.noise_instructions:
                raise InvalidInputError(
                    "Aer's EstimatorV2 leaves the readout errors of its noise model out, at every precision; use "
                    "Primitive(aer_estimator(compiled), reduced=True), or a noise model without readout errors"
                )

    def check(self, compiled: CompiledCircuit) -> None:
        width = compiled.isa.num_qubits
        if width > _TOO_WIDE and not self.reduced:
            if isinstance(self.estimator, StatevectorEstimator):
                raise InvalidInputError(
                    f"StatevectorEstimator cannot hold the {width} qubits of {compiled.device.name}; "
                    f"Primitive(…, reduced=True) sends it the {len(compiled.physical_qubits)} in use"
                )
            if _simulates_every_qubit(self.estimator):
                raise InvalidInputError(
                    f"in local mode the client's Estimator simulates all {width} qubits of {compiled.device.name}; use "
                    "Primitive(runtime_estimator(aer_backend(compiled), …), reduced=True), or legacy=True"
                )
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
        values, errors, shots = self._run(pub, len(observables), len(rows) if order else 1)
        groups = len(measurement_groups(compiled.program.observables))
        circuits = values.shape[1] * groups
        return Estimate(
            torch.from_numpy(values.T.copy()).to(parameters).expand(len(rows), -1),
            torch.from_numpy(errors.T.copy()).to(parameters).expand(len(rows), -1),
            Usage(circuits, circuits * shots),
        )

    def _run(self, pub: tuple, observables: int, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
        """[M, B] values and standard errors, and the shots of each circuit; EngineError for anything else."""
        asked = f"{observables} observables at {rows} rows of parameters, precision {self.precision:g}"
        who = f"{type(self.estimator).__module__.split('.')[0]}'s {type(self.estimator).__name__}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the legacy runtime estimator
                result = self.estimator.run([pub]).result()
            data = result[0].data
            values, errors = np.asarray(data.evs, dtype=float), np.asarray(data.stds, dtype=float)
            stated = result[0].metadata.get("shots", result.metadata.get("shots"))
        except Exception as error:
            raise EngineError(f"{who} failed on {asked}: {type(error).__name__}: {error}") from error
        shape = (observables, rows)
        if values.shape != shape:
            raise EngineError(f"{who} answered with shape {values.shape} to {asked}; {shape} was expected")
        if not np.isfinite(values).all():
            raise EngineError(
                f"{who} answered with {int((~np.isfinite(values)).sum())} values that are NaN or infinite to {asked}"
            )
        if errors.shape != shape or not (np.isfinite(errors) & (errors >= 0)).all():
            raise EngineError(f"{who} answered with standard errors that are none to {asked}")
        shots = int(stated) if stated else math.ceil(1 / self.precision**2)
        # StatevectorEstimator draws with this spread but states none
        return values, errors if errors.any() else np.full(shape, self.precision), shots


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


def _simulates_every_qubit(estimator: BaseEstimatorV2) -> bool:
    """Whether this is the client-side estimator on a fake backend: it measures qubits that are not in use as well."""
    if not type(estimator).__module__.startswith("qiskit_ibm_runtime.executor_estimator"):
        return False
    from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2

    return isinstance(estimator.backend(), FakeBackendV2)  # type: ignore[attr-defined]


class AerEstimator(BackendEstimatorV2):
    """`BackendEstimatorV2` on Aer that draws on from call to call; with a fixed seed it would repeat the outcomes."""

    def __init__(self, backend: Any, seed: int | None) -> None:
        super().__init__(backend=backend)
        self._generator = np.random.default_rng(seed)

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
        self.options.seed_simulator = int(self._generator.integers(2**31))
        return super().run(pubs, precision=precision)


def aer_backend(compiled: CompiledCircuit) -> AerSimulator:
    """Aer with the device's noise and asymmetric readout on the qubits in use, for ``Primitive(…, reduced=True)``.

    Waiting qubits relax where the circuit is scheduled. With the noise model of the whole device Aer would spend
    seconds a call. `aer_estimator` and `runtime_estimator` take it.
    """
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import RelaxationNoisePass

    device, qubits = compiled.device, compiled.physical_qubits
    model = device.noise_model(qubits)
    if device.target is not None and "delay" in compiled.isa.count_ops():
        times = [device.relaxation_times(qubit) for qubit in qubits]
        t1s = [math.inf if t1 is None else t1 for t1, _ in times]
        t2s = [2 * t1 if t2 is None else min(t2, 2 * t1) for t1, (_, t2) in zip(t1s, times, strict=True)]
        # Where NoiseModel.from_backend puts it: a noise model has no public place for the errors of delays
        model._custom_noise_passes.append(RelaxationNoisePass(t1s, t2s, dt=device.target.dt, op_types=Delay))
    return AerSimulator(noise_model=model, max_parallel_threads=1)


def aer_estimator(compiled: CompiledCircuit, *, seed: int | None = None) -> AerEstimator:
    """A sampling estimator on `aer_backend`, for ``Primitive(…, reduced=True)``.

    Aer's own EstimatorV2 is not used, since it never applies readout errors. Calls draw on from `seed`; a new estimator
    with this seed repeats them.
    """
    return AerEstimator(aer_backend(compiled), seed)


def runtime_estimator(mode: Any, *, options: Any = None, legacy: bool = False) -> BaseEstimatorV2:
    """The runtime client's estimator for a backend, session or batch; with a fake backend it runs locally.

    Args:
        mode: backend (fake or real), `aer_backend(compiled)`, ``Session`` or ``Batch``.
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
