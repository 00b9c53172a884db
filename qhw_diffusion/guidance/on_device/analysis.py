"""What a rollout on a device says: is ⟨Z⟩ what the snapshot's noise predicts, and what became of the images."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion import accuracy, evaluate_samples
from qhw_diffusion.guidance import PolicyOrSchedule, rollout
from qhw_diffusion.guidance.on_device.rollout import Played, Prepared, starts_of

MIN_FD_IMAGES = 100
"""Below this many images a Fréchet distance says more about their number than about them, and is not given."""


@dataclass(frozen=True)
class StepCheck:
    """Measured against predicted ⟨Z⟩ of one step, over B samples and M qubits.

    Attributes:
        step: from 1.
        rms: root mean square of measured − predicted.
        expected_rms: what the standard errors alone would give.
        bias: mean of measured − predicted.
        bias_error: standard error of the bias, if all ⟨Z⟩ were independent.
        chi2: mean of ((measured − predicted) / standard error)²: 1 if the prediction is right, more if it is not.
        p: probability of so large a sum of squares under the prediction. The ⟨Z⟩ of one circuit come from the same
            shots, so that it is approximate.
        worst: largest |measured − predicted| in standard errors.
        unknown: how many of the ⟨Z⟩ have an infinite standard error (the client's zero-noise extrapolation gives such).
            They count in `rms` alone; the other numbers are NaN if every one is so.
    """

    step: int
    rms: float
    expected_rms: float
    bias: float
    bias_error: float
    chi2: float
    p: float
    worst: float
    unknown: int = 0

    def to_dict(self) -> dict[str, float | None]:
        """JSON types; None for what is NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def check_steps(played: Played, shots: int) -> list[StepCheck]:
    """One check per step. A standard error below 1/shots (all shots alike) counts as 1/shots."""
    from scipy.stats import chi2

    checks = []
    for index in range(len(played.measured)):
        gap = (played.measured[index] - played.predicted[index]).double()
        errors = played.std_errors[index].double().clamp_min(1.0 / shots)
        known = errors.isfinite()
        errors, unknown = errors[known], int((~known).sum())
        squares = (gap[known] / errors).square()
        n = squares.numel()
        checks.append(
            StepCheck(
                step=index + 1,
                rms=float(gap.square().mean().sqrt()),
                expected_rms=float(errors.square().mean().sqrt()),
                bias=float(gap[known].mean()),
                bias_error=float(errors.square().sum().sqrt() / n) if n else math.nan,
                chi2=float(squares.mean()),
                p=float(chi2.sf(float(squares.sum()), n)) if n else math.nan,
                worst=float(squares.max().sqrt()) if n else math.nan,
                unknown=unknown,
            )
        )
    return checks


@dataclass(frozen=True)
class Compared:
    """One policy on the rollout's initial noise: images [B, C, H, W], g [T, B], and the evaluation's numbers."""

    name: str
    images: Tensor
    g: Tensor
    judged: dict[str, float]


@torch.no_grad()
def compare_controllers(prepared: Prepared, played: Played) -> list[Compared]:
    """The device's rollout beside the same policy simulated (with the snapshot's noise, and without), and the constant.

    Judged: accuracy, from `MIN_FD_IMAGES` images on also energy distance, FD and KD; "pixel_rms" is the root mean
    square difference to the device's images.
    """
    models, guidance = prepared.models, prepared.guidance
    labels, noise = starts_of(prepared)
    device = prepared.compiled.device.name
    players: dict[str, PolicyOrSchedule] = {
        f"simulated, noise of {device}": prepared.policy,
        "simulated, no noise": prepared.policy.on(engine="ideal"),
        guidance.base_name: None,
    }
    compared = [Compared(f"on {device}", played.images, played.g, _evaluated(prepared, played.images, labels))]
    scorer = models.scorer(guidance.scorer)
    for name, player in players.items():
        other = rollout(models.backbone, guidance, labels, noise, player, scorer=scorer)
        rms = float((other.images - played.images).square().mean().sqrt())
        judged = {**_evaluated(prepared, other.images, labels), "pixel_rms": rms}
        compared.append(Compared(name, other.images, other.g, judged))
    return compared


def predicted_with(prepared: Prepared) -> dict[str, Any]:
    """The calibration that predicts, of the start of the rollout: date and snapshot, as a `Receipt` has them."""
    device = prepared.compiled.device
    return {"date": device.date, "snapshot": device.fingerprint}


def changed_steps(prepared: Prepared, played: Played) -> list[int]:
    """Steps, from 1, with jobs under another calibration than the jobs before; those of the first: than what predicts.

    Steps whose calibration was not noted are left out.
    """
    last, changed = predicted_with(prepared)["snapshot"], []
    for step, receipt in enumerate(played.receipts, start=1):
        under = [one["snapshot"] for one in receipt.calibrations]
        if any(snapshot != last for snapshot in under):
            changed.append(step)
        last = under[-1] if under else last
    return changed


def results_of(prepared: Prepared, played: Played, compared: list[Compared]) -> dict[str, Any]:
    """What results.json holds."""
    checks = check_steps(played, prepared.asked.shots)
    seconds = [receipt.qpu_seconds for receipt in played.receipts]
    return {
        "rollout": prepared.asked.to_dict(),
        "device": prepared.compiled.summary("model/device.snapshot.json.gz"),
        "predicted_with": predicted_with(prepared),
        "calibration_changed": changed_steps(prepared, played),
        "steps": [
            {**check.to_dict(), **receipt.to_dict(), "g_mean": float(g.mean()), "g_std": float(g.std(correction=0))}
            for check, receipt, g in zip(checks, played.receipts, played.g, strict=True)
        ],
        "qpu_seconds": None if any(s is None for s in seconds) else sum(s or 0.0 for s in seconds),
        "controllers": {one.name: {**one.judged, "g_mean": float(one.g.mean())} for one in compared},
    }


def _evaluated(prepared: Prepared, images: Tensor, labels: Tensor) -> dict[str, float]:
    models = prepared.models
    if len(images) < MIN_FD_IMAGES:
        return {"accuracy": accuracy(models.evaluation_classifier, images, labels)}
    every = evaluate_samples(
        images, labels, models.evaluation_classifier, models.heldout, real_features=models.heldout_features
    )
    return {name: every[name] for name in ("energy", "fd", "kd", "accuracy")}
