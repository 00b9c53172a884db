from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from qiskit.quantum_info import Statevector
from scipy.stats import binom, poisson
from torch import Tensor

from qhw_diffusion.denoising.readout import (
    check_resolvable,
    images_from_counts,
    images_from_states,
    images_from_strings,
    kept_shots,
    probabilities_of,
    project_simplex,
    sample_counts,
    sample_images,
    shots_needed,
)
from qhw_diffusion.denoising.states import as_density, encode_images, haar_states
from qhw_diffusion.diffusion import load_dataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import all_z_strings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def z_strings(states: Tensor) -> Tensor:
    """⟨Z^s⟩ of pure states by Qiskit."""
    strings = all_z_strings(int(math.log2(states.shape[1])))
    return torch.tensor([[Statevector(s.numpy()).expectation_value(z).real for z in strings] for s in states])


@pytest.mark.parametrize("density", [False, True])
def test_exact_images_come_back(density: bool) -> None:
    images = load_dataset("digits", "heldout").images[:7]  # every one of them has a white pixel or nearly
    states = encode_images(images.double())
    decoded = images_from_states(as_density(states) if density else states, (1, 8, 8))
    brightest = (images.double() + 1).amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(decoded, 2 * (images.double() + 1) / brightest - 1)


def test_mixture_gives_the_mean_of_the_probabilities() -> None:
    pure = haar_states(2, 8, generator(), torch.complex128)
    mixed = as_density(pure).mean(0, keepdim=True)
    torch.testing.assert_close(probabilities_of(mixed)[0], pure.abs().square().mean(0))


def test_phases_cannot_be_seen() -> None:
    states = haar_states(3, 16, generator(1), torch.complex128)
    for turned in (
        states * (1j ** torch.randint(4, states.shape, generator=generator(2))),
        states * torch.exp(2j * math.pi * torch.rand(states.shape, generator=generator(3), dtype=torch.float64)),
        states.abs().to(states.dtype),
    ):
        assert (states.conj() * turned).sum(1).abs().max() < 0.9  # different states
        p, q = probabilities_of(states), probabilities_of(turned)
        torch.testing.assert_close(p, q)
        shape = (1, 4, 4)
        torch.testing.assert_close(images_from_states(states, shape), images_from_states(turned, shape))
        assert torch.equal(sample_counts(p, 1000, generator(4)), sample_counts(q, 1000, generator(4)))
        torch.testing.assert_close(z_strings(states), z_strings(turned))


def test_counts_follow_the_distribution() -> None:
    p = torch.tensor([[0.5, 0.25, 0.2, 0.05], [0.0, 1.0, 0.0, 0.0]])
    counts = sample_counts(p.repeat_interleave(4000, 0), 50, generator()).view(2, 4000, 4)
    assert (counts.sum(-1) == 50).all()
    assert (counts[1] == torch.tensor([0, 50, 0, 0])).all()
    first = counts[0].double().numpy()
    expected = 50 * (np.diag(p[0]) - np.outer(p[0], p[0]))  # multinomial covariance
    assert np.abs(first.mean(0) - 50 * p[0].numpy()).max() < 5 * np.sqrt(np.diag(expected).max() / 4000)
    assert np.abs(np.cov(first.T) - expected).max() < 1.0
    own = sample_counts(p, torch.tensor([7, 30]), generator())
    assert own.sum(1).tolist() == [7, 30]
    assert torch.equal(own, sample_counts(p, torch.tensor([7, 30]), generator()))


def test_errors_are_the_delta_method_for_many_counts_and_wilson_at_none() -> None:
    counts = torch.tensor([[40_000, 40_000, 20_000, 0]])
    estimate = images_from_counts(counts, (1, 2, 2))
    p = counts.double() / 100_000
    delta = ((1 - p) / (4 * 100_000)).sqrt()
    torch.testing.assert_close(estimate.magnitude_errors[:, :3].double(), delta[:, :3], rtol=5e-3, atol=0)
    assert float(estimate.magnitude_errors[0, 3]) == pytest.approx(1 / math.sqrt(100_001), rel=1e-6)
    for n in (1, 10, 1000):  # nothing seen, or everything: an interval that is not a point
        both = images_from_counts(torch.tensor([[n, 0]]), (1, 1, 2)).magnitude_errors[0]
        assert both[0] == pytest.approx(1 - math.sqrt(n / (n + 1)), rel=1e-4)
        assert both[1] == pytest.approx(1 / math.sqrt(n + 1), rel=1e-6)


