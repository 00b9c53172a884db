"""Distances between sets of states (all-against-all): similarity matrices, MMD and Wasserstein.

Members are pure [N, d] or densities [N, d, d]. Each may carry a weight; weights are normalised to sum 1 and
differentiable, so importance weights p/p.detach() of value 1 give the (self-normalised) score-function gradient of the
distance with respect to the probabilities p of sampled measurement outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import block_array, csr_array, eye_array, kron
from torch import Tensor

from qhw_diffusion.denoising.losses import check_pair, density_fidelity, fidelity
from qhw_diffusion.diffusion import check_labels
from qhw_diffusion.errors import EngineError, InvalidInputError, UnknownNameError

__all__ = [
    "KERNELS",
    "SIMILARITIES",
    "fidelity_matrix",
    "mean_fidelity",
    "measured_fidelity_matrix",
    "mmd",
    "mmd_by_label",
    "optimal_transport",
    "superfidelity_matrix",
    "wasserstein",
]

KERNELS = ("fidelity", "gaussian")


def fidelity_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Uhlmann fidelity of every pair, [N, M] (gradients as in `losses.fidelity`).

    Two sets of densities cost one d×d singular value decomposition a pair, every other mix only products.

    Args:
        a: complex states, pure [N, d] or density [N, d, d].
        b: complex states, pure [M, d] or density [M, d, d], of the same dimension d.

    Raises:
        InvalidInputError: real tensors, other shapes, or two dimensions.
    """
    check_pair(a, b, same_batch=False)
    if a.ndim == 3 and b.ndim == 3:
        return density_fidelity(a[:, None], b[None, :])
    return _overlap_matrix(a, b)


def superfidelity_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Superfidelity G = tr ρσ + √((1 − tr ρ²)(1 − tr σ²)) of every pair, [N, M].

    Miszczak et al. 2009, arXiv 0805.2037. G ≥ F, with equality for one qubit and where one state is pure; only traces,
    no root of a matrix. As in `losses.fidelity` a state that is pure up to rounding gets the gradient of tr ρσ alone.
    Args and errors as in `fidelity_matrix`.
    """
    check_pair(a, b, same_batch=False)
    overlap = _overlap_matrix(a, b)
    if a.ndim == 2 or b.ndim == 2:
        return overlap
    return overlap + _root_linear_entropy(a)[:, None] * _root_linear_entropy(b)[None, :]


def measured_fidelity_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Classical fidelity (Σ_x √(p_x q_x))² of the computational-basis outcomes of every pair, [N, M].

    All that counts of Z measurements can tell: phases are not seen; never smaller than F. Args and errors as in
    `fidelity_matrix`.
    """
    check_pair(a, b, same_batch=False)
    return (_magnitudes(a) @ _magnitudes(b).T).square()


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fidelity": fidelity_matrix,
    "superfidelity": superfidelity_matrix,
    "measured": measured_fidelity_matrix,
}


