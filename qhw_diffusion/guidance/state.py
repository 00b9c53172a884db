"""The controller's state: what it sees of the sampler at each step (arXiv 2509.14163, six entries, all of them used).

| entry | meaning | range |
|---|---|---|
| 0 | t/T: share of the steps still to do | (0, 1] |
| 1 | ‖x_t‖/√d | ≥ 0, near 1 |
| 2 | ‖ε̂‖/√d of the last step | ≥ 0, near 1, grows with g |
| 3 | cos(x_t, ε̂) with the last step's ε̂ | [−1, 1] |
| 4 | a_{t−1}/limit | [−1, 1] |
| 5 | proxy confidence p(y | x̂₀) of the last step, softened | (0, 1) |
| 6 | ‖ε_c − ε_∅‖/√d at x_t (optional) | ≥ 0 |

Before the first step the prediction at the base scale stands in for "the last step"; it costs no further evaluation.
The raw entries live on very different scales (the norms move by a few per cent), so the actor sees
(entry − centre) / width with fixed numbers measured once per backbone; nothing is clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError

STATE_NAMES = ("time", "x_norm", "eps_norm", "cosine", "last_action", "confidence", "guidance_norm")
SATURATION = 2.0
"""A normalised entry beyond ± this (four standard deviations of the calibration) counts as saturated."""


def rms(x: Tensor) -> Tensor:
    """‖x‖/√d per sample: [B, …] → [B]."""
    return x.flatten(1).pow(2).mean(1).sqrt()


def raw_state(
    *,
    remaining: float,
    x: Tensor,
    eps_last: Tensor,
    action_last: Tensor,
    confidence: Tensor,
    eps_difference: Tensor | None = None,
) -> Tensor:
    """The state entries before normalisation.

    remaining: t/T; x, eps_last: [B, C, H, W]; action_last: [B] in units of the action limit; confidence: [B];
    eps_difference: ε_c − ε_∅ at x, [B, C, H, W], adds the seventh entry. Returns [B, 6] or [B, 7].
    """
    if x.shape != eps_last.shape:
        raise InvalidInputError(f"x has shape {tuple(x.shape)} and the last prediction {tuple(eps_last.shape)}")
    flat_x, flat_eps = x.flatten(1), eps_last.flatten(1)
    entries = [
        torch.full_like(confidence, remaining),
        rms(x),
        rms(eps_last),
        torch.nn.functional.cosine_similarity(flat_x, flat_eps, dim=1),
        action_last,
        confidence,
    ]
    if eps_difference is not None:
        entries.append(rms(eps_difference))
    return torch.stack(entries, dim=1)


def softened_confidence(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """p(y | x̂₀) with logits divided by the temperature: [B, K], [B] → [B]."""
    return (logits / temperature).softmax(1).gather(1, labels[:, None]).squeeze(1)


def measured_normalisation(raw: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centre (mean) and width (two standard deviations) of each entry of raw states [N, n_state].

    Raises InvalidInputError when an entry is constant: a controller cannot learn from it, and scaling would only
    blow up rounding noise.
    """
    values = raw.detach().to(torch.float64).reshape(-1, raw.shape[-1])
    centre, deviation = values.mean(0), values.std(0)
    for name, spread in zip(STATE_NAMES, deviation.tolist(), strict=False):
        if not spread > 1e-6:
            raise InvalidInputError(
                f"state entry {name!r} is constant (standard deviation {spread:.1e}) over the calibration rollouts; "
                f"use more steps or environments, or a wider guidance range"
            )
    return tuple(centre.tolist()), tuple((2.0 * deviation).tolist())


def state_metrics(states: Tensor) -> dict[str, float]:
    """Spread and saturation of each entry of normalised states [..., n_state], for the log and the diagnostics."""
    flat = states.reshape(-1, states.shape[-1])
    out: dict[str, float] = {}
    for j in range(flat.shape[1]):
        out[f"state/{STATE_NAMES[j]}_std"] = float(flat[:, j].std(correction=0))
        out[f"state/{STATE_NAMES[j]}_saturated"] = float((flat[:, j].abs() > SATURATION).float().mean())
    return out
