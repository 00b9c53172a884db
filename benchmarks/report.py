"""The table: markdown for people, JSON for later comparison."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import Result
from benchmarks.problem import Problem

PACKAGES = ("torch", "qiskit", "qiskit-aer", "pennylane", "tensorcircuit-ng", "jax", "numpy")
# (kind, contender, factor that our engine is to reach)
GOALS = (
    ("noisy", "PennyLane default.mixed, depolarizing", 40.0),
    ("noisy", "PennyLane default.mixed, device noise", 40.0),
    ("noisy", "TensorCircuit-NG, JAX jit", 1.5),
    ("ideal", "PennyLane default.qubit", 4.0),
)


def as_dict(results: list[Result], problem: Problem, batch: int, rounds: int) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "batch": batch,
        "rounds": rounds,
        "device": problem.noisy.device.name,
        "circuit": {
            "two_qubit_gates": problem.noisy.two_qubit_gates,
            "depth": problem.noisy.depth,
            "noise_channels": problem.n_channels,
        },
        "transpile_seconds": problem.transpile_seconds,
        "results": [
            {
                "contender": r.contender.name,
                "kind": r.contender.kind,
                "note": r.contender.note,
                "cpu_ms_median": 1e3 * r.median_cpu(),
                "cpu_ms_min": 1e3 * r.min_cpu(),
                "wall_ms_median": 1e3 * r.median_wall(),
                "first_gradient_cpu_s": r.first,
                "first_gradient_wall_s": r.first_wall,
                "steps": len(r.cpu),
                "deviation": r.deviation,
                "gradient_deviation": r.gradient_deviation,
            }
            for r in results
        ],
    }


def markdown(results: list[Result], data: dict[str, Any]) -> str:
    circuit = data["circuit"]
    lines = [
        f"Policy circuit: 4 qubits, depth 2, ring; batch {data['batch']}; expectation values of 4 observables and the "
        f"gradients by all inputs and weights. Noisy: compiled for `{data['device']}` ({circuit['two_qubit_gates']} "
        f"two-qubit gates, depth {circuit['depth']}, {circuit['noise_channels']} noise channels).",
        "",
    ]
    for kind in ("ideal", "noisy"):
        rows = [r for r in results if r.contender.kind == kind]
        ours = rows[0]
        lines += [
            f"| {kind} | ms a step | best | wall | × ours | × ours (best) | first gradient, s | max. deviation |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for r in rows:
            deviation = "other noise" if r.deviation is None else f"{r.deviation:.0e}"
            lines.append(
                f"| {r.contender.name} | {1e3 * r.median_cpu():.2f} | {1e3 * r.min_cpu():.2f} | "
                f"{1e3 * r.median_wall():.2f} | {r.median_cpu() / ours.median_cpu():.2f} | "
                f"{r.min_cpu() / ours.min_cpu():.2f} | {r.first:.2f} | {deviation} |"
            )
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines += [
        "Times are processor time of one core: the median and the best of interleaved steps after warm-up, and the "
        "time to the first gradient from the compiled circuit on, libraries loaded (transpiling for the device, common "
        f"to all, took {data['transpile_seconds']:.2f} s). *Wall* is the median by the clock, the same on an idle "
        "machine.",
        "",
        f"{data['machine']}; {versions}; {data['date']}.",
        "",
        *(f"- {r.contender.name} ({r.contender.kind}): {r.contender.note}." for r in results),
    ]
    return "\n".join(lines)


def goals(results: list[Result]) -> list[str]:
    """One line per factor aimed for: what was measured (the smaller of the ratios of medians and of best times)."""
    by_name = {(r.contender.kind, r.contender.name): r for r in results}
    lines = []
    for kind, name, wanted in GOALS:
        ours, peer = by_name.get((kind, "qhw_diffusion")), by_name.get((kind, name))
        if ours is None or peer is None:
            continue
        factor = min(peer.median_cpu() / ours.median_cpu(), peer.min_cpu() / ours.min_cpu())
        lines.append(
            f"{'reached' if factor >= wanted else 'MISSED '} {kind}: {factor:.2f} × {name} (wanted {wanted:g} ×)"
        )
    return lines


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, one core"


def write(results: list[Result], data: dict[str, Any], json_path: Path, page: Path | None) -> None:
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(data, indent=1) + "\n")
    if page is None:
        return
    text = (
        "# Performance\n\nWritten by `python -m benchmarks --write` (`make bench` prints the same for your machine). "
        "Other engines, other circuits and what was tried for each peer: `benchmarks/`.\n\n"
        + markdown(results, data)
        + "\n\n## Reading it\n\n"
        "Our noisy engine fuses all fixed gates and their noise between two layers of rotations into one map, and "
        "evolves the part of the circuit that no input enters backwards on the 4 observables instead of forwards on "
        "the batch. The row *rewritten backwards* does the second by hand with TensorCircuit's tensors: it is not what "
        "the library does with a circuit, and it shows what the idea alone is worth under JAX's compiler, whose price "
        "is the time to the first gradient.\n"
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
