"""The page of the mitigation study, made from its results alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from qhw_diffusion.studies.mitigation import process_page
from qhw_diffusion.studies.mitigation.words import (
    NONE,
    READOUT,
    READOUT_ZNE,
    SCHEDULED,
    device_text,
    is_scheduled,
    knows_the_noise,
    label_of,
    numbers_text,
)

if TYPE_CHECKING:
    from qhw_diffusion.studies.mitigation.experiment import MitigationConfig

TITLES = {"energy": ("energy distance", 3), "fd": ("FD", 2)}
"""Distances of images to held-out ones, the one that the policy is trained on first: name and decimals."""
_METHOD = (
    "Everything is compared with the same circuit without noise: the policy and the denoiser were trained without. "
    "Devices are simulated from their calibration data. Readout errors are then exactly those of the calibration, gate "
    "errors have no memory and no coherent part, and nothing drifts; so strategies that rely on calibration data "
    "(readout from the calibration data, PEC) look better here than they will on a device, and those against coherent "
    "or slow noise (twirling, decoupling) cannot show what they are for.",
    "Total: all circuits of a strategy together, with its share of calibration and training circuits, get that many "
    "shots for a value. Each: every circuit gets that many. Bias: root mean square error with infinitely many shots. "
    "Error: root mean square error with finite ones, bias and scatter together. Means over seeds.",
)

# Left out of the figures, where their lines would lie on top of others
NOT_DRAWN = (
    "readout",
    "zne:linear:1,3",
    "readout:measured+zne:linear:1,3,5",
    "readout:measured+zne:richardson:1,3,5",
    "scheduled",
    "decoupling:xx",
    "readout:measured+mitiq-zne:linear:1,3:global:0",
    "readout:measured+mitiq-lre:1:4:1",
)


def page(results: Results[MitigationConfig]) -> Page:
    """What came out, then the policy's circuit, its images, and the denoiser."""
    c = results.config
    names = ", ".join(device_text(device) for device in c.devices)
    both, process = {"policy", "denoiser"} <= set(c.parts), "process" in c.parts
    counts = [f"{c.models.seeds} seeds"] * (c.parts != ("process",))
    counts += [f"{c.process.seeds} seeds of whole processes"] * process
    ways = len({*(c.strategies if c.parts != ("process",) else ()), *(c.process.strategies if process else ())})
    shots = sorted({*(c.shots if c.parts != ("process",) else ()), *(c.process.shots if process else ())})
    told = {"policy": "the policy's circuit", "images": "its images", "denoiser": "a one-step denoiser",
            "process": "whole reverse processes of a denoiser"}  # fmt: skip
    shown = Page(
        subtitle=(
            f"{ways} ways to run trained circuits on {names}: {', '.join(told[part] for part in c.parts)}; "
            f"{numbers_text(tuple(shots))} shots for a value; {', '.join(counts)}."
        ),
        findings=[*(findings(results) if both else []), *(process_page.findings(results) if process else [])],
    )
    section = shown.section("What came out").text(*_METHOD)
    if both:
        ratios_table(section.bullets(findings(results)), results)
    for part, add in (("policy", _policy), ("images", _images), ("denoiser", _denoiser)):
        if part in c.parts:
            add(shown, results)
    if process:
        process_page.add(shown, results)
    return shown


def values(
    results: Results[MitigationConfig], part: str, device: str, strategy: str, metric: str, **where: Any
) -> list[float]:
    """One number of a strategy's rows on a device, per seed; where: how, shots (rows without any where left out)."""
    return results.values(metric, part=part, device=device, strategy=strategy, **{"shots": None, **where})


def mean(results: Results[MitigationConfig], part: str, device: str, strategy: str, metric: str, **where: Any) -> float:
    """Its mean over seeds; NaN where the study has no such row."""
    found = values(results, part, device, strategy, metric, **where)
    return float(np.mean(found)) if found else math.nan


def distance_of(results: Results[MitigationConfig], part: str) -> str:
    """The distance that findings state: energy; FD where an earlier version kept no other."""
    return "energy" if results.values("energy", part=part) else "fd"


def image_tests(results: Results[MitigationConfig], device: str, shots: int, metric: str) -> dict[str, PairedTest]:
    """Paired tests of a distance of images under each strategy against the ideal ones, Holm-corrected.

    Needs two seeds, and the metric, which results of an earlier version may lack: else there are none.
    """
    base = values(results, "images", device, "ideal", metric)
    if len(base) < 2:
        return {}
    names = results.config.steering
    return with_holm({n: paired_test(values(results, "images", device, n, metric, shots=shots), base) for n in names})


