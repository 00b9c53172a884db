"""Circuits as files: QPY to read back exactly, OpenQASM 3 for people and other tools, SVG drawings.

QPY from version 13 on holds structured data only. Older versions are refused: they carry parameter expressions as
SymEngine archives, which can hold pickles. Qiskit's reader takes many damaged files for good ones and hangs on some, so
the QPY file ends in the SHA-256 of what comes before; `qiskit.qpy.load` reads it all the same and ignores the ending.

Files are written as version 13, the oldest that this Qiskit still writes: every Qiskit since 1.3 reads it, and so does
IBM's runtime service, which takes no version above 17 (`qiskit_ibm_runtime.json`) while Qiskit 2.6 writes 18.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from pathlib import Path

from qiskit import qasm3, qpy
from qiskit.circuit import ControlFlowOp, Measure, QuantumCircuit, Reset

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError
from qhw_diffusion.terminal import naming

MIN_QPY_VERSION = 13
WRITTEN_QPY_VERSION = 13
# What stands for the instructions of some devices for mid-circuit where these are not known
_USUAL = {"measure_2": Measure, "reset_2": Reset}
_SEAL = b"\nsha256 "
_SEAL_LENGTH = len(_SEAL) + 64
_MAX_BYTES = 64 * 2**20
_FOLD = 24  # gates side by side before the drawing goes on below


def save_circuit(circuit: QuantumCircuit, folder: str | Path, name: str = "circuit") -> tuple[Path, Path]:
    """Write ``<name>.qpy`` and ``<name>.qasm`` (OpenQASM 3) into `folder`, each atomically.

    Args:
        circuit: logical or ISA circuit; a transpiled one keeps its layout in the QPY file and names physical qubits
            (``$12``) in the OpenQASM file, which has `measure` and `reset` where QPY has `measure_2` and `reset_2`.
        folder: created if missing.
        name: file name without ending.

    Returns:
        The paths of the two files.

    Raises:
        InvalidInputError: not a circuit, one with parts that QPY version 13 does not hold (newer ones, delays in other
            units than dt), or a name with a path separator.
    """
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    if not name or name == ".." or Path(name).name != name:
        raise InvalidInputError(f"circuit name {name!r} must be a plain file name without ending")
    if unit := _unit_lost(circuit):
        raise InvalidInputError(
            f"the circuit has a delay in {unit!r}, and QPY forgets the unit of delays (Qiskit reads it back as dt): "
            "write it in dt"
        )
    # Both texts first: a circuit that cannot be written leaves no half of the pair behind.
    buffer = io.BytesIO()
    try:
        qpy.dump(circuit, buffer, version=WRITTEN_QPY_VERSION)
        text = qasm3.dumps(with_usual_instructions(circuit))
    except Exception as error:  # whatever a circuit's parts raise that Qiskit asks to write themselves
        raise InvalidInputError(
            f"the circuit cannot be written as QPY version {WRITTEN_QPY_VERSION} and OpenQASM 3: {error}"
        ) from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.qpy", folder / f"{name}.qasm"
    _write(paths[0], buffer.getvalue() + _seal(buffer.getvalue()))
    _write(paths[1], text.encode())
    return paths


def with_usual_instructions(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit with `measure` and `reset` in place of `measure_2` and `reset_2`, which only some devices know.

    Neither simulators nor OpenQASM 3 have them. Itself where there are none.
    """
    made, changed = circuit.copy_empty_like(), False
    for one in circuit.data:
        operation = one.operation
        if isinstance(operation, ControlFlowOp):
            blocks = [with_usual_instructions(block) for block in operation.blocks]
            if any(new is not old for new, old in zip(blocks, operation.blocks, strict=True)):
                operation, changed = operation.replace_blocks(blocks), True
        elif operation.name in _USUAL:
            operation, changed = _USUAL[operation.name](), True
        made.append(operation, one.qubits, one.clbits)
    if not changed:
        return circuit
    made._layout = circuit.layout  # OpenQASM names physical qubits by it
    return made


def load_circuit(path: str | Path) -> QuantumCircuit:
    """The circuit of a ``.qpy`` file written by `save_circuit` (parameters, layout and name included).

    Args:
        path: the QPY file, or a folder that holds ``circuit.qpy``.

    Raises:
        MissingDataError: no such file.
        DamagedFileError: not a QPY file, damaged, of a version below 13 or of a newer Qiskit, without the
            checksum that `save_circuit` adds, or not exactly one circuit.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "circuit.qpy"
    if not path.is_file():
        raise MissingDataError(f"circuit file {str(path)!r} does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise DamagedFileError(f"{path} is too large for a circuit (over {_MAX_BYTES >> 20} MiB)")
    with naming(path):
        data = path.read_bytes()
    if len(data) < 7 or data[:6] != b"QISKIT":
        raise DamagedFileError(f"{path} is not a QPY file; save_circuit writes one")
    if not MIN_QPY_VERSION <= data[6] <= qpy.common.QPY_VERSION:
        raise DamagedFileError(
            f"{path} is QPY version {data[6]}; this Qiskit and package read {MIN_QPY_VERSION} to "
            f"{qpy.common.QPY_VERSION}: save it again with a matching Qiskit"
        )
    body, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if seal != _seal(body):
        raise DamagedFileError(f"{path} is damaged (its checksum does not match), or was not written by save_circuit")
    try:
        with warnings.catch_warnings():
            # A newer Qiskit of the same QPY version: readable, and said in the run's manifest.
            warnings.simplefilter("ignore", UserWarning)
            circuits = qpy.load(io.BytesIO(body))
    except Exception as error:
        raise DamagedFileError(f"{path} is a damaged QPY file: {error}") from error
    if len(circuits) != 1 or not isinstance(circuits[0], QuantumCircuit):
        raise DamagedFileError(f"{path} holds {len(circuits)} programs; one circuit is expected")
    return circuits[0]


def draw_svg(circuit: QuantumCircuit) -> str:
    """The circuit as SVG text, without date, letters as outlines (no font needed to see them).

    The same circuit gives the same bytes with the same versions of Qiskit and matplotlib.

    Raises:
        InvalidInputError: not a circuit.
    """
    if not isinstance(circuit, QuantumCircuit):
        raise InvalidInputError(f"circuit must be a qiskit QuantumCircuit, not {type(circuit).__name__}")
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # Without a salt matplotlib names clip paths at random, and a date would change at every run.
    with matplotlib.rc_context({"svg.hashsalt": "qhw-diffusion", "svg.fonttype": "path"}):
        figure = Figure()
        FigureCanvasSVG(figure)  # a canvas of its own: no display and no global state of pyplot
        axes = figure.add_subplot()
        circuit.draw("mpl", ax=axes, fold=_FOLD, style="bw", scale=0.6)
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _unit_lost(circuit: QuantumCircuit) -> str:
    """The unit of a delay that is not in dt, in control flow too; empty if there is none."""
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.name == "delay" and operation.unit != "dt":
            return str(operation.unit)
        for block in getattr(operation, "blocks", ()):
            if unit := _unit_lost(block):
                return unit
    return ""


def _seal(body: bytes) -> bytes:
    return _SEAL + hashlib.sha256(body).hexdigest().encode()


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a run folder's files are readable
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
