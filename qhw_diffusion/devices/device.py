"""`Device`: target, noise and provenance of the machine a circuit is compiled for."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from qiskit import QuantumCircuit
from qiskit.quantum_info import SuperOp
from qiskit.transpiler import Target

from qhw_diffusion.devices import noise
from qhw_diffusion.devices.instructions import MEASUREMENTS
from qhw_diffusion.devices.noise import GivenNoise
from qhw_diffusion.devices.own import (
    FREE_ANGLES,
    LOADED_BY,
    NO_DATE,
    NOISE_MODEL,
    check_unchanged,
    has_documents,
    own_device,
    own_source,
)
from qhw_diffusion.devices.providers import canonical_name, fake_snapshot, live_snapshot
from qhw_diffusion.devices.snapshot import Snapshot, with_fractional_gates
from qhw_diffusion.devices.validate import in_seconds, states_durations
from qhw_diffusion.devices.working import (
    RZZ_RANGE,
    calibrated_part,
    couplings,
    faulty,
    on_gates_in_use,
    part_in_use,
    usable_qubits,
)
from qhw_diffusion.errors import InvalidInputError, MissingDataError, QhwError, UnknownNameError
from qhw_diffusion.extensions import is_extension

_IDEAL = Snapshot("ideal", "null", "null", {"source": "ideal: no target, no noise"})


@functools.lru_cache(maxsize=8)  # models bring their device with them, often one that has been loaded already
def _decoded(configuration_text: str, properties_text: str, bounded: bool) -> Target:
    """The target of a snapshot's two documents; `bounded`: RZZ has a range of angles."""
    from qiskit_ibm_runtime.models import BackendConfiguration
    from qiskit_ibm_runtime.utils.backend_converter import convert_to_target
    from qiskit_ibm_runtime.utils.backend_decoder import decode_backend_configuration, properties_from_server_data

    # The decoders turn dates and complex numbers into objects in place: give them copies of their own.
    configuration = json.loads(configuration_text)
    decode_backend_configuration(configuration)
    properties = json.loads(properties_text)
    # With a date in place of its text the decoder leaves all others alone: no target has any, and they take most
    # of its time
    properties["last_update_date"] = datetime.fromisoformat(NO_DATE)
    for qubit in faulty(properties)[0]:  # the converter looks for it even where nothing works
        properties["qubits"][qubit].append({"name": "readout_error", "value": 1.0, "unit": "", "date": NO_DATE})
    target = convert_to_target(
        configuration=BackendConfiguration.from_dict(configuration),
        properties=properties_from_server_data(properties),
        filter_faulty=False,  # it stumbles over gates that the configuration gives no qubits
    )
    return calibrated_part(target, json.loads(properties_text), bounded=bounded)


@functools.lru_cache(maxsize=8)
def _shared(snapshot: Snapshot, provenance: tuple[tuple[str, str], ...]) -> Device:
    """One device for all who load the same snapshot, of the same provenance: what follows from it is derived once."""
    return Device(replace(snapshot, provenance=dict(provenance)))


