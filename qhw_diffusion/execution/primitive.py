"""Engines on Estimator primitives: one in this process (`Primitive`), or a device by way of the ledger (`Hardware`).

Both send one broadcast PUB a circuit, and all circuits of a call together.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit.primitives import BaseEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.devices.account import remember_account
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.errors import EngineError, InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.conditions import refuse_conditions
from qhw_diffusion.execution.engine import (
    Engine,
    Estimate,
    Experiment,
    Usage,
    check_parameters,
    evaluate_varying,
    parts_of,
)
from qhw_diffusion.execution.program import rows_within_limits
from qhw_diffusion.hardware.local import AerEstimator, check_runs, on_qubits
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.sampling import aer_simulator
from qhw_diffusion.hardware.service import Measured, Pub, precision_of
from qhw_diffusion.hardware.split import bases, bases_of
from qhw_diffusion.masking import shown_cause

if TYPE_CHECKING:
    from qiskit_aer import AerSimulator


def check_no_measurements(compiled: CompiledCircuit) -> None:
    """Raise UnsupportedCircuitError for a circuit that measures in mid-circuit: devices' estimators take none."""
    refuse_conditions(compiled.isa, "a device's Estimator primitive")
    if any(instruction.operation.name in MEASUREMENTS for instruction in compiled.isa.data):
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


def layout_of(compiled: CompiledCircuit) -> tuple[int, ...]:
    """Physical qubits in the order of the logical ones, before any routing; in ascending order where there are none.

    A calibration circuit has no logical qubits: its are those in use.
    """
    layout = compiled.isa.layout
    if layout is None or layout.input_qubit_mapping is None:
        return compiled.physical_qubits
    return tuple(layout.initial_index_layout(filter_ancillas=True))


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

    `estimate_many` sends the PUBs of all circuits in one call of the primitive. Observables that are constants are not
    sent.

    Circuits with resets or measurements in mid-circuit are for estimators that run every shot from the start:
    `aer_estimator`, `BackendEstimatorV2`; the runtime client's take resets. Others are refused. None post-selects.

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
        """Raise for a circuit that the estimator cannot hold or gives no right values for."""
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
        check_no_postselection(compiled)
        check_runs(self.estimator, compiled.isa)

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        """Circuits that a primitive executes for so many rows, grouped as Qiskit groups observables."""
        return sent_circuits(compiled, rows)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Values and standard errors [B, M] of rows [B, P], by one PUB; see `Engine.estimate`."""
        return self.estimate_many([(compiled, parameters)])[0]

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        """Evaluate several circuits in one call of the primitive: one PUB for each of them."""
        for compiled, _ in experiments:
            self.check(compiled)
        experiments = [(compiled, check_parameters(compiled, parameters)) for compiled, parameters in experiments]
        return evaluate_varying(experiments, self._estimate)

    def _estimate(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        pubs = [pub_of(c, rows, self.precision, reduced=self.reduced) for c, rows in experiments]
        measured = self._run(pubs)
        who = self._who
        return [estimate_of(*e, pub, m, who) for e, pub, m in zip(experiments, pubs, measured, strict=True)]

    def __deepcopy__(self, memo: object) -> Primitive:
        """The same engine: copies of a layer share the estimator, as they would a connection."""
        return self

    def __reduce__(self) -> Any:
        try:
            pickle.dumps(self.estimator)
        except Exception as error:  # whatever the estimator's own parts raise
            raise InvalidInputError(
                f"{self._who} cannot be pickled ({type(error).__name__}: {error}): save layer.state_dict(), or the "
                "layer on a simulating engine (layer.with_engine('noisy'))"
            ) from error
        return type(self), (self.estimator, self.precision, self.reduced)

    @property
    def _who(self) -> str:
        return f"{type(self.estimator).__module__.split('.')[0]}'s {type(self.estimator).__name__}"

    def _run(self, pubs: Sequence[Pub]) -> list[Measured]:
        """What the primitive answers to all PUBs; EngineError if it fails."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the legacy runtime estimator
                result = self.estimator.run([pub.as_tuple() for pub in pubs]).result()
            return [
                (
                    np.asarray(answer.data.evs, dtype=float),
                    np.asarray(answer.data.stds, dtype=float),
                    int(answer.metadata.get("shots", result.metadata.get("shots")) or 0),
                )
                for answer in (result[index] for index in range(len(pubs)))
            ]
        except Exception as error:
            asked = "; ".join(asked_of(pub) for pub in pubs)
            raise EngineError(f"{self._who} failed on {asked}: {type(error).__name__}: {error}") from shown_cause(error)


def _simulates_every_qubit(estimator: BaseEstimatorV2) -> bool:
    """Whether this is the client-side estimator on a fake backend: it measures qubits that are not in use as well."""
    if not type(estimator).__module__.startswith("qiskit_ibm_runtime.executor_estimator"):
        return False
    from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2

    return isinstance(estimator.backend(), FakeBackendV2)  # type: ignore[attr-defined]


