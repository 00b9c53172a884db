"""The page's part on whole reverse processes (`process`), made from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qhw_diffusion.experiment import (
    Page,
    PairedTest,
    Results,
    Section,
    difference_cells,
    interval_cell,
    paired_test,
    plots,
    with_holm,
)
from qhw_diffusion.studies.mitigation.process import IDEAL, OF_QUOTIENT, PLAIN, UNIFORM
from qhw_diffusion.studies.mitigation.words import NONE, READOUT_ZNE, device_text, is_scheduled, label_of, numbers_text

if TYPE_CHECKING:
    from qhw_diffusion.studies.mitigation.experiment import MitigationConfig

_SCHEDULED = "scheduled"


def values(
    results: Results[MitigationConfig], device: str, steps: int, strategy: str, metric: str, shots: int | None = None
) -> list[float]:
    """One number of a strategy's rows, per seed; shots None: exact."""
    return results.values(metric, part="process", device=device, steps=steps, strategy=strategy, shots=shots)


def tests_of(
    results: Results[MitigationConfig], device: str, steps: int, metric: str, shots: int | None
) -> dict[str, PairedTest]:
    """Paired tests over seeds of every strategy against none, Holm-corrected; decoupling against the scheduled circuit.

    Nothing where there are less than two seeds, or no such numbers.
    """
    config = results.config.process
    if config.seeds < 2 or not values(results, device, steps, NONE, metric, shots):
        return {}
    found = {}
    for name in config.strategies:
        base = _base(name, config.strategies)
        if base != name:
            found[name] = paired_test(
                values(results, device, steps, name, metric, shots), values(results, device, steps, base, metric, shots)
            )
    return with_holm(found)


def add(page: Page, results: Results[MitigationConfig]) -> None:
    """The section of whole reverse processes, and that of their gates."""
    c = results.config.process
    section = page.section("Whole reverse processes")
    lengths = " and ".join(map(str, c.steps))
    section.text(
        f"Post-selected latent denoisers of {lengths} steps (3 data qubits, a fresh ancilla and 8 layers a step), "
        "each as one circuit with its start prepared in it, trained without noise; "
        f"{c.images} images a seed, {c.seeds} seeds, {c.repeats} repetitions, each with its own calibration. "
        "All circuits of a strategy, calibration included, share the shots of an image.",
        "Distance: total variation distance of p(x | kept) to that without noise, mean over images. Bias: the same "
        "with infinitely many shots. Scatter: the distance with finite shots to the same strategy's value with "
        "infinitely many. What leaves [0, 1] is replaced by the nearest distribution; an image whose success "
        "probability is not told from 0 counts as uniform. Error of the success probability: root mean square over "
        "images. Energy and FD: distances of the images to held-out ones, in the evaluation classifier's features. p: "
        "paired t-test over seeds against none (decoupling: against the scheduled circuit), Holm-corrected within the "
        "column. Bold: the smallest mean distance.",
    ).bullets(findings(results))
    _counts(section, results)
    for device in results.config.devices:
        for steps in c.steps:
            _table(section, results, device, steps)
    _order(section, results)
    _negative(section, results)
    steps = c.steps[-1]
    drawn = [name for name in c.strategies if "twirling" not in name and not is_scheduled(name)]
    panels = {
        f"distance, {device_text(device)}": {
            _label(name): (c.shots, [values(results, device, steps, name, "distance", n) for n in c.shots])
            for name in (PLAIN, *drawn)
        }
        for device in results.config.devices
    }
    alt = f"Distance to the distribution without noise against the shots for an image, {steps} steps, a panel a device."
    plot = plots.against(panels, xlabel="shots for an image, in all", log=tuple(panels))
    section.figure(plot, alt=alt, name="mitigation-process", wide=True)
    _gates(page, results)


def findings(results: Results[MitigationConfig]) -> list[str]:
    """What came out, in sentences: the best at every number of shots."""
    c = results.config.process
    lines = []
    for device in results.config.devices:
        for steps in c.steps:
            parts = []
            for shots in c.shots:
                found = {n: float(np.mean(values(results, device, steps, n, "distance", shots))) for n in c.strategies}
                best = min(found, key=found.__getitem__)
                parts.append(f"{shots:,} shots: {_label(best)} ({found[best]:.3f}, none {found[NONE]:.3f})")
            lines.append(f"Smallest distance on {device_text(device)}, {steps} steps: {'; '.join(parts)}.")
    return lines