@pytest.mark.parametrize("expected_count", [0.1, 1.0, 3.0, 4.1, 5.0, 6.7, 20.0, 400.0])
def test_two_sigma_cover_the_magnitude(expected_count: float) -> None:
    n, draws = 2000, 20_000
    p = expected_count / n
    counts = sample_counts(torch.tensor([[p, 1 - p]]).double().expand(draws, 2), n, generator(7))
    estimate = images_from_counts(counts, (1, 1, 2))
    inside = (estimate.magnitudes[:, 0] - math.sqrt(p)).abs() <= 2 * estimate.magnitude_errors[:, 0]
    assert inside.float().mean() > 0.94
    # the plain delta method falls short at these counts, which is why it is not used
    if expected_count == 4.1:
        plain = sum(poisson.pmf(c, 4.1) for c in range(100) if abs(math.sqrt(c) - math.sqrt(4.1)) <= 1)
        assert plain < 0.92


def test_pixel_errors_cover_and_are_not_too_wide() -> None:
    magnitudes = torch.tensor([[1.0, 0.7, 0.4, 0.2, 0.1, 0.0, 0.3, 0.5]]).double()
    p = magnitudes.square() / magnitudes.square().sum()
    exact = 2 * magnitudes - 1
    estimate = sample_images(p.expand(4000, 8), 3000, generator(9), (1, 2, 4))
    error = (estimate.images.flatten(1) - exact).double()
    scaled = error / estimate.std_errors.flatten(1)
    assert (scaled.abs() <= 2).double().mean(0).min() > 0.94
    for pixel in (1, 2, 7):  # bright enough for the delta method: neither too narrow nor too wide
        assert float(scaled[:, pixel].std()) == pytest.approx(1, abs=0.06)


def test_a_dominant_outcome_needs_the_covariance() -> None:
    p = torch.tensor([[0.8, 0.2]]).double()
    estimate = sample_images(p.expand(6000, 2), 2000, generator(11), (1, 1, 2))
    scaled = (estimate.images.flatten(1)[:, 1] - (2 * 0.5 - 1)) / estimate.std_errors.flatten(1)[:, 1]
    assert float(scaled.std()) == pytest.approx(1, abs=0.04)


def test_padding_is_not_part_of_the_image() -> None:
    estimate = images_from_counts(torch.tensor([[25, 100, 0, 9999]]), (1, 1, 3))
    torch.testing.assert_close(estimate.images.flatten(), torch.tensor([0.0, 1.0, -1.0]))
    assert estimate.shots is not None
    assert estimate.shots.tolist() == [10124]
    assert estimate.magnitude_errors.shape == (1, 4)
    assert estimate.std_errors.shape == (1, 1, 1, 3)


