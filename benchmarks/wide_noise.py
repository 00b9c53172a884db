"""Eight noisy qubits: ours forwards and backwards against Aer's density-matrix method forwards only; and our memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DEVICE = "fake_marrakesh"
SIZES = ((8, 8), (8, 42))  # 192 and 1,008 weights
AER_SAMPLES = 4


def run(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row a size: seconds for a batch of 32, the ratio, and the peak memory of our step."""
    rows = []
    for n, depth in SIZES:
        ours = json.loads(_child("ours", n, depth))
        aer = json.loads(_child("aer", n, depth)) if depth == SIZES[0][1] else None
        row = {"qubits": n, "weights": 3 * n * depth, **ours}
        if aer is not None:
            row |= {"aer_s": aer["seconds"], "ratio": ours["seconds"] / aer["seconds"]}
        rows.append(row)
        say(f"noisy {n} qubits, {3 * n * depth} weights: {ours['seconds']:.2f} s, peak {ours['peak_gib']:.2f} GiB")
    return rows


def _child(what: str, n: int, depth: int) -> str:
    """A process of its own, so that the peak memory is that of this step."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.wide_noise", what, str(n), str(depth)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return done.stdout.strip().splitlines()[-1]


def ours(n: int, depth: int) -> dict[str, float]:
    import tracemalloc

    from benchmarks.denoiser import make_block
    from benchmarks.ours import step_of

    problem = make_block(n, depth, device=DEVICE)
    small = make_block(2, 2, device=DEVICE)
    step_of(small.compiled, "noisy", small)()  # the kernels are loaded
    start = time.process_time()
    step = step_of(problem.compiled, "noisy", problem)
    step()
    first = time.process_time() - start
    times = []
    for _ in range(3):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    tracemalloc.start()  # numpy reports every array to it
    step()
    peak = tracemalloc.get_traced_memory()[1]
    return {"seconds": float(np.median(times)), "first_s": first, "peak_gib": peak / 2**30}


def aer(n: int, depth: int) -> dict[str, float]:
    """Seconds for 32 samples, from `AER_SAMPLES` of them in one run; the noise model holds the qubits in use only."""
    from qiskit_aer import AerSimulator

    from benchmarks.denoiser import make_block
    from qhw_diffusion.execution.primitive import on_used_qubits

    problem = make_block(n, depth, device=DEVICE)
    compiled = problem.compiled
    circuit, observables = on_used_qubits(compiled)
    for m, observable in enumerate(observables):
        circuit.save_expectation_value(observable, range(circuit.num_qubits), label=str(m))
    parameters = [*compiled.inputs, *compiled.weights]
    bound = [
        circuit.assign_parameters(dict(zip(parameters, [*x, *problem.weights], strict=True)))
        for x in problem.inputs[:AER_SAMPLES].astype(float)
    ]
    simulator = AerSimulator(
        method="density_matrix",
        noise_model=compiled.device.noise_model(compiled.physical_qubits),
        max_parallel_threads=1,
        precision="single",
    )
    simulator.run(bound[:1]).result()
    start = time.process_time()
    simulator.run(bound).result()
    return {"seconds": (time.process_time() - start) / AER_SAMPLES * len(problem.inputs)}


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    what, qubits, layers = sys.argv[1:]
    print(json.dumps({"ours": ours, "aer": aer}[what](int(qubits), int(layers))))
