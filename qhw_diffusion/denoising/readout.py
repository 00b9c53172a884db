"""Images read out of states, with error bars: exactly, from finite shots, and from the values of all Z strings.

What a device gives: outcomes of measurements in the computational basis, hence estimates of the probabilities p(x)
and, as their square roots, of the magnitudes |amplitude|. What it does not give: the amplitudes' signs and phases. Two
states that differ in those only have the same counts and the same image. So images live in magnitudes, and a latent
decoder takes magnitudes (`autoencoder`).

Error bars. A magnitude is m = √p, and the delta method gives it the standard error √((1 − p)/(4N)) for N shots. That is
an expansion around p > 0 and says nothing of an outcome that was never seen. Here the standard error is the longer arm
of the Wilson interval at one sigma, carried through the square root. For many counts it is the delta method; at zero
counts it is 1/√(N + 1), and k of it reach at least the upper end of the Wilson interval at k ≥ 1 sigma.
Wilson, J. Am. Stat. Assoc. 22, 209 (1927).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.denoising.states import check_states, decode_images
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import outcome_distribution
from qhw_diffusion.execution.measurement import check_shots, draw_counts

RESOLVED = 0.95  # with this probability the shots sent leave as many as are needed
_MOST_SHOTS = 2**62


@dataclass(frozen=True)
class ImageEstimate:
    """Images estimated from measurements.

    Attributes:
        images: [B, C, H, W] in [−1, 1]; the brightest pixel of each is 1.
        std_errors: [B, C, H, W], of the pixels. They hold the error of the magnitude and that of the brightest one,
            which sets the scale; which pixel is the brightest is taken as known.
        magnitudes: [B, d], estimates of |amplitude|.
        magnitude_errors: [B, d], their standard errors.
        shots: int64 [B], the shots kept, or None where only expectation values were given.
    """

    images: Tensor
    std_errors: Tensor
    magnitudes: Tensor
    magnitude_errors: Tensor
    shots: Tensor | None = None


def probabilities_of(states: Tensor) -> Tensor:
    """Outcome probabilities [B, d] of pure states [B, d] or density matrices [B, d, d].

    Raises:
        InvalidInputError: they are not states (see `check_states`).
    """
    check_states(states)
    if states.ndim == 3:
        return states.diagonal(dim1=1, dim2=2).real.clamp_min(0)
    return states.real**2 + states.imag**2


def images_from_states(states: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Images [B, C, H, W] in [−1, 1] that infinitely many shots would give.

    Args:
        states: pure [B, d] or density [B, d, d].
        image_shape: (C, H, W), at most d pixels.

    Raises:
        InvalidInputError: not states, or more pixels than amplitudes.
    """
    return decode_images(probabilities_of(states).sqrt(), image_shape)


def shots_needed(probability: float, kept: int, confidence: float = RESOLVED) -> int:
    """Fewest shots of which, with probability `confidence`, at least `kept` survive a post-selection.

    Shots kept are Binomial(shots, `probability`); the waiting time for the `kept`-th is negative binomial.

    Raises:
        InvalidInputError: a probability outside (0, 1] (at 0, no number of shots is enough) or so small that the number
            passes 2^62, kept below 1, a confidence outside (0, 1).
    """
    if not 0 < probability <= 1:
        raise InvalidInputError(
            f"success probability is {probability:g}; it must be in (0, 1]. At 0 no number of shots is enough"
        )
    if kept < 1 or not 0 < confidence < 1:
        raise InvalidInputError(f"kept is {kept} and confidence {confidence}; need kept ≥ 1 and confidence in (0, 1)")
    if kept / probability > _MOST_SHOTS / 16:
        raise InvalidInputError(f"success probability {probability:g} needs more than 10^17 shots to keep {kept}")
    from scipy.stats import nbinom

    return kept + int(nbinom.ppf(confidence, kept, probability))


def check_resolvable(success: Tensor, shots: int, kept: int) -> None:
    """Stop when `shots` are too few to keep `kept` of them at the success probabilities [B].

    Raises:
        InvalidInputError: for the smallest of them, with the number of shots it would take.
    """
    lowest = float(success.min())
    needed = shots_needed(lowest, kept)
    if shots < needed:
        raise InvalidInputError(
            f"{shots} shots do not resolve a success probability of {lowest:.3g}: about {shots * lowest:.3g} would "
            f"pass post-selection, {kept} are needed. Use {needed} shots or more, or a model that succeeds more often"
        )


