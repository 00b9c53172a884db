"""Drift: how one device's calibration changed between two dates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qhw_diffusion.devices.calibration import Calibration
from qhw_diffusion.devices.device import Device
from qhw_diffusion.errors import InvalidInputError


@dataclass(frozen=True)
class Change:
    """One value that changed.

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
        """after / before; inf or 0 where a value came or went."""
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
