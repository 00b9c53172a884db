"""Maps on density matrices: superoperators, Choi matrices, and whether a map is a channel.

A superoperator [d², d²] acts on vec(ρ) stacked by columns, and the Choi matrix is Σ_ij |i⟩⟨j| ⊗ E(|i⟩⟨j|): both as
Qiskit's `SuperOp` and `Choi`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from math import isqrt

import torch
from torch import Tensor

from qhw_diffusion.denoising.states import haar_states
from qhw_diffusion.errors import InvalidInputError

# Rounding of a product of some dozens of complex128 maps.
TOLERANCE = 1e-9


def superoperator_of(function: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Superoperator [d², d²] of a linear map given as a function on density matrices [B, d, d].

    The function is called once, on d² pure states that span all matrices: |i⟩, |i⟩ + |j⟩ and |i⟩ + i|j⟩. So it may
    refuse what is no density matrix.
    """
    if dim < 2:
        raise InvalidInputError(f"a map needs a dimension of at least 2, not {dim}")
    pairs = list(combinations(range(dim), 2))
    unit = torch.eye(dim, dtype=torch.complex128)
    vectors = [*unit]
    vectors += [(unit[i] + unit[j]) / 2**0.5 for i, j in pairs] + [(unit[i] + 1j * unit[j]) / 2**0.5 for i, j in pairs]
    kets = torch.stack(vectors)
    images = function(kets[:, :, None] * kets[:, None, :].conj()).to(torch.complex128)
    plain, plus, twisted = images[:dim], images[dim : dim + len(pairs)], images[dim + len(pairs) :]
    columns = torch.zeros(dim, dim, dim * dim, dtype=torch.complex128)  # [i, j] holds vec(E(|i⟩⟨j|))
    for i in range(dim):
        columns[i, i] = _vec(plain[i])
    for number, (i, j) in enumerate(pairs):
        both = (plain[i] + plain[j]) / 2
        columns[i, j] = _vec(plus[number] + 1j * twisted[number] - (1 + 1j) * both)
        columns[j, i] = _vec(plus[number] - 1j * twisted[number] - (1 - 1j) * both)
    return columns.permute(1, 0, 2).reshape(dim * dim, dim * dim).T.contiguous()


def choi_matrix(superoperator: Tensor) -> Tensor:
    """Choi matrix [d², d²] of a superoperator [d², d²]; its trace is d for a trace-preserving map."""
    dim = _dimension(superoperator)
    # S[(l, k), (j, i)] = E(|i⟩⟨j|)[k, l]  →  Choi[(i, k), (j, l)]
    return superoperator.reshape(dim, dim, dim, dim).permute(3, 1, 2, 0).reshape(dim * dim, dim * dim)


def trace_deviation(superoperator: Tensor) -> float:
    """Largest |entry| of tr_out(Choi) − I: 0 for a trace-preserving map."""
    dim = _dimension(superoperator)
    reduced = torch.einsum("ikjk->ij", choi_matrix(superoperator).reshape(dim, dim, dim, dim))
    return float((reduced - torch.eye(dim, dtype=reduced.dtype)).abs().max())


def is_trace_preserving(superoperator: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether every matrix keeps its trace."""
    return trace_deviation(superoperator) <= tolerance


def is_completely_positive(superoperator: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the Choi matrix is Hermitian and positive, both up to `tolerance` (Choi 1975)."""
    choi = choi_matrix(superoperator)
    if float((choi - choi.mH).abs().max()) > tolerance:
        return False
    return bool(torch.linalg.eigvalsh(choi)[0] >= -tolerance)


def smallest_image_eigenvalue(superoperator: Tensor, generator: torch.Generator, samples: int = 200) -> float:
    """Smallest eigenvalue of the images of `samples` Haar-random pure states.

    A negative value proves that the map is not positive. The reverse is a sample, not a proof; complete positivity,
    which `is_completely_positive` decides, is the stronger property. (Transposition is positive, not completely.)
    """
    kets = haar_states(samples, _dimension(superoperator), generator, torch.complex128)
    images = apply_superoperator(superoperator, kets[:, :, None] * kets[:, None, :].conj())
    return float(torch.linalg.eigvalsh(images).min())


def check_channel(superoperator: Tensor, what: str = "the map", tolerance: float = TOLERANCE) -> None:
    """Check that a superoperator is completely positive and trace preserving.

    Raises:
        InvalidInputError: it is not; the message names `what` and gives the deviation.
    """
    off = trace_deviation(superoperator)
    if not off <= tolerance:
        raise InvalidInputError(f"{what} is no channel: it changes the trace by {off:.3g} (allowed: {tolerance:g})")
    choi = choi_matrix(superoperator)
    skew = float((choi - choi.mH).abs().max())
    if not skew <= tolerance:
        raise InvalidInputError(f"{what} is no channel: its Choi matrix is not Hermitian, off by {skew:.3g}")
    lowest = float(torch.linalg.eigvalsh(choi)[0])
    if not lowest >= -tolerance:
        raise InvalidInputError(
            f"{what} is not completely positive: its Choi matrix has the eigenvalue {lowest:.3g} "
            f"(allowed: ≥ −{tolerance:g})"
        )


def apply_superoperator(superoperator: Tensor, states: Tensor) -> Tensor:
    """E(ρ) of density matrices [B, d, d], in their dtype."""
    dim = _dimension(superoperator)
    return apply_local(superoperator, states, tuple(range((dim - 1).bit_length())))


def apply_local(superoperator: Tensor, states: Tensor, qubits: Sequence[int]) -> Tensor:
    """A map [4ᵏ, 4ᵏ] on `qubits` of density matrices [B, d, d]; the map's subsystem i is ``qubits[i]``."""
    batch, dim = states.shape[0], states.shape[-1]
    n, k = (dim - 1).bit_length(), len(qubits)
    # After the batch come the row bits, then the column bits, each with the most significant qubit first.
    rows = [n - q for q in reversed(qubits)]
    columns = [2 * n - q for q in reversed(qubits)]
    others = [axis for axis in range(1, 2 * n + 1) if axis not in {*rows, *columns}]
    order = [0, *others, *columns, *rows]
    moved = states.reshape([batch, *[2] * (2 * n)]).permute(order)
    mapped = moved.reshape(-1, 4**k) @ superoperator.to(states.dtype).T
    inverse = [order.index(axis) for axis in range(2 * n + 1)]
    return mapped.reshape([batch, *[2] * (2 * n)]).permute(inverse).reshape(batch, dim, dim)


def _vec(matrix: Tensor) -> Tensor:
    return matrix.T.reshape(-1)


def _dimension(superoperator: Tensor) -> int:
    size = superoperator.shape[0] if superoperator.ndim == 2 else 0
    if size < 4 or superoperator.shape[1] != size or isqrt(size) ** 2 != size:
        raise InvalidInputError(f"a superoperator has shape [d², d²], not {list(superoperator.shape)}")
    return isqrt(size)