@pytest.mark.parametrize(("p", "kept"), [(1.0, 64), (0.3, 1), (0.05, 64), (1e-3, 100), (1e-9, 16)])
def test_shots_needed_is_the_smallest_number(p: float, kept: int) -> None:
    n = shots_needed(p, kept)
    assert binom.sf(kept - 1, n, p) >= 0.95 - 1e-6
    if n > kept:
        # at p = 1e-9 one shot changes the probability by less than rounding: step back by one in a million
        fewer = n - max(1, n // 10**6)
        assert binom.sf(kept - 1, fewer, p) < 0.95
    if kept == 1:
        assert n == math.ceil(math.log(0.05) / math.log(1 - p))


def test_post_selection_keeps_a_binomial_number() -> None:
    kept = kept_shots(torch.full((20_000,), 0.1), 500, generator(5)).double()
    assert float(kept.mean()) == pytest.approx(50, abs=0.25)
    assert float(kept.var()) == pytest.approx(45, rel=0.05)
    p = torch.full((3, 4), 0.25)
    estimate = sample_images(p, 5000, generator(), (1, 2, 2), success=torch.tensor([1.0, 0.1, 0.01]))
    assert estimate.shots is not None
    assert estimate.shots[0] == 5000
    assert abs(int(estimate.shots[1]) - 500) < 110
    assert abs(int(estimate.shots[2]) - 50) < 36


def test_too_small_a_success_probability_says_how_many_shots() -> None:
    p = torch.full((2, 64), 1 / 64)
    needed = shots_needed(1e-4, 64)
    assert 640_000 < needed < 900_000
    with pytest.raises(InvalidInputError, match=f"Use {needed} shots"):
        sample_images(p, 4096, generator(), (1, 8, 8), success=torch.tensor([0.9, 1e-4]))
    sample_images(p, needed, generator(), (1, 8, 8), success=torch.tensor([0.9, 1e-4]))
    with pytest.raises(InvalidInputError, match="no number of shots"):
        sample_images(p, 4096, generator(), (1, 8, 8), success=0.0)
    check_resolvable(torch.tensor([0.5]), 20, 4)
    with pytest.raises(InvalidInputError, match=f"Use {shots_needed(0.5, 16)} shots"):
        check_resolvable(torch.tensor([0.5]), 20, 16)


def test_strings_agree_with_exact_probabilities() -> None:
    images = load_dataset("digits", "heldout").images[:2].double()
    for states, shape in ((encode_images(images), (1, 8, 8)), (haar_states(3, 8, generator(), torch.complex128), (8,))):
        estimate = images_from_strings(z_strings(states), shape)
        exact = images_from_states(states, shape)
        # √ turns rounding of 1e-16 at a dark pixel into 1e-8
        torch.testing.assert_close(estimate.images, exact.float(), atol=1e-6, rtol=0)
        assert estimate.magnitude_errors.max() < 1e-6
        assert estimate.shots is None


def test_correcting_string_by_string_undoes_local_readout_error() -> None:
    states = encode_images(load_dataset("digits", "heldout").images[:1].double())
    flips = np.array([0.01, 0.05, 0.02, 0.1, 0.03, 0.04])
    # readout as a device does it: on the probabilities, qubit by qubit
    p = probabilities_of(states)[0].numpy()
    for q, e in enumerate(flips):
        pairs = p.reshape(-1, 2, 2**q)
        p = np.stack([(1 - e) * pairs[:, 0] + e * pairs[:, 1], e * pairs[:, 0] + (1 - e) * pairs[:, 1]], 1).reshape(-1)
    measured = z_strings(torch.from_numpy(p).sqrt()[None].to(torch.complex128))
    damping = np.array([np.prod([1 - 2 * e for q, e in enumerate(flips) if s >> q & 1]) for s in range(64)])
    exact = images_from_states(states, (1, 8, 8)).float()
    assert (images_from_strings(measured, (1, 8, 8)).images - exact).abs().max() > 0.2  # the error was there
    corrected = images_from_strings(measured / torch.from_numpy(damping), (1, 8, 8)).images
    torch.testing.assert_close(corrected, exact, atol=1e-6, rtol=0)


def test_errors_of_strings_propagate() -> None:
    p = torch.tensor([[0.3, 0.25, 0.05, 0.1, 0.08, 0.12, 0.06, 0.04]]).double()
    exact = z_strings(p.sqrt().to(torch.complex128))
    sigma = torch.tensor([0, 0.01, 0.02, 0.01, 0.03, 0.02, 0.01, 0.02]).double()
    noise = torch.randn(5000, 8, generator=generator(3), dtype=torch.float64) * sigma
    estimate = images_from_strings(exact + noise, (1, 2, 4), sigma.expand(5000, 8))
    scaled = (estimate.magnitudes - p.sqrt()) / estimate.magnitude_errors
    assert (scaled.abs() <= 2).double().mean(0).min() > 0.94
    assert float(scaled[:, :2].std()) == pytest.approx(1, abs=0.08)


def test_correlated_strings_have_the_right_variance_on_average() -> None:
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double()
    n = 1000
    counts = sample_counts(p.expand(20_000, 4), n, generator(8))
    values = z_strings(p.sqrt().to(torch.complex128))
    spread = ((1 - values**2).clamp_min(0) / n).sqrt()
    claimed = spread.square().sum() / 16  # the module's 4^−n Σ σ²
    assert float((counts.double() / n).var(0).mean()) == pytest.approx(float(claimed), rel=0.03)


def test_projection_is_the_nearest_distribution() -> None:
    rows = torch.randn(50, 6, generator=generator(), dtype=torch.float64) * 0.3
    rows += (1 - rows.sum(1, keepdim=True)) / 6
    assert (rows < 0).any()
    projected = project_simplex(rows)
    assert (projected >= 0).all()
    torch.testing.assert_close(projected.sum(1), torch.ones(50).double())
    # conditions of optimality: moving weight from any used entry to any other cannot come closer
    gap = rows - projected
    used = torch.where(projected > 0, gap, torch.inf).amin(1)
    torch.testing.assert_close(used, torch.where(projected > 0, gap, -torch.inf).amax(1))
    assert (gap.amax(1) <= used + 1e-12).all()
    distributions = rows.softmax(1)
    torch.testing.assert_close(project_simplex(distributions), distributions)


def test_negative_probabilities_become_dark_pixels() -> None:
    raw = np.array([0.6, 0.45, -0.05, 0.0])
    signs = np.array([[(-1) ** bin(s & x).count("1") for x in range(4)] for s in range(4)])
    estimate = images_from_strings(torch.from_numpy(signs @ raw)[None], (1, 2, 2), torch.full((1, 4), 0.02).double())
    torch.testing.assert_close(estimate.magnitudes[0].double().square(), torch.tensor([0.575, 0.425, 0, 0]).double())
    assert (estimate.magnitude_errors[0] > 0).all()


def test_bad_input() -> None:
    p = torch.full((2, 4), 0.25)
    with pytest.raises(InvalidInputError, match="sum to 1"):
        sample_counts(p / 2, 10, generator())
    with pytest.raises(InvalidInputError, match="sum to 1"):
        sample_counts(torch.tensor([[1.5, -0.5]]), 10, generator())
    for shots in (0, 2.5, True):
        with pytest.raises(InvalidInputError, match="shots"):
            sample_counts(p, shots, generator())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="shots"):
        sample_counts(p, torch.tensor([1, 2, 3]), generator())
    with pytest.raises(InvalidInputError, match="no shots left"):
        images_from_counts(torch.tensor([[1, 2], [0, 0]]), (1, 1, 2))
    with pytest.raises(InvalidInputError, match="integer"):
        images_from_counts(p, (1, 2, 2))
    with pytest.raises(InvalidInputError, match="pixels"):
        images_from_counts(torch.ones(1, 4, dtype=torch.int64), (1, 3, 3))
    with pytest.raises(InvalidInputError, match="identity"):
        images_from_strings(torch.zeros(1, 4), (1, 2, 2))
    with pytest.raises(InvalidInputError, match="std_errors"):
        images_from_strings(torch.ones(1, 4), (1, 2, 2), torch.ones(1, 3))
    with pytest.raises(InvalidInputError, match="finite"):
        images_from_strings(torch.tensor([[1.0, math.nan]]), (1, 1, 2))
    with pytest.raises(InvalidInputError, match="normalised"):
        images_from_states(torch.ones(1, 4, dtype=torch.complex64), (1, 2, 2))
    for probability in (-0.1, 1.1, math.nan, 1e-30):
        with pytest.raises(InvalidInputError, match="probability"):
            shots_needed(probability, 10)
    with pytest.raises(InvalidInputError, match="kept"):
        shots_needed(0.5, 0)