def mean_fidelity(states: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of the fidelity of all members to one state, a scalar.

    Args:
        states: [N, d] or [N, d, d].
        target: [1, d] or [1, d, d].
        weights: [N], not negative; None for equal ones.

    Raises:
        InvalidInputError: more than one target, or states and weights that do not fit.
    """
    if len(target) != 1:
        raise InvalidInputError(f"the target has shape {tuple(target.shape)}; pass one state, [1, d] or [1, d, d]")
    values = fidelity(states, target)
    return (_normalised(weights, states, "weights") * values).sum()


def mmd(
    a: Tensor,
    b: Tensor,
    weights_a: Tensor | None = None,
    weights_b: Tensor | None = None,
    *,
    kernel: str = "fidelity",
    similarity: str = "fidelity",
    width: float = 0.25,
    unbiased: bool = False,
) -> Tensor:
    """Squared maximum mean discrepancy ⟨k(a, a)⟩ + ⟨k(b, b)⟩ − 2⟨k(a, b)⟩, a scalar.

    kernel "fidelity", k = F, is the distance of QuDDPM (Zhang et al. 2024, arXiv 2310.05866). For pure states it is
    exactly tr (ρ̄_a − ρ̄_b)² of the two *average* states: ensembles with one average are at distance 0 (a circle of
    states and a pair of antipodes both average to I/2). With "superfidelity" it also sees the mean of √(1 − tr ρ²), and
    no more. kernel "gaussian", k = exp(−(1 − F)/width), sees the ensemble itself: its power series holds every moment
    of the overlaps. Both kernels are positive definite for pure states, for "superfidelity" and for "measured"; the
    Uhlmann fidelity of mixed states of two or more qubits is not known to be, so prefer "superfidelity" there.

    Args:
        a: members, [N, d] or [N, d, d].
        b: members, [M, d] or [M, d, d].
        weights_a: [N], not negative; None for equal ones.
        weights_b: [M], not negative; None for equal ones.
        kernel: "fidelity" or "gaussian".
        similarity: which F: "fidelity", "superfidelity" or "measured" (|amplitude|² alone).
        width: infidelity over which the Gaussian kernel falls by e; ignored by "fidelity".
        unbiased: leave each member's kernel with itself out. Otherwise (as published) the value is ≥ 0 and does not
            vanish between two samples of one distribution: compare it with its value for such samples, at the same N
            and M.

    Raises:
        InvalidInputError: states or weights that do not fit, a width that is not positive, or `unbiased` with a set
            whose whole weight is on one member.
        UnknownNameError: a kernel or similarity that does not exist.
    """
    if kernel not in KERNELS:
        raise UnknownNameError.of("kernel", kernel, KERNELS)
    if not width > 0:
        raise InvalidInputError(f"width is {width}; pass a positive number")
    compare = _similarity(similarity)
    share_a, share_b = _normalised(weights_a, a, "weights_a"), _normalised(weights_b, b, "weights_b")

    def evaluated(x: Tensor, y: Tensor) -> Tensor:
        values = compare(x, y)
        return values if kernel == "fidelity" else ((values - 1) / width).exp()

    within = _mean_within(evaluated(a, a), share_a, unbiased) + _mean_within(evaluated(b, b), share_b, unbiased)
    return within - 2 * (share_a @ evaluated(a, b) @ share_b)


def mmd_by_label(
    a: Tensor,
    b: Tensor,
    labels_a: Tensor,
    labels_b: Tensor,
    weights_a: Tensor | None = None,
    *,
    kernels: Sequence[str | float] = ("fidelity",),
    similarity: str = "fidelity",
) -> Tensor:
    """Mean over labels of the sum over kernels of `mmd` between the members of that label: a scalar.

    Every similarity is computed once for all labels and kernels, which for many small ensembles is much faster.

    Args:
        a: members, [N, d] or [N, d, d].
        b: members, [M, d] or [M, d, d].
        labels_a: int64 [N].
        labels_b: int64 [M], the same set of labels.
        weights_a: [N], not negative; normalised within each label.
        kernels: "fidelity", or the width of a Gaussian kernel, added up.
        similarity: as in `mmd`.

    Raises:
        InvalidInputError: states, weights or labels that do not fit, or a width that is not positive.
        UnknownNameError: a similarity that does not exist.
    """
    check_labels(labels_a, None, len(a))
    check_labels(labels_b, None, len(b))
    found, others = torch.unique(labels_a), torch.unique(labels_b)
    if not torch.equal(found, others):
        raise InvalidInputError(
            f"labels_a and labels_b must have the same set of labels, not {found.tolist()} and {others.tolist()}"
        )
    if any(not isinstance(kernel, str) and not kernel > 0 for kernel in kernels):
        raise InvalidInputError(f"kernels are {tuple(kernels)}; widths must be positive")
    compare = _similarity(similarity)
    in_a, in_b = labels_a[:, None] == found, labels_b[:, None] == found  # [N, C], [M, C]
    share_a = _normalised(weights_a, a, "weights_a")[:, None] * in_a
    share_b = _normalised(None, b, "weights_b")[:, None] * in_b
    unweighted = found[share_a.detach().sum(0) == 0].tolist()
    if unweighted:
        raise InvalidInputError(f"weights_a holds only zeros for label {unweighted[0]}; every label needs some weight")
    share_a, share_b = share_a / share_a.sum(0), share_b / share_b.sum(0)

    def mean(x: Tensor, y: Tensor, share_x: Tensor, share_y: Tensor) -> Tensor:
        values = compare(x, y)
        total = torch.zeros_like(values)
        for kernel in kernels:
            total = total + (values if isinstance(kernel, str) else ((values - 1) / kernel).exp())
        return ((total @ share_y) * share_x).sum() / len(found)

    within = mean(a, a, share_a, share_a) + mean(b, b, share_b, share_b)
    return within - 2 * mean(a, b, share_a, share_b)


def wasserstein(
    a: Tensor,
    b: Tensor,
    weights_a: Tensor | None = None,
    weights_b: Tensor | None = None,
    *,
    similarity: str = "fidelity",
) -> Tensor:
    """Least mean cost of transporting one ensemble into the other at cost 1 − F a unit of weight, a scalar.

    min_P Σ_ij P_ij (1 − F_ij) over plans with the weights as marginals: the distance of QuDDPM (arXiv 2310.05866, with
    the fidelity) and of MSQuDDPM (Kwun et al. 2025, arXiv 2411.17608, with the superfidelity). Neither takes a root.
    1 − F of pure states is the square of their trace distance, so this is a W₂² and its root a metric.

    Solved exactly; gradients by the envelope theorem: the plan for the cost, the dual potentials for the weights
    (`optimal_transport`). A finite sample of an ensemble is not at distance 0 from another: compare with
    that distance at the same N and M.

    Args:
        a: members, [N, d] or [N, d, d].
        b: members, [M, d] or [M, d, d].
        weights_a: [N], not negative; None for equal ones.
        weights_b: [M], not negative; None for equal ones.
        similarity: F in the cost: "fidelity", "superfidelity" or "measured".

    Raises:
        InvalidInputError: states or weights that do not fit.
        UnknownNameError: a similarity that does not exist.
        EngineError: the linear program failed.
    """
    compare = _similarity(similarity)
    share_a, share_b = _normalised(weights_a, a, "weights_a"), _normalised(weights_b, b, "weights_b")
    return optimal_transport(1 - compare(a, b), share_a, share_b)


def optimal_transport(cost: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """min_P Σ_ij P_ij C_ij over P ≥ 0 with marginals `weights_a` and `weights_b`, a scalar.

    By the envelope theorem ∂/∂C = P and ∂/∂weights = the dual potentials, up to a constant that changes of a fixed sum
    do not see. Where plan or potentials are not unique the value has a kink and this is one of its subgradients; for an
    assignment, the mean of two extreme potentials.

    Equal weights on equally many members are an assignment (SciPy's `linear_sum_assignment`), everything else a linear
    program (HiGHS, N·M variables: ~0.3 s at 100 × 100).

    Args:
        cost: real [N, M].
        weights_a: [N], ≥ 0, of sum 1.
        weights_b: [M], ≥ 0, of sum 1.

    Raises:
        InvalidInputError: a cost that is not finite.
        EngineError: the linear program failed (the message holds the solver's).
    """
    c, a, b = (x.detach().cpu().double().numpy() for x in (cost, weights_a, weights_b))
    if not np.isfinite(c).all():
        raise InvalidInputError("the cost of transport holds NaN or infinity: check the states it was computed from")
    uniform = len(a) == len(b) and np.ptp(a) <= 1e-6 * a.max() and np.ptp(b) <= 1e-6 * b.max()
    solution = _assignment(c) if uniform else _program(c, a, b)
    plan, potential_a, potential_b = (torch.as_tensor(x).to(cost) for x in solution)
    # the weights enter with value 0: they carry the potentials as gradient
    moved_a = (potential_a * (weights_a - weights_a.detach())).sum()
    moved_b = (potential_b * (weights_b - weights_b.detach())).sum()
    return (plan * cost).sum() + moved_a + moved_b


def _similarity(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name not in SIMILARITIES:
        raise UnknownNameError.of("similarity", name, SIMILARITIES)
    return SIMILARITIES[name]


def _normalised(weights: Tensor | None, states: Tensor, what: str) -> Tensor:
    count, dtype = len(states), states.real.dtype
    if weights is None:
        return torch.full((count,), 1 / count, dtype=dtype, device=states.device)
    if weights.shape != (count,):
        raise InvalidInputError(f"{what} has shape {tuple(weights.shape)}; pass one weight a member, [{count}]")
    values = weights.detach()
    if not bool((values.isfinite() & (values >= 0)).all()) or not values.sum() > 0:
        raise InvalidInputError(f"{what} holds negative or non-finite numbers, or only zeros; pass weights ≥ 0")
    return (weights / weights.sum()).to(dtype)


def _mean_within(kernel: Tensor, share: Tensor, unbiased: bool) -> Tensor:
    total = share @ kernel @ share
    if not unbiased:
        return total
    distinct = 1 - share.square().sum()
    if not distinct.detach() > 4 * torch.finfo(share.dtype).eps:
        raise InvalidInputError("an unbiased mmd needs two or more members with weight in each set")
    return (total - (share.square() * kernel.diagonal()).sum()) / distinct


def _overlap_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Overlaps tr ρ_n σ_m, [N, M]: |⟨a|b⟩|², ⟨a|σ|a⟩ or tr ρσ."""
    if a.ndim == 2 and b.ndim == 2:
        overlaps = a.conj() @ b.T
        return overlaps.real.square() + overlaps.imag.square()
    if a.ndim == 2:
        return _overlap_matrix(b, a).T
    if b.ndim == 2:
        return torch.einsum("mi,nim->nm", b.conj(), a @ b.T).real
    return (a.flatten(1) @ b.flatten(1).mH).real


def _root_linear_entropy(rho: Tensor) -> Tensor:
    """√(1 − tr ρ²), [N]; 0 with gradient 0 for a state that is pure up to rounding."""
    entropy = 1 - (rho.real.square() + rho.imag.square()).sum((-2, -1))
    return _safe_root(entropy, 4 * rho.shape[-1] * torch.finfo(rho.dtype).eps)


def _magnitudes(states: Tensor) -> Tensor:
    """√p of the outcomes, [N, d]; the gradient at p = 0 is 0."""
    if states.ndim == 2:
        return states.abs()
    return _safe_root(states.diagonal(dim1=-2, dim2=-1).real, 0.0)


def _safe_root(values: Tensor, noise: float) -> Tensor:
    positive = values > noise
    return torch.where(positive, values.where(positive, torch.ones_like(values)).sqrt(), 0)


# plan and the two potentials
_Solution = tuple[np.ndarray, np.ndarray, np.ndarray]


def _assignment(cost: np.ndarray) -> _Solution:
    """Plan and potentials of N equal weights against N equal weights."""
    n = len(cost)
    column = linear_sum_assignment(cost)[1]
    plan = np.zeros_like(cost)
    plan[np.arange(n), column] = 1 / n
    # with the columns in the order of their partners, potentials are f_i = matched_i − g_i with
    # g_j ≤ g_i + slack_ij: shortest paths; the two extremes are those away from and towards a common root
    matched = cost[np.arange(n), column]
    slack = cost[:, column] - matched[:, None]
    ordered = (_shortest_paths(slack) - _shortest_paths(slack.T)) / 2
    potential_b = np.empty(n)
    potential_b[column] = ordered
    return plan, matched - ordered, potential_b


def _shortest_paths(edges: np.ndarray) -> np.ndarray:
    """Length of the shortest path to each node from a root joined to all nodes by edges of length 0 (Bellman–Ford)."""
    lengths = np.zeros(len(edges))
    for _ in range(len(edges)):
        shorter = np.minimum(lengths, (lengths[:, None] + edges).min(0))
        if np.array_equal(shorter, lengths):
            break
        lengths = shorter
    return lengths


def _program(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> _Solution:
    """Plan and potentials by linear programming."""
    n, m = cost.shape
    rows = kron(eye_array(n), np.ones((1, m)))
    columns = kron(np.ones((1, n)), eye_array(m))
    constraints = csr_array(block_array([[rows], [columns]]))
    # in double precision the two sums differ by rounding, which a solver may call infeasible
    marginals = np.concatenate([a / a.sum(), b / b.sum()])
    answer = linprog(cost.ravel(), A_eq=constraints, b_eq=marginals, method="highs")
    if answer.status != 0:
        raise EngineError(f"the transport problem of {n} against {m} members was not solved: {answer.message}")
    # the solver leaves the potential of a member without weight open: the largest allowed is the slope for adding some
    potential_a = (cost - answer.eqlin.marginals[n:]).min(1)
    potential_b = (cost - potential_a[:, None]).min(0)
    return answer.x.reshape(n, m), potential_a, potential_b
