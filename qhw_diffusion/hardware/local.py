"""A fake device as a service: jobs run in this process, for nothing, with the same keys and the same ledger.

So what runs on a fake device is planned, stored and resumed as it will be on a real one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp, QuantumRegister
from qiskit.primitives import BackendEstimatorV2, BaseEstimatorV2, BaseSamplerV2, BitArray
from qiskit.quantum_info import PauliList, SparsePauliOp

from qhw_diffusion.circuits.library import with_usual_instructions
from qhw_diffusion.devices import Device
from qhw_diffusion.devices.instructions import MEASUREMENTS, MID_CIRCUIT, RESETS
from qhw_diffusion.devices.snapshot import FRACTIONAL_GATES
from qhw_diffusion.draws import Draws
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, JobError, UnsupportedCircuitError
from qhw_diffusion.hardware.ledger_rows import now
from qhw_diffusion.hardware.sampling import (
    aer_simulator,
    check_conditions,
    check_most_shots,
    flat_bits,
    operations_of,
    sample_bits,
)
from qhw_diffusion.hardware.service import (
    AnyPub,
    JobState,
    Limits,
    Measured,
    Pub,
    RefusedError,
    Sampled,
    SamplerPub,
    without_attempts,
)
from qhw_diffusion.masking import shown_cause

_FORMAT = "qhw-local-1"


class LocalService:
    """Runs jobs in this process (`service.Service`), at once when they are sent.

    Without primitives of your own, Aer samples each circuit on its qubits in use, with the device's noise and
    asymmetric readout. Outcomes depend on the seed and the job's tags alone: a job that is run again, and a run that
    was interrupted and goes on, have the outcomes that they would have had.

    Args:
        device: the fake device, loaded.
        estimator: any Estimator primitive for circuits of that device, instead. For the ledger it is known by its
            class: with other settings give the work another purpose.
        sampler: the same for a Sampler's PUBs.
        seed: of the outcomes (not of primitives of your own).
    """

    paid = False
    instance = ""
    plan = ""

    def __init__(
        self,
        device: Device,
        *,
        estimator: BaseEstimatorV2 | None = None,
        sampler: BaseSamplerV2 | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(device, Device):
            raise InvalidInputError(f"device must be a Device, not {type(device).__name__}: use Device.load(…)")
        if estimator is not None and not isinstance(estimator, BaseEstimatorV2):
            raise InvalidInputError(f"estimator is a {type(estimator).__name__}; give an Estimator primitive")
        if sampler is not None and not isinstance(sampler, BaseSamplerV2):
            raise InvalidInputError(f"sampler is a {type(sampler).__name__}; give a Sampler primitive")
        self.device = device.name
        self._device = device
        self._estimator = estimator
        self._sampler = sampler
        self._seed = seed
        self.program = "local" + self._other_than_usual()
        self._simulators: dict[tuple[Device, tuple[int, ...], bool], Any] = {}
        self._answers: dict[str, str] = {}
        self._tags: dict[str, tuple[str, ...]] = {}
        self._times: dict[str, dict[str, str]] = {}

    def _other_than_usual(self) -> str:
        """What tells this simulation from the usual one of that name, so that the ledger does not mix them up."""
        own = [type(primitive).__name__ for primitive in (self._estimator, self._sampler) if primitive is not None]
        other = f" by {' and '.join(own)}" if own else ""
        if self._seed:
            other += f" seed {self._seed}"
        if not self.device.startswith("fake_"):  # a snapshot: its name is the live device's, whatever the day
            other += f" snapshot {self._device.fingerprint[:16]}"
        return other

    def snapshot(self) -> Device:
        """The device, as it was loaded."""
        return self._device

    def effective(self, options: Mapping[str, Any], primitive: str = "estimator") -> dict[str, Any]:
        """Nothing is mitigated here by itself: resilience level 0, and no options of a Sampler."""
        return {"resilience_level": 0} if primitive == "estimator" else {}

    def check(self, pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> None:
        """Check circuits and options before anything runs.

        Args:
            pubs: what one job is to evaluate.
            options: of IBM's options only ``resilience_level`` 0.

        Raises:
            InvalidInputError: another option; a circuit that is wider than the device or has instructions it lacks;
                more shots than it takes.
            UnsupportedCircuitError: resets or measurements in mid-circuit, which your own estimator
                does not average over, or, for an estimator, instructions that it does not know.
        """
        if set(options) - {"resilience_level"} or options.get("resilience_level", 0) != 0:
            raise InvalidInputError(
                f"options {sorted(options)} are for IBM's service; a fake device in this process takes "
                "resilience_level 0 only"
            )
        width = self._device.n_qubits
        for pub in pubs:
            if width is not None and pub.circuit.num_qubits > width:
                raise InvalidInputError(
                    f"the circuit has {pub.circuit.num_qubits} qubits, {self.device} has {width}; compile it for "
                    f"this device"
                )
            if isinstance(pub, SamplerPub):
                check_most_shots(self._most_shots, pub.shots, self.device)
                check_conditions(pub.circuit, self._device.target, self.device)
            else:
                check_known(pub.circuit)
            own = self._sampler if isinstance(pub, SamplerPub) else self._estimator
            if own is None:
                self._device_for(pub.circuit)
            elif isinstance(pub, Pub):
                check_runs(own, pub.circuit)

    def submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        """Run a job now, in this process.

        Args:
            pubs: what one job is to evaluate.
            options: those that `check` allows.
            tags: tags of the job; with the seed they decide the outcomes.
            limits: not used: the job costs nothing.

        Returns:
            The job's id.

        Raises:
            RefusedError: the simulation failed; the message has its error.
        """
        job_id, began = f"local-{uuid.uuid4().hex[:12]}", now()
        seed = int.from_bytes(
            hashlib.sha256(json.dumps([self._seed, *without_attempts(tags)]).encode()).digest()[:8], "big"
        )
        try:
            answers = [self._answer(pub, seed + index) for index, pub in enumerate(pubs)]
        except Exception as error:
            raise RefusedError(f"{self.device} failed on the job: {type(error).__name__}: {error}") from shown_cause(
                error
            )
        self._answers[job_id] = json.dumps({"format": _FORMAT, "pubs": answers})
        self._tags[job_id] = tuple(tags)
        self._times[job_id] = {"created": began, "started": began, "finished": now()}
        return job_id

    def _answer(self, pub: AnyPub, seed: int) -> dict[str, Any]:
        """What is stored of a PUB, JSON types."""
        if isinstance(pub, Pub):
            values, errors, shots = self._measure(pub, seed)
            return {"values": values.tolist(), "std_errors": errors.tolist(), "shots": shots}
        return {"bits": {name: _packed(bits) for name, bits in self._sample(pub, seed).items()}}

    def _sample(self, pub: SamplerPub, seed: int) -> Sampled:
        if self._sampler is None:
            device = self._device_for(pub.circuit)
            return sample_bits(pub, device, np.random.default_rng(seed))
        known = replace(pub, circuit=with_usual_instructions(pub.circuit))
        data = self._sampler.run([known.as_tuple()]).result()[0].data
        return {name: flat_bits(data[name]) for name, _ in pub.registers}

    def _measure(self, pub: Pub, seed: int) -> Measured:
        if self._estimator is None:
            qubits = qubits_in_use(pub.circuit, pub.observables)
            simulator = self._simulator(self._device_for(pub.circuit), qubits, "delay" in pub.circuit.count_ops())
            circuit, observables = on_qubits(pub.circuit, pub.observables, qubits)
            small = Pub(circuit, observables, pub.parameters, pub.values, pub.precision)
            result = AerEstimator(simulator, seed).run([small.as_tuple()]).result()
        else:
            result = self._estimator.run([pub.as_tuple()]).result()
        shots = result[0].metadata.get("shots", result.metadata.get("shots"))
        data = result[0].data
        return np.asarray(data.evs, float), np.asarray(data.stds, float), int(shots or pub.shots)

    def _simulator(self, device: Device, qubits: tuple[int, ...], scheduled: bool) -> Any:
        """Kept, since making the noise model takes longer than most jobs."""
        key = (device, qubits, scheduled)
        if key not in self._simulators:
            self._simulators[key] = aer_simulator(device, qubits, scheduled=scheduled)
        return self._simulators[key]

    def _device_for(self, circuit: QuantumCircuit) -> Device:
        """The device, with its fractional gates if the circuit has such: Aer runs gates without calibration perfectly.

        Raises:
            InvalidInputError: an instruction that the device does not have; the message names it.
        """
        device = self._device
        if device.target is None:
            return device
        if {name for name, _ in operations_of(circuit)} & set(FRACTIONAL_GATES) - set(device.target.operation_names):
            device = self._fractional
        assert device.target is not None
        for name, place in operations_of(circuit):
            if name != "barrier" and not device.target.instruction_supported(name, place):
                raise InvalidInputError(f"{self.device} has no {name!r} on qubits {place}; compile for this device")
        return device

    @cached_property
    def _most_shots(self) -> Any:
        return (json.loads(self._device.snapshot.configuration) or {}).get("max_shots")

    @cached_property
    def _fractional(self) -> Device:
        return self._device.with_fractional_gates()

    def find(self, tag: str) -> list[str]:
        """Ids of this object's jobs with the tag, oldest first."""
        return [job_id for job_id, tags in self._tags.items() if tag in tags]

    def status(self, job_id: str) -> JobState:
        """DONE for a job of this object, else UNKNOWN: a job ends with the process that ran it."""
        if job_id in self._answers:
            return JobState("DONE")
        return JobState("UNKNOWN", "it ended with the process that ran it")

    def raw(self, job_id: str) -> str:
        """The answer of a job as JSON text.

        Args:
            job_id: the service's id of the job.

        Returns:
            Values, standard errors and shots of each PUB, as `decode` reads them.

        Raises:
            JobError: this object ran no such job.
        """
        try:
            return self._answers[job_id]
        except KeyError:
            raise JobError(f"job {job_id} ended with the process that ran it") from None

    def decode(self, raw: str) -> list[Measured] | list[Sampled]:
        """Decode the text of a job's answer.

        Args:
            raw: what `raw` returned.

        Returns:
            Values [M, B], standard errors [M, B] and shots of each PUB; of a Sampler's the bits of each register.

        Raises:
            DamagedFileError: it is no answer of a fake device.
        """
        return decode_local(raw)

    def qpu_seconds(self, job_id: str) -> float | None:
        """0 QPU seconds: a job in this process costs nothing."""
        return 0.0

    def where(self, job_id: str) -> dict[str, Any]:
        """Nothing: there are no modes."""
        return {}

    def stated(self, job_id: str) -> dict[str, Any]:
        """When the simulation of a job began and ended."""
        return dict(self._times.get(job_id, {}))

    def cancel(self, job_id: str) -> None:
        """Jobs are done when they are sent; there is nothing to cancel."""

    def remaining_seconds(self) -> float | None:
        """None: there is no limit."""
        return None

    def session_id(self) -> str | None:
        """None: there is no batch or session."""
        return None

    def session_seconds(self) -> dict[str, float]:
        """An empty dictionary: there are no sessions."""
        return {}

    def close(self) -> None:
        """Nothing is open."""


