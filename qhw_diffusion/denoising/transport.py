"""Exact optimal transport between two weighted sets, differentiable in the cost and in the weights."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import block_array, csr_array, eye_array, kron
from torch import Tensor

from ..errors import EngineError, InvalidInputError

_Solution = tuple[np.ndarray, np.ndarray, np.ndarray]


def optimal_transport(cost: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """min_P Σ_ij P_ij C_ij over P ≥ 0 with marginals `weights_a` and `weights_b`, a scalar.

    By the envelope theorem ∂/∂C = P and ∂/∂weights = the dual potentials, up to a constant that changes of a fixed sum
    do not see. Where plan or potentials are not unique the value has a kink and this is one of its subgradients; for an
    assignment, the mean of two extreme potentials.

    Equal weights on equally many members are an assignment (SciPy's `linear_sum_assignment`), everything else a linear
    program (HiGHS, N·M variables: ~0.3 s at 100 × 100).

    Args:
        cost: real [N, M].
        weights_a, weights_b: [N] and [M], ≥ 0, each of sum 1.

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
