from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from qiskit.quantum_info import DensityMatrix, Statevector, random_density_matrix, random_statevector, state_fidelity
from torch import Tensor

from qhw_diffusion.denoising import losses
from qhw_diffusion.errors import InvalidInputError

LOSSES = [losses.fidelity, losses.infidelity, losses.trace_distance, losses.hilbert_schmidt]


def pure(count: int, dim: int, seed: int) -> Tensor:
    states = [random_statevector(dim, seed=seed + 100 * i).data for i in range(count)]
    return torch.stack([torch.from_numpy(state) for state in states])


def density(count: int, dim: int, seed: int, rank: int | None = None) -> Tensor:
    states = [random_density_matrix(dim, rank=rank, seed=seed + 100 * i).data for i in range(count)]
    return torch.stack([torch.from_numpy(state) for state in states])


def projectors(states: Tensor) -> Tensor:
    return torch.einsum("bi,bj->bij", states, states.conj())


def as_qiskit(state: Tensor) -> Statevector | DensityMatrix:
    return Statevector(state.numpy()) if state.ndim == 1 else DensityMatrix(state.numpy())


def normalised(factor: Tensor) -> Tensor:
    """A density matrix of the rank of `factor` [B, d, r], differentiable, also in directions that keep the rank."""
    rho = factor @ factor.mH
    return rho / rho.diagonal(dim1=-2, dim2=-1).sum(-1).real[:, None, None]


def factors(count: int, dim: int, rank: int, seed: int) -> Tensor:
    return torch.randn(count, dim, rank, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [2, 4, 8])