def _counts(section: Section, results: Results[MitigationConfig]) -> None:
    """In how many cases a strategy is better and worse than what it is compared with, beyond chance."""
    c = results.config.process
    if c.seeds < 2:
        return
    cases = [(device, steps) for device in results.config.devices for steps in c.steps]
    titles = {"distance": "distance", "energy": "energy", "fd": "FD"}
    found = {
        (metric, n): [tests_of(results, device, steps, metric, n) for device, steps in cases]
        for metric in titles
        for n in c.shots
    }
    rows = []
    for name in c.strategies:
        if name == NONE:
            continue
        row = [_label(name)]
        for tests in found.values():
            sure = [test[name].difference.mean for test in tests if name in test and test[name].significant()]
            row.append(f"{sum(each < 0 for each in sure)} · {sum(each > 0 for each in sure)}")
        rows.append(row)
    columns = ["strategy", *(f"{titles[metric]}, {n:,}" for metric, n in found)]
    caption = (
        f"In how many of {len(cases)} cases (devices and numbers of steps) a strategy is better · worse than none "
        "beyond chance, at equal shots in all; decoupling than the scheduled circuit"
    )
    section.table(columns, rows, caption=caption)


def _base(name: str, strategies: Sequence[str]) -> str:
    return _SCHEDULED if name != _SCHEDULED and is_scheduled(name) and _SCHEDULED in strategies else NONE


def _label(name: str) -> str:
    return {PLAIN: "no noise", UNIFORM: "uniform distribution", OF_QUOTIENT: "ZNE of the quotient"}.get(
        name
    ) or label_of(name)