def decode_local(raw: str) -> list[Measured] | list[Sampled]:
    """What a `LocalService` answered to each PUB.

    Raises:
        DamagedFileError: it is no answer of a fake device.
    """
    try:
        document = json.loads(raw)
        assert document["format"] == _FORMAT
        answers: list[Any] = [
            {name: _unpacked(*packed) for name, packed in p["bits"].items()}
            if "bits" in p
            else (np.asarray(p["values"], float), np.asarray(p["std_errors"], float), int(p["shots"]))
            for p in document["pubs"]
        ]
        return answers
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFileError(f"the stored answer is none of a fake device ({type(error).__name__})") from error


def _packed(bits: BitArray) -> list[Any]:
    """[bits, shape of the packed array, its bytes as base64]."""
    data = base64.b64encode(np.ascontiguousarray(bits.array, dtype=np.uint8).tobytes()).decode("ascii")
    return [bits.num_bits, list(bits.array.shape), data]


def _unpacked(width: int, shape: Sequence[int], text: str) -> BitArray:
    data = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    return BitArray(data.reshape([int(n) for n in shape]).copy(), int(width))


# -- Aer's estimator in a device's place: qubits in use only, with their noise and asymmetric readout ------------------


def qubits_in_use(circuit: QuantumCircuit, observables: Sequence[SparsePauliOp]) -> tuple[int, ...]:
    """Qubits with a gate or in an observable, ascending; every other one stays in |0⟩, however long it waits."""
    used = {
        circuit.find_bit(q).index
        for instruction in circuit.data
        if instruction.operation.name not in ("delay", "barrier")
        for q in instruction.qubits
    }
    for observable in observables:
        used.update(int(q) for q in (observable.paulis.x | observable.paulis.z).any(axis=0).nonzero()[0])
    return tuple(sorted(used))


