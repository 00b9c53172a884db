"""A calibration, or the drift between two, as text for a terminal; and the table of several for a README."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from qhw_diffusion.devices.calibration import Calibration, CouplingRow, Drift
from qhw_diffusion.devices.device import Device
from qhw_diffusion.devices.layouts import RankedLayouts
from qhw_diffusion.devices.validate import AS_PUBLISHED
from qhw_diffusion.errors import InvalidInputError

MEDIANS: dict[str, tuple[str, Callable[[float], str]]] = {
    "t1": ("T1 µs", lambda value: f"{value * 1e6:.1f}"),
    "t2": ("T2 µs", lambda value: f"{value * 1e6:.1f}"),
    "readout": ("readout error", lambda value: f"{value:.2e}"),
    "gate_1q": ("1-qubit gate error", lambda value: f"{value:.2e}"),
    "gate_2q": ("2-qubit gate error", lambda value: f"{value:.2e}"),
}


def calibration_text(calibration: Calibration, qubits: Collection[int] | None = None) -> str:
    """Header, medians, a row per qubit and a row per coupling; with `qubits` only those, and couplings among them."""
    device = calibration.device
    lines = [
        f"{device.name}{f' ({calibration.processor})' if calibration.processor else ''}, {device.n_qubits} qubits",
        f"date    {device.date or 'not stated'}",
        f"source  {device.provenance['source']}",
        f"basis   {', '.join(device.basis_gates)}",
    ]
    if oddities := device.provenance.get(AS_PUBLISHED):
        lines.append(f"as published  {oddities}")
    idle = sum(not row.in_use for row in calibration.couplings)
    names = ", ".join(f"{MEDIANS[name][0]} {MEDIANS[name][1](value)}" for name, value in calibration.medians().items())
    lines += [f"median  {names}", ""]
    wanted = range(device.n_qubits or 0) if qubits is None else sorted(qubits)
    lines += grid(
        ("qubit", "T1 µs", "T2 µs", "p10", "p01", "1q error"),
        [
            (
                str(row.qubit),
                _time(row.t1),
                _time(row.t2),
                f"{row.p10:.4f}",
                f"{row.p01:.4f}",
                f"{row.gate_error:.2e}",
            )
            for row in (calibration.qubits[qubit] for qubit in wanted)
        ],
    )
    chosen = [row for row in calibration.couplings if set(row.pair) <= set(wanted)]
    if chosen:
        lines += ["", *grid(("pair", "gate", "error", "ns"), [_coupling(row) for row in chosen])]
    if idle:
        lines += ["", f"{idle} of {len(calibration.couplings)} two-qubit gates of the device are out of use (error 1)"]
    return "\n".join(lines)


def parse_qubits(text: str, device: Device) -> list[int]:
    """``"0-3,7"`` → ``[0, 1, 2, 3, 7]``.

    Raises:
        InvalidInputError: not such a list, or a qubit that `device` does not have.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InvalidInputError(f"qubits {text!r}: give numbers and ranges such as 0-20 or 3,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= (device.n_qubits or 0):
            raise InvalidInputError(
                f"qubits {part.strip()!r}: {device.name} has qubits 0 to {(device.n_qubits or 0) - 1}"
            )
        found.update(range(first, last + 1))
    return sorted(found)


def drift_text(drift: Drift, top: int = 10) -> str:
    """Medians before and after, and the `top` qubits and couplings that changed most."""
    before, after = drift.before.device, drift.after.device
    rows = [
        (MEDIANS[name][0], MEDIANS[name][1](old), MEDIANS[name][1](new), f"{new / old - 1:+.0%}" if old else "-")
        for name, (old, new) in drift.medians().items()
    ]
    lines = [f"A  {before.name}, {before.date}", f"B  {after.name}, {after.date}", ""]
    lines += grid(("median", "A", "B", "change"), rows)
    if top < 1:
        raise InvalidInputError(f"top must be at least 1, not {top}")
    changes = drift.changes()
    if not changes:
        return "\n".join([*lines, "", "no qubit and no gate changed"])
    lines += ["", f"changed most ({min(top, len(changes))} of {len(changes)} values that changed)"]
    lines += grid(
        ("where", "what", "A", "B", "factor"),
        [
            (change.where, MEDIANS[change.quantity][0], _value(change.quantity, change.before),
             _value(change.quantity, change.after), f"{change.factor:.3g}")
            for change in changes[:top]
        ],
    )  # fmt: skip
    return "\n".join(lines)


def layouts_text(ranked: RankedLayouts) -> str:
    """The ranking, best first."""
    rows = [
        (str(rank), " ".join(map(str, layout.qubits)), f"{layout.error:.4f}", str(layout.n_two_qubit), str(layout.seed))
        for rank, layout in enumerate(ranked.layouts, start=1)
    ]
    text = f"{ranked.n_examined:,} placements examined"
    if ranked.stopped:
        text += "; there are more, so the best one may not be among them"
    return "\n".join([*grid(("rank", "qubits", "predicted error", "2q gates", "seed"), rows), "", text])


def overview_markdown(calibrations: Iterable[tuple[str, Calibration]]) -> str:
    """Markdown table of ``(file name, calibration)``: processor, date, qubits, medians."""
    head = ["file", "device", "processor", "calibrated", "qubits", *(f"median {MEDIANS[name][0]}" for name in MEDIANS)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * 4 + ["---:"] * (len(head) - 4)) + " |"]
    for file, calibration in calibrations:
        device, medians = calibration.device, calibration.medians()
        cells = [f"`{file}`", device.name, calibration.processor, str(device.date), str(device.n_qubits)]
        cells += [MEDIANS[name][1](medians[name]) if name in medians else "-" for name in MEDIANS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f}"


def _coupling(row: CouplingRow) -> tuple[str, str, str, str]:
    error = f"{row.error:.2e}" if row.in_use else "out of use"
    return f"{row.pair[0]}-{row.pair[1]}", row.gate, error, f"{row.duration * 1e9:.0f}"


def _value(quantity: str, value: float | None) -> str:
    return "-" if value is None else MEDIANS[quantity][1](value)