@pytest.mark.parametrize(("kind_a", "kind_b"), itertools.product(["pure", "full", "deficient"], repeat=2))
def test_fidelity_is_qiskits(dim: int, kind_a: str, kind_b: str) -> None:
    make = {"pure": pure, "full": density, "deficient": lambda *args: density(*args, rank=max(1, dim // 2))}
    a, b = make[kind_a](5, dim, 1), make[kind_b](5, dim, 2)
    from_qiskit = [state_fidelity(as_qiskit(x), as_qiskit(y)) for x, y in zip(a, b, strict=True)]
    wanted = torch.tensor(from_qiskit, dtype=torch.float64)
    # qiskit takes the root of a matrix with rounded zero eigenvalues, which costs it half the digits there
    tolerance = 1e-6 if "deficient" in (kind_a, kind_b) and "pure" not in (kind_a, kind_b) else 1e-9
    torch.testing.assert_close(losses.fidelity(a, b), wanted, atol=tolerance, rtol=0)
    torch.testing.assert_close(losses.infidelity(a, b), 1 - wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fidelity_of_deficient_states_is_that_of_their_purifications(rank: int) -> None:
    # Uhlmann: √F is the largest overlap of purifications = nuclear norm of X†Y for ρ = XX†, σ = YY†
    x, y = factors(6, 4, rank, 0), factors(6, 4, 2, 1)
    x, y = x / torch.linalg.matrix_norm(x, keepdim=True), y / torch.linalg.matrix_norm(y, keepdim=True)
    wanted = torch.linalg.matrix_norm(x.mH @ y, ord="nuc").square()
    torch.testing.assert_close(losses.fidelity(x @ x.mH, y @ y.mH), wanted, atol=1e-9, rtol=0)


def test_one_qubit_closed_form() -> None:
    a, b = density(20, 2, 1), density(20, 2, 2)
    overlap = (a @ b).diagonal(dim1=-2, dim2=-1).sum(-1).real
    wanted = overlap + 2 * (torch.linalg.det(a) * torch.linalg.det(b)).real.sqrt()
    torch.testing.assert_close(losses.fidelity(a, b), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [2, 8])
def test_trace_and_hilbert_schmidt_distances(dim: int) -> None:
    for a, b in itertools.product([pure(4, dim, 1), density(4, dim, 5)], [pure(4, dim, 2), density(4, dim, 6, rank=1)]):
        left = a if a.ndim == 3 else projectors(a)
        right = b if b.ndim == 3 else projectors(b)
        trace_norm = torch.linalg.matrix_norm(left - right, ord="nuc")
        torch.testing.assert_close(losses.trace_distance(a, b), trace_norm / 2, atol=1e-12, rtol=0)
        frobenius = torch.linalg.matrix_norm(left - right).square()
        torch.testing.assert_close(losses.hilbert_schmidt(a, b), frobenius, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_pure_states_give_the_numbers_of_their_projectors(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b, rho = pure(4, 4, 1), pure(4, 4, 2), density(4, 4, 3)
    torch.testing.assert_close(loss(projectors(a), projectors(b)), loss(a, b), atol=1e-9, rtol=0)
    torch.testing.assert_close(loss(projectors(a), rho), loss(a, rho), atol=1e-9, rtol=0)
    torch.testing.assert_close(loss(rho, a), loss(a, rho), atol=1e-12, rtol=0)


def test_fuchs_van_de_graaf() -> None:
    a, b = density(30, 4, 1), density(30, 4, 2, rank=2)
    f, distance = losses.fidelity(a, b), losses.trace_distance(a, b)
    assert bool((1 - f.sqrt() <= distance + 1e-12).all())
    assert bool((distance <= (1 - f).sqrt() + 1e-12).all())


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dim", [2, 4])
@pytest.mark.parametrize("ranks", [(1, 1), (1, 4), (4, 1), (2, 2), (4, 4)])
def test_gradients_against_finite_differences(loss: Callable, dim: int, ranks: tuple[int, int]) -> None:
    """Random states of every rank, moved within their rank."""
    x = factors(2, dim, min(ranks[0], dim), 1).requires_grad_()
    y = factors(2, dim, min(ranks[1], dim), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: loss(normalised(x), normalised(y)), (x, y), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_pure_states(loss: Callable) -> None:
    a, b, rho = pure(3, 4, 1).requires_grad_(), pure(3, 4, 2).requires_grad_(), density(3, 4, 3)

    def unit(x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    assert torch.autograd.gradcheck(lambda a, b: loss(unit(a), unit(b)), (a, b))
    assert torch.autograd.gradcheck(lambda a: loss(unit(a), rho), (a,))


@pytest.mark.parametrize("mixing", [1.0, 1e-3])
@pytest.mark.parametrize("dim", [2, 4])
def test_fidelity_gradient_at_degenerate_eigenvalues(dim: int, mixing: float) -> None:
    """The maximally mixed state and ones near it or near a pure state, where eigh's own gradient divides by ~0."""
    mixed = torch.eye(dim, dtype=torch.complex128)[None] / dim
    zero = torch.zeros(1, dim, dim, dtype=torch.complex128)
    zero[0, 0, 0] = 1
    centre = ((1 - mixing) * zero + mixing * mixed).requires_grad_()
    other = density(1, dim, 7)

    def value(x: Tensor) -> Tensor:
        return losses.fidelity((x + x.mH) / 2, other) + losses.fidelity(other, (x + x.mH) / 2)

    assert torch.autograd.gradcheck(value, (centre,), eps=1e-6 * mixing, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_gradients_stay_finite_at_equal_orthogonal_and_mixed_states(loss: Callable, dtype: torch.dtype) -> None:
    basis = torch.eye(4, dtype=dtype)
    special = [basis[:1], projectors(basis[:1]), projectors(basis[1:2]), torch.eye(4, dtype=dtype)[None] / 4]
    special += [torch.diag(torch.tensor([0.5, 0.5, 0, 0], dtype=dtype))[None], density(1, 4, 3, rank=2).to(dtype)]
    for a, b in itertools.product(special, repeat=2):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y)
        value.sum().backward()
        assert value.dtype == x.real.dtype
        for grad in (x.grad, y.grad):
            assert grad is not None
            assert bool(grad.isfinite().all())
            assert grad.abs().max() < 50


def test_equal_states_are_at_distance_zero_and_at_a_stationary_point() -> None:
    factor = factors(3, 4, 2, 1).requires_grad_()
    same = normalised(factor.detach())
    for loss in LOSSES[1:]:
        value = loss(normalised(factor), same)
        torch.testing.assert_close(value, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
        (grad,) = torch.autograd.grad(value.sum(), factor)
        assert grad.abs().max() < 1e-6


def test_orthogonal_pure_densities_have_the_slope_of_the_overlap() -> None:
    basis = torch.eye(4, dtype=torch.complex128)
    sigma = projectors(basis[1:2]).requires_grad_()
    losses.fidelity(projectors(basis[:1]), sigma).sum().backward()
    torch.testing.assert_close(sigma.grad, projectors(basis[:1]))


def test_supergradient_at_orthogonal_supports_bounds_the_fidelity() -> None:
    # F(ρ, ·) is concave, so F(ρ, τ) ≤ tr(G τ) for every state τ
    rho = torch.diag(torch.tensor([0.7, 0.3, 0, 0], dtype=torch.complex128))[None]
    sigma = torch.diag(torch.tensor([0, 0, 0.5, 0.5], dtype=torch.complex128))[None].requires_grad_()
    losses.fidelity(rho, sigma).sum().backward()
    others = density(50, 4, 9)
    bound = (sigma.grad @ others).diagonal(dim1=-2, dim2=-1).sum(-1).real
    assert bool((losses.fidelity(rho, others) <= bound + 1e-12).all())
    assert bound.max() > 0


def test_trace_distance_has_the_subgradient_of_least_norm() -> None:
    # ½(P₊ − P₋) of a difference of rank 2: squared norm ½; a sign of ±1 on the rounded zeros would make it larger
    rho = projectors(pure(5, 8, 1)).requires_grad_()
    losses.trace_distance(rho, projectors(pure(5, 8, 2))).sum().backward()
    assert rho.grad is not None
    torch.testing.assert_close(rho.grad.abs().square().sum((1, 2)), torch.full((5,), 0.5, dtype=torch.float64))


def test_one_state_is_compared_with_all() -> None:
    states, target = density(5, 4, 1), density(1, 4, 2)
    target.requires_grad_()
    each = torch.cat([losses.fidelity(state[None], target) for state in states])
    torch.testing.assert_close(losses.fidelity(states, target), each)
    (grad,) = torch.autograd.grad(losses.fidelity(states, target).sum(), target)
    (wanted,) = torch.autograd.grad(each.sum(), target)
    torch.testing.assert_close(grad, wanted)


def test_single_precision_is_close_to_double() -> None:
    a, b = density(10, 4, 1), density(10, 4, 2, rank=2)
    for loss in LOSSES:
        single = loss(a.to(torch.complex64), b.to(torch.complex64))
        torch.testing.assert_close(single.double(), loss(a, b), atol=5e-4, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_input(loss: Callable) -> None:
    good = pure(3, 4, 1)
    with pytest.raises(InvalidInputError, match="complex"):
        loss(good.real, good)
    with pytest.raises(InvalidInputError, match="complex64"):
        loss(good, good.to(torch.complex64))
    with pytest.raises(InvalidInputError, match="dimension 4 and 2"):
        loss(good, pure(3, 2, 1))
    with pytest.raises(InvalidInputError, match="3 states against 2"):
        loss(good, good[:2])
    with pytest.raises(InvalidInputError, match="shape"):
        loss(good[0], good)
    with pytest.raises(InvalidInputError, match="shape"):
        loss(good, torch.zeros(3, 4, 2, dtype=torch.complex128))
