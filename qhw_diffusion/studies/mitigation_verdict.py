"""What a mitigation study found, in sentences, each computed from its numbers; and the default it recommends."""

from __future__ import annotations

import numpy as np

from qhw_diffusion.experiment.statistics import mean_interval, paired_test
from qhw_diffusion.studies.mitigation_settings import (
    DEVICES,
    NONE,
    READOUT,
    READOUT_ZNE,
    SCHEDULED,
    is_scheduled,
    knows_the_noise,
    label_of,
)
from qhw_diffusion.studies.mitigation_study import MitigationResults
from qhw_diffusion.studies.pages import Table


def ratios(results: MitigationResults, name: str) -> tuple[float, float]:
    """Error of g and infidelity of the denoiser under a strategy, divided by those without any (`reference_of`).

    Geometric means over devices, seeds and shots, at equal shots in all.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for device in results.config.devices:
        for shots in results.config.shots:
            for place, (piece, key) in enumerate((("policy", "rms_g"), ("denoiser", "fidelity"))):
                mine, none = (
                    np.array(results.values(piece, device, strategy, key, how="total", shots=shots))
                    for strategy in (name, reference_of(name, results))
                )
                if key == "fidelity":
                    mine, none = 1 - mine, 1 - none
                found[place].append(float(np.log(mine / none).mean()))
    return float(np.exp(np.mean(found[0]))), float(np.exp(np.mean(found[1])))


def reference_of(name: str, results: MitigationResults) -> str:
    """What a strategy is compared with: decoupling with the scheduled circuit, whose qubits wait and relax."""
    return SCHEDULED if name != SCHEDULED and is_scheduled(name) and SCHEDULED in results.config.strategies else NONE


def default_of(results: MitigationResults) -> str:
    """The strategy with the smallest product of both ratios, those left out that know the simulated noise."""
    names = [name for name in results.config.strategies if not knows_the_noise(name)]
    return min(names, key=lambda name: float(np.prod(ratios(results, name))))


def verdict(results: MitigationResults) -> list[str]:
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
    if c.subjects.seeds > 1:  # what is beyond chance needs seeds to be told from
        lines += [_worse(results, device) for device in c.devices]
        lines += [_images(results, device) for device in c.devices]
    return lines


def _per_device(results: MitigationResults, device: str) -> str:
    c = results.config
    parts = []
    for shots in c.shots:
        error = {n: results.mean("policy", device, n, "rms_g", how="total", shots=shots) for n in c.strategies}
        fidelity = {n: results.mean("denoiser", device, n, "fidelity", how="total", shots=shots) for n in c.strategies}
        best, clear = min(error, key=error.__getitem__), max(fidelity, key=fidelity.__getitem__)
        parts.append(
            f"{shots:,} shots: {label_of(best)} for g ({error[best]:.3f} against {error['none']:.3f}), "
            f"{label_of(clear)} for the denoiser (fidelity {fidelity[clear]:.3f} against {fidelity['none']:.3f})"
        )
    return f"Best on {_device(device)} at equal shots in all: {'; '.join(parts)}."


def ratios_table(results: MitigationResults) -> Table:
    """`ratios` of every strategy, smallest product first."""
    found = {name: ratios(results, name) for name in results.config.strategies}
    order = sorted(found, key=lambda name: float(np.prod(found[name])))
    rows = [[label_of(name), *(f"{ratio:.2f}" for ratio in found[name])] for name in order]
    caption = (
        "Relative to none, at equal shots in all, geometric means over devices, shots and seeds (below 1 is better). "
        "In scheduled circuits waiting qubits relax as well: that row is what waiting costs; decoupling is relative to "
        "it."
    )
    return Table(["strategy", "error of g", "infidelity of the denoiser"], rows, caption)


def shots_where_zne_pays(bias: float, bias_zne: float, mean_square: float) -> float:
    """Shots in all from which linear ZNE with scales 1, 3 has the smaller root mean square error; infinite if never.

    Its value is 3/2 of the first less 1/2 of the second: with half the shots each, 2 · (9/4 + 1/4) = 5 times the
    variance (1 − ⟨Z⟩²)/N. So it pays where bias² − bias_zne² > 4 (1 − ⟨Z⟩²)/N; mean_square: of ⟨Z⟩.
    """
    gained = bias**2 - bias_zne**2
    return 4 * (1 - mean_square) / gained if gained > 0 else float("inf")


def _when_zne_pays(results: MitigationResults) -> str:
    parts = []
    for device in results.config.devices:
        bias, left = (results.mean("policy", device, n, "bias", how="exact") for n in (READOUT, READOUT_ZNE))
        square = float(np.mean([r["rms_z"] ** 2 for r in results.pieces["policy", device]]))
        shots = shots_where_zne_pays(bias, left, square)
        parts.append(f"{shots:,.0f} on {_device(device)}" if np.isfinite(shots) else f"never on {_device(device)}")
    return (
        "Linear ZNE multiplies the variance by 5 at equal shots in all. From the biases alone it pays on top of "
        f"readout inversion, for ⟨Z⟩ of the policy, from about so many shots on: {'; '.join(parts)}."
    )


def _denoised(results: MitigationResults, device: str) -> str:
    c = results.config
    n = c.shots[len(c.shots) // 2]
    fd = {name: results.mean("denoiser", device, name, "fd", how="total", shots=n) for name in c.strategies}
    best, chosen = min(fd, key=fd.__getitem__), default_of(results)
    return (
        f"The denoiser's images on {_device(device)}, {n:,} shots in all: FD {fd['none']:.1f} without mitigation, "
        f"{fd[chosen]:.1f} with {label_of(chosen)}, {fd[best]:.1f} at best ({label_of(best)}), "
        f"{results.mean('denoiser', device, 'ideal', 'fd'):.1f} without noise."
    )


def _worse(results: MitigationResults, device: str) -> str:
    """What makes the guidance scale worse at equal cost, with numbers."""
    c = results.config
    parts = []
    for shots in c.shots:
        worse = []
        for name in c.strategies:
            if name == SCHEDULED:
                continue  # the same circuit in a model that knows of waiting: no strategy
            none, found = (
                results.values("policy", device, n, "rms_g", how="total", shots=shots)
                for n in (reference_of(name, results), name)
            )
            ratio = float(np.exp(np.mean(np.log(np.array(found) / np.array(none)))))
            certain = paired_test(np.log(found), np.log(none)).t_p < 0.05
            if ratio > 1 and certain:
                worse.append(f"{label_of(name)} ({ratio:.2f} times)")
        if worse:
            parts.append(f"at {shots:,} shots in all {', '.join(worse)}")
    if not parts:
        return f"On {_device(device)} no strategy makes g worse than none beyond chance."
    return f"**Worse than nothing** for g on {_device(device)} (paired over seeds, p < 0.05 each): {'; '.join(parts)}."


def _images(results: MitigationResults, device: str) -> str:
    n = results.config.steering_shots[-1]
    ideal = mean_interval(results.values("images", device, "ideal", "fd"))
    tests = results.tests("images", device, "fd", "ideal", shots=n)
    changed = [f"{label_of(k)} ({t.difference.mean:+.2f})" for k, t in tests.items() if t.significant()]
    none = results.mean("images", device, "none", "fd", shots=n)
    text = f"Images on {_device(device)}, {n:,} shots in all: FD {none:.2f} without mitigation, {ideal.mean:.2f} ideal"
    return text + (
        f"; different from the ideal beyond chance: {', '.join(changed)}."
        if changed
        else "; no strategy, nor none, differs from the ideal beyond chance."
    )


def _device(device: str) -> str:
    return f"{device} ({DEVICES[device]})" if device in DEVICES else device
