"""Packages import lower layers only, nothing imports in a circle, and some packages know no heavy libraries.

Imports are followed transitively, and lazy ones (inside functions) count; those for type checking alone do not.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

NAME = "qhw_diffusion"
PACKAGE = Path(__file__).parents[1] / NAME
# From the lowest to the highest; packages of one layer never import each other
LAYERS: list[set[str]] = [
    {"masking"},  # text alone: even a message of an error passes through it
    {"errors"},
    {"config", "draws", "extensions", "terminal"},
    {"circuits", "devices", "runs"},
    {"checkpoints", "experiment", "hardware"},
    {"diffusion", "execution"},
    {"mitigation"},
    {"on_device"},
    {"denoising", "guidance"},
    {"studies"},
    {"cli"},
    {"__main__"},  # python -m qhw_diffusion
]
# Libraries that a package never loads, neither itself nor by what it imports of ours
FORBIDDEN: dict[str, set[str]] = {
    "circuits": {"torch", "diffusers", "qiskit_aer"},
    "devices": {"torch", "diffusers"},
    "diffusion": {"qiskit", "qiskit_aer", "qiskit_ibm_runtime"},
    "hardware": {"torch", "diffusers"},
    "runs": {"torch", "qiskit", "qiskit_aer", "diffusers"},
}
Graph = dict[str, set[str]]


def modules_of(root: Path) -> dict[str, Path]:
    """Every module below `root` (a folder called as the package) by its dotted name; packages by theirs."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [NAME, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not _for_types(node):
            yield from _imports(node)


def graph_of(modules: Mapping[str, Path]) -> Graph:
    """For each module the modules of the package, and the top-level names of other libraries, that it imports."""
    graph: Graph = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found: set[str] = set()
        for node in _imports(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                parts = package.split(".")
                base = parts[: len(parts) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                inner = [f"{source}.{alias.name}" for alias in node.names]
                targets = [i if i in modules else source for i in inner]
            for target in targets:
                ours = target.split(".")[0] == NAME
                found.add(target if ours else target.split(".")[0])
        graph[name] = found - {name}
    return graph


def package_of(module: str) -> str:
    """`qhw_diffusion.hardware.runner` → `hardware`."""
    return module.split(".")[1] if "." in module else ""


def loaded_by(graph: Graph, start: set[str]) -> dict[str, str]:
    """Everything that importing `start` may load, ours with the packages around it → what imports it."""
    why: dict[str, str] = dict.fromkeys(start, "")
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        around = {module.rpartition(".")[0]} & graph.keys()
        for target in graph.get(module, set()) | around:
            if target not in why:
                why[target] = module
                waiting.append(target)
    return why


@functools.cache
def graph_of_package() -> Graph:
    """The imports of the package itself: all its files are read once."""
    return graph_of(modules_of(PACKAGE))


def breaches(graph: Graph) -> list[str]:
    """Imports of higher layers or of the same one, and forbidden libraries."""
    found = []
    layer = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    for module, targets in graph.items():
        package = package_of(module)
        if not package:
            continue
        if package not in layer:
            found.append(f"{module}: package {package!r} is on no layer")
            continue
        for other in {package_of(t) for t in targets if t.split(".")[0] == NAME} - {package, ""}:
            if layer.get(other, -1) >= layer[package]:
                found.append(f"{module} (layer {layer[package]}) imports {other} (layer {layer[other]})")
    for package, libraries in FORBIDDEN.items():
        why = loaded_by(graph, {module for module in graph if package_of(module) == package})
        for library in libraries & why.keys():
            found.append(f"{package} loads {library}: {_chain(why, library)}")
    return sorted(found)


def _chain(why: Mapping[str, str], module: str) -> str:
    steps = [module]
    while why[steps[-1]]:
        steps.append(why[steps[-1]])
    return " ← ".join(steps)


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import one another in a circle (strongly connected components, Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph[module] & graph.keys():
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in index:
            visit(module)
    return sorted(found)


@pytest.mark.slow
def test_packages_import_lower_layers_only() -> None:
    assert breaches(graph_of_package()) == []


@pytest.mark.slow
def test_no_modules_import_one_another_in_a_circle() -> None:
    found = circles(graph_of_package())
    assert found == []


@pytest.mark.slow
def test_importing_them_loads_no_torch() -> None:
    """One after another in one process: after each, nothing that it never loads is there."""
    packages = ("runs", "circuits", "devices", "hardware")
    code = "import sys\n" + "\n".join(
        f"import {NAME}.{package}; print([m for m in {sorted(FORBIDDEN[package])!r} if m in sys.modules])"
        for package in packages
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"] * len(packages)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"circuits/bad.py": "from qhw_diffusion.execution import QuantumLayer"}, "imports execution"),
        ({"guidance/bad.py": "import qhw_diffusion.denoising"}, "imports denoising"),
        ({"diffusion/bad.py": "def f():\n    from ..execution import compile_circuit"}, "imports execution"),
        ({"diffusion/bad.py": "from qhw_diffusion import guidance", "guidance/__init__.py": ""}, "imports guidance"),
        ({"attic/bad.py": ""}, "on no layer"),
        ({"circuits/bad.py": "def f():\n    import torch"}, "circuits loads torch"),
        ({"hardware/bad.py": "from ..runs.b import x", "runs/b.py": "def f():\n    from torch import nn"},
         "hardware loads torch: torch ← qhw_diffusion.runs.b ← qhw_diffusion.hardware.bad"),
        ({"hardware/bad.py": "from ..runs.b import x", "runs/b.py": "", "runs/__init__.py": "import torch.nn"},
         "hardware loads torch"),
    ],
)  # fmt: skip
def test_a_breach_is_found(tmp_path: Path, files: dict[str, str], words: str) -> None:
    _write(tmp_path, files)
    assert words in "\n".join(breaches(graph_of(modules_of(tmp_path))))


def test_what_type_checkers_alone_import_does_not_count(tmp_path: Path) -> None:
    _write(tmp_path, {"circuits/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"})
    assert breaches(graph_of(modules_of(tmp_path))) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "a.py": "from qhw_diffusion.b import x",
        "b.py": "def f():\n    from .c import y",
        "c.py": "from . import a",
    }
    _write(tmp_path, {f"{name}": text for name, text in files.items()})
    (tmp_path / "__init__.py").write_text("")
    assert circles(graph_of(modules_of(tmp_path))) == [[f"{NAME}.{name}" for name in "abc"]]
    (tmp_path / "c.py").write_text("")
    assert circles(graph_of(modules_of(tmp_path))) == []


def _write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
