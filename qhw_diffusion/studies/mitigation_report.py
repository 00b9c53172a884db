"""The page of a mitigation study: what came out, tables and figures, rendered from its folder alone."""

from __future__ import annotations

import math

import numpy as np

from qhw_diffusion.experiment import difference_cells as told_test
from qhw_diffusion.experiment import plots as figures
from qhw_diffusion.experiment.statistics import mean_interval
from qhw_diffusion.studies.mitigation_settings import DEVICES, label_of
from qhw_diffusion.studies.mitigation_study import MitigationResults
from qhw_diffusion.studies.mitigation_verdict import ratios_table, verdict
from qhw_diffusion.studies.pages import Part, Plot, Table, settings_table, versions_text

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


def subtitle(results: MitigationResults) -> str:
    """What the study is, in a sentence."""
    c = results.config
    names = ", ".join(_device(device) for device in c.devices)
    return (
        f"{len(c.strategies)} ways to run two trained circuits on {names}: a controller's policy circuit and a "
        f"one-step denoiser, with {_list(c.shots)} shots for a value; {c.subjects.seeds} seeds."
    )


def parts_of(results: MitigationResults, command: str) -> list[Part]:
    """The whole page."""
    return [
        Part("What came out", _METHOD, bullets=verdict(results), tables=[ratios_table(results)]),
        _policy(results),
        _images(results),
        _denoiser(results),
        Part(
            "How to reproduce",
            (versions_text(results.manifest),),
            code=command,
            tables=[settings_table(results.config.subjects, results.config)],
        ),
    ]