def aer_backend(compiled: CompiledCircuit) -> AerSimulator:
    """Aer with the device's noise and asymmetric readout on the qubits in use, for ``Primitive(…, reduced=True)``.

    Waiting qubits relax where the circuit is scheduled. With the noise model of the whole device Aer would spend
    seconds a call. `aer_estimator` and `runtime_estimator` take it.
    """
    scheduled = "delay" in compiled.isa.count_ops()
    return aer_simulator(compiled.device, compiled.physical_qubits, scheduled=scheduled)


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
    remember_account(getattr(mode, "service", None))  # of a real device's backend, session or batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if legacy:
            from qiskit_ibm_runtime import EstimatorV2

            return EstimatorV2(mode=mode, options=options)
        from qiskit_ibm_runtime.executor_estimator import Estimator

        estimator: BaseEstimatorV2 = Estimator(mode=mode, options=options)
        return estimator


@dataclass(frozen=True, eq=False)
class Hardware(Engine):
    """Expectation values from a device, or from a fake one in this process, by way of a `Runner`.

    What the ledger has already is not run again: a call with the same circuit, rows, options and purpose takes the
    stored result. No gradients of its own: give the layer `ParameterShift`, `SPSA` or `Surrogate`. A very large call
    is split into several jobs below the service's limits.

    Args:
        runner: `open_runner(…)`.
        shots: of each circuit, ≥ 1.
        options: of the runtime client's estimator, for example ``{"resilience_level": 1}``; 0 unless given, since the
            client's own default is 1.
        purpose: what the evaluations are for, part of the ledger's key: ``"step 3"``. The same work for another
            purpose is run again.
        labels: what the circuits of one call are (`Engine.labelled`), kept with the jobs; empty: circuits as asked.
        packages: distributions that the circuits were made with; their versions are kept with the jobs.

    Raises:
        InvalidInputError: no `Runner`, shots below 1.
    """

    runner: Runner
    shots: int = 4096
    options: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = "evaluate"
    labels: Sequence[str] = ()
    packages: Sequence[str] = ()
    name: ClassVar[str] = "hardware"

    def __post_init__(self) -> None:
        if not isinstance(self.runner, Runner):
            raise InvalidInputError(f"runner is a {type(self.runner).__name__}; make one with open_runner(device, …)")
        precision_of(self.shots)

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise for a circuit of another device, or one that measures in mid-circuit."""
        check_no_measurements(compiled)
        device = self.runner.service.device
        if compiled.device.name != device:
            raise InvalidInputError(
                f"the circuit is compiled for {compiled.device.name}, the runner's device is {device}: use "
                f"compiled.compile_for(Device.load({device!r}))"
            )

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        """Circuits that the device executes for so many rows, grouped as Qiskit groups observables."""
        return sent_circuits(compiled, rows)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Values and standard errors [B, M] of rows [B, P], by one job; see `Engine.estimate`."""
        return self.estimate_many([(compiled, parameters)])[0]

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        """Evaluate several circuits in one job; observables that are constants are not sent.

        Raises:
            InvalidInputError, UnsupportedCircuitError: a circuit of another device, or that it does not take.
            BudgetError, JobError, ServiceError, AccountError, LedgerError: see `Runner.run`.
            EngineError: the answer is no result.
        """
        for compiled, _ in experiments:
            self.check(compiled)
        experiments = [(compiled, check_parameters(compiled, parameters)) for compiled, parameters in experiments]
        labels = self.labels or ["circuit"] * len(experiments)
        sent = [label for (compiled, _), label in zip(experiments, labels, strict=True) if parts_of(compiled).varying]
        return evaluate_varying(experiments, lambda varying: self._estimate(varying, sent))

    def labelled(self, labels: Sequence[str], packages: Sequence[str] = ()) -> Hardware:
        """The engine for one call of `estimate_many`, whose jobs are kept with what their circuits are."""
        return replace(self, labels=tuple(labels), packages=tuple(packages))

    def _estimate(self, experiments: Sequence[Experiment], labels: Sequence[str]) -> list[Estimate]:
        precision = precision_of(self.shots)
        pubs = [
            replace(pub_of(compiled, parameters, precision), label=label, layout=layout_of(compiled))
            for (compiled, parameters), label in zip(experiments, labels, strict=True)
        ]
        options = {"resilience_level": 0, **self.options}
        answer = self.runner.run(pubs, options=options, purpose=self.purpose, packages=self.packages)
        measured = zip(answer.values, answer.std_errors, answer.shots, strict=True)
        who = f"{self.runner.service.device} (job {', '.join(answer.job_ids)})"
        return [estimate_of(*e, pub, m, who) for e, pub, m in zip(experiments, pubs, measured, strict=True)]
