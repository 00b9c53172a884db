"""Shared settings: one torch thread, so that numbers and timings do not depend on the machine's core count."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from qhw_diffusion.errors import MissingDependencyError

# Without it the runtime client looks through the whole call stack at every request, .1 s and more under pytest
os.environ.setdefault("USAGE_DATA_OPT_OUT", "True")
gc.disable()  # until everything is imported: there is nothing to be found before


def pytest_configure(config: pytest.Config) -> None:
    """Processes take files in the order made below (pytest-xdist 3.8 on), and not those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_sessionstart(session: pytest.Session) -> None:
    """One thread, and pictures without a window; the process that hands tests out to others runs none of them."""
    if getattr(session.config.option, "numprocesses", None) and not hasattr(session.config, "workerinput"):
        return
    # Before torch and Qiskit: trio, which Hypothesis loads if it is there, makes it collect all garbage when imported
    import hypothesis  # noqa: F401
    import matplotlib
    import torch

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    # A shell's background ignores Ctrl-C, and so would the commands that tests start and interrupt
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported stays: it is not looked through again at every collection of garbage, seconds each."""
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)  # with 700, one second of twenty went into looking for garbage
    gc.enable()


# Ten seconds and more each. They come first: with a process per core, none is then begun last and runs alone.
LONGEST = (
    "test_notebook", "test_device_rollout", "test_cli_hardware", "test_guidance_study",
    "test_guidance_study_pipeline", "test_device_evaluation", "test_circuits_tool", "test_qdm_training",
    "test_tuning_study", "test_denoising_study", "test_shots_study", "test_answers", "test_coloured_digits",
    "test_pipelines", "test_working", "test_refusals", "test_masking", "test_cost_counted", "test_faults", "test_study",
    "test_model", "test_reproductions", "test_training", "test_mitigation_study", "test_fine_tune",
    "test_against_stable_baselines3", "test_cli", "test_docs", "test_kill",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests.

    What compiles models comes last: torch then has threads that no copy of the process can do without, and other files
    have tests that copy it.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: index for index, name in enumerate(LONGEST)}
    last = len(place) + 1

    def order(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        return last if name == "test_torch" else place.get(name, len(place)), item.path not in slow

    items.sort(key=order)  # stable within a file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What needs Mitiq is left out where there is none for this Python; elsewhere it is installed."""
    try:
        return (yield)
    except MissingDependencyError as error:
        if sys.version_info < (3, 13) or find_spec("mitiq") is not None or "needs Mitiq" not in str(error):
            raise
        pytest.skip("no Mitiq for this Python")


@pytest.fixture(autouse=True)
def _no_modules_of_other_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules of a user's own that a test wrote and imported are not found by the next one."""
    written = str(tmp_path_factory.getbasetemp())
    path, last = list(sys.path), next(reversed(sys.modules))
    yield
    sys.path[:] = path
    for name in list(itertools.takewhile(lambda name: name != last, reversed(sys.modules))):  # the latest first
        if str(getattr(sys.modules[name], "__file__", "")).startswith(written):
            del sys.modules[name]
