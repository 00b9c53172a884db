from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from qhw_diffusion.denoising import ensembles, losses
from qhw_diffusion.denoising.states import haar_states
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

MATRICES = list(ensembles.SIMILARITIES.values())


def pure(count: int, dim: int, seed: int) -> Tensor:
    return haar_states(count, dim, torch.Generator().manual_seed(seed), torch.complex128)


def density(count: int, dim: int, seed: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(count, dim, rank or dim, dtype=torch.complex128, generator=generator)
    return torch.einsum("bir,bjr->bij", factor, factor.conj()) / factor.abs().square().sum((1, 2))[:, None, None]


def random_weights(count: int, seed: int) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def circle(angles: Tensor) -> Tensor:
    """Real states of one qubit on a great circle of the Bloch sphere."""
    return torch.stack([(angles / 2).cos(), (angles / 2).sin()], -1).to(torch.complex128)


def average(states: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("n,ni,nj->ij", (weights / weights.sum()).to(states.dtype), states, states.conj())


# --- similarity matrices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make_a", "make_b"), itertools.product([pure, density], repeat=2))
def test_fidelity_matrix_is_the_fidelity_of_each_pair(make_a: Callable, make_b: Callable) -> None:
    a, b = make_a(3, 4, 1), make_b(5, 4, 2)
    wanted = torch.stack([losses.fidelity(a[i : i + 1], b) for i in range(3)])
    torch.testing.assert_close(ensembles.fidelity_matrix(a, b), wanted, atol=1e-12, rtol=0)


def test_superfidelity_is_the_fidelity_for_one_qubit_and_bounds_it_above() -> None:
    a, b = density(6, 2, 1), density(7, 2, 2)
    torch.testing.assert_close(
        ensembles.superfidelity_matrix(a, b), ensembles.fidelity_matrix(a, b), atol=1e-12, rtol=0
    )
    a, b = density(6, 4, 1, rank=2), density(7, 4, 2)
    excess = ensembles.superfidelity_matrix(a, b) - ensembles.fidelity_matrix(a, b)
    assert bool((excess >= -1e-12).all())
    assert excess.max() > 0.01
    states = pure(4, 4, 3)
    torch.testing.assert_close(ensembles.superfidelity_matrix(states, b), ensembles.fidelity_matrix(states, b))


def test_measured_fidelity_sees_probabilities_alone() -> None:
    a, b = pure(4, 4, 1), pure(5, 4, 2)
    phases = torch.polar(torch.ones(4, 4, dtype=torch.float64), random_weights(16, 3).reshape(4, 4) * 6)
    measured = ensembles.measured_fidelity_matrix(a, b)
    torch.testing.assert_close(ensembles.measured_fidelity_matrix(a * phases, b), measured)
    p, q = a.abs().square(), b.abs().square()
    torch.testing.assert_close(measured, (p[:, None] * q[None]).sqrt().sum(-1).square())
    assert bool((measured >= ensembles.fidelity_matrix(a, b) - 1e-12).all())
    # the diagonal of a density matrix is all that counts
    diagonal = torch.diag_embed(p.to(torch.complex128))
    torch.testing.assert_close(ensembles.measured_fidelity_matrix(diagonal, b), measured)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("rank_a", "rank_b"), [(1, 3), (2, 2), (3, 3)])
def test_gradients_of_matrices(matrix: Callable, rank_a: int, rank_b: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, rank_a, dtype=torch.complex128, generator=generator, requires_grad=True)
    y = torch.randn(3, 3, rank_b, dtype=torch.complex128, generator=generator, requires_grad=True)

    def normalised(factor: Tensor) -> Tensor:
        return factor @ factor.mH / factor.abs().square().sum((1, 2))[:, None, None]

    assert torch.autograd.gradcheck(lambda x, y: matrix(normalised(x), normalised(y)), (x, y), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("matrix", MATRICES)
def test_gradients_are_finite_at_pure_and_basis_states(matrix: Callable) -> None:
    basis = torch.eye(4, dtype=torch.complex128)
    projectors = torch.einsum("ni,nj->nij", basis, basis)
    for a, b in itertools.product([basis, projectors, density(2, 4, 1)], repeat=2):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        matrix(x, y).sum().backward()
        for grad in (x.grad, y.grad):
            assert grad is not None
            assert bool(grad.isfinite().all())


def test_mean_fidelity_to_a_target() -> None:
    states, target, weights = pure(5, 4, 1), pure(1, 4, 2), random_weights(5, 3)
    each = (states.conj() @ target[0]).abs().square()
    torch.testing.assert_close(ensembles.mean_fidelity(states, target), each.mean())
    torch.testing.assert_close(ensembles.mean_fidelity(states, target, weights), (weights * each).sum() / weights.sum())
    with pytest.raises(InvalidInputError, match="one state"):
        ensembles.mean_fidelity(states, states)


# --- MMD ---------------------------------------------------------------------------------------------------------


def test_fidelity_mmd_is_the_distance_of_the_average_states() -> None:
    a, b, wa, wb = pure(7, 4, 1), pure(5, 4, 2), random_weights(7, 3), random_weights(5, 4)
    wanted = losses.hilbert_schmidt(average(a, wa)[None], average(b, wb)[None])[0]
    torch.testing.assert_close(ensembles.mmd(a, b, wa, wb), wanted, atol=1e-14, rtol=1e-10)


def test_only_the_gaussian_kernel_tells_a_circle_from_two_antipodes() -> None:
    round_the_circle = circle(torch.arange(40, dtype=torch.float64) * 2 * torch.pi / 40)
    antipodes = torch.eye(2, dtype=torch.complex128)
    assert ensembles.mmd(round_the_circle, antipodes).abs() < 1e-12
    assert ensembles.mmd(round_the_circle, antipodes, kernel="gaussian") > 0.05
    assert ensembles.wasserstein(round_the_circle, antipodes) > 0.1


def test_mmd_against_the_published_double_sums() -> None:
    a, b = pure(6, 4, 1), pure(5, 4, 2)

    def mean(x: Tensor, y: Tensor) -> float:
        return sum(float((u.conj() @ v).abs() ** 2) for u in x for v in y) / (len(x) * len(y))

    wanted = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    assert float(ensembles.mmd(a, b)) == pytest.approx(wanted, abs=1e-12)


def test_gaussian_mmd_by_hand_and_its_limit_of_large_width() -> None:
    a, b = pure(3, 2, 1), pure(2, 2, 2)
    f = ensembles.fidelity_matrix
    kernels = [torch.exp(-(1 - f(x, y)) / 0.1).mean() for x, y in ((a, a), (b, b), (a, b))]
    wanted = kernels[0] + kernels[1] - 2 * kernels[2]
    torch.testing.assert_close(ensembles.mmd(a, b, kernel="gaussian", width=0.1), wanted)
    wide = 1e4 * ensembles.mmd(a, b, kernel="gaussian", width=1e4)
    torch.testing.assert_close(wide, ensembles.mmd(a, b), atol=1e-3, rtol=0)


def test_unbiased_mmd_has_mean_zero_between_draws_of_one_ensemble() -> None:
    draws = torch.stack([ensembles.mmd(pure(6, 2, 2 * s), pure(6, 2, 2 * s + 1), unbiased=True) for s in range(400)])
    biased = torch.stack([ensembles.mmd(pure(6, 2, 2 * s), pure(6, 2, 2 * s + 1)) for s in range(400)])
    assert draws.mean().abs() < 4 * draws.std() / 20
    assert biased.mean() > 20 * biased.std() / 20
    # closed form of the floor: (1 − tr ρ̄²)(1/N + 1/M) with ρ̄ = I/2
    assert float(biased.mean()) == pytest.approx(0.5 * 2 / 6, rel=0.1)


def test_superfidelity_and_measured_mmd() -> None:
    a, b = density(4, 4, 1), density(5, 4, 2, rank=2)
    assert ensembles.mmd(a, b, similarity="superfidelity") > 0
    assert ensembles.mmd(a, a.clone(), similarity="superfidelity").abs() < 1e-12
    states = pure(4, 4, 1)
    signs = torch.tensor([1, -1, 1, -1], dtype=torch.complex128)
    assert ensembles.mmd(states, states * signs, similarity="measured").abs() < 1e-12
    assert ensembles.mmd(states, states * signs) > 0.01


# --- Wasserstein -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["fidelity", "superfidelity", "measured"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_wasserstein_against_all_permutations(similarity: str, count: int) -> None:
    a, b = density(count, 4, 1), density(count, 4, 2, rank=2)
    cost = 1 - ensembles.SIMILARITIES[similarity](a, b)
    wanted = min(cost[range(count), order].mean() for order in itertools.permutations(range(count)))
    value = ensembles.wasserstein(a, b, similarity=similarity)
    torch.testing.assert_close(value, wanted, atol=1e-12, rtol=0)
    # the linear program on the same problem: equal weights, hidden in two copies of one member
    repeated, halves = torch.cat([b, b[:1]]), torch.ones(count + 1, dtype=torch.float64)
    halves[[0, -1]] = 0.5
    program = ensembles.wasserstein(a, repeated, None, halves, similarity=similarity)
    torch.testing.assert_close(program, wanted, atol=1e-9, rtol=0)


def test_wasserstein_on_a_line_against_scipy() -> None:
    x, y = random_weights(8, 1), random_weights(5, 2)
    wx, wy = random_weights(8, 3), random_weights(5, 4)
    cost = (x[:, None] - y[None]).abs()
    value = ensembles.optimal_transport(cost, wx / wx.sum(), wy / wy.sum())
    assert float(value) == pytest.approx(wasserstein_distance(x, y, wx, wy), abs=1e-9)


def test_wasserstein_gradients_against_finite_differences() -> None:
    a, b = pure(5, 2, 1).requires_grad_(), pure(4, 2, 2).requires_grad_()
    wa, wb = random_weights(5, 3).requires_grad_(), random_weights(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(ensembles.wasserstein, (a, b, wa, wb), atol=1e-5, rtol=1e-4)
    c = pure(5, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(ensembles.wasserstein, (a, c), atol=1e-5, rtol=1e-4)


def test_potentials_of_an_assignment_are_a_subgradient() -> None:
    """W is convex in the weights: W(w') ≥ W(w) + ∇W(w)·(w' − w); and the potentials are feasible and tight."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        cost = torch.rand(7, 7, dtype=torch.float64, generator=generator)
        wa = torch.full((7,), 1 / 7, dtype=torch.float64, requires_grad=True)
        wb = wa.detach().clone().requires_grad_()
        value = ensembles.optimal_transport(cost, wa, wb)
        f, g = torch.autograd.grad(value, (wa, wb))
        assert bool((f[:, None] + g[None] <= cost + 1e-12).all())
        torch.testing.assert_close(f.mean() + g.mean(), value.detach())
        other = torch.rand(7, dtype=torch.float64, generator=generator)
        moved = ensembles.optimal_transport(cost, other / other.sum(), wb.detach())
        assert moved >= value + f @ (other / other.sum() - wa) - 1e-9


def test_slope_for_weight_on_a_member_that_has_none() -> None:
    a, b = pure(4, 2, 1), pure(3, 2, 2)
    wa, wb = random_weights(4, 3), random_weights(3, 4)
    wa[0] = 0
    wa.requires_grad_()
    value = ensembles.wasserstein(a, b, wa, wb)
    (grad,) = torch.autograd.grad(value, wa)
    step = torch.tensor([1e-5, 0, 0, 0], dtype=torch.float64)
    slope = (ensembles.wasserstein(a, b, wa + step, wb) - value).detach() / 1e-5
    torch.testing.assert_close(slope, grad[0], atol=1e-3, rtol=0)


# --- weights -----------------------------------------------------------------------------------------------------


def distances() -> list[Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]]:
    return [
        lambda a, b, wa, wb: ensembles.mmd(a, b, wa, wb),
        lambda a, b, wa, wb: ensembles.mmd(a, b, wa, wb, kernel="gaussian"),
        lambda a, b, wa, wb: ensembles.wasserstein(a, b, wa, wb),
    ]


@pytest.mark.parametrize("which", range(3))
def test_importance_weights_give_the_score_function_gradient(which: int) -> None:
    """Outcomes 0, 1, 2 with probabilities softmax(θ): the gradient of the distance of the exact ensemble is known.

    The sample holds each outcome in exact proportion to its probability, so that nothing is left to chance.
    """
    distance = distances()[which]
    outcomes, target, target_weights = pure(3, 2, 1), pure(4, 2, 2), random_weights(4, 3)
    theta = torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64).log().requires_grad_()

    exact = distance(outcomes, target, theta.softmax(0), target_weights)
    (wanted,) = torch.autograd.grad(exact, theta)

    drawn = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    p = theta.softmax(0)[drawn]
    weights = p / p.detach()
    torch.testing.assert_close(weights, torch.ones(10, dtype=torch.float64))
    sampled = distance(outcomes[drawn], target, weights, target_weights)
    (grad,) = torch.autograd.grad(sampled, theta)
    torch.testing.assert_close(sampled, exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(grad, wanted, atol=1e-7, rtol=0)
    assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("which", range(3))
def test_weights_are_shares(which: int) -> None:
    distance = distances()[which]
    a, b = pure(3, 2, 1), pure(4, 2, 2)
    double = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    repeated = distance(torch.cat([a, a[:1]]), b, None, None)
    torch.testing.assert_close(distance(a, b, double, None), repeated, atol=1e-9, rtol=0)
    torch.testing.assert_close(distance(a, b, 7 * double, None), repeated, atol=1e-9, rtol=0)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_gradients_against_finite_differences(unbiased: bool) -> None:
    a, wa = pure(4, 2, 1).requires_grad_(), random_weights(4, 3).requires_grad_()
    b = pure(3, 2, 2)
    for kernel in ensembles.KERNELS:
        assert torch.autograd.gradcheck(
            lambda a, wa, kernel=kernel: ensembles.mmd(a, b, wa, kernel=kernel, unbiased=unbiased), (a, wa)
        )


def test_single_precision_keeps_its_dtype() -> None:
    a, b = pure(5, 4, 1).to(torch.complex64), pure(6, 4, 2).to(torch.complex64)
    for value in (ensembles.mmd(a, b), ensembles.wasserstein(a, b), ensembles.mean_fidelity(a, b[:1])):
        assert value.dtype == torch.float32
        assert value.shape == ()


def test_bad_input() -> None:
    a, b = pure(3, 4, 1), pure(2, 4, 2)
    with pytest.raises(UnknownNameError, match="gaussian"):
        ensembles.mmd(a, b, kernel="gausian")
    with pytest.raises(UnknownNameError, match="superfidelity"):
        ensembles.wasserstein(a, b, similarity="superfidelty")
    with pytest.raises(InvalidInputError, match="width"):
        ensembles.mmd(a, b, kernel="gaussian", width=0.0)
    with pytest.raises(InvalidInputError, match="weights_b has shape"):
        ensembles.mmd(a, b, None, torch.ones(3))
    with pytest.raises(InvalidInputError, match="weights_a holds"):
        ensembles.wasserstein(a, b, torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(InvalidInputError, match="weights_a holds"):
        ensembles.wasserstein(a, b, torch.zeros(3))
    with pytest.raises(InvalidInputError, match="two or more members"):
        ensembles.mmd(a[:1], b, unbiased=True)
    with pytest.raises(InvalidInputError, match="dimension 4 and 2"):
        ensembles.fidelity_matrix(a, pure(2, 2, 1))
    with pytest.raises(InvalidInputError, match="NaN"):
        ensembles.wasserstein(a * torch.nan, b)


def test_mmd_by_label_is_the_mean_of_the_ensembles_distances() -> None:
    generator = torch.Generator().manual_seed(3)
    a = haar_states(12, 4, generator, torch.complex128)
    b = haar_states(20, 4, generator, torch.complex128)
    labels_a, labels_b = torch.arange(12) % 3, torch.arange(20) % 3
    weights = torch.rand(12, generator=generator, dtype=torch.float64) + 0.1
    expected = torch.stack(
        [
            ensembles.mmd(a[labels_a == y], b[labels_b == y], weights[labels_a == y])
            + ensembles.mmd(a[labels_a == y], b[labels_b == y], weights[labels_a == y], kernel="gaussian", width=0.3)
            for y in range(3)
        ]
    ).mean()
    found = ensembles.mmd_by_label(a, b, labels_a, labels_b, weights, kernels=("fidelity", 0.3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidInputError, match="same set of labels"):
        ensembles.mmd_by_label(a, b, labels_a, labels_b.clamp_max(1))
    with pytest.raises(InvalidInputError, match="only zeros for label 2"):  # a mean over nothing
        ensembles.mmd_by_label(a, b, labels_a, labels_b, weights.where(labels_a != 2, 0.0))
    for wrong in (labels_a.double(), labels_a - 1, labels_a[:, None], labels_a[:5], labels_a.tolist(), labels_a > 0):
        with pytest.raises(InvalidInputError, match="labels"):
            ensembles.mmd_by_label(a, b, wrong, labels_b)
