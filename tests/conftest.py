"""Shared settings: one torch thread, so that numbers and timings do not depend on the machine's core count."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
# Without it the runtime client looks through the whole call stack at every request, .1 s and more under pytest
os.environ.setdefault("USAGE_DATA_OPT_OUT", "True")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: with a process per core, none of them is then begun last and runs alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable: the order within a file stays


@pytest.fixture(autouse=True)
def _no_modules_of_other_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules of a user's own that a test wrote and imported are not found by the next one."""
    written = str(tmp_path_factory.getbasetemp())
    path, known = list(sys.path), len(sys.modules)
    yield
    sys.path[:] = path
    for name in list(sys.modules)[min(known, len(sys.modules)) :]:  # in the order they came
        if str(getattr(sys.modules[name], "__file__", "")).startswith(written):
            del sys.modules[name]