def _table(section: Section, results: Results[MitigationConfig], device: str, steps: int) -> None:
    c = results.config.process
    middle = c.shots[len(c.shots) // 2]

    def mean(name: str, metric: str, shots: int | None = None) -> float:
        found = values(results, device, steps, name, metric, shots)
        return float(np.mean(found)) if found else float("nan")

    columns = ["strategy", "circuits an image", "bias", f"scatter, {middle:,}",
               *(f"distance, {n:,}" for n in c.shots), f"p (Holm), {middle:,}",
               "success: bias", f"success: error, {middle:,}", f"left out, {c.shots[0]:,}",
               "energy, exact", *(f"energy, {n:,}" for n in c.shots), f"p (Holm), {middle:,}",
               f"FD, {middle:,}", f"p (Holm), {middle:,}"]  # fmt: skip
    tests = {key: tests_of(results, device, steps, key, middle) for key in ("distance", "energy", "fd")}
    best = {n: min(c.strategies, key=lambda name, n=n: mean(name, "distance", n)) for n in c.shots}  # type: ignore[misc]
    rows = []
    for name in (PLAIN, *c.strategies):
        exact = IDEAL if name == PLAIN else name
        distances = [interval_cell(values(results, device, steps, name, "distance", n), 3) for n in c.shots]
        p = {key: difference_cells(tests[key].get(name))[1] for key in tests}
        rows.append(
            [
                _label(name),
                "1.00" if name == PLAIN else f"{mean(name, 'circuits'):.2f}",
                "0" if name == PLAIN else f"{mean(name, 'distance'):.3f}",
                f"{mean(name, 'scatter', middle):.3f}",
                *(f"**{d}**" if best[n] == name else d for n, d in zip(c.shots, distances, strict=True)),
                p["distance"],
                "0" if name == PLAIN else f"{mean(name, 'bias_success'):.4f}",
                f"{mean(name, 'rms_success', middle):.4f}",
                f"{mean(name, 'lost', c.shots[0]):.1%}",
                f"{mean(exact, 'energy'):.2f}",
                *(f"{mean(name, 'energy', n):.2f}" for n in c.shots),
                p["energy"],
                interval_cell(values(results, device, steps, name, "fd", middle), 1),
                p["fd"],
            ]
        )
    circuit = next(
        cell["circuit"]
        for cell in results.cells.values()
        if cell["parameters"].get("device") == device and cell["parameters"].get("steps") == steps
    )
    caption = (
        f"{device_text(device)}, {steps} steps: {len(circuit['physical_qubits'])} qubits, "
        f"{circuit['two_qubit_gates']} two-qubit gates, depth {circuit['depth']}, "
        f"{1e6 * circuit['duration_seconds']:.1f} µs; success {mean(IDEAL, 'success'):.1%} without noise; the uniform "
        f"distribution is at {mean(UNIFORM, 'distance'):.3f}"
    )
    section.table(columns, rows, caption=caption)


def _order(section: Section, results: Results[MitigationConfig]) -> None:
    """Numerator and denominator extrapolated each, against the quotients extrapolated."""
    c = results.config.process
    if READOUT_ZNE not in c.strategies or c.seeds < 2:
        return
    rows = []
    for device in results.config.devices:
        for steps in c.steps:
            pairs: list[tuple[str, str, int | None]] = [("bias", "distance", None)]
            pairs += [(f"distance, {n:,}", "distance", n) for n in c.shots]
            pairs += [(f"scatter, {n:,}", "scatter", n) for n in c.shots]
            tests = {}
            for title, metric, shots in pairs:
                each, other = (
                    values(results, device, steps, name, metric, shots) for name in (READOUT_ZNE, OF_QUOTIENT)
                )
                tests[title] = paired_test(other, each)
            tests = with_holm(tests)
            for title, metric, shots in pairs:
                each, other = (
                    values(results, device, steps, name, metric, shots) for name in (READOUT_ZNE, OF_QUOTIENT)
                )
                means = [f"{np.mean(found):.4f}" for found in (each, other)]
                rows.append([f"{device_text(device)}, T = {steps}", title, *means, *difference_cells(tests[title], 4)])
    section.table(
        ["device", "what", "each extrapolated, then divided", "divided, then extrapolated", "difference", "p (Holm)"],
        rows,
        caption=f"{label_of(READOUT_ZNE)}: in which order numerator and denominator are treated",
    )


def _negative(section: Section, results: Results[MitigationConfig]) -> None:
    """Probabilities below 0, and what is done about them."""
    c = results.config.process
    if c.seeds < 2:
        return
    rows = []
    for device in results.config.devices:
        for steps in c.steps:
            for name in c.strategies:
                for n in c.shots:
                    size, projected, cut = (
                        values(results, device, steps, name, key, n) for key in ("negative", "distance", "clipped")
                    )
                    if np.mean(size) < 0.01:
                        continue
                    test = paired_test(cut, projected)
                    means = [f"{np.mean(found):.4f}" for found in (size, projected, cut)]
                    where = [f"{device_text(device)}, T = {steps}", label_of(name), f"{n:,}"]
                    rows.append([*where, *means, test.difference.format(4, sign=True)])
    section.table(
        ["device", "strategy", "shots", "negative, in all", "projected", "clipped", "clipped − projected"],
        rows,
        caption="Where negative probabilities add up to more than 0.01: distance to the ideal with the nearest "
        "distribution (what is done), and with negative ones set to 0 and the rest divided by its sum",
    )


def _gates(page: Page, results: Results[MitigationConfig]) -> None:
    c, devices = results.config.process, results.config.devices
    section = page.section("What the circuits of reverse processes take")
    section.text(
        "The whole process as one circuit, the preparation of its start included: n data qubits, one ancilla a step, "
        "depth 8, labels by angles; optimisation level 3, the transpiler's seed 0. With more than 13 qubits P is more "
        "Pauli strings than an Estimator is given: such a circuit is for a Sampler."
    )
    columns = ["n", "T", "qubits", *(f"{what}, {device_text(d)}" for d in devices
                                     for what in ("two-qubit gates", "depth", "duration, µs"))]  # fmt: skip
    rows = []
    for n in c.gate_qubits:
        for steps in c.gate_steps:
            row = [str(n), str(steps)]
            for at, device in enumerate(devices):
                where = {"part": "gates", "device": device, "data_qubits": n, "steps": steps}
                number, two, depth = (
                    int(results.values(key, **where)[0]) for key in ("qubits", "two_qubit_gates", "depth")
                )
                seconds = results.values("duration_seconds", **where)
                row += [str(number)] * (at == 0)
                row += [f"{two:,}", f"{depth:,}", f"{1e6 * seconds[0]:.1f}" if seconds else "–"]
            rows.append(row)
    section.table(columns, rows, caption=f"{numbers_text(c.gate_steps)} steps on {len(devices)} devices")