def _policy(results: MitigationResults) -> Part:
    c = results.config
    tables = []
    for device in c.devices:
        columns = ["strategy", "circuits a value", "bias of ⟨Z⟩", "bias of g",
                   *(f"error of ⟨Z⟩, {n:,} in all" for n in c.shots), *(f"error of g, {n:,} in all" for n in c.shots),
                   *(f"error of g, {n:,} each" for n in c.shots), "scatter told / true"]  # fmt: skip
        best = {n: _best(results, device, n) for n in c.shots}
        rows = []
        for name in c.strategies:
            row = [label_of(name), f"{results.mean('policy', device, name, 'circuits', how='exact'):.2f}"]
            row += [f"{results.mean('policy', device, name, key, how='exact'):.4f}" for key in ("bias", "bias_g")]
            row += [f"{_at(results, device, name, 'rms', n):.4f}" for n in c.shots]
            for n in c.shots:
                shown = f"{_at(results, device, name, 'rms_g', n):.4f}"
                row.append(f"**{shown}**" if best[n] == name else shown)
            for n in c.shots:
                each = results.mean("policy", device, name, "rms_g", how="each", shots=n)
                row.append("–" if math.isnan(each) else f"{each:.4f}")
            n = c.shots[len(c.shots) // 2]
            row.append(f"{_at(results, device, name, 'told', n) / _at(results, device, name, 'sd', n):.2f}")
            rows.append(row)
        tables.append(Table(columns, rows, caption=f"{_device(device)}: {_circuit(results, 'policy', device)}"))
    x = list(c.shots)
    drawn = [name for name in c.strategies if name not in NOT_DRAWN]
    panels = {
        f"error of g, {_device(device)}": {
            label_of(name): (x, [results.values("policy", device, name, "rms_g", how="total", shots=n) for n in x])
            for name in drawn
        }
        for device in c.devices
    }
    plot = figures.against(panels, xlabel="shots for a value, in all", log=tuple(panels))
    text = (
        f"{c.states} states which the ideal policy meets, each value repeated {c.repeats} times with a calibration of "
        "its own each (strategies of many circuits: a quarter of that). The policy's head turns errors of four "
        "⟨Z⟩ into an error of the guidance scale g. In bold the smallest error of g. Scatter told / true: standard "
        "error stated by the estimates against the scatter over repeats, at the middle number of shots; a calibration "
        "that all states share, and a fit through values that cross zero, move it away from 1.",
    )
    alt = "Error of the guidance scale against the shots for a value, one panel a device, one line a strategy."
    return Part("The policy circuit", text, tables=tables, plots=[Plot("mitigation-policy", plot, alt)])


def _images(results: MitigationResults) -> Part:
    c = results.config
    tables = []
    n = c.steering_shots[-1]
    for device in c.devices:
        against = results.tests("images", device, "fd", "ideal", shots=n)
        rows = [["no noise, exact", "–", "0", "0", _interval(results, device, "ideal", None), "–", "–"]]
        rows.append(
            [
                f"no noise, {n:,} shots",
                *_moved(results, device, "shots", n),
                _interval(results, device, "shots", n),
                "–",
                "–",
            ]
        )
        for name in c.steering:
            rows.append(
                [
                    label_of(name),
                    *_moved(results, device, name, n),
                    _interval(results, device, name, n),
                    *told_test(against.get(name)),
                ]
            )
        columns = ["strategy", "shots a value, counted", "error of g along the path", "rms change of a pixel", "FD",
                   "FD − ideal", "p (Holm)"]  # fmt: skip
        tables.append(Table(columns, rows, caption=f"{_device(device)}, {n:,} shots for a value in all"))
    text = (
        f"The ideal policy steers {c.subjects.eval_images} images a seed from the same starts, its circuit run under "
        "each strategy. Errors of g add up along the path. FD: Fréchet distance in the judge's features (not Inception "
        "FID).",
    )
    return Part("The controller's images", text, tables=tables)


def _denoiser(results: MitigationResults) -> Part:
    c = results.config
    tables = []
    middle = c.shots[len(c.shots) // 2]
    for device in c.devices:
        columns = ["strategy", "circuits a value", "bias of strings", "fidelity, exact",
                   *(f"fidelity, {n:,} in all" for n in c.shots), f"fidelity, {middle:,} each", "FD, exact",
                   f"FD, {middle:,} in all", f"accuracy, {middle:,} in all"]  # fmt: skip
        ideal = results.mean("denoiser", device, "ideal", "fd")
        accuracy = results.mean("denoiser", device, "ideal", "accuracy")
        rows = [["no noise", "–", "0", "1", *(_fid(results, device, "shots", "total", n) for n in c.shots), "–",
                 f"{ideal:.1f}", f"{results.mean('denoiser', device, 'shots', 'fd', how='total', shots=middle):.1f}",
                 f"{accuracy:.1%} exact"]]  # fmt: skip
        for name in c.strategies:
            exact = {key: results.mean("denoiser", device, name, key, how="exact")
                     for key in ("circuits", "bias", "fidelity", "fd")}  # fmt: skip
            fd, hit = (results.mean("denoiser", device, name, k, how="total", shots=middle) for k in ("fd", "accuracy"))
            rows.append(
                [
                    label_of(name),
                    f"{exact['circuits']:.2f}",
                    f"{exact['bias']:.4f}",
                    f"{exact['fidelity']:.4f}",
                    *(_fid(results, device, name, "total", n) for n in c.shots),
                    _fid(results, device, name, "each", middle),
                    f"{exact['fd']:.1f}",
                    f"{fd:.1f}",
                    f"{hit:.1%}",
                ]
            )
        tables.append(Table(columns, rows, caption=f"{_device(device)}: {_circuit(results, 'denoiser', device)}"))
    x = list(c.shots)
    drawn = [name for name in c.strategies if name not in NOT_DRAWN]
    panels = {
        f"infidelity, {_device(device)}": {
            label_of(name): (
                x,
                [
                    [1 - f for f in results.values("denoiser", device, name, "fidelity", how="total", shots=n)]
                    for n in x
                ],
            )
            for name in drawn
        }
        for device in c.devices
    }
    plot = figures.against(panels, xlabel="shots for an image, in all", log=tuple(panels))
    success = np.mean([r["success"] for device in c.devices for r in results.pieces["denoiser", device]])
    text = (
        "A latent denoiser of one post-selected step (3 data qubits, an ancilla, 8 layers), behind a random circuit "
        f"that prepares x_T. {c.denoiser_rows} images a seed. What is measured are the 15 strings of Z; strategies "
        "correct these, and the distribution of outcomes follows by a Walsh–Hadamard transform, replaced by the "
        f"nearest distribution where it is none. The ancilla reads 0 in {success:.0%} of the runs. Fidelity: (Σ √(p "
        "q))² with the ideal read-out, mean over images.",
    )
    alt = (
        "Infidelity of the denoiser's read-out against the shots for an image, one panel a device, one line a strategy."
    )
    return Part("The denoiser", text, tables=tables, plots=[Plot("mitigation-denoiser", plot, alt)])


def _moved(results: MitigationResults, device: str, name: str, shots: int) -> list[str]:
    """Shots counted for a value, error of g, change of a pixel."""
    config = results.config.subjects
    total = results.mean("images", device, name, "total_shots", shots=shots)
    counted = f"{total / config.eval_images / config.n_steps:,.0f}"
    moved = (results.mean("images", device, name, key, shots=shots) for key in ("rms_g", "rms_pixel"))
    return [counted, *(f"{value:.4f}" for value in moved)]


def _at(results: MitigationResults, device: str, name: str, key: str, shots: int) -> float:
    return results.mean("policy", device, name, key, how="total", shots=shots)


def _best(results: MitigationResults, device: str, shots: int) -> str:
    return min(results.config.strategies, key=lambda name: _at(results, device, name, "rms_g", shots))


def _fid(results: MitigationResults, device: str, name: str, how: str, shots: int) -> str:
    found = results.mean("denoiser", device, name, "fidelity", how=how, shots=shots)
    return "–" if math.isnan(found) else f"{found:.4f}"


def _interval(results: MitigationResults, device: str, name: str, shots: int | None) -> str:
    return mean_interval(results.values("images", device, name, "fd", shots=shots)).format()


def _circuit(results: MitigationResults, piece: str, device: str) -> str:
    told = results.pieces[piece, device][0]["circuit"]
    return f"{told['two_qubit_gates']} two-qubit gates, depth {told['depth']}, qubits {told['physical_qubits']}"


def _device(device: str) -> str:
    return f"{device} ({DEVICES[device]})" if device in DEVICES else device


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(f"{n:,}" for n in numbers)
