"""A device's calibration as numbers to look at: rows per qubit and coupling, medians, drift between two dates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from qhw_diffusion.devices.device import Device
from qhw_diffusion.devices.working import OUT_OF_USE
from qhw_diffusion.errors import InvalidInputError

# the single-qubit gate that is a physical pulse; the second is that of the oldest devices
_PULSES = ("sx", "u2")


@dataclass(frozen=True)
class QubitRow:
    """Calibration of one qubit. Times in seconds, None where the calibration has none; errors are probabilities.

    Attributes:
        p10, p01: P(read 1 | prepared 0), P(read 0 | prepared 1); NaN for a faulty qubit.
        gate_error: average infidelity of sx (u2 on the oldest devices); NaN where there is none.
    """

    qubit: int
    t1: float | None
    t2: float | None
    p10: float
    p01: float
    gate_error: float

    @property
    def readout_error(self) -> float:
        """Mean of both readout errors."""
        return (self.p10 + self.p01) / 2


@dataclass(frozen=True)
class CouplingRow:
    """One two-qubit gate on one pair of qubits (`pair` in ascending order, whichever direction is calibrated).

    Where both directions are calibrated, the better one. Duration in seconds; error is an average infidelity, 1 for a
    gate that is out of use.
    """

    pair: tuple[int, int]
    gate: str
    error: float
    duration: float

    @property
    def in_use(self) -> bool:
        """Whether the gate is in use; False at error 1, by which providers mark gates out of use."""
        return self.error < OUT_OF_USE


@dataclass(frozen=True)
class Calibration:
    """All calibrated values of a device, as `qhw calibration show` prints them. Make one with `Calibration.of`."""

    device: Device
    qubits: tuple[QubitRow, ...]
    couplings: tuple[CouplingRow, ...]

    @classmethod
    def of(cls, device: Device) -> Calibration:
        """The calibration of `device`.

        Raises:
            InvalidInputError: the ideal device, which has no calibration.
        """
        target = device.target
        if target is None or device.n_qubits is None:
            raise InvalidInputError("the ideal device has no calibration; name a fake device or a snapshot file")
        pulse = next(name for name in (*_PULSES, *target.operation_names) if name in target.operation_names)
        qubits, usable = [], set(device.usable_qubits)
        for qubit in range(device.n_qubits):
            entry = target[pulse].get((qubit,))
            error = math.nan if entry is None or entry.error is None else float(entry.error)
            readout = device.readout_error(qubit) if qubit in usable else (math.nan, math.nan)
            qubits.append(QubitRow(qubit, *device.relaxation_times(qubit), *readout, error))
        rows: dict[tuple[str, tuple[int, int]], CouplingRow] = {}
        for name in target.operation_names:
            for place, entry in (target[name] or {}).items():
                if place is None or len(place) != 2 or entry is None or entry.error is None:
                    continue
                pair = (min(place), max(place))
                row = CouplingRow(pair, name, float(entry.error), float(entry.duration or 0.0))
                if (name, pair) not in rows or row.error < rows[name, pair].error:
                    rows[name, pair] = row
        return cls(device, tuple(qubits), tuple(sorted(rows.values(), key=lambda row: (row.pair, row.gate))))

    @property
    def processor(self) -> str:
        """``"Heron r2"``; empty where the provider does not say."""
        kind = self.device.processor_type
        return f"{kind.get('family', '')} r{kind.get('revision', '?')}".strip() if kind else ""

    def medians(self) -> dict[str, float]:
        """``t1``, ``t2`` (seconds), ``readout``, ``gate_1q``, ``gate_2q``: medians over what is calibrated and in use.

        A quantity nobody calibrated is left out.
        """
        values = {
            "t1": [row.t1 for row in self.qubits if row.t1 is not None],
            "t2": [row.t2 for row in self.qubits if row.t2 is not None],
            "readout": [row.readout_error for row in self.qubits if not math.isnan(row.readout_error)],
            "gate_1q": [row.gate_error for row in self.qubits if row.gate_error < OUT_OF_USE],
            "gate_2q": [row.error for row in self.couplings if row.in_use],
        }
        return {name: float(median(given)) for name, given in values.items() if given}


@dataclass(frozen=True)
class Change:
    """One calibrated value that changed.

    Attributes:
        where: ``"qubit 12"`` or ``"cz 3-16"``.
        quantity: a key of `Calibration.medians`.
        before, after: in SI units or as probabilities; None where the calibration has no value.
    """

    where: str
    quantity: str
    before: float | None
    after: float | None

    @property
    def factor(self) -> float:
        """After / before; inf or 0 where a value came or went."""
        if not self.before:
            return math.inf
        return 0.0 if self.after is None else self.after / self.before

    @property
    def size(self) -> float:
        """|log factor|: a halving counts as much as a doubling."""
        return math.inf if self.factor in (0.0, math.inf) else abs(math.log(self.factor))


@dataclass(frozen=True)
class Drift:
    """Two calibrations of devices with the same topology. Make one with `Drift.between`."""

    before: Calibration
    after: Calibration

    @classmethod
    def between(cls, before: Device, after: Device) -> Drift:
        """Compare two calibrations; their names may differ (a fake device and its live model).

        Raises:
            InvalidInputError: the devices differ in qubits, couplings or two-qubit gates; the message says in what.
        """
        old, new = Calibration.of(before), Calibration.of(after)
        if before.n_qubits != after.n_qubits:
            raise InvalidInputError(
                f"not the same topology: {before.name} has {before.n_qubits} qubits, {after.name} has {after.n_qubits}"
            )
        sets = [{(row.gate, row.pair) for row in calibration.couplings} for calibration in (old, new)]
        for only, device, other in ((sets[0] - sets[1], before, after), (sets[1] - sets[0], after, before)):
            if only:
                named = ", ".join(f"{gate} on {a}-{b}" for gate, (a, b) in sorted(only)[:5])
                more = f" and {len(only) - 5} more" if len(only) > 5 else ""
                raise InvalidInputError(
                    f"not the same topology: {device.name} of {device.date} has {named}{more}, "
                    f"{other.name} of {other.date} does not"
                )
        return cls(old, new)

    def medians(self) -> dict[str, tuple[float, float]]:
        """``(before, after)`` of every median both have."""
        old, new = self.before.medians(), self.after.medians()
        return {name: (old[name], new[name]) for name in old if name in new}

    def changes(self) -> list[Change]:
        """Every value that differs, the largest factor first."""
        found = []
        for old, new in zip(self.before.qubits, self.after.qubits, strict=True):
            where = f"qubit {old.qubit}"
            found += [
                Change(where, "t1", old.t1, new.t1),
                Change(where, "t2", old.t2, new.t2),
                Change(where, "readout", old.readout_error, new.readout_error),
                Change(where, "gate_1q", old.gate_error, new.gate_error),
            ]
        for left, right in zip(self.before.couplings, self.after.couplings, strict=True):
            where = f"{left.gate} {left.pair[0]}-{left.pair[1]}"
            found.append(Change(where, "gate_2q", left.error, right.error))
        differing = [c for c in found if c.before != c.after and not _both_nan(c.before, c.after)]
        return sorted(differing, key=lambda change: -change.size)


def _both_nan(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and math.isnan(a) and math.isnan(b)