def ratios(results: Results[MitigationConfig], name: str) -> tuple[float, float]:
    """Error of g and infidelity of the denoiser under a strategy, divided by those without any (`reference_of`).

    Geometric means over devices, seeds and shots, at equal shots in all.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for device in results.config.devices:
        for shots in results.config.shots:
            for place, (piece, key) in enumerate((("policy", "rms_g"), ("denoiser", "fidelity"))):
                mine, none = (
                    np.array(values(results, piece, device, strategy, key, how="total", shots=shots))
                    for strategy in (name, reference_of(name, results))
                )
                if key == "fidelity":
                    mine, none = 1 - mine, 1 - none
                found[place].append(float(np.log(mine / none).mean()))
    return float(np.exp(np.mean(found[0]))), float(np.exp(np.mean(found[1])))


def reference_of(name: str, results: Results[MitigationConfig]) -> str:
    """What a strategy is compared with: decoupling with the scheduled circuit, whose qubits wait and relax."""
    return SCHEDULED if name != SCHEDULED and is_scheduled(name) and SCHEDULED in results.config.strategies else NONE


def default_of(results: Results[MitigationConfig]) -> str:
    """The strategy with the smallest product of both ratios, those left out that know the simulated noise."""
    names = [name for name in results.config.strategies if not knows_the_noise(name)]
    return min(names, key=lambda name: float(np.prod(ratios(results, name))))


def findings(results: Results[MitigationConfig]) -> list[str]:
    """The findings as sentences."""
    c = results.config
    chosen = default_of(results)
    g, infidelity = ratios(results, chosen)
    lines = [
        f"**Recommended default: {label_of(chosen)}.** Over all devices and shots, at equal shots in all, it brings "
        f"the error of the guidance scale to {g:.2f} and the infidelity of the denoiser to {infidelity:.2f} of what "
        "they are without mitigation (geometric means), the smallest product of all that do not have to know the noise "
        "already."
    ]
    lines += [_per_device(results, device) for device in c.devices]
    if {READOUT, READOUT_ZNE} <= set(c.strategies):
        lines.append(_when_zne_pays(results))
    lines += [_denoised(results, device) for device in c.devices]
    if c.models.seeds > 1:  # what is beyond chance needs seeds to be told from
        lines += [_worse(results, device) for device in c.devices]
        lines += [_images_told(results, device) for device in c.devices if "images" in c.parts]
    return lines


def _per_device(results: Results[MitigationConfig], device: str) -> str:
    c = results.config
    parts = []
    for shots in c.shots:
        error = {n: mean(results, "policy", device, n, "rms_g", how="total", shots=shots) for n in c.strategies}
        fidelity = {n: mean(results, "denoiser", device, n, "fidelity", how="total", shots=shots) for n in c.strategies}
        best, clear = min(error, key=error.__getitem__), max(fidelity, key=fidelity.__getitem__)
        parts.append(
            f"{shots:,} shots: {label_of(best)} for g ({error[best]:.3f} against {error['none']:.3f}), "
            f"{label_of(clear)} for the denoiser (fidelity {fidelity[clear]:.3f} against {fidelity['none']:.3f})"
        )
    return f"Best on {device_text(device)} at equal shots in all: {'; '.join(parts)}."


def ratios_table(section: Section, results: Results[MitigationConfig]) -> None:
    """`ratios` of every strategy, smallest product first."""
    found = {name: ratios(results, name) for name in results.config.strategies}
    order = sorted(found, key=lambda name: float(np.prod(found[name])))
    rows = [[label_of(name), *(f"{ratio:.2f}" for ratio in found[name])] for name in order]
    caption = (
        "Relative to none, at equal shots in all, geometric means over devices, shots and seeds (below 1 is better). "
        "In scheduled circuits waiting qubits relax as well: that row is what waiting costs; decoupling is relative to "
        "it."
    )
    section.table(["strategy", "error of g", "infidelity of the denoiser"], rows, caption=caption)


def shots_where_zne_pays(bias: float, bias_zne: float, mean_square: float) -> float:
    """Shots in all from which linear ZNE with scales 1, 3 has the smaller root mean square error; infinite if never.

    Its value is 3/2 of the first less 1/2 of the second: with half the shots each, 2 · (9/4 + 1/4) = 5 times the
    variance (1 − ⟨Z⟩²)/N. So it pays where bias² − bias_zne² > 4 (1 − ⟨Z⟩²)/N; mean_square: of ⟨Z⟩.
    """
    gained = bias**2 - bias_zne**2
    return 4 * (1 - mean_square) / gained if gained > 0 else float("inf")


def _when_zne_pays(results: Results[MitigationConfig]) -> str:
    parts = []
    for device in results.config.devices:
        bias, left = (mean(results, "policy", device, n, "bias", how="exact") for n in (READOUT, READOUT_ZNE))
        square = float(np.mean(np.square(results.values("rms_z", part="policy", device=device))))
        shots = shots_where_zne_pays(bias, left, square)
        when = f"{shots:,.0f}" if np.isfinite(shots) else "never"
        parts.append(f"{when} on {device_text(device)}")
    return (
        "Linear ZNE multiplies the variance by 5 at equal shots in all. From the biases alone it pays on top of "
        f"readout inversion, for ⟨Z⟩ of the policy, from about so many shots on: {'; '.join(parts)}."
    )


def _denoised(results: Results[MitigationConfig], device: str) -> str:
    c = results.config
    n = c.shots[len(c.shots) // 2]
    key = distance_of(results, "denoiser")
    title, digits = TITLES[key]
    found = {name: mean(results, "denoiser", device, name, key, how="total", shots=n) for name in c.strategies}
    best, chosen = min(found, key=found.__getitem__), default_of(results)
    return (
        f"The denoiser's images on {device_text(device)}, {n:,} shots in all: {title} {found['none']:.{digits}f} "
        f"without mitigation, {found[chosen]:.{digits}f} with {label_of(chosen)}, {found[best]:.{digits}f} at best "
        f"({label_of(best)}), {mean(results, 'denoiser', device, 'ideal', key):.{digits}f} without noise."
    )


def _worse(results: Results[MitigationConfig], device: str) -> str:
    """What makes the guidance scale worse at equal cost, with numbers."""
    c = results.config
    parts = []
    for shots in c.shots:
        worse = []
        for name in c.strategies:
            if name == SCHEDULED:
                continue  # the same circuit in a model that knows of waiting: no strategy
            none, found = (
                values(results, "policy", device, n, "rms_g", how="total", shots=shots)
                for n in (reference_of(name, results), name)
            )
            ratio = float(np.exp(np.mean(np.log(np.array(found) / np.array(none)))))
            certain = paired_test(np.log(found), np.log(none)).t_p < 0.05
            if ratio > 1 and certain:
                worse.append(f"{label_of(name)} ({ratio:.2f} times)")
        if worse:
            parts.append(f"at {shots:,} shots in all {', '.join(worse)}")
    if not parts:
        return f"On {device_text(device)} no strategy makes g worse than none beyond chance."
    where = f"**Worse than nothing** for g on {device_text(device)} (paired over seeds, p < 0.05 each)"
    return f"{where}: {'; '.join(parts)}."


def _images_told(results: Results[MitigationConfig], device: str) -> str:
    n = results.config.steering_shots[-1]
    key = distance_of(results, "images")
    title, digits = TITLES[key]
    ideal, none = mean(results, "images", device, "ideal", key), mean(results, "images", device, "none", key, shots=n)
    tests = image_tests(results, device, n, key)
    changed = [f"{label_of(k)} ({t.difference.mean:+.{digits}f})" for k, t in tests.items() if t.significant()]
    text = (
        f"Images on {device_text(device)}, {n:,} shots in all: {title} {none:.{digits}f} without mitigation, "
        f"{ideal:.{digits}f} ideal"
    )
    return text + (
        f"; different from the ideal beyond chance: {', '.join(changed)}."
        if changed
        else "; no strategy, nor none, differs from the ideal beyond chance."
    )


def _policy(page: Page, results: Results[MitigationConfig]) -> None:
    c = results.config
    section = page.section("The policy circuit")
    section.text(
        f"{c.states} states which the ideal policy meets, each value repeated {c.repeats} times with a calibration of "
        "its own each (strategies of many circuits: a quarter of that). The policy's head turns errors of four "
        "⟨Z⟩ into an error of the guidance scale g. In bold the smallest error of g. Scatter told / true: standard "
        "error stated by the estimates against the scatter over repeats, at the middle number of shots; a calibration "
        "that all states share, and a fit through values that cross zero, move it away from 1.",
    )
    for device in c.devices:
        columns = ["strategy", "circuits a value", "bias of ⟨Z⟩", "bias of g",
                   *(f"error of ⟨Z⟩, {n:,} in all" for n in c.shots), *(f"error of g, {n:,} in all" for n in c.shots),
                   *(f"error of g, {n:,} each" for n in c.shots), "scatter told / true"]  # fmt: skip
        best = {n: _best(results, device, n) for n in c.shots}
        rows = []
        for name in c.strategies:
            row = [label_of(name), f"{mean(results, 'policy', device, name, 'circuits', how='exact'):.2f}"]
            row += [f"{mean(results, 'policy', device, name, key, how='exact'):.4f}" for key in ("bias", "bias_g")]
            row += [f"{_at(results, device, name, 'rms', n):.4f}" for n in c.shots]
            for n in c.shots:
                shown = f"{_at(results, device, name, 'rms_g', n):.4f}"
                row.append(f"**{shown}**" if best[n] == name else shown)
            for n in c.shots:
                each = mean(results, "policy", device, name, "rms_g", how="each", shots=n)
                row.append("–" if math.isnan(each) else f"{each:.4f}")
            n = c.shots[len(c.shots) // 2]
            row.append(f"{_at(results, device, name, 'told', n) / _at(results, device, name, 'sd', n):.2f}")
            rows.append(row)
        section.table(columns, rows, caption=f"{device_text(device)}: {_circuit(results, 'policy', device)}")
    x = list(c.shots)
    drawn = [name for name in c.strategies if name not in NOT_DRAWN]
    panels = {
        f"error of g, {device_text(device)}": {
            label_of(name): (x, [values(results, "policy", device, name, "rms_g", how="total", shots=n) for n in x])
            for name in drawn
        }
        for device in c.devices
    }
    plot = plots.against(panels, xlabel="shots for a value, in all", log=tuple(panels))
    alt = "Error of the guidance scale against the shots for a value, one panel a device, one line a strategy."
    section.figure(plot, alt=alt, name="mitigation-policy")


def _images(page: Page, results: Results[MitigationConfig]) -> None:
    c = results.config
    section = page.section("The policy's images")
    section.text(
        f"The ideal policy steers {c.models.eval_images} images a seed from the same initial noise, its circuit run "
        "under each strategy. Errors of g add up along the path. Energy: energy distance within each class, FD: "
        "Fréchet distance (not Inception FID), both to held-out images in the evaluation classifier's features.",
    )
    n = c.steering_shots[-1]
    for device in c.devices:
        tests = {key: image_tests(results, device, n, key) for key in TITLES}
        rows = [["no noise, exact", "–", "0", "0", *_distances(results, tests, device, "ideal", None)]]
        rows += [
            [label, *_moved(results, device, name, n), *_distances(results, tests, device, name, n)]
            for label, name in ((f"no noise, {n:,} shots", "shots"), *((label_of(name), name) for name in c.steering))
        ]
        columns = ["strategy", "shots a value, counted", "error of g along the path", "rms change of a pixel",
                   "energy", "energy − ideal", "p (Holm)", "FD", "FD − ideal", "p (Holm)"]  # fmt: skip
        section.table(columns, rows, caption=f"{device_text(device)}, {n:,} shots for a value in all")


def _denoiser(page: Page, results: Results[MitigationConfig]) -> None:
    c = results.config
    section = page.section("The denoiser")
    success = results.mean("success", part="denoiser", shots=None, strategy=None)
    section.text(
        "A latent denoiser of one post-selected step (3 data qubits, an ancilla, 8 layers), behind a random circuit "
        f"that prepares x_T. {c.denoiser_rows} images a seed. What is measured are the 15 strings of Z; strategies "
        "correct these, and the distribution of outcomes follows by a Walsh–Hadamard transform, replaced by the "
        f"nearest distribution where it is none. The ancilla reads 0 in {success:.0%} of the runs. Fidelity: (Σ √(p "
        "q))² with the ideal read-out, mean over images.",
    )
    middle = c.shots[len(c.shots) // 2]
    for device in c.devices:
        columns = ["strategy", "circuits a value", "bias of strings", "fidelity, exact",
                   *(f"fidelity, {n:,} in all" for n in c.shots), f"fidelity, {middle:,} each",
                   "energy, exact", f"energy, {middle:,} in all", "FD, exact", f"FD, {middle:,} in all",
                   f"accuracy, {middle:,} in all"]  # fmt: skip
        accuracy = mean(results, "denoiser", device, "ideal", "accuracy")
        rows = [["no noise", "–", "0", "1", *(_fid(results, device, "shots", "total", n) for n in c.shots), "–",
                 *_denoised_cells(results, device, "ideal", "shots", middle),
                 f"{accuracy:.1%} exact"]]  # fmt: skip
        for name in c.strategies:
            exact = {key: mean(results, "denoiser", device, name, key, how="exact")
                     for key in ("circuits", "bias", "fidelity")}  # fmt: skip
            hit = mean(results, "denoiser", device, name, "accuracy", how="total", shots=middle)
            rows.append(
                [
                    label_of(name),
                    f"{exact['circuits']:.2f}",
                    f"{exact['bias']:.4f}",
                    f"{exact['fidelity']:.4f}",
                    *(_fid(results, device, name, "total", n) for n in c.shots),
                    _fid(results, device, name, "each", middle),
                    *_denoised_cells(results, device, name, name, middle),
                    f"{hit:.1%}",
                ]
            )
        section.table(columns, rows, caption=f"{device_text(device)}: {_circuit(results, 'denoiser', device)}")
    x = list(c.shots)
    drawn = [name for name in c.strategies if name not in NOT_DRAWN]
    panels = {
        f"infidelity, {device_text(device)}": {
            label_of(name): (
                x,
                [
                    [1 - f for f in values(results, "denoiser", device, name, "fidelity", how="total", shots=n)]
                    for n in x
                ],
            )
            for name in drawn
        }
        for device in c.devices
    }
    plot = plots.against(panels, xlabel="shots for an image, in all", log=tuple(panels))
    alt = (
        "Infidelity of the denoiser's read-out against the shots for an image, one panel a device, one line a strategy."
    )
    section.figure(plot, alt=alt, name="mitigation-denoiser")


def _moved(results: Results[MitigationConfig], device: str, name: str, shots: int) -> list[str]:
    """Shots counted for a value, error of g, change of a pixel."""
    config = results.config.models
    total = mean(results, "images", device, name, "total_shots", shots=shots)
    counted = f"{total / config.eval_images / config.guidance.n_steps:,.0f}"
    moved = (mean(results, "images", device, name, key, shots=shots) for key in ("rms_g", "rms_pixel"))
    return [counted, *(f"{value:.4f}" for value in moved)]


def _at(results: Results[MitigationConfig], device: str, name: str, key: str, shots: int) -> float:
    return mean(results, "policy", device, name, key, how="total", shots=shots)


def _best(results: Results[MitigationConfig], device: str, shots: int) -> str:
    return min(results.config.strategies, key=lambda name: _at(results, device, name, "rms_g", shots))


def _fid(results: Results[MitigationConfig], device: str, name: str, how: str, shots: int) -> str:
    found = mean(results, "denoiser", device, name, "fidelity", how=how, shots=shots)
    return "–" if math.isnan(found) else f"{found:.4f}"


def _distances(
    results: Results[MitigationConfig],
    tests: dict[str, dict[str, PairedTest]],
    device: str,
    name: str,
    shots: int | None,
) -> list[str]:
    """Each distance of the policy's images with its difference and p; dashes for what was not measured."""
    cells: list[str] = []
    for key, (_, digits) in TITLES.items():
        measured = interval_cell(values(results, "images", device, name, key, shots=shots), digits)
        cells += [measured, *difference_cells(tests[key].get(name), digits)]
    return cells


def _denoised_cells(results: Results[MitigationConfig], device: str, exact: str, run: str, shots: int) -> list[str]:
    """Each distance of the denoiser's images: of exact values, and of so many shots in all."""
    cells = []
    for key, digits in (("energy", 3), ("fd", 1)):
        found = (
            mean(results, "denoiser", device, exact, key, how="exact"),
            mean(results, "denoiser", device, run, key, how="total", shots=shots),
        )
        cells += ["–" if math.isnan(value) else f"{value:.{digits}f}" for value in found]
    return cells


def _circuit(results: Results[MitigationConfig], part: str, device: str) -> str:
    told = results.cells[f"{part}-{Path(device).name}-seed0"]["circuit"]
    return f"{told['two_qubit_gates']} two-qubit gates, depth {told['depth']}, qubits {told['physical_qubits']}"