def kept_shots(success: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Shots that pass post-selection, int64 [B], drawn from Binomial(shots, success [B])."""
    check_shots(shots)
    p = success.detach().cpu().double()
    if p.ndim != 1 or not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
        raise InvalidInputError("success probabilities must be a tensor [B] with entries in [0, 1]")
    return torch.from_numpy(_numpy_generator(generator).binomial(shots, p.clamp(max=1).numpy()))


def sample_counts(probabilities: Tensor, shots: int | Tensor, generator: torch.Generator) -> Tensor:
    """Counts int64 [B, d] of the outcomes.

    Args:
        probabilities: [B, d], each row summing to 1.
        shots: those kept, one number for all rows or int64 [B].
        generator: of the outcomes.

    Raises:
        InvalidInputError: probabilities that are negative or do not sum to 1, shots below 1 (or below 0 in a tensor).
    """
    if probabilities.ndim != 2 or not probabilities.is_floating_point():
        raise InvalidInputError(f"probabilities must be a real tensor [B, d]; given {tuple(probabilities.shape)}")
    p = probabilities.detach().cpu().double()
    total = p.sum(1, keepdim=True)
    if not bool((p >= -1e-6).all()) or not bool(((total - 1).abs() <= 1e-3).all()):
        raise InvalidInputError("probabilities must be ≥ 0 and sum to 1 in every row: divide each row by its sum")
    p = p.clamp_min(0)
    p = p / p.sum(1, keepdim=True)
    if isinstance(shots, Tensor):
        if shots.shape != p.shape[:1] or shots.is_floating_point() or bool((shots < 0).any()):
            raise InvalidInputError(f"shots must be a number or an integer tensor [{len(p)}], ≥ 0")
        n = shots.cpu().numpy()
    else:
        check_shots(shots)
        n = np.full(len(p), shots)
    return torch.from_numpy(draw_counts(p.numpy(), n, _numpy_generator(generator))).to(probabilities.device)


def images_from_counts(counts: Tensor, image_shape: Sequence[int]) -> ImageEstimate:
    """Images from counts of outcomes: √(counts/N), with standard errors (see the module).

    Args:
        counts: int64 [B, d], of the shots kept.
        image_shape: (C, H, W), at most d pixels.

    Returns:
        In float32. A pixel is 2·r − 1 with r = m/m_max, and Var r = (1 + r²)/(4 N p_max) for many counts: the
        multinomial covariance of the two is in it.

    Raises:
        InvalidInputError: not counts, a row without shots, or too few amplitudes for the shape.
    """
    if counts.ndim != 2 or counts.is_floating_point() or counts.is_complex() or bool((counts < 0).any()):
        raise InvalidInputError(f"counts must be an integer tensor [B, d], ≥ 0; given {counts.dtype} {counts.shape}")
    shots = counts.sum(1)
    if bool((shots == 0).any()):
        raise InvalidInputError(
            f"row {int((shots == 0).nonzero()[0])} has no shots left: nothing passed post-selection. Use more shots "
            "(shots_needed gives the number)"
        )
    n = shots.double()[:, None]
    p = counts.double() / n
    # the Wilson interval at one sigma; its ends are products, so that a cancellation cannot leave [0, 1]
    centre, half = (p + 0.5 / n) / (1 + 1 / n), (p * (1 - p) / n + 0.25 / n**2).sqrt() / (1 + 1 / n)
    errors = _root_errors(p, (centre - half).clamp_min(0), (centre + half).clamp_max(1))
    return _estimate(p.sqrt(), errors, image_shape, shots)


def sample_images(
    probabilities: Tensor,
    shots: int,
    generator: torch.Generator,
    image_shape: Sequence[int],
    *,
    success: Tensor | float | None = None,
    min_kept: int | None = None,
) -> ImageEstimate:
    """Images as `shots` shots would show them.

    Args:
        probabilities: [B, d], of the outcomes that pass post-selection; each row sums to 1.
        shots: circuits sent per image.
        generator: of the outcomes.
        image_shape: (C, H, W).
        success: [B] or one number, the share of the shots that counts: the cumulative probability of passing
            post-selection, or of the outcome history an image belongs to; None: all.
        min_kept: shots that must be left of those sent, with probability 95 %. Default: d, one for each outcome on
            average, at which the error bar of an average pixel is half its magnitude.

    Raises:
        InvalidInputError: a success probability below what the shots resolve, with the number it would take; bad input
            of `sample_counts` and `images_from_counts`.
    """
    check_shots(shots)
    if success is None:
        return images_from_counts(sample_counts(probabilities, shots, generator), image_shape)
    p = torch.as_tensor(success, dtype=torch.float64, device="cpu").expand(len(probabilities))
    check_resolvable(p, shots, probabilities.shape[1] if min_kept is None else min_kept)
    kept = kept_shots(p, shots, generator)
    return images_from_counts(sample_counts(probabilities, kept, generator), image_shape)


def images_from_strings(values: Tensor, image_shape: Sequence[int], std_errors: Tensor | None = None) -> ImageEstimate:
    """Images from expectation values of all Z strings, so that mitigation can be applied string by string.

    The Walsh–Hadamard transform gives p(x) = 2^−n Σ_s (−1)^(s·x) ⟨Z^s⟩. With noisy or mitigated values some of these
    come out negative; they are replaced by the nearest distribution (`project_simplex`), which is biased where
    probabilities are small.

    Args:
        values: [B, 2^n], in the order of `execution.all_z_strings(n)`.
        image_shape: (C, H, W), at most 2^n pixels.
        std_errors: [B, 2^n], of the values; None takes them as exact. Taken as independent, which gives each p(x) the
            variance 4^−n Σ_s σ_s². Strings measured in the same shots are correlated; this is then the mean of the
            true variances over the outcomes, too large for dark pixels and too small for bright ones. Counts, where
            there are some, have the better error bars (`images_from_counts`).

    Returns:
        In float32.

    Raises:
        InvalidInputError: values that are not finite or not 2^n, a first value (of the identity) that is not 1,
            errors of another shape or negative.
    """
    if values.ndim != 2 or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise InvalidInputError(f"values must be finite and a real tensor [B, 2^n]; given {tuple(values.shape)}")
    spread = torch.zeros_like(values) if std_errors is None else std_errors
    if spread.shape != values.shape or not bool((spread >= 0).all()):
        raise InvalidInputError(f"std_errors must be ≥ 0 and of the shape of the values {tuple(values.shape)}")
    raw = torch.from_numpy(outcome_distribution(values.detach().cpu().double().numpy()))
    p = project_simplex(raw)
    sigma = spread.detach().cpu().double().square().sum(1, keepdim=True).sqrt() / values.shape[1]
    errors = _root_errors(p, (p - sigma).clamp_min(0), (p + sigma).clamp_max(1))
    return _estimate(p.sqrt(), errors, image_shape, None)


def project_simplex(values: Tensor) -> Tensor:
    """The nearest probability distribution to each row of a real tensor [B, d], in the Euclidean norm.

    All entries are lowered by one number, negative ones then set to zero (Duchi et al., ICML 2008; for density matrices
    Smolin, Gambetta, Smith, arXiv 1106.5458). Rows that are distributions stay as they are, up to rounding.
    """
    ordered = values.sort(dim=1, descending=True).values
    shift = (ordered.cumsum(1) - 1) / torch.arange(1, values.shape[1] + 1, dtype=values.dtype, device=values.device)
    last = (ordered > shift).sum(1, keepdim=True) - 1  # the entries above their shift come first
    return (values - shift.gather(1, last)).clamp_min(0)


def _root_errors(value: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The longer arm of the interval [lower, upper] around `value` after the square root."""
    root = value.sqrt()
    return torch.maximum(upper.sqrt() - root, root - lower.sqrt()).clamp_min(0)


def _estimate(magnitudes: Tensor, errors: Tensor, image_shape: Sequence[int], shots: Tensor | None) -> ImageEstimate:
    images = decode_images(magnitudes, image_shape)
    n_pixels = prod(int(side) for side in image_shape)
    brightest, at = magnitudes[:, :n_pixels].max(1, keepdim=True)
    ratio = magnitudes[:, :n_pixels] / brightest
    variance = (errors[:, :n_pixels].square() + (ratio * errors.gather(1, at)).square()) / brightest.square()
    if shots is not None:
        variance = variance + ratio.square() / (2 * shots.double()[:, None])  # a shot here is none there
    pixel_errors = (2 * variance.sqrt()).reshape(images.shape)
    return ImageEstimate(images.float(), pixel_errors.float(), magnitudes.float(), errors.float(), shots)


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """NumPy has the exact multinomial and binomial that torch lacks; its stream is seeded from torch's."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return np.random.default_rng(int(seed))
