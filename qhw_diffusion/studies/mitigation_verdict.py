"""What a mitigation study found, in sentences, each computed from its numbers; and the default it recommends."""

from __future__ import annotations

import numpy as np

from qhw_diffusion.studies.mitigation_settings import DEVICES, label_of
from qhw_diffusion.studies.mitigation_study import MitigationResults
from qhw_diffusion.studies.statistics import mean_interval, paired_test

# They know the simulated noise exactly, as no calibration of a device does: not to be recommended from a simulation.
TOLD_THE_NOISE = ("readout-snapshot", "readout+mitiq-pec")


def ratios(results: MitigationResults, name: str) -> tuple[float, float]:
    """Error of g and infidelity of the denoiser under a strategy, divided by those without any.

    Geometric means over devices, seeds and shots, at equal shots in all.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for device in results.config.devices:
        for shots in results.config.shots:
            for place, (piece, key) in enumerate((("policy", "rms_g"), ("denoiser", "fidelity"))):
                mine, none = (
                    np.array(results.values(piece, device, strategy, key, how="total", shots=shots))
                    for strategy in (name, "none")
                )
                if key == "fidelity":
                    mine, none = 1 - mine, 1 - none
                found[place].append(float(np.log(mine / none).mean()))
    return float(np.exp(np.mean(found[0]))), float(np.exp(np.mean(found[1])))


def default_of(results: MitigationResults) -> str:
    """The strategy with the smallest product of both ratios, `TOLD_THE_NOISE` left out."""
    names = [name for name in results.config.strategies if name not in TOLD_THE_NOISE]
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
    others = sorted(
        (n for n in c.strategies if n not in ("none", chosen)), key=lambda n: float(np.prod(ratios(results, n)))
    )
    told = ", ".join(f"{label_of(n)} {ratios(results, n)[0]:.2f} and {ratios(results, n)[1]:.2f}" for n in others)
    if told:
        lines.append(f"The same two numbers of the others: {told}.")
    lines += [_per_device(results, device) for device in c.devices]
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


def _worse(results: MitigationResults, device: str) -> str:
    """What makes the guidance scale worse at equal cost, with numbers."""
    c = results.config
    parts = []
    for shots in c.shots:
        none = results.values("policy", device, "none", "rms_g", how="total", shots=shots)
        worse = []
        for name in c.strategies:
            found = results.values("policy", device, name, "rms_g", how="total", shots=shots)
            ratio = float(np.exp(np.mean(np.log(np.array(found) / np.array(none)))))
            certain = len(none) > 1 and paired_test(np.log(found), np.log(none)).t_p < 0.05
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
