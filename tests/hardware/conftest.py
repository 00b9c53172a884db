"""Fixtures of the tests of hardware: a ledger in an empty folder, and a stand-in that the real client talks to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from qiskit_ibm_runtime import runtime_job_v2
from scripted import MEMORY

from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.standin import StandIn


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory: ledgers force all that they write to the disk, and wait for it."""
    with tempfile.TemporaryDirectory(prefix="qhw-", dir=MEMORY) as folder:
        yield Path(folder).resolve()


@pytest.fixture(autouse=True)
def without_usage_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client looks through the whole stack at every request otherwise, 15 ms each."""
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own wait for a job looks twice a second; what a stand-in runs has ended long before."""
    monkeypatch.setattr(
        runtime_job_v2, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(seconds / 20))
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


@pytest.fixture
def standin() -> Iterator[StandIn]:
    """Each job is charged three seconds."""
    with StandIn("fake_manila", seed=5, seconds_per_job=3.0) as running, running.as_account():
        yield running