def on_qubits(
    circuit: QuantumCircuit, observables: Sequence[SparsePauliOp], qubits: Sequence[int]
) -> tuple[QuantumCircuit, tuple[SparsePauliOp, ...]]:
    """The circuit and its observables on `qubits` (all those in use), relabelled 0…k−1 in the order given."""
    where = {qubit: index for index, qubit in enumerate(qubits)}
    reduced = QuantumCircuit(len(qubits), circuit.num_clbits, global_phase=circuit.global_phase)
    if any(isinstance(instruction.operation, ControlFlowOp) for instruction in circuit.data):
        # conditions name bits and registers, which must stay the same ones
        reduced = QuantumCircuit(QuantumRegister(len(qubits)), circuit.clbits, *circuit.cregs)
    for instruction in circuit.data:
        places = [circuit.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name != "barrier" and set(places) <= set(where):
            clbits = [circuit.find_bit(c).index for c in instruction.clbits]
            reduced.append(instruction.operation, [where[q] for q in places], clbits)
    kept = list(qubits)
    return reduced, tuple(
        SparsePauliOp(PauliList.from_symplectic(o.paulis.z[:, kept], o.paulis.x[:, kept]), o.coeffs)
        for o in observables
    )


class AerEstimator(BackendEstimatorV2):
    """`BackendEstimatorV2` on Aer that draws on from call to call; with a fixed seed it would repeat the outcomes."""

    def __init__(self, backend: Any, seed: int | None) -> None:
        super().__init__(backend=backend)
        self._draws = Draws(seed)

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
        """Estimate PUBs, with a new simulator seed for every call.

        Args:
            pubs: what Qiskit's `BaseEstimatorV2.run` takes.
            precision: target standard error of PUBs that state none; None for the estimator's own default.

        Returns:
            Qiskit's primitive job, started.
        """
        self.options.seed_simulator = int(self._draws.generator.integers(2**31))
        return super().run(pubs, precision=precision)


# -- circuits with resets or measurements in mid-circuit ---------------------------------------------------------------


def check_known(circuit: QuantumCircuit) -> None:
    """Raise UnsupportedCircuitError for instructions of devices that estimators of this process do not know."""
    if found := sorted({name for name, _ in operations_of(circuit)} & {*MID_CIRCUIT.values()}):
        raise UnsupportedCircuitError(
            f"the circuit has {' and '.join(found)}, which estimators of this process do not know: compile it with "
            f"{' and '.join(MID_CIRCUIT)}, or use engine 'ideal' or 'noisy'"
        )


def check_runs(estimator: Any, circuit: QuantumCircuit) -> None:
    """Raise UnsupportedCircuitError for a circuit with resets or measurements that the estimator does not average over.

    Qiskit's StatevectorEstimator follows one state and draws the outcome of a reset once for all its values; Aer's
    own estimator averages over a number of runs that has nothing to do with the precision, unless it holds density
    matrices. Estimators that run every shot from the start take both; the runtime client's take resets. Others are not
    known to, and are refused.
    """
    found = sorted({*MEASUREMENTS, *RESETS, "if_else", "switch_case"} & set(circuit.count_ops()))
    module = type(estimator).__module__
    by_shots = isinstance(estimator, BackendEstimatorV2)
    mixed = not {"if_else", "switch_case"} & set(found) and module.startswith("qiskit_aer")
    mixed = mixed and estimator._backend.options.get("method") == "density_matrix"
    client = module.startswith("qiskit_ibm_runtime") and set(found) <= set(RESETS)
    if not client:
        check_known(circuit)
    if found and not (by_shots or mixed or client):
        raise UnsupportedCircuitError(
            f"{module.split('.')[0]}'s {type(estimator).__name__} gives no right value for a circuit with "
            f"{' and '.join(found)} in mid-circuit; use Primitive(aer_estimator(compiled), reduced=True), or engine "
            "'ideal' or 'noisy'"
        )
