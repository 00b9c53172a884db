"""The table: markdown for people, JSON for later comparison."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import abilities
from benchmarks.measure import Result

PACKAGES = (
    "torch", "llvmlite", "numpy", "qiskit", "qiskit-aer", "pennylane", "pennylane-lightning", "tensorcircuit-ng", "jax",
    "qulacs", "qiskit-machine-learning", "flagquantum", "deepquantum", "cudaq",
)  # fmt: skip
# (section, kind, contender, factor that our engine is to reach)
GOALS = (
    ("policy", "noisy", "PennyLane default.mixed, depolarizing", 40.0),
    ("policy", "noisy", "PennyLane default.mixed, device noise", 40.0),
    ("policy", "noisy", "TensorCircuit-NG, JAX jit", 3.0),
    ("policy", "ideal", "TensorCircuit-NG, JAX jit", 1.0),
    ("policy", "ideal", "PennyLane default.qubit", 4.0),
    ("re-uploading", "noisy", "TensorCircuit-NG, JAX jit", 2.0),
    ("re-uploading", "ideal", "TensorCircuit-NG, JAX jit", 1.0),
    ("denoiser", "ideal", "TensorCircuit-NG, JAX jit", 1.0),
    ("denoiser", "ideal", "TensorCircuit-NG, JAX jit, layers merged", 1.0),
    ("small", "ideal", "TensorCircuit-NG, JAX jit", 1.0),
)


@dataclass(frozen=True)
class Section:
    """Contenders timed side by side on one problem.

    Attributes:
        group: "policy", "re-uploading", "small" or "denoiser": which goals apply.
        title: heading.
        text: what the problem is.
        results: ours first in every kind.
    """

    group: str
    title: str
    text: str
    results: list[Result]


def as_dict(sections: list[Section], rounds: int, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "rounds": rounds,
        "sections": [{"title": s.title, "text": s.text, "results": [_result(r) for r in s.results]} for s in sections],
        **extra,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _result(r: Result) -> dict[str, Any]:
    return {
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


def table(results: list[Result]) -> list[str]:
    lines: list[str] = []
    for kind in ("ideal", "noisy"):
        rows = [r for r in results if r.contender.kind == kind]
        if not rows:
            continue
        ours = rows[0]
        lines += [
            f"| {kind} | ms a step | best | wall | × ours | × ours (best) | first gradient, s | max. deviation |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for r in rows:
            other = "other noise" if kind == "noisy" else "–"
            deviation = other if r.deviation is None else f"{r.deviation:.0e}"
            lines.append(
                f"| {r.contender.name} | {1e3 * r.median_cpu():.2f} | {1e3 * r.min_cpu():.2f} | "
                f"{1e3 * r.median_wall():.2f} | {r.median_cpu() / ours.median_cpu():.2f} | "
                f"{r.min_cpu() / ours.min_cpu():.2f} | {r.first:.2f} | {deviation} |"
            )
        lines.append("")
    return lines


def markdown(sections: list[Section], data: dict[str, Any]) -> str:
    lines: list[str] = []
    for s in sections:
        lines += [f"## {s.title}", "", s.text, "", *table(s.results)]
    if data.get("first_gradient"):
        lines += [
            "## The first gradient",
            "",
            "Seconds of processor time from the compiled circuit to our first gradient of the policy, each in a "
            "new process, the best of three. Every process compiles the loops that it uses, in memory; nothing is kept "
            "on disk, so that the first process on a machine takes as long as any. The peers' first gradients are in "
            "the tables; JAX compiles anew in every process unless a cache is set up.",
            "",
            "| | first gradient |",
            "|---|---:|",
            *(f"| {kind} | {seconds:.2f} |" for kind, seconds in data["first_gradient"].items()),
            "",
        ]
    if data.get("cores"):
        lines += core_lines(data["cores"])
    if data.get("wide_noise"):
        lines += [
            "## Eight noisy qubits",
            "",
            "Denoiser block on `fake_marrakesh`, batch 32, seconds of processor time; ours forwards *and* "
            "backwards, Aer's "
            "density-matrix method (single precision, reduced noise model, all observables saved in one run) "
            "forwards only, from "
            "four samples. Peak is that of all arrays of a step. The backward pass recomputes what it does "
            "not keep.",
            "",
            "| weights | ours, s | Aer forwards, s | ours / Aer | first gradient, s | peak, GiB |",
            "|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {r['weights']:,} | {r['seconds']:.2f} | {_optional(r, 'aer_s')} | {_optional(r, 'ratio')} | "
                f"{r['first_s']:.2f} | {r['peak_gib']:.2f} |"
                for r in data["wide_noise"]
            ),
            "",
        ]
    if data.get("noise_trajectories"):
        lines += trajectory_lines(data["noise_trajectories"])
    if data.get("other_peers"):
        lines += [
            "## Further peers on the policy circuit",
            "",
            "Milliseconds for batch 256; † extrapolated from fewer samples. Timed in the same run after a "
            "warm-up step, one step each. Deviation: of values and gradients from ours, looked at before it is timed.",
            "",
            "| peer | | ms | × ours | max. deviation | how |",
            "|---|---|---:|---:|---:|---|",
            *(
                f"| {r['name']} | {r['kind']} | {r['ms']:,.0f}{'' if r['samples'] >= 256 else ' †'} | "
                f"{r['times_ours']:,.0f} | {'–' if r['deviation'] is None else format(r['deviation'], '.0e')} | "
                f"{r['note']} |"
                for r in data["other_peers"]
            ),
            "",
        ]
    lines += abilities.lines()
    if data.get("scaling"):
        lines += [
            "## Scaling",
            "",
            "![Time of a step against batch, qubits and layers](figures/scaling.svg)",
            "",
            "Denoiser blocks; the noisy line compiled for `fake_marrakesh`.",
            "",
        ]
    if data.get("pipelines"):
        lines += [
            "## A text-to-image pipeline",
            "",
            "Milliseconds of processor time a sampling step, from prompts to images: the pipeline's own call and "
            "`guidance.sample` on the same parts, timed in turn, with the same images bit for bit. *Policy*: a step of "
            "the quantum policy under the noise of `fake_marrakesh`, and its share of the U-Net's time.",
            "",
            "| images | pipeline's own call | ours | pipeline / ours (best times) | U-Net | policy | share |",
            "|---:|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {r['batch']} | {r['pipeline']:.2f} | {r['ours']:.2f} | {r['ratio']:.2f} ({r['best_ratio']:.2f}) | "
                f"{r['unet']:.2f} | {r['policy']:.2f} | {r['share']:.1%} |"
                for r in data["pipelines"]
            ),
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    notes = {(r.contender.name, r.contender.kind, r.contender.note): r for s in sections for r in s.results}
    lines += [
        "## How it was measured",
        "",
        "Times are processor time of one core: the median and the best of interleaved steps after warm-up, and the "
        "time to the first gradient from the compiled circuit on, libraries loaded. *Wall* is the median by the "
        "clock, the "
        "same on an idle machine.",
        "",
        f"{data['machine']}; {versions}; {data['date']}.",
        "",
        *(f"- {r.contender.name} ({r.contender.kind}): {r.contender.note}." for r in notes.values()),
    ]
    return "\n".join(lines)


def _optional(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.2f}" if key in row else "–"


def goals(sections: list[Section], data: dict[str, Any]) -> list[str]:
    """One line per aim: what was measured (of ratios of medians and of best times the smaller)."""
    lines = []

    def say(reached: bool, text: str) -> None:
        lines.append(f"{'reached' if reached else 'MISSED '} {text}")

    for group, kind, name, wanted in GOALS:
        for section in sections:
            by_name = {(r.contender.kind, r.contender.name): r for r in section.results}
            ours, peer = by_name.get((kind, "qhw_diffusion")), by_name.get((kind, name))
            if section.group != group or ours is None or peer is None:
                continue
            factor = min(peer.median_cpu() / ours.median_cpu(), peer.min_cpu() / ours.min_cpu())
            say(factor >= wanted, f"{section.title}, {kind}: {factor:.2f} × {name} (wanted {wanted:g} ×)")
    for section in sections:
        for r in section.results:
            if r.contender.name == "qhw_diffusion":
                say(r.first < 2, f"{section.title}, {r.contender.kind}: first gradient {r.first:.2f} s (wanted < 2 s)")
    for kind, seconds in data.get("first_gradient", {}).items():
        say(seconds < 2, f"policy, {kind}: first gradient ever on a machine {seconds:.2f} s (wanted < 2 s)")
    for r in data.get("cores", []):
        if r["batch"] >= 64:
            ratio = r["processor_ratio"]
            say(
                ratio >= 1.8, f"two cores, {r['what']}, {r['engine']}, batch {r['batch']}: {ratio:.2f} × (wanted 1.8 ×)"
            )
    for row, limit in zip(data.get("wide_noise", []), (4, 8), strict=False):
        if "ratio" in row:
            say(row["ratio"] <= 1.5, f"eight noisy qubits: {row['ratio']:.2f} × Aer's forward pass (wanted ≤ 1.5 ×)")
        say(
            row["peak_gib"] <= limit,
            f"eight noisy qubits, {row['weights']} weights: {row['peak_gib']:.2f} GiB (≤ {limit})",
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


def write(sections: list[Section], data: dict[str, Any], json_path: Path, page: Path | None) -> None:
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(data, indent=1) + "\n")
    if page is None:
        return
    aims = "\n".join(f"- {line}" for line in goals(sections, data))
    text = (
        "# Performance\n\nWritten by `python -m benchmarks --write` (`make bench` prints the same for your machine). "
        "What was done for each peer: `benchmarks/`. Where a peer wins, its factor *× ours* is below 1.\n\n"
        + markdown(sections, data)
        + "\n\n## Aims\n\n"
        + aims
        + "\n\n## Reading it\n\n"
        "Our engines run compiled loops over samples with an adjoint backward pass; under noise the part of the "
        "circuit that no "
        "input enters is taken backwards on the 4 observables instead of forwards on the batch. What is left before "
        "it, where the inputs enter once, is one vector a qubit. The row "
        "*rewritten backwards* does "
        "the second by hand with TensorCircuit's tensors: it is not what the library does with a circuit, and it "
        "shows what the idea "
        "alone is worth under JAX's compiler, whose price is the time to the first gradient. PennyLane's "
        "*depolarizing* row has "
        "simpler noise than the device's. "
        "For one sample jitted JAX is the faster one on two qubits, and on four where its layers are merged by hand: "
        "most of what a step of ours costs there is torch's own way forwards and back through one function.\n"
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)


def trajectory_lines(found: dict[str, Any]) -> list[str]:
    """The section on trajectories of noise."""
    return [
        "## Trajectories of noise",
        "",
        "Layers of RX, RZ, RY and a CNOT chain on `fake_marrakesh`, one row, seconds of processor time for so many "
        "trajectories (Pauli-twirled noise); Aer's state vectors (single precision, reduced noise model, all "
        "observables saved in one run), as many trajectories, forwards only.",
        "",
        "| qubits | weights | trajectories | ours forwards, s | and backwards, s | Aer forwards, s | ours / Aer |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {r['qubits']} | {r['weights']} | {r['trajectories']:,} | {r['forward_s']:.3f} | {r['both_s']:.3f} | "
            f"{r['aer_s']:.3f} | {r['ratio']:.2f} |"
            for r in found["sizes"]
        ),
        "",
        "A training step of a post-selected denoiser of 7 + 1 noisy qubits (four steps of depth 8, 16 trajectories an "
        f"image): {found['training']['ms']:.1f} ms an image.",
        "",
        "The same gates as a layer (an input at the end of every qubit) and as a denoiser's map on states: 8 qubits, "
        f"192 weights, density matrices, forwards and back, batch 32: {found['maps']['layer_ms']:.1f} and "
        f"{found['maps']['map_ms']:.1f} ms an image.",
        "",
    ]


def core_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The section on two cores."""
    return [
        "## Two cores",
        "",
        "A training step on one thread and on two, in turn in one process, with the same bits; a thread a core. "
        "*Processor*: the processor time of the step on one thread over that of the busier of two threads, best of all "
        "steps each: what two cores that do nothing else would give, but for waking the second thread. *Clock*: the "
        "same by the clock, best of all steps. Small batches are one block, on one thread. "
        "`python -m benchmarks --parts cores`.",
        "",
        "| circuit | engine | batch | one thread, ms | two, ms | processor | clock |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(
            f"| {r['what']} | {r['engine']} | {r['batch']:,} | {r['one_ms']:.2f} | {r['two_ms']:.2f} | "
            f"{r['processor_ratio']:.2f} | {r['clock_ratio']:.2f} |"
            for r in rows
        ),
        "",
    ]
