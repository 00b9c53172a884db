"""Publish the circuits of the package in `circuits/`, or compare that folder with the code. For maintainers.

Run from a checkout:

    python -m tools.circuits export         write the folder anew (under two minutes on one core)
    python -m tools.circuits --check        say what differs from the code; exit status 2 if anything does

The table of the folder says what each circuit costs on each reference device, and how far it reaches in state space.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from qiskit import qasm3
from qiskit.circuit import Parameter, ParameterExpression, QuantumCircuit

from qhw_diffusion.circuits import Estimate, PublishedCircuit, load_circuit, published_circuits, save_circuit
from qhw_diffusion.circuits.library import draw_svg
from qhw_diffusion.circuits.measures import BINS, expressibility_of, meyer_wallach, random_states
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, QhwError
from qhw_diffusion.execution import CompiledCircuit, compile_circuit
from qhw_diffusion.runs import atomic_write_json, atomic_write_text, check_writable, progress, read_json

TABLE, README = "table.json", "README.md"
_ENDINGS = (".qasm", ".qpy", ".svg")
_COMMAND = "python -m tools.circuits export"
# device → what it stands for
DEVICES = {
    "ideal": "every pair of qubits connected, no durations",
    "fake_brisbane": "Eagle, heavy-hex lattice, ECR",
    "fake_marrakesh": "Heron, heavy-hex lattice, CZ",
    "fake_nighthawk": "Nighthawk, square lattice, CZ",
}
SHORT = {"ideal": "ideal", "fake_brisbane": "Eagle", "fake_marrakesh": "Heron", "fake_nighthawk": "Nighthawk"}
SEEDS = 20
PAIRS = 5000
MEASURE_SEED = 0
# what the numbers and files depend on beside this package
PACKAGES = ("qiskit", "qiskit-ibm-runtime", "matplotlib")


@dataclass(frozen=True)
class DeviceCost:
    """One circuit compiled for one device.

    Attributes:
        seed: transpiler seed it was compiled with.
        width: device qubits in use, those only passed through included.
        depth: all gates counted, RZ (which takes no time) included.
        two_qubit_gates, two_qubit_depth: number of two-qubit gates, and of layers of them.
        duration_us: microseconds from the first to the last gate, without measurement; None on the ideal device.
    """

    seed: int
    width: int
    depth: int
    two_qubit_gates: int
    two_qubit_depth: int
    duration_us: float | None


def reference_devices() -> dict[str, Device]:
    """The devices of the table, by name."""
    return {name: Device.load(name) for name in DEVICES}


def cost_of(compiled: CompiledCircuit) -> DeviceCost:
    """What a compiled circuit costs on its device."""
    return DeviceCost(
        seed=compiled.seed,
        width=len(compiled.physical_qubits),
        depth=compiled.depth,
        two_qubit_gates=compiled.two_qubit_gates,
        two_qubit_depth=compiled.isa.depth(lambda instruction: len(instruction.qubits) == 2),
        duration_us=None if compiled.duration is None else round(compiled.duration * 1e6, 3),
    )


def compile_published(published: PublishedCircuit, device: Device, seed: int) -> CompiledCircuit:
    """A published circuit compiled for a device (`compile_circuit`, level 3)."""
    return compile_circuit(
        published.circuit,
        device,
        inputs=published.inputs,
        weights=published.weights,
        observables=published.observables,
        seed=seed,
    )


def best_cost(published: PublishedCircuit, device: Device, seeds: Iterable[int] = range(SEEDS)) -> DeviceCost:
    """The cheapest over transpiler seeds: fewest two-qubit gates, then two-qubit depth, duration, seed."""
    costs = [cost_of(compile_published(published, device, seed)) for seed in seeds]
    return min(costs, key=lambda c: (c.two_qubit_gates, c.two_qubit_depth, c.duration_us or 0.0, c.seed))


def measure(published: PublishedCircuit, *, pairs: int = PAIRS, seed: int = MEASURE_SEED) -> tuple[Estimate, Estimate]:
    """Expressibility and entangling capability from the same 2·pairs states; see `qhw_diffusion.circuits.measures`."""
    states = random_states(published.circuit, 2 * pairs, seed)
    fidelities = np.abs(np.einsum("si,si->s", states[:pairs].conj(), states[pairs:])) ** 2
    q = meyer_wallach(states)
    entangling = Estimate(float(q.mean()), float(q.std(ddof=1) / np.sqrt(len(q))), len(q))
    return expressibility_of(fidelities, published.circuit.num_qubits, seed=seed), entangling


def row_of(published: PublishedCircuit, costs: dict[str, DeviceCost], measures: tuple[Estimate, Estimate]) -> dict:
    """One circuit's entry of the table, as JSON types."""
    return {
        "qubits": published.circuit.num_qubits,
        "inputs": len(published.inputs),
        "weights": len(published.weights),
        "devices": {name: asdict(cost) for name, cost in costs.items()},
        "expressibility": asdict(measures[0]),
        "entangling_capability": asdict(measures[1]),
    }


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def table_of(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The whole table, as JSON types: how it was made, and a row for each circuit."""
    return {
        "format": "qhw-published-circuits",
        "version": 1,
        "made_with": versions(),
        "transpiler_seeds": SEEDS,
        "optimization_level": 3,
        "measures": {"pairs": PAIRS, "bins": BINS, "seed": MEASURE_SEED, "parameters": "uniform in [0, 2π)"},
        "calibrations": {name: device.provenance.get("date") for name, device in reference_devices().items()},
        "circuits": rows,
    }


def readme(table: dict[str, Any]) -> str:
    """`circuits/README.md` from the table."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    template = environment.get_template("circuits.md.j2")
    return template.render(t=table, devices=list(DEVICES), short=SHORT, meaning=DEVICES, number=_number)


def export_circuits(out: str | Path) -> list[Path]:
    """Write every published circuit, the table and its README into `out`; about two minutes.

    Everything is computed before the first file is written, and each file is written atomically.

    Returns:
        The files written.

    Raises:
        InvalidInputError: `out` cannot be written to.
    """
    out = Path(out)
    _check_writable(out)
    circuits = published_circuits()
    devices = reference_devices()
    rows: dict[str, dict[str, Any]] = {}
    drawings: dict[str, str] = {}
    with progress(total=len(circuits) * (len(devices) + 2), desc="circuits", unit="step") as bar:
        for name, published in circuits.items():
            bar.set_postfix_str(name)
            costs = {}
            for device_name, device in devices.items():
                costs[device_name] = best_cost(published, device)
                bar.update()
            rows[name] = row_of(published, costs, measure(published))
            bar.update()
            drawings[name] = draw_svg(published.drawn)
            bar.update()
    table = table_of(rows)
    written: list[Path] = []
    try:
        for name, published in circuits.items():
            written += save_circuit(published.circuit, out, name)
            written.append(atomic_write_text(out / f"{name}.svg", drawings[name]))
        written.append(atomic_write_json(out / TABLE, table))
        written.append(atomic_write_text(out / README, readme(table)))
    except OSError as error:
        raise _cannot_write(out, error) from error
    return written


def check_circuits(out: str | Path) -> list[str]:
    """What differs between a folder written by `export_circuits` and what the code gives now; empty if nothing does.

    Every circuit is loaded from its QPY file and compared gate for gate. Its OpenQASM file and its drawing are compared
    as text where all versions are those the table was made with; else the OpenQASM file gate for gate, and the drawing
    only has to be there. The measures are taken again (rounding aside, 1e-6, they must be the same).

    It is compiled again with the seed the table names; that this seed is the best of all is not checked. Where Qiskit's
    minor version and the version of the runtime client are those of the table, the numbers must be the same; else its
    two-qubit gates must lie between those of the ideal device and one and a half times those of the table.

    Raises:
        MissingDataError: no table in `out`.
        DamagedFileError: the table is not one.
    """
    out = Path(out)
    table = read_table(out)
    circuits = published_circuits()
    made = table["made_with"]
    devices = reference_devices()
    found = _check_texts(out, table)
    with progress(total=len(circuits), desc="circuits", unit="circuit") as bar:
        for name, published in circuits.items():
            bar.set_postfix_str(name)
            found += check_files(out, published, same_versions=made == versions())
            row = table["circuits"].get(name)
            if row is not None:
                found += check_row(published, row, made, devices)
            bar.update()
    return found


def read_table(out: Path) -> dict[str, Any]:
    """The table of a folder.

    Raises:
        MissingDataError: there is none.
        DamagedFileError: it is not a table of published circuits.
    """
    path = out / TABLE
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; `{_COMMAND} --out {out}` writes it")
    try:
        table = read_json(path)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is not readable as JSON; write it again with {_COMMAND}") from error
    if table.get("format") != "qhw-published-circuits" or table.get("version") != 1:
        raise DamagedFileError(f"{path} is not a table of published circuits; write it again with {_COMMAND}")
    for key in ("made_with", "circuits"):
        if not isinstance(table.get(key), dict):
            raise DamagedFileError(f"{path}: {key!r} is missing or damaged; write it again with {_COMMAND}")
    return table


def check_files(out: Path, published: PublishedCircuit, *, same_versions: bool) -> list[str]:
    """Differences between one circuit's three files and the circuit; see `check_circuits`."""
    found = []
    qpy, qasm, svg = (out / f"{published.name}{ending}" for ending in (".qpy", ".qasm", ".svg"))
    try:
        if load_circuit(qpy) != published.circuit:
            found.append(f"{qpy.name}: another circuit than the code's")
    except QhwError as error:
        found.append(f"{qpy.name}: {error}")
    text = _read(qasm)
    if text is None:
        found.append(f"{qasm.name}: missing or not text")
    elif same_versions and text != qasm3.dumps(published.circuit):
        found.append(f"{qasm.name}: another text than the code's")
    elif not same_versions and not _same_gates(text, published.circuit):
        found.append(f"{qasm.name}: another circuit than the code's, or not OpenQASM 3")
    drawing = _read(svg)
    if drawing is None or "<svg" not in drawing:
        found.append(f"{svg.name}: missing or not a drawing")
    elif same_versions and drawing != draw_svg(published.drawn):
        found.append(f"{svg.name}: another drawing than the code's")
    return found


def check_row(
    published: PublishedCircuit, row: dict[str, Any], made_with: dict[str, str], devices: dict[str, Device]
) -> list[str]:
    """Differences between one circuit's row of the table and its numbers now; see `check_circuits`."""
    try:
        costs = {
            name: cost_of(compile_published(published, device, int(row["devices"][name]["seed"])))
            for name, device in devices.items()
        }
        fresh = row_of(published, costs, measure(published))
        if not same_compiler(made_with):
            found = []
            for name, cost in costs.items():
                stated = row["devices"][name]["two_qubit_gates"]
                if not costs["ideal"].two_qubit_gates <= cost.two_qubit_gates <= 1.5 * stated:
                    found.append(f"{TABLE}: {published.name} on {name}: {stated} stated, {cost.two_qubit_gates} now")
            fresh["devices"] = row["devices"]  # what remains to be compared
            return found + _differences(f"{TABLE}: {published.name}", row, fresh)
        return _differences(f"{TABLE}: {published.name}", row, fresh)
    except (KeyError, TypeError, ValueError) as error:
        return [f"{TABLE}: {published.name}: not a row of the table ({error!r})"]


def same_compiler(made_with: dict[str, str]) -> bool:
    """Whether what is installed compiles as what the table was made with: Qiskit's minor version, runtime's version."""
    now = versions()

    def minor(version: str) -> list[str]:
        return version.split(".")[:2]

    return (
        minor(now["qiskit"]) == minor(made_with.get("qiskit", ""))
        and now["qiskit-ibm-runtime"] == made_with.get("qiskit-ibm-runtime")  # it brings the fake backends
    )


def _check_texts(out: Path, table: dict[str, Any]) -> list[str]:
    names = list(published_circuits())
    found = []
    if list(table["circuits"]) != names:
        missing, extra = set(names) - set(table["circuits"]), set(table["circuits"]) - set(names)
        found.append(f"{TABLE}: circuits missing: {sorted(missing)}, unknown: {sorted(extra)}, or in another order")
    try:
        if _read(out / README) != readme(table):
            found.append(f"{README}: not what {TABLE} gives")
    except (jinja2.TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        found.append(f"{TABLE}: not a table that {README} can be made from ({error!r})")
    wanted = {f"{name}{ending}" for name in names for ending in _ENDINGS}
    found += [
        f"{path.name}: no published circuit of this name"
        for path in sorted(out.iterdir())
        if path.suffix in _ENDINGS and path.name not in wanted
    ]
    return found


def _differences(where: str, stated: Any, fresh: Any) -> list[str]:
    if isinstance(fresh, dict) and isinstance(stated, dict):
        keys = [*fresh, *(key for key in stated if key not in fresh)]
        return [d for key in keys for d in _differences(f"{where}, {key}", stated.get(key), fresh.get(key))]
    if isinstance(fresh, float) and isinstance(stated, int | float):
        same = math.isclose(stated, fresh, rel_tol=1e-9, abs_tol=1e-6)
    else:
        same = stated == fresh
    return [] if same else [f"{where}: {stated} stated, {fresh} now"]


def _same_gates(text: str, circuit: QuantumCircuit) -> bool:
    try:
        read = qasm3.loads(text)
    except Exception:  # the parser raises errors of many kinds for text that is not OpenQASM 3
        return False
    return _gates(read) == _gates(circuit)


def _gates(circuit: QuantumCircuit) -> list[tuple[Any, ...]]:
    def plain(value: Any) -> Any:
        if isinstance(value, Parameter):
            return value.name
        return str(value) if isinstance(value, ParameterExpression) else float(value)

    return [
        (i.operation.name, tuple(circuit.find_bit(q).index for q in i.qubits), tuple(map(plain, i.operation.params)))
        for i in circuit.data
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _check_writable(out: Path) -> None:
    # before two minutes of work, not after
    try:
        check_writable(out / README)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> InvalidInputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InvalidInputError(f"cannot write to {out}: {reason}; choose another folder with --out")


def _number(value: float) -> str:
    # rounding must not leave −0.0000
    return f"{abs(value) if abs(value) < 5e-5 else value:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 for a difference or an error."""
    parser = argparse.ArgumentParser(prog="python -m tools.circuits", description="The published circuits.")
    parser.add_argument("action", nargs="?", choices=["export"], help="export: write the folder anew")
    parser.add_argument("--check", action="store_true", help="comparison with the code; nothing is written")
    parser.add_argument("--out", type=Path, default=Path("circuits"), metavar="DIR", help="folder [circuits]")
    given = parser.parse_args(arguments)
    if (given.action == "export") == given.check:
        parser.error("give either export or --check")
    try:
        if not given.check:
            written = export_circuits(given.out)
            print(f"{len(written)} files in {given.out}; read {given.out / README}")
            return 0
        differences = check_circuits(given.out)
    except QhwError as error:
        print(f"tools.circuits: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(differences) if differences else f"{given.out} and the code agree")
    if differences:
        count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
        print(f"tools.circuits: {count}; {_COMMAND} --out {given.out} writes it anew", file=sys.stderr)
    return 2 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
