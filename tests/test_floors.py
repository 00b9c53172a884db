"""A room imports rooms on lower floors only (docs/architecture.md); guidance and denoising never import each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qhw_diffusion"
FLOOR = {
    "masking": -1,  # of text alone: even a message passes through it
    "draws": 0, "config": 0, "extensions": 0, "errors": 0, "terminal": 0, "runs": 0, "circuits": 0, "devices": 0,
    "diffusion": 1, "hardware": 1,
    "execution": 2,
    "mitigation": 3,
    "guidance": 4, "denoising": 4,
    "studies": 5, "experiment": 1,
    "cli": 6,
}  # fmt: skip
# errors and terminal are everybody's; apart from them, these rooms stay free of whole libraries
FORBIDDEN_LIBRARIES = {
    "circuits": {"torch", "diffusers", "qiskit_aer"},
    "diffusion": {"qiskit", "qiskit_aer", "qiskit_ibm_runtime"},
    "runs": {"qiskit", "qiskit_aer", "diffusers"},
    "devices": {"torch", "diffusers"},
    "hardware": {"torch", "diffusers"},
}


def room_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_modules(path: Path, package: Path) -> set[str]:
    """Absolute dotted names of everything a file imports, at any nesting depth (lazy imports count too)."""
    names: set[str] = set()
    here = ["qhw_diffusion", *path.relative_to(package).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def breaches(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room == "__init__":
            continue
        if room not in FLOOR:
            found.append(f"{path.name}: room {room!r} is on no floor")
            continue
        for module in imported_modules(path, package):
            parts = module.split(".")
            if parts[0] in FORBIDDEN_LIBRARIES.get(room, set()):
                found.append(f"{room}/{path.name} imports {parts[0]}")
            if (
                parts[0] != "qhw_diffusion"
                or len(parts) < 2
                or parts[1] in (room, "config", "errors", "extensions", "terminal")
            ):
                continue
            if FLOOR.get(parts[1], -1) >= FLOOR[room]:
                found.append(f"{room}/{path.name} (floor {FLOOR[room]}) imports {parts[1]} (floor {FLOOR[parts[1]]})")
    return sorted(set(found))


def test_no_room_imports_upwards() -> None:
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("circuits", "from qhw_diffusion.execution import QuantumLayer"),
        ("guidance", "import qhw_diffusion.denoising"),
        ("diffusion", "from ..execution import compile_circuit"),
        ("diffusion", "from qhw_diffusion import guidance"),
        ("circuits", "import torch"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, room: str, line: str) -> None:
    (tmp_path / room).mkdir()
    (tmp_path / room / "bad.py").write_text(f"def f():\n    {line}\n")
    assert len(breaches(tmp_path)) == 1
