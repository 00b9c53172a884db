"""A fake device as a service: jobs run in this process, for nothing, with the same keys and the same ledger.

So what runs on a fake device is planned, stored and resumed as it will be on a real one.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from qiskit import QuantumCircuit
from qiskit.primitives import BaseEstimatorV2

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.snapshot import FRACTIONAL_GATES
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, JobError
from qhw_diffusion.hardware.aer import AerEstimator, aer_simulator, on_qubits, qubits_in_use
from qhw_diffusion.hardware.estimators import check_runs
from qhw_diffusion.hardware.service import JobState, Limits, Measured, Pub, RefusedError, without_attempts
from qhw_diffusion.masking import shown_cause

_FORMAT = "qhw-local-1"


class LocalService:
    """Runs jobs in this process (`service.Service`), at once when they are sent.

    Without an estimator of your own, Aer samples each circuit on its qubits in use, with the device's noise and
    asymmetric readout. Outcomes depend on the seed and the job's tags alone: a job that is run again, and a run that
    was interrupted and goes on, have the outcomes that they would have had.

    Args:
        device: the fake device, loaded.
        estimator: any Estimator primitive for circuits of that device, instead. For the ledger it is known by its
            class: with other settings give the work another purpose.
        seed: of the outcomes (not of an estimator of your own).
    """

    paid = False
    instance = ""

    def __init__(self, device: Device, *, estimator: BaseEstimatorV2 | None = None, seed: int = 0) -> None:
        if not isinstance(device, Device):
            raise InvalidInputError(f"device must be a Device, not {type(device).__name__}: use Device.load(…)")
        if estimator is not None and not isinstance(estimator, BaseEstimatorV2):
            raise InvalidInputError(f"estimator is a {type(estimator).__name__}; give an Estimator primitive")
        self.device = device.name
        self._device = device
        self._estimator = estimator
        self._seed = seed
        self.program = "local" + self._other_than_usual()
        self._simulators: dict[tuple[Device, tuple[int, ...], bool], Any] = {}
        self._answers: dict[str, str] = {}
        self._tags: dict[str, tuple[str, ...]] = {}

    def _other_than_usual(self) -> str:
        """What tells this simulation from the usual one of that name, so that the ledger does not mix them up."""
        other = "" if self._estimator is None else f" by {type(self._estimator).__name__}"
        if self._seed:
            other += f" seed {self._seed}"
        if not self.device.startswith("fake_"):  # a snapshot: its name is the live device's, whatever the day
            other += f" snapshot {self._device.fingerprint[:16]}"
        return other

    def snapshot(self) -> Device:
        return self._device

    def check(self, pubs: Sequence[Pub], options: Mapping[str, Any]) -> None:
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
            if self._estimator is not None:
                check_runs(self._estimator, pub.circuit)
            else:
                self._device_for(pub.circuit)

    def submit(self, pubs: Sequence[Pub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        job_id = f"local-{uuid.uuid4().hex[:12]}"
        seed = int.from_bytes(
            hashlib.sha256(json.dumps([self._seed, *without_attempts(tags)]).encode()).digest()[:8], "big"
        )
        try:
            measured = [self._measure(pub, seed + index) for index, pub in enumerate(pubs)]
        except Exception as error:
            raise RefusedError(f"{self.device} failed on the job: {type(error).__name__}: {error}") from shown_cause(
                error
            )
        answers = [{"values": v.tolist(), "std_errors": e.tolist(), "shots": s} for v, e, s in measured]
        self._answers[job_id] = json.dumps({"format": _FORMAT, "pubs": answers})
        self._tags[job_id] = tuple(tags)
        return job_id

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
        if set(circuit.count_ops()) & set(FRACTIONAL_GATES) - set(device.target.operation_names):
            device = self._fractional
        assert device.target is not None
        for instruction in circuit.data:
            name, place = instruction.operation.name, tuple(circuit.find_bit(q).index for q in instruction.qubits)
            if name != "barrier" and not device.target.instruction_supported(name, place):
                raise InvalidInputError(f"{self.device} has no {name!r} on qubits {place}; compile for this device")
        return device

    @cached_property
    def _fractional(self) -> Device:
        return self._device.with_fractional_gates()

    def find(self, tag: str) -> list[str]:
        return [job_id for job_id, tags in self._tags.items() if tag in tags]

    def status(self, job_id: str) -> JobState:
        if job_id in self._answers:
            return JobState("DONE")
        return JobState("UNKNOWN", "it ended with the process that ran it")

    def raw(self, job_id: str) -> str:
        try:
            return self._answers[job_id]
        except KeyError:
            raise JobError(f"job {job_id} ended with the process that ran it") from None

    def decode(self, raw: str) -> list[Measured]:
        try:
            document = json.loads(raw)
            assert document["format"] == _FORMAT
            return [
                (np.asarray(p["values"], float), np.asarray(p["std_errors"], float), int(p["shots"]))
                for p in document["pubs"]
            ]
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(f"the stored answer is none of a fake device ({type(error).__name__})") from error

    def qpu_seconds(self, job_id: str) -> float | None:
        return 0.0

    def cancel(self, job_id: str) -> None:
        """Jobs are done when they are sent; there is nothing to cancel."""

    def remaining_seconds(self) -> float | None:
        return None

    def session_id(self) -> str | None:
        return None

    def session_seconds(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing is open."""
