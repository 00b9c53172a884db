"""The notebooks run from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FRESH = "%reset -f\nimport warnings; warnings.resetwarnings()"


@pytest.fixture(scope="module")
def kernel() -> Iterator[AsyncKernelManager]:
    """One kernel, which imports once what all of them need; no notebook sees the names of another one."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(kernel: AsyncKernelManager, path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FRESH))
    started = time.perf_counter()
    NotebookClient(notebook, km=kernel, timeout=240, resources={"metadata": {"path": path.parent}}).execute()
    seconds = time.perf_counter() - started
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    complaints = [
        output["text"]
        for cell in code
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    assert complaints == []
    pictures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert pictures >= 5
    assert seconds < 240


def test_the_notebooks_are_there_and_quiet_about_a_progress_bar() -> None:
    """That tqdm misses widgets is told once a process, so that only the first of them would show it."""
    assert [path.stem for path in NOTEBOOKS] == [
        "01_quantum_guidance",
        "02_quantum_denoiser",
        "03_hardware_and_mitigation",
    ]
    for path in NOTEBOOKS:
        first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert 'filterwarnings("ignore", message="IProgress not found")' in first.source
