"""One process on two cores: a training step on two threads against the same on one, and the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# (what, engine, qubits, layers or None for the policy circuit, batches)
WORK = (
    ("denoiser block, 8 qubits, 192 weights", "ideal", 8, 8, (1, 8, 64, 256)),
    ("policy circuit", "noisy", 4, None, (1, 8, 64, 256, 1024)),
    ("denoiser block, 8 qubits, 192 weights", "noisy", 8, 8, (64,)),
)
SECONDS, MOST, FEWEST = 4.0, 400, 5


def run(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for every circuit and batch: best milliseconds on one thread and on two, taken in turn."""
    rows = []
    for at, (what, engine, *_, batches) in enumerate(WORK):
        for batch in batches:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cores", str(at), str(batch)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
            row = {"what": what, "engine": engine, "batch": batch, **json.loads(done.stdout.strip().splitlines()[-1])}
            rows.append(row)
            say(
                f"cores: {what}, {engine}, batch {batch}: {row['one_ms']:.2f} and {row['two_ms']:.2f} ms, ratio "
                f"{row['processor_ratio']:.2f} by processor time, {row['clock_ratio']:.2f} by the clock"
            )
    return rows


def one(at: int, batch: int) -> dict[str, float | bool]:
    """Best milliseconds on one thread and two, and whether values and gradients have the same bits."""
    import torch

    from benchmarks.denoiser import make_block
    from benchmarks.ours import step_of
    from benchmarks.problem import make_problem

    _, engine, qubits, layers, _ = WORK[at]
    if layers is None:
        problem: Any = make_problem(batch, "fake_marrakesh")
        compiled = problem.noisy
    else:
        problem = make_block(qubits, layers, batch, device="ideal" if engine == "ideal" else "fake_marrakesh")
        compiled = problem.compiled
    step = step_of(compiled, engine, problem)
    found = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found[threads] = [part.copy() for part in step()]
        step()
    allowed, clocks = sorted(os.sched_getaffinity(0)), []
    for number, thread in enumerate(threading.enumerate()):  # a core each, as on a machine that does nothing else
        os.sched_setaffinity(thread.native_id or 0, {allowed[number % len(allowed)]})
        clocks.append(time.pthread_getcpuclockid(thread.ident or 0))
    wall: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    began = time.perf_counter()
    while len(wall[2]) < FEWEST or (time.perf_counter() - began < SECONDS and len(wall[2]) < MOST):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            before, start = [time.clock_gettime(clock) for clock in clocks], time.perf_counter()
            step()
            wall[threads].append(time.perf_counter() - start)
            busy[threads].append(max(time.clock_gettime(clock) - t for clock, t in zip(clocks, before, strict=True)))
    return {
        "one_ms": 1e3 * min(busy[1]),
        "two_ms": 1e3 * min(busy[2]),
        "processor_ratio": min(busy[1]) / min(busy[2]),
        "clock_ratio": min(wall[1]) / min(wall[2]),
        "steps": len(wall[2]),
        "same": all(np.array_equal(a, b) for a, b in zip(found[1], found[2], strict=True)),
    }


if __name__ == "__main__":
    # NumPy's own threads stay out of it; and all cores, though the tables are measured on one
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    if len(sys.argv) > 1:
        print(json.dumps(one(int(sys.argv[1]), int(sys.argv[2]))))
    else:
        run(print)
