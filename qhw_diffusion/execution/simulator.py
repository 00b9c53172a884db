"""Evaluate a Program exactly in torch: batched, differentiable, on states (ideal) or density matrices (noisy).

Both are the same walk over `stages.Stages`, in a basis where a layer of RZ rotations is one elementwise product of
complex numbers; what differs is the fixed maps (unitaries or channels) and how expectation values are read off.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution.program import Program
from qhw_diffusion.execution.stages import (
    LOCAL_DIMENSION,
    PHASE,
    REAL_LOCAL,
    Basis,
    Block,
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
        self._prefix = _Angles(self.stages.prefix_rotations, program, self._real)
        self._body = _Angles(self.stages.body.rotations, program, self._real)
        self._tail = _Angles(self.stages.tail.rotations, program, self._real)
        n = self.stages.n_qubits
        density, paired = basis == "density", self.stages.paired
        transform, phase = paired_basis(n) if paired else (None, full_phase(basis, n))
        self._phase = self._real(phase)  # [n, number of complex entries]
        # Every qubit starts in |0⟩, the first element of each local basis; [n, b], densities in the real local basis.
        self._local_phase = self._real(np.array([0.0, -1.0]) if density else PHASE[basis])
        constant = self._real if density else self._complex
        self._start = constant(self.stages.prefix_maps[0][:, :, 0])
        self._prefix_maps = [constant(m.transpose(0, 2, 1)) for m in self.stages.prefix_maps[1:]]
        self._to_entries = self._complex(REAL_LOCAL.conj()) if density and not paired else None
        self._constant = self._real if paired else self._complex
        self._body_blocks = self._on_device(self.stages.body)
        self._tail_blocks = self._on_device(self.stages.tail)
        self._observables: Tensor | list[tuple[Tensor | None, Tensor]]
        if density:
            observables = _density_observables(program)
            self._observables = self._constant(
                observables if transform is None else (observables @ transform.conj().T).real
            )
        else:
            self._observables = [
                (None if mask == 0 else self._permutation(mask), self._complex(matrix))
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
            backwards = len(observables) < batch and not tail.empty
            if backwards:
                observables = self._evolve_observables(observables, weights)
            if self.stages.body.empty and backwards:
                return _contract_product(local, observables)
            state = self._evolve_body(_product(local), inputs, weights)
            if not backwards:
                state = self._evolve_tail(state, weights)
            return _real_part(state @ observables.T)
        state = self._evolve_body(_product(local), inputs, weights)
        if not tail.empty:
            if self.stages.dimension < batch:
                identity = torch.eye(self.stages.dimension, dtype=state.dtype, device=state.device)
                state = state @ self._evolve_tail(identity, weights)
            else:
                state = self._evolve_tail(state, weights)
        return self._state_expectations(state)

    def _local_states(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """[B, n, b]: one small vector a qubit, as long as the qubits have not met."""
        local = self._start.expand(len(inputs), -1, -1)
        if self._prefix_maps:
            angles = self._prefix(inputs, weights)  # [B, S, n]
            phases = _unit(angles.unsqueeze(-1) * self._local_phase)  # [B, S, n, complex entries]
            for s, maps in enumerate(self._prefix_maps):
                local = torch.einsum("bni,nij->bnj", _turn(local, phases[:, s]), maps)
        return local if self._to_entries is None else local.to(self._to_entries.dtype) @ self._to_entries

    def _evolve_body(self, state: Tensor, inputs: Tensor, weights: Tensor) -> Tensor:
        body = self.stages.body
        if body.empty:
            return state
        angles = self._body(inputs, weights) if body.n_stages else None
        for s, blocks in enumerate(self._body_blocks):
            if s and angles is not None:
                state = _turn(state, _unit(angles[:, s - 1] @ self._phase))
            for block, _, forward in blocks:
                state = self._apply(state, block, forward)
        return state

    def _evolve_tail(self, rows: Tensor, weights: Tensor) -> Tensor:
        phases = self._tail_phases(weights)
        for s, blocks in enumerate(self._tail_blocks):
            if s:
                rows = _turn(rows, phases[s - 1])
            for block, _, forward in blocks:
                rows = self._apply(rows, block, forward)
        return rows

    def _evolve_observables(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The tail in the Heisenberg picture: transposed maps in reverse order on [M, D]."""
        phases = self._tail_phases(weights)
        for s in range(len(self._tail_blocks) - 1, -1, -1):
            for block, backward, _ in reversed(self._tail_blocks[s]):
                rows = self._apply(rows, block, backward)
            if s:
                # transposed like the maps; on real pairs that is the opposite rotation
                rows = _turn(rows, phases[s - 1].conj() if self.stages.paired else phases[s - 1])
        return rows

    def _tail_phases(self, weights: Tensor) -> Tensor:
        return _unit(self._tail(None, weights) @ self._phase)  # [S, D]

    def _apply(self, rows: Tensor, block: Block, right: Tensor) -> Tensor:
        """rows [N, D] times a local map from the right (`right` is already transposed as needed)."""
        n, b = self.stages.n_qubits, LOCAL_DIMENSION[self.stages.basis]
        if len(block.qubits) == n:
            return rows @ right
        # Axes of the tensor [N, q_n-1, …, q_0]; the block's own are brought to the end, most significant first.
        own = [n - q for q in reversed(block.qubits)]
        order = [axis for axis in range(n + 1) if axis not in own] + own
        inverse = [order.index(axis) for axis in range(n + 1)]
        moved = rows.reshape([len(rows)] + [b] * n).permute(order)
        shape = moved.shape
        moved = (moved.reshape(-1, len(right)) @ right).reshape(shape)
        return moved.permute(inverse).reshape(rows.shape)

    def _state_expectations(self, state: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        assert isinstance(self._observables, list)
        for permutation, matrix in self._observables:
            if permutation is None:
                # Z and I factors only: probabilities times signs
                total = total + (state.real.square() + state.imag.square()) @ matrix.real
            else:
                total = total + ((state.conj() * state[:, permutation]) @ matrix).real
        assert isinstance(total, Tensor)
        return total

    def _on_device(self, part: Part) -> list[list[tuple[Block, Tensor, Tensor]]]:
        return [
            [(block, self._constant(block.matrix), self._constant(block.matrix.T)) for block in blocks]
            for blocks in part.blocks
        ]

    def _permutation(self, mask: int) -> Tensor:
        return torch.arange(2**self.stages.n_qubits, device=self.device) ^ mask

    def _real(self, array: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=self.dtype, device=self.device)

    def _complex(self, array: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=COMPLEX[self.dtype], device=self.device)


class _Angles:
    """θ [.., S, n] of one part, affine in inputs and weights; 0 where a stage does not turn a qubit."""

    def __init__(self, rotations: np.ndarray, program: Program, real: object) -> None:
        assert callable(real)
        self.shape = rotations.shape
        flat = rotations.reshape(-1)
        used = (flat >= 0)[:, None]
        rows = np.maximum(flat, 0)
        if len(program.offsets) == 0:
            rows = rows[:0]
            used = used[:0]
        self.inputs = real((program.input_coefficients[rows] * used).T)
        self.weights = real((program.weight_coefficients[rows] * used).T)
        self.offsets = real(program.offsets[rows] * used[:, 0])

    def __call__(self, inputs: Tensor | None, weights: Tensor) -> Tensor:
        angles = self.offsets + weights @ self.weights
        if inputs is None:
            return angles.reshape(self.shape)
        return (angles + inputs @ self.inputs).reshape(len(inputs), *self.shape)


def _unit(angle: Tensor) -> Tensor:
    """exp(i·angle)."""
    return torch.polar(torch.ones_like(angle), angle)


def _turn(rows: Tensor, phases: Tensor) -> Tensor:
    """Multiply complex rows by phases; real rows are taken as pairs (real part, imaginary part)."""
    if rows.is_complex():
        return rows * phases
    pairs = torch.view_as_complex(rows.reshape(*rows.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phases).reshape(rows.shape)


def _product(local: Tensor) -> Tensor:
    """[B, n, b] → [B, b^n], qubit n-1 most significant."""
    state = local[:, -1]
    for q in range(local.shape[1] - 2, -1, -1):
        state = (state.unsqueeze(-1) * local[:, q].unsqueeze(1)).reshape(len(local), -1)
    return state


def _contract_product(local: Tensor, observables: Tensor) -> Tensor:
    """Σ observables[m, d] · product(local)[b, d] without forming the product: two halves of the qubits at a time."""
    half = local.shape[1] // 2
    if half == 0:
        return _real_part(_product(local) @ observables.T)
    low, high = _product(local[:, :half]), _product(local[:, half:])
    m = len(observables)
    folded = high @ observables.reshape(m, high.shape[1], low.shape[1]).permute(1, 0, 2).reshape(high.shape[1], -1)
    return _real_part((folded.reshape(len(local), m, -1) @ low.unsqueeze(-1)).squeeze(-1))


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
