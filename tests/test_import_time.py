"""Importing the package and asking for help stay fast: heavy libraries load when something uses them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "qiskit", "diffusers", "matplotlib", "sklearn", "gymnasium", "numpy", "scipy")


def run(*arguments: str) -> tuple[str, float]:
    """Output and the best of three wall-clock times (the machine may be busy)."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
        best = min(best, time.perf_counter() - started)
        if best < 1:
            break
    return done.stdout, best


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["demo", "--help"]])
def test_help_answers_within_a_second(arguments: list[str]) -> None:
    out, seconds = run("-m", "qhw_diffusion.cli", *arguments)
    assert "qhw" in out
    assert seconds < 1.0


@pytest.mark.slow
def test_help_of_no_command_loads_what_only_work_needs() -> None:
    """Importing these takes seconds each."""
    code = (
        "import sys\n"
        "from qhw_diffusion.cli import COMMANDS, main\n"
        "for path in COMMANDS:\n"
        "    if COMMANDS[path][0]:\n"  # not the studies on the runner, whose flags are those of their configuration
        "        try: main([*path, '--help'])\n"
        "        except SystemExit as stop: assert stop.code == 0, path\n"
        "slow = ('diffusers', 'torchmetrics', 'torchvision', 'sklearn', 'matplotlib', 'transformers', 'pandas')\n"
        "print('\\nloaded:', [m for m in slow if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, qhw_diffusion as q; print([m for m in {HEAVY!r} if m in sys.modules], 'Device' in dir(q))"
    out, seconds = run("-c", code)
    assert out.strip() == "[] True"
    assert seconds < 1.0


@pytest.mark.slow
def test_public_names_load_on_use() -> None:
    """And the library that the connector is for, and mitigation, when something asks for them."""
    code = (
        "import sys, qhw_diffusion as q; from qhw_diffusion.execution import engine_of; engine_of('shots:4'); "
        "print([m for m in ('qiskit_machine_learning', 'qhw_diffusion.mitigation') if m in sys.modules]); "
        "print(engine_of('noisy+readout').spec); "
        "print(q.Device.__name__, q.compile_circuit.__name__, q.QuantumLayer.__name__, "
        "q.circuits.policy_circuit.__name__, q.guidance.train_ppo.__name__, q.diffusion.Backbone.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "[]", "noisy+readout", "Device", "compile_circuit", "QuantumLayer", "policy_circuit", "train_ppo", "Backbone",
    ]  # fmt: skip


def test_an_unknown_name_is_an_attribute_error() -> None:
    import qhw_diffusion

    with pytest.raises(AttributeError, match="Devise"):
        _ = qhw_diffusion.Devise  # type: ignore[attr-defined]


def test_on_windows_importing_says_at_once_what_to_do() -> None:
    code = "import sys; sys.platform = 'win32'; import qhw_diffusion"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: qhw-diffusion runs on Linux and macOS" in done.stderr
    assert "WSL 2" in done.stderr
