"""What the denoising study measures of states and images: on a device as one circuit, and against the data's states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qhw_diffusion.denoising import AmplitudeQDM, as_density, infidelity
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import NoisySampler, SamplerEngine, Shots
from qhw_diffusion.mitigation import Mitigated, strategies_of
from qhw_diffusion.studies.denoising.page import EVALUATION_SEED

if TYPE_CHECKING:
    from qhw_diffusion.studies.denoising.experiment import DenoisingConfig


def measured_on_device(
    config: DenoisingConfig, model: AmplitudeQDM, how: str, starts: Tensor, labels: Tensor, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """One circuit an image with the device's noise and finite shots → distributions [B, d], and what was counted.

    The Estimator's values and the Sampler's records are drawn from the exact noisy distribution of the whole circuit.
    An image whose success probability is not told from 0, or without a shot, is the uniform distribution.
    """
    device = Device.load(config.device)
    if how == "sampler":
        engine = SamplerEngine(NoisySampler(device, seed=EVALUATION_SEED + seed), shots=config.shots)
        made = DenoiserSampler(model, device).sample(engine, starts, labels, min_kept=1)
        kept, success = made.counts.sum(1), made.share
        distribution = torch.where(kept[:, None] > 0, made.counts / kept.clamp_min(1)[:, None], 1 / model.dim).double()
    else:
        shots = Shots(config.shots, seed=EVALUATION_SEED + seed)
        estimator = Mitigated(shots, strategies_of("readout")) if how == "estimator-readout" else shots
        read = model.as_layer(device, estimator).estimate(starts, labels).read
        distribution, success = read.distribution, read.success
        kept = torch.where(read.resolved, config.shots * success, 0.0)
    told = {"success": float(success.mean()), "kept_shots": float(kept.double().mean())}
    return distribution, {**told, "lost_images": int((kept == 0).sum())}


def average_infidelity(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor, n_labels: int) -> float:
    """1 − F between the average states of a [N, d] and of b [M, d], or of density matrices, mean over labels."""
    parts = []
    for y in range(n_labels):
        mine, theirs = (as_density(x).mean(0, keepdim=True) for x in (a[labels_a == y], b[labels_b == y]))
        parts.append(infidelity(mine.to(torch.complex128), theirs.to(torch.complex128)))
    return float(torch.cat(parts).mean())


def visible_infidelity(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor, n_labels: int) -> float:
    """1 − (Σ √(p q))² of the average outcome probabilities of a [N, d] and of b [M, d], mean over labels."""
    means = [(a[labels_a == y].double().mean(0), b[labels_b == y].double().mean(0)) for y in range(n_labels)]
    return float(torch.stack([1 - (mine * theirs).sqrt().sum() ** 2 for mine, theirs in means]).mean())
