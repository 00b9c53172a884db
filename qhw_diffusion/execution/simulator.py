"""Evaluate a Program exactly in torch: batched, differentiable, on states (ideal) or density matrices (noisy).

Both are the same walk over `stages.Stages`, in a basis where a layer of RZ rotations is one elementwise product of
complex numbers; what differs is the fixed maps (unitaries or channels) and how expectation values are read off.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution.evolve import DenseChain, LocalChain
from qhw_diffusion.execution.program import Program
from qhw_diffusion.execution.stages import (
    LOCAL_DIMENSION,
    PHASE,
    REAL_LOCAL,
    Basis,
    Part,
    Stages,
    arrange,
    full_phase,
    paired_basis,
)

_PAULI = {
    "I": np.eye(2),
    "X": np.array([[0, 1], [1, 0]]),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]),
}
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class Simulator:
    """Expectation values of a Program's observables, exact up to rounding.

    Args:
        program: what to evaluate.
        basis: ``"state"`` (no noise) or ``"density"`` (gate noise and readout error).
        dtype: torch.float32 or torch.float64.
        device: torch device.
    """

    def __init__(self, program: Program, basis: Basis, dtype: torch.dtype, device: torch.device) -> None:
        self.stages: Stages = arrange(program, basis)
        self.dtype, self.device = dtype, device
        n, density, paired = self.stages.n_qubits, basis == "density", self.stages.paired
        transform, phase = paired_basis(n) if paired else (None, full_phase(basis, n))
        self._constant = self._real if paired else self._complex
        self._prefix = self._prefix_chain()
        self._body = self._part_chain(self.stages.body, self._real(phase))
        self._tail = self._part_chain(self.stages.tail, self._real(phase))
        self._tail_backwards = self._tail.transposed() if density else None
        self._prefix_angles = _Angles(self.stages.prefix_rotations, program, self._real)
        self._body_angles = _Angles(self.stages.body.rotations, program, self._real)
        self._tail_angles = _Angles(self.stages.tail.rotations, program, self._real)
        # Every qubit starts in |0⟩, the first element of each local basis: [n, 1, b].
        start = np.eye(1, LOCAL_DIMENSION[basis])[None].repeat(n, axis=0)
        self._start = self._real(start) if density else self._complex(start)
        self._to_entries = self._complex(REAL_LOCAL.conj()) if density and not paired else None
        self._observables: Tensor | list[tuple[Tensor | None, Tensor]]
        if density:
            observables = _density_observables(program)
            self._observables = self._constant(
                observables if transform is None else (observables @ transform.conj().T).real
            )
        else:
            self._observables = [
                # no flip: real and imaginary part of each amplitude, squared, have the same sign
                (None, self._real(matrix.real.repeat(2, axis=0)))
                if mask == 0
                else (self._permutation(mask), self._complex(matrix))
                for mask, matrix in _state_observables(program).items()
            ]

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """[B, inputs], [weights] → [B, observables]."""
        batch = len(inputs)
        local = self._local_states(inputs, weights)
        tail = self.stages.tail
        if self.stages.basis == "density":
            observables = self._observables
            assert isinstance(observables, Tensor)
            if len(observables) >= batch or tail.empty:
                state = self._tail(self._enter(local, inputs, weights), self._tail_angles.shared(weights))
                return _real_part(state @ observables.T)
            assert self._tail_backwards is not None
            observables = self._tail_backwards(observables, self._tail_angles.shared(weights).flip(0))
            if self.stages.body.empty:
                return _contract_product(local, observables)
            return _real_part(self._enter(local, inputs, weights) @ observables.T)
        state = self._enter(local, inputs, weights)
        if not tail.empty:
            angles = self._tail_angles.shared(weights)
            if self.stages.dimension < batch:
                state = state @ self._tail(
                    torch.eye(self.stages.dimension, dtype=state.dtype, device=state.device), angles
                )
            else:
                state = self._tail(state, angles)
        return self._state_expectations(state)

    def _local_states(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """[n, B, b]: one small vector a qubit, as long as the qubits have not met."""
        angles = self._prefix_angles.per_sample(inputs, weights)  # [S, B, n]
        local = self._prefix(self._start.expand(-1, len(inputs), -1), angles.mT.unsqueeze(-1))
        return local if self._to_entries is None else local.to(self._to_entries.dtype) @ self._to_entries

    def _enter(self, local: Tensor, inputs: Tensor, weights: Tensor) -> Tensor:
        """The product state, taken through the body: [B, D]."""
        state = _product(local)
        return state if self.stages.body.empty else self._body(state, self._body_angles.per_sample(inputs, weights))

    def _prefix_chain(self) -> DenseChain:
        density = self.stages.basis == "density"
        constant = self._real if density else self._complex
        # densities in the real local basis: the pair of populations does not turn, that of coherences does
        phase = np.array([[0.0, -1.0]]) if density else PHASE["state"][None]
        return DenseChain(constant(self.stages.prefix_maps.swapaxes(-1, -2)), self._real(phase))

    def _part_chain(self, part: Part, phase: Tensor) -> DenseChain | LocalChain:
        n, b = self.stages.n_qubits, LOCAL_DIMENSION[self.stages.basis]
        if self.stages.dense:
            return DenseChain(self._constant(np.stack([blocks[0].matrix.T for blocks in part.blocks])), phase)
        maps = [
            # axes of [N, q_n-1, …, q_0], the most significant of the block first
            [(tuple(n - q for q in reversed(block.qubits)), self._complex(block.matrix.T)) for block in blocks]
            for blocks in part.blocks
        ]
        return LocalChain(maps, phase, n, b)

    def _state_expectations(self, state: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        assert isinstance(self._observables, list)
        for permutation, matrix in self._observables:
            if permutation is None:
                parts = torch.view_as_real(state).flatten(1)
                total = total + (parts * parts) @ matrix
            else:
                total = total + ((state.conj() * state[:, permutation]) @ matrix).real
        assert isinstance(total, Tensor)
        return total

    def _permutation(self, mask: int) -> Tensor:
        return torch.arange(2**self.stages.n_qubits, device=self.device) ^ mask

    def _real(self, array: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)

    def _complex(self, array: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=COMPLEX[self.dtype], device=self.device)


class _Angles:
    """θ of one part, affine in inputs and weights; 0 where a stage does not turn a qubit."""

    def __init__(self, rotations: np.ndarray, program: Program, real: Callable[[np.ndarray], Tensor]) -> None:
        self.shape = rotations.shape
        used = rotations.reshape(-1) >= 0

        def rows_of(array: np.ndarray) -> np.ndarray:
            rows = np.zeros((len(used), *array.shape[1:]))
            rows[used] = array[rotations.reshape(-1)[used]]
            return rows

        self.inputs = real(rows_of(program.input_coefficients).T)
        self.weights = real(rows_of(program.weight_coefficients).T)
        self.offsets = real(rows_of(program.offsets))

    def shared(self, weights: Tensor) -> Tensor:
        """[S, 1, n]: the same for every sample."""
        return (self.offsets + weights @ self.weights).reshape(self.shape[0], 1, self.shape[1])

    def per_sample(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """[S, B, n]."""
        angles = (self.offsets + weights @ self.weights) + inputs @ self.inputs
        return angles.reshape(len(inputs), *self.shape).transpose(0, 1)


def _product(local: Tensor) -> Tensor:
    """[n, B, b] → [B, b^n], qubit n-1 most significant."""
    state = local[-1]
    for q in range(len(local) - 2, -1, -1):
        state = (state.unsqueeze(-1) * local[q].unsqueeze(1)).flatten(1)
    return state


def _contract_product(local: Tensor, observables: Tensor) -> Tensor:
    """Σ observables[m, d] · product(local)[b, d] without forming the product: two halves of the qubits at a time."""
    half = len(local) // 2
    if half == 0:
        return _real_part(_product(local) @ observables.T)
    low, high = _product(local[:half]), _product(local[half:])
    m = len(observables)
    folded = high @ observables.reshape(m, high.shape[1], low.shape[1]).permute(1, 0, 2).flatten(1)
    return _real_part((folded.unflatten(1, (m, -1)) * low.unsqueeze(1)).sum(-1))


def _real_part(values: Tensor) -> Tensor:
    return values.real if values.is_complex() else values


def _density_observables(program: Program) -> np.ndarray:
    """[M, 4^n] with ⟨O⟩ = Σ o·ρ, each measured qubit's factor P replaced by (1−p10−p01)·P + (p01−p10)·I.

    That is what independent readout errors do to the ±1 outcomes of a Pauli string measured in its own basis.
    """
    rows = []
    for terms in program.observables:
        row = np.zeros(4**program.n_qubits, dtype=complex)
        for coefficient, label in terms:
            vector = np.array([coefficient], dtype=complex)
            for q in reversed(range(program.n_qubits)):
                factor = _PAULI[label[q]]
                if label[q] != "I":
                    p10, p01 = program.readout[q]
                    factor = (1 - p10 - p01) * factor + (p01 - p10) * np.eye(2)
                vector = np.kron(vector, factor.T.reshape(-1))  # tr(Pρ) = Σ P[c, r] ρ[r, c]
            row += vector
        rows.append(row)
    return np.array(rows)


def _state_observables(program: Program) -> dict[int, np.ndarray]:
    """{flip mask: [2^n, M]}: ⟨O_m⟩ = Σ_masks Σ_i conj(ψ_i) ψ_{i⊕mask} matrix[i, m]."""
    n, m = program.n_qubits, len(program.observables)
    index = np.arange(2**n)
    matrices: dict[int, np.ndarray] = {}
    for column, terms in enumerate(program.observables):
        for coefficient, label in terms:
            mask, value = 0, np.full(2**n, coefficient, dtype=complex)
            for q, factor in enumerate(label):
                bit = (index >> q) & 1
                if factor in "XY":
                    mask |= 1 << q
                if factor == "Z":
                    value = value * (1 - 2 * bit)
                elif factor == "Y":  # ⟨i|Y|i⊕1⟩: -i in row 0, +i in row 1
                    value = value * np.where(bit == 0, -1j, 1j)
            matrices.setdefault(mask, np.zeros((2**n, m), dtype=complex))[:, column] += value
    return matrices
