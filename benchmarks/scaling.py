"""How the time of a step grows with batch, qubits and depth; ours, and TensorCircuit-NG on JAX at some points."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Step

OURS_IDEAL, OURS_NOISY, PEER_IDEAL = "ours, ideal", "ours, noisy", "TensorCircuit-NG (JAX jit), ideal"
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
QUBITS = {OURS_IDEAL: (2, 4, 6, 8, 10, 12), OURS_NOISY: (2, 3, 4, 5, 6, 7, 8), PEER_IDEAL: (2, 6, 10)}
DEPTHS = {OURS_IDEAL: (1, 2, 4, 8, 16, 32), OURS_NOISY: (1, 2, 4, 8, 16, 32), PEER_IDEAL: (2, 8, 32)}

Points = dict[str, list[tuple[int, float]]]


def run(say: Callable[[str], None], *, peer: bool) -> dict[str, Points]:
    """{"batch" | "qubits" | "depth": {line: [(x, milliseconds)]}}; 4 qubits and 2 layers, batch 32, if not varied."""
    result: dict[str, Points] = {"batch": {}, "qubits": {}, "depth": {}}
    settings = [("batch", line, (4, 2, batch)) for line in (OURS_IDEAL, OURS_NOISY) for batch in BATCHES]
    settings += [("batch", PEER_IDEAL, (4, 2, batch)) for batch in (1, 256, 4096)]
    settings += [("qubits", line, (n, 2, 32)) for line, values in QUBITS.items() for n in values]
    for line, values in DEPTHS.items():
        settings += [("depth", line, (4 if line == OURS_NOISY else 6, depth, 32)) for depth in values]
    for axis, line, (n, depth, batch) in settings:
        if line == PEER_IDEAL and not peer:
            continue
        ms = 1e3 * _time(_step(line, n, depth, batch))
        result[axis].setdefault(line, []).append(({"batch": batch, "qubits": n, "depth": depth}[axis], ms))
        say(f"scaling: {line}, {n} qubits, {depth} layers, batch {batch}: {ms:.2f} ms")
    return result


def _step(line: str, n: int, depth: int, batch: int) -> Step:
    from benchmarks.denoiser import make_block
    from benchmarks.ours import step_of

    if line == OURS_NOISY:
        problem = make_block(n, depth, batch, device="fake_marrakesh")
        return step_of(problem.compiled, "noisy", problem)
    problem = make_block(n, depth, batch)
    if line == OURS_IDEAL:
        return step_of(problem.compiled, "ideal", problem)
    from benchmarks import tensorcircuit_peer

    return tensorcircuit_peer.denoiser(problem)


def _time(step: Step) -> float:
    """Median processor seconds of a step, of as many as fit into half a second (at least three)."""
    step()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < 0.5 and len(times) < 50):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return float(np.median(times))


def plot(data: dict[str, Any], path: Path) -> None:
    """Three panels, logarithmic, as SVG; the same data give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "qhw-diffusion"
    import matplotlib.pyplot as plt

    titles = {
        "batch": "batch (4 qubits, 2 layers)",
        "qubits": "qubits (2 layers, batch 32)",
        "depth": "layers (6 qubits, noisy 4; batch 32)",
    }
    colours = {OURS_IDEAL: "#1f77b4", OURS_NOISY: "#d62728", PEER_IDEAL: "#7f7f7f"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for line, points in data[name].items():
            x, y = zip(*points, strict=True)
            axis.plot(x, y, "o-" if line != PEER_IDEAL else "s--", color=colours[line], label=line, markersize=4)
        axis.set(yscale="log", xlabel=title)
        if name != "qubits":
            axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forward + backward, ms")
    axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
