"""Sections that every report of a run on a device has: device and circuit, how to reproduce it."""

from __future__ import annotations

from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.page import Section
from qhw_diffusion.runs import RunFolder

# Gates of a drawing that one still looks at
_MOST_DRAWN = 400


def add_device(section: Section, compiled: CompiledCircuit, *, caption: str, snapshot: str) -> None:
    """The device, the circuit's cost and layout, a drawing of what is not too long to be looked at, the device's map.

    Args:
        section: where to.
        compiled: the circuit on its device.
        caption: of the table.
        snapshot: file of the calibration in the run's folder.
    """
    device = compiled.device
    duration = "not stated" if compiled.duration is None else f"{compiled.duration * 1e6:.2f} µs"
    section.table(
        ["what", "value"],
        [
            ["device", device.name],
            ["calibration of", device.date or "not stated"],
            ["physical qubits", ", ".join(map(str, compiled.physical_qubits))],
            ["two-qubit gates", compiled.two_qubit_gates],
            ["depth", compiled.depth],
            ["duration", duration],
            ["transpiler seed, level", f"{compiled.seed}, {compiled.optimization_level}"],
            ["snapshot", snapshot],
        ],
        caption=caption,
    )
    if compiled.isa.size() <= _MOST_DRAWN:
        section.figure(
            figures.circuit_drawing(compiled.isa, fold=40),
            alt=f"The circuit as compiled for {device.name}: native gates on the physical qubits in use.",
            wide=True,
        )
    if device.target is not None:
        section.figure(
            figures.device_layout(device.target, compiled.physical_qubits, title=f"{device.name}: qubits in use"),
            alt=f"Coupling map of {device.name} with the physical qubits {list(compiled.physical_qubits)} marked.",
            wide=True,
        )


def add_reproduction(section: Section, folder: RunFolder, ledger: str, command: str) -> None:
    """The command, and what it takes from the ledger when it is given again."""
    section.code(command)
    packages = ", ".join(f"{name} {number}" for name, number in folder.manifest["packages"].items())
    section.text(
        f"The same command with `--resume` takes every result from the ledger in `{ledger or 'runs/ledger'}` and sends "
        f"nothing twice. Started {folder.manifest['created'][:19]} UTC; {packages}."
    )