@dataclass(frozen=True)
class Device:
    """A device that circuits are compiled for. Make one with `Device.load` or `Device.of`.

    Two are equal if their content is. Nothing is built before it is asked for: the target on first use, a gate's error
    when that gate is looked up.

    Attributes:
        snapshot: the configuration and calibration everything else is derived from.
        own_noise: errors of a noise model that was given to `of`, in place of those that follow from the calibration.
    """

    snapshot: Snapshot
    own_noise: GivenNoise | None = None

    @classmethod
    def of(cls, source: Any, *, noise_model: Any = None, name: str | None = None) -> Device:
        """A device of one's own: from a target or a backend, with the noise it states or an Aer noise model.

        Taken are the gates of Qiskit's library on one or two qubits, their errors, durations, T1, T2 and readout errors
        (without a noise model one error for both outcomes, since a target knows no more). Instructions left out are
        listed in the provenance (``left_out``). A backend of qiskit-ibm-runtime is read by its own documents, as
        `load` does.

        A target without any errors and times makes a device without noise, for engine ``"ideal"``. Absent is not
        perfect where some gates have errors: a place without one is no part of the device.

        Args:
            source: a qiskit `Target` or `BackendV2`.
            noise_model: a `qiskit_aer.noise.NoiseModel`, whose errors then are the device's, in place of those of the
                target. Waiting qubits relax if it was made by `NoiseModel.from_backend`.
            name: of the device; None: the backend's, or ``"own_target"``.

        Raises:
            InvalidInputError: a `BackendV1`, a simulator, a name of a device that `load` knows, a target that states
                errors or durations of some gates and none of another, or a part of the noise model that cannot be
                represented (quantum errors of measurements or delays, errors of labels, readout errors of several
                qubits together, noise passes); the message names it.
        """
        snapshot, given = own_device(source, noise_model, name)
        device = cls(snapshot, given)
        if given is None and name is None and has_documents(source):
            check_unchanged(source, device.target)
        return device

    @classmethod
    def load(cls, name: str | Path) -> Device:
        """A device by name, or from a snapshot file.

        Args:
            name: ``"ideal"``; the name of a fake backend of qiskit-ibm-runtime (``"fake_marrakesh"`` or
                ``"FakeMarrakesh"``); the name of a live device (``"ibm_…"``), whose calibration of this moment is
                read through the user's account; ``"module:name"`` or ``"file.py:name"``, a `Device`, Qiskit `Target`
                or `BackendV2` of your own, or a function without arguments that makes one; or the path of a snapshot
                written by `save`. A string is taken as a path if it holds a path separator or ends in ``.json`` or
                ``.json.gz``.

        Raises:
            UnknownNameError: no such device; the message lists near matches.
            AccountError: a live device without an account, or one that the account does not have.
            ServiceError: a live device, and the service does not answer.
            MissingDataError: the snapshot file does not exist, or the device of your own that it was taken of, and
                whose noise model it needs, is not found.
            DamagedFileError: the file is not a (whole, unchanged) snapshot, or holds values no device can have.
            InvalidInputError: a device of your own that cannot be loaded or made, or is none.
        """
        if is_extension(name):
            return cls._named(str(name))
        if isinstance(name, Path) or (
            isinstance(name, str) and (os.sep in name or name.endswith((".json", ".json.gz")))
        ):
            return cls._of_file(name)
        if not isinstance(name, str):
            raise InvalidInputError(f"device must be a name or a path, not {name!r}")
        if canonical_name(name) == "ideal":
            return cls(_IDEAL)
        snapshot = live_snapshot(name) if name.startswith("ibm_") else fake_snapshot(name)
        return _shared(snapshot, tuple(snapshot.provenance.items()))

    @classmethod
    def _named(cls, text: str) -> Device:
        """A device of the user's own by its name, which its provenance holds."""
        source = own_source(text)
        try:
            device = source if isinstance(source, Device) else cls.of(source)
        except InvalidInputError as error:
            raise InvalidInputError(f"device {text!r}: {error}") from error
        provenance = {**device.snapshot.provenance, LOADED_BY: text}
        return replace(device, snapshot=replace(device.snapshot, provenance=provenance))

    @classmethod
    def _of_file(cls, path: str | Path) -> Device:
        """The device of a snapshot file, with its own noise model if it had one."""
        snapshot = Snapshot.load(path)
        if NOISE_MODEL not in snapshot.provenance:
            return _shared(snapshot, tuple(snapshot.provenance.items()))
        text = snapshot.provenance.get(LOADED_BY, "")
        try:
            device = cls._named(text)
        except QhwError as error:
            raise MissingDataError(
                f"{path} is a snapshot of {snapshot.name}, whose own noise model comes from {text!r}: {error}. A file "
                "is looked for from the current folder, a module as import does"
            ) from error
        known = None if device.own_noise is None else device.own_noise.fingerprint
        if device.snapshot.fingerprint != snapshot.fingerprint or known != snapshot.provenance[NOISE_MODEL]:
            raise InvalidInputError(
                f"{text!r} makes another device now than when {path} was saved: its target or its noise model differs. "
                "Restore it as it was, or make what was saved again (a function must make the same device every time)"
            )
        return replace(device, snapshot=snapshot)

    def save(self, path: str | Path) -> Path:
        """Write the snapshot to ``*.json.gz`` or ``*.json``, atomically; `Device.load(path)` gives an equal device.

        Of a device with a noise model of one's own the file holds the name by which it was loaded, and `load` loads
        it by that name again.

        Raises:
            InvalidInputError: a device with a noise model of one's own that was not loaded by a name (see
                `restorable`), or another file ending.
        """
        if not self.restorable:
            raise InvalidInputError(
                f"{self.name} has a noise model of your own, which no snapshot holds: make the device in a function "
                "and load it by its name, Device.load('file.py:function'), which is saved and found again"
            )
        if self.own_noise is None:
            return self.snapshot.save(path)
        provenance = {**self.snapshot.provenance, NOISE_MODEL: self.own_noise.fingerprint}
        return replace(self.snapshot, provenance=provenance).save(path)

    @property
    def restorable(self) -> bool:
        """Whether `save` and `load` give an equal device; not with a noise model of one's own without a name."""
        return self.own_noise is None or LOADED_BY in self.snapshot.provenance

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the snapshot and of the device's own noise model, if it has one."""
        if self.own_noise is None:
            return self.snapshot.fingerprint
        return hashlib.sha256(f"{self.snapshot.fingerprint}\n{self.own_noise.fingerprint}".encode()).hexdigest()

    @cached_property
    def has_noise(self) -> bool:
        """Whether anything in it is not perfect; False for the ideal device and for targets that state no errors."""
        if self.own_noise is not None:
            return True
        if self.target is None:
            return False
        times = [self.relaxation_times(qubit) != (None, None) for qubit in self.usable_qubits]
        entries = [
            e for name in self.target.operation_names for e in (self.target[name] or {}).values() if e is not None
        ]
        if any(e.error for e in entries) or (any(times) and any(e.duration for e in entries)):
            return True
        return any(any(self.readout_error(qubit)) for qubit in self.usable_qubits)

    @cached_property
    def has_durations(self) -> bool:
        """Whether the durations of gates are known, without which nothing can be scheduled."""
        return states_durations(json.loads(self.snapshot.properties) or {"gates": []})

    @property
    def name(self) -> str:
        """Name of the device: ``"ideal"``, ``"fake_marrakesh"``, …."""
        return self.snapshot.name

    @property
    def is_ideal(self) -> bool:
        """True for the device without target and noise."""
        return self._configuration is None

    @property
    def provenance(self) -> dict[str, str]:
        """Where the data is from.

        Entries: ``source``, ``package``, ``backend_version``, the calibration's ``date`` as its provider gives it and,
        if there are any, the oddities published with it (``as_published``); ``loaded_by``, the ``module:name`` of a
        device of one's own. The ideal device has a ``source`` only.
        """
        return dict(self.snapshot.provenance)

    @property
    def n_qubits(self) -> int | None:
        """Number of physical qubits; None for the ideal device, which has as many as the circuit needs."""
        return None if self._configuration is None else int(self._configuration["n_qubits"])

    @property
    def date(self) -> str | None:
        """Date of the calibration as its provider gives it (ISO 8601); None for the ideal device."""
        return self.provenance.get("date")

    @property
    def basis_gates(self) -> list[str]:
        """Names of the basis gates, e.g. ``["cz", "id", "rz", "sx", "x"]``; empty for the ideal device."""
        return [] if self._configuration is None else list(self._configuration["basis_gates"])

    @property
    def coupling_map(self) -> list[tuple[int, int]]:
        """Directed pairs of connected physical qubits, sorted; empty for the ideal device."""
        edges = None if self._configuration is None else self._configuration.get("coupling_map")
        return sorted((int(a), int(b)) for a, b in edges or [])

    @property
    def processor_type(self) -> dict[str, str]:
        """``{"family": "Heron", "revision": "2"}``; empty where the provider does not say."""
        kind = None if self._configuration is None else self._configuration.get("processor_type")
        return {key: str(value) for key, value in kind.items()} if isinstance(kind, dict) else {}

    @property
    def coordinates(self) -> list[tuple[int, int]] | None:
        """(column, row) of every qubit on the chip, where the provider says so."""
        places = None if self._configuration is None else self._configuration.get("coords")
        # older devices have none
        return None if not places else [(int(x), int(y)) for x, y in places]

    def relaxation_times(self, qubit: int) -> tuple[float | None, float | None]:
        """``(T1, T2)`` of a physical qubit in seconds, as calibrated; None where the calibration has none.

        Raises:
            InvalidInputError: the device has no such qubit.
        """
        if self.n_qubits is None:
            return None, None
        self._check_qubits([qubit])
        if self.own_noise is not None:
            return self.own_noise.relaxation_times(qubit)
        seconds = {r["name"]: in_seconds(r) for r in self._qubit_records[qubit] if r["name"] in ("T1", "T2")}
        return seconds.get("T1"), seconds.get("T2")

    @cached_property
    def target(self) -> Target | None:
        """The qiskit target (basis gates, coupling, durations, errors); None for the ideal device.

        Qubits and gates that are faulty (``operational: 0``) or without calibration are left out. Gates of error 1 are
        in it as published: see `target_in_use`. Devices of equal content share one, which is not to be changed.
        """
        if self._configuration is None:
            return None
        return _decoded(self.snapshot.configuration, self.snapshot.properties, not self._any_angle)

    @property
    def _any_angle(self) -> bool:
        return self._configuration is not None and "rzz" in self._configuration.get(FREE_ANGLES, ())

    @cached_property
    def target_in_use(self) -> Target | None:
        """`target` without gates that are out of use (error 1), and without qubits that have lost a gate by that."""
        return None if self.target is None else part_in_use(self.target)

    @cached_property
    def usable_qubits(self) -> tuple[int, ...]:
        """Physical qubits with calibrated gates, ascending; none for the ideal device, which has any."""
        return () if self.target is None else usable_qubits(self.target)

    @cached_property
    def couplings_in_use(self) -> tuple[tuple[int, int], ...]:
        """Pairs (ascending) of connected physical qubits with a calibrated two-qubit gate in use, sorted."""
        return () if self.target_in_use is None else couplings(self.target_in_use)

    def transpiled(self, run: Callable[[Target], QuantumCircuit]) -> QuantumCircuit:
        """The circuit that `run` transpiles for the target, on gates in use; asked again where it took another.

        Raises:
            InvalidInputError: it cannot do without gates that are out of use (the message names them), or the ideal
                device, which has no target.
        """
        target = self.target
        if target is None:
            raise InvalidInputError("the ideal device has no target to transpile for")
        return on_gates_in_use(self.name, target, lambda: self.target_in_use or target, run)

    def gate_error(self, name: str, qubits: Sequence[int]) -> SuperOp | None:
        """Error channel that follows the ideal gate `name` on physical `qubits`.

        Args:
            name: an instruction of the target, e.g. ``"sx"`` or ``"cz"``.
            qubits: physical qubits in the gate's order; the channel's subsystem i is ``qubits[i]``.

        Returns:
            The channel, or None if the instruction has no error (``rz`` and other virtual gates; everything on the
            ideal device). ``"reset"`` relaxes over its duration and has no other error, as in Aer's model: a little
            of nothing after |0>. ``"delay"`` has None: see `relaxation`. Measurement is not a gate here: see
            `readout_error`.

        Raises:
            UnknownNameError: the device has no such instruction.
            InvalidInputError: it has, but not on these qubits.
        """
        target = self.target
        if target is None:
            return None
        place = tuple(int(q) for q in qubits)
        if name not in target.operation_names:
            raise UnknownNameError.of(f"instruction of {self.name}", name, target.operation_names)
        if not target.instruction_supported(name, place):
            raise InvalidInputError(
                f"{self.name} has no {name!r} in use on qubits {place}: transpile the circuit for its target"
            )
        key = (name, place)
        if key not in self._gate_errors:
            own = self.own_noise
            self._gate_errors[key] = (
                noise.gate_superop(target, name, place) if own is None else own.channel(name, place)
            )
        return self._gate_errors[key]

    def angle_limits(self, name: str) -> tuple[float, float] | None:
        """Lowest and highest angle (radians) the device takes for gate `name`; None where any will do.

        IBM calibrates rzz(θ) for 0 ≤ θ ≤ π/2 only; rx(θ) and rz(θ) take every angle. So does rzz on a device of one's
        own, unless its target says otherwise.
        """
        return RZZ_RANGE if name == "rzz" and self.target is not None and not self._any_angle else None

    def with_fractional_gates(self) -> Device:
        """This device with rx(θ) and rzz(θ) in its basis, as IBM's devices offer on request.

        Raises:
            InvalidInputError: the calibration has no errors and durations for these gates.
        """
        return replace(self, snapshot=with_fractional_gates(self.snapshot))

    def relaxation(self, qubit: int, seconds: float) -> SuperOp | None:
        """Error channel of a physical `qubit` while it waits: thermal relaxation to |0> with its T1 and T2.

        This is the channel Aer's device model puts on a delay: no excited state at equilibrium (temperature 0), T2 cut
        to 2·T1 where the calibration says more (see docs/calibration.md).

        Args:
            qubit: physical qubit.
            seconds: length of the wait, ≥ 0.

        Returns:
            The single-qubit channel; None if nothing happens: no time passes, the qubit has neither T1 nor T2 in its
            calibration, or the device is ideal.

        Raises:
            InvalidInputError: no such qubit; a negative or infinite time.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidInputError(f"idle time must be finite and ≥ 0 seconds, not {seconds!r}")
        return noise.relaxation_superop(*self.relaxation_times(qubit), seconds)

    def readout_error(self, qubit: int, instruction: str = "measure") -> tuple[float, float]:
        """``(p10, p01)``: p10 = P(read 1 | prepared 0) and p01 = P(read 0 | prepared 1) of a physical qubit.

        Args:
            qubit: physical qubit.
            instruction: that reads it: ``"measure"``, or ``"measure_2"`` where the device has it. Of the latter
                providers state one error, which counts for both outcomes.

        Raises:
            InvalidInputError: the device has no such qubit, or it is faulty and has no calibration; another
                instruction, or one that the device does not have there.
        """
        if instruction not in MEASUREMENTS:
            raise InvalidInputError(f"{instruction!r} is no measurement; allowed: {', '.join(MEASUREMENTS)}")
        if self.n_qubits is None:
            return 0.0, 0.0
        self._check_qubits([qubit])
        if instruction != "measure":
            entries = self.target[instruction] if instruction in self.target.operation_names else {}  # type: ignore[union-attr, index]
            if (qubit,) not in entries:
                raise InvalidInputError(f"{self.name} has no {instruction!r} on qubit {qubit}: read it by 'measure'")
            error = float(entries[qubit,].error)  # `calibrated_part` has left out what has none
            return error, error
        probabilities = noise.readout_probabilities(self._qubit_records[qubit])
        if probabilities is None:
            raise InvalidInputError(f"qubit {qubit} of {self.name} is faulty: it has no readout error")
        return probabilities

    def noise_model(self, qubits: Sequence[int], *, reads: Sequence[tuple[int, str]] | None = None) -> Any:
        """Aer `NoiseModel` of the physical `qubits` relabelled ``0..k-1``: gate errors and asymmetric readout.

        Args:
            qubits: physical qubits.
            reads: (physical qubit, measurement) that gives the readout error of each label 0, 1, …, of more labels than
                there are qubits if need be; None: ``"measure"`` of every qubit.

        Raises:
            InvalidInputError: a qubit that the device does not have, or that is named twice, faulty, or without
                calibration.
        """
        from qiskit_aer.noise import NoiseModel

        target = self.target
        if target is None:
            return NoiseModel()
        self._check_qubits(qubits)
        if unusable := sorted(set(qubits) - set(self.usable_qubits)):
            raise InvalidInputError(
                f"qubits {unusable} of {self.name} cannot be used: faulty, or gates without calibration"
            )
        readout = [self.readout_error(*read) for read in reads or [(qubit, "measure") for qubit in qubits]]
        if self.own_noise is not None:
            return noise.relabelled_noise_model(target, list(qubits), readout, self.own_noise)
        return noise.aer_noise_model(target, list(qubits), readout)

    def _check_qubits(self, qubits: Sequence[int]) -> None:
        n_qubits = self.n_qubits or 0
        if any(not 0 <= q < n_qubits for q in qubits) or len(set(qubits)) != len(qubits):
            raise InvalidInputError(
                f"{self.name} has qubits 0 to {n_qubits - 1}, each to be named once; given {list(qubits)}"
            )

    @cached_property
    def _configuration(self) -> dict[str, Any] | None:
        return json.loads(self.snapshot.configuration)

    @cached_property
    def _qubit_records(self) -> list[noise.QubitRecords]:
        properties = json.loads(self.snapshot.properties)
        return [] if properties is None else list(properties["qubits"])

    @cached_property
    def _gate_errors(self) -> dict[tuple[str, tuple[int, ...]], SuperOp | None]:
        return {}

    def __repr__(self) -> str:
        date = self.provenance.get("date")
        return f"Device({self.name!r}{f', calibrated {date}' if date else ''})"


def take_snapshot(name: str, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Save the calibration of a device.

    Args:
        name: as for `Device.load`.
        path: ``*.json.gz`` or ``*.json``; ``<name>-<date>.json.gz`` in the current folder if None, with the
            calibration's date if it states one.
        overwrite: replace an existing file.

    Returns:
        The path written.

    Raises:
        InvalidInputError: the file exists; another file ending; impossible values.
        UnknownNameError, AccountError, ServiceError, MissingDataError, DamagedFileError: as `Device.load`.
    """
    device = Device.load(name)
    if device.is_ideal:
        raise InvalidInputError("the ideal device has no calibration to take a snapshot of; name a fake or live device")
    stem = device.name if device.date is None else f"{device.name}-{device.date[:10]}"
    path = Path(f"{stem}.json.gz" if path is None else path)
    if path.exists() and not overwrite:
        raise InvalidInputError(f"{path} exists already; --overwrite replaces it, --out writes elsewhere")
    return device.save(path)
