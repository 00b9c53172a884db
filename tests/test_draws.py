"""Random numbers of engines in several processes. Light imports: spawned processes read this file again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qhw_diffusion.draws import Draws


def test_a_pickle_read_by_a_program_of_its_own_goes_on_where_it_was(tmp_path: Path) -> None:
    draws, file = Draws(5), tmp_path / "draws"
    draws.generator.integers(10, size=7)
    file.write_bytes(pickle.dumps(draws))
    code = f"import pickle; print(pickle.load(open({str(file)!r}, 'rb')).generator.integers(2**32))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == draws.generator.integers(2**32)


def _three(draws: Draws, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    queue.put(draws.generator.integers(2**32, size=3).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_every_process_draws_its_own_numbers(method: str) -> None:
    context = multiprocessing.get_context(method)
    draws, queue = Draws(5), context.Queue()
    workers = [context.Process(target=_three, args=(draws, queue), name=f"worker {k}") for k in range(2)]
    for worker in workers:
        worker.start()
    seen = [tuple(queue.get(timeout=60)) for _ in workers]
    for worker in workers:
        worker.join()
    own = tuple(np.random.default_rng(5).integers(2**32, size=3).tolist())
    assert tuple(draws.generator.integers(2**32, size=3).tolist()) == own, "this process is not disturbed"
    assert len({*seen, own}) == 3


def test_a_named_worker_draws_the_same_numbers_in_every_run() -> None:
    context, seen = multiprocessing.get_context("fork"), []
    for _ in range(2):
        draws, queue = Draws(5), context.Queue()
        worker = context.Process(target=_three, args=(draws, queue), name="worker 0")
        worker.start()
        seen.append(queue.get(timeout=60))
        worker.join()
    assert seen[0] == seen[1]


def test_a_bare_fork_draws_its_own_numbers() -> None:
    draws = Draws(5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(draws.generator.integers(2**32)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reading, 100)) != int(draws.generator.integers(2**32))
