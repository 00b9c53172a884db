"""Small batches of small circuits, forwards and backwards in one compiled call each.

There what counts is what a step costs in Python. The loops are those of `gate_sequence`; angles, observables and the
chain rule are done in the same call. Angles and sums over samples are in double precision, as everywhere.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.gate_sequence import GateSequence
from qhw_diffusion.execution.measurement import StateObservables
from qhw_diffusion.execution.program import Program

# Rows times samples; from there on Python costs little of a step. Rotations; from there on it pays to keep the matrices
# of weights that have not changed, where no gradient is asked for.
MOST, MOST_ROTATIONS = 2**12, 256


class SmallBatch:
    """Expectation values of so many samples, and their gradient. `fits` says for what.

    Args:
        program: the circuit.
        sequence: all of it.
        observables: its observables.
        columns: samples.
        dtype: np.float32 or np.float64.
    """

    def __init__(
        self, program: Program, sequence: GateSequence, observables: StateObservables, columns: int, dtype: Precision
    ) -> None:
        self._made_of = program, sequence, observables, columns, dtype
        self.columns, self.dtype = columns, dtype
        self.n_inputs, self.n_weights = program.input_coefficients.shape[1], program.weight_coefficients.shape[1]
        self.n_observables = len(observables)
        self._torch = torch.float32 if dtype is np.float32 else torch.float64
        which, coefficients = program.weight_terms
        sizes: list[int] = [2 * self.n_weights]  # sums in double precision, wherever they begin at a whole number
        tables: list[Any] = []
        kept: list[kernel.Constants] = []
        for own, width in ((False, 1), (True, columns)):
            table, used = sequence.tables[own], sequence.tables[own].used
            sign = np.array([*sequence.sign, sequence.rate], dtype)
            mine = kernel.Constants(
                table.first, table.rotation.astype(np.int64), table.fixed, sign,
                which[:, used].T.astype(np.int64), coefficients[:, used].T, program.offsets[used],
            )  # fmt: skip
            kept.append(mine)
            tables += [table.n_blocks, len(used), *mine.addresses]
            sizes += [len(used) * width, len(used) * width, len(table.fixed) * 16 * width]
        size = sequence.n_rows * columns
        blocks = [16 * sequence.tables[False].n_blocks, 16 * sequence.tables[True].n_blocks * columns]
        sizes += [size] * 5 + blocks + [sizes[1], sizes[4]]
        shared = kernel.Constants(program.input_coefficients[sequence.own], observables.diagonal)
        self._kept = (*kept, shared)  # what addresses are given of
        *places, self._size = list(accumulate(sizes))
        given = (
            self.n_inputs, observables.n_states, self.n_observables, len(which), self.n_weights,
            *tables, *shared.addresses, *places,
        )  # fmt: skip
        packed = (kernel.Constants(np.array([*given, sequence.n_rows, *steps])) for steps in sequence.constants)
        self._forth, self._back = packed

    def __deepcopy__(self, memo: dict) -> SmallBatch:
        return self

    def __reduce__(self) -> tuple:
        return SmallBatch, self._made_of

    def forward(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, tuple[Tensor, int]] | None:
        """[B, inputs], [weights] → values [B, M] and what `backward` needs; None where angles are not finite."""
        inputs, weights = inputs.contiguous(), weights.contiguous()
        values = torch.empty((self.columns, self.n_observables), dtype=self._torch)
        buffer = torch.empty(self._size, dtype=self._torch)
        moved = kernel.compiled(self.dtype)["small_forward"](  # type: ignore[arg-type]
            self.columns, inputs.data_ptr(), weights.data_ptr(), values.data_ptr(), buffer.data_ptr(),
            *self._forth.addresses,
        )  # fmt: skip
        return None if moved > 1 else (values, (buffer, moved))

    def backward(self, cotangent: Tensor, kept: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
        """Derivatives [B, M] by the values → [B, inputs] and [weights]."""
        cotangent, (buffer, moved) = cotangent.contiguous(), kept
        by_inputs = torch.empty((self.columns, self.n_inputs), dtype=self._torch)
        by_weights = torch.empty(self.n_weights, dtype=self._torch)
        kernel.compiled(self.dtype)["small_back"](  # type: ignore[arg-type]
            self.columns, moved, cotangent.data_ptr(), buffer.data_ptr(), by_inputs.data_ptr(), by_weights.data_ptr(),
            *self._back.addresses,
        )  # fmt: skip
        return by_inputs, by_weights


def fits(program: Program, sequence: object, observables: object, columns: int) -> bool:
    """Whether a batch is small enough, on pure states, all steps unitary, and observables of Z alone."""
    return (
        isinstance(sequence, GateSequence)
        and isinstance(observables, StateObservables)
        and sequence.orthogonal
        and not observables.flips
        and len(observables.diagonal) == len(observables)
        and not (program.idle_inputs or program.idle_weights)
        and sequence.n_rows * columns <= MOST
    )
