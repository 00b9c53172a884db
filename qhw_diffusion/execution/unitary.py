"""Unitary circuits with observables of Z alone: from tensors to tensors in compiled calls, a block of samples each.

What a step costs in Python is then the same few calls for any circuit. The loops over rows are those of `kernel`;
angles, observables and the chain rule are written down around them here. Angles, and sums over samples, are in double
precision. A batch of one block is one call forwards and one backwards. Of a larger batch, what depends on the weights
alone is done once, and each of several threads takes blocks in one call; what the blocks leave for the weights is added
up in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.cores import in_blocks
from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.gate_sequence import GateSequence, Permutation
from qhw_diffusion.execution.measurement import StateObservables
from qhw_diffusion.execution.native import Code, Pointer, Unpacked, Value, Variable
from qhw_diffusion.execution.program import Program

# Rotations from which on it pays to keep the matrices of weights that have not changed, where no gradient is asked for
KEEP_FROM = 256


# -- what is compiled --------------------------------------------------------------------------------------------------


# Arrays are parts of a few buffers. Of each array the place is given where it begins there, in real numbers; of each
# part its length, too.
_PARTS: dict[str, tuple[str, ...]] = {
    "of_weights": ("base: angles of table 1 (double)", "cosines", "sines", "matrices of table 0"),
    "of_block": ("cosines", "sines", "matrices of table 1", "rows at the end"),
    "scratch": (
        "by inputs (double)", "spare rows", "rows", "adjoint", "by matrices of table 1", "by its angles",
        "cotangent, twice",
    ),
    "share": ("by angles of table 1 (double)", "by matrices of table 0"),
    "total": ("by weights (double)", "by angles of table 0"),
}  # fmt: skip
# `odd`: whether the circuit has an odd number of permutations
_SIZES = ("inputs", "states", "observables", "terms by weights", "terms by inputs", "weights", "odd")
_TABLE = {
    "blocks": "n", "rotations": "n", "first": "int", "rotation": "int", "fixed": "real", "sign": "real",
    "which": "int", "coefficients": "double", "offsets": "double",
}  # fmt: skip
_KINDS = {
    **dict.fromkeys(_SIZES, "n"),
    **{f"{name} {own}": kind for own in (0, 1) for name, kind in _TABLE.items()},
    "which input": "int", "of input": "double", "diagonal": "real",
    **{f"{part} {k}": "n" for part, arrays in _PARTS.items() for k in range(len(arrays) + 1)},
    **{f"sequence {k}": kind for k, kind in enumerate(kernel.SEQUENCE)},
}  # fmt: skip


class _Given(Unpacked):
    """What the functions below are given of a circuit, and of a number of columns.

    There are two tables of blocks: those whose angles all samples share (0), and those that an input enters (1). The
    angle of a rotation is an offset and sums of so many terms, over weights and, in table 1, over inputs.
    """

    def __init__(self, code: Code, columns: Value, packed: Pointer) -> None:
        super().__init__(code, packed, _KINDS)
        self.columns = columns

    @property
    def sequence(self) -> tuple[Any, ...]:
        """What `evolve` and `pull_unitary` are given of the steps."""
        return self.columns, *(self[f"sequence {k}"] for k in range(len(kernel.SEQUENCE)))

    def length(self, part: str) -> Value:
        """How long a part is."""
        found: Value = self[f"{part} {len(_PARTS[part])}"]
        return found

    def arrays(self, part: str, start: Pointer) -> list[Pointer]:
        """The arrays of a part that begins at `start`."""
        return [
            self.doubles(start + self[f"{part} {k}"]) if "(double)" in name else start + self[f"{part} {k}"]
            for k, name in enumerate(_PARTS[part])
        ]

    def doubles(self, place: Pointer) -> Pointer:
        """Numbers in double precision at a place."""
        return Pointer(self.code, place.value, self.code.double(self.code.constant(0)).value.type)

    def zero(self, array: Pointer, count: Value) -> None:
        """Set the first numbers of an array to 0."""
        zero = self.code.constant(0)
        for at in self.code.loop(count):
            array[at] = self.code.double(zero) if array.kind != self.code.real else zero

    def blocks(self, own: int) -> tuple[Any, ...]:
        """Columns, number of blocks and constants of a table, for `build_blocks` and `block_slopes`."""
        names = ("blocks", "first", "rotation", "fixed", "sign", "rotation")
        return self.columns if own else self.code.number(1), *(self[f"{name} {own}"] for name in names)

    def turn(self, own: int, angle: Value, at: Value, cos: Pointer, sin: Pointer) -> None:
        """The cosine and sine of an angle."""
        turned = self.code.single(self.code.double(self[f"sign {own}"][2]) * angle)
        cos[at], sin[at] = self.code.of_libm("cos", turned), self.code.of_libm("sin", turned)


def _of_weights(code: Code, weights: Pointer, buffer: Pointer, packed: Pointer) -> Value:
    """Fill the part of the weights. 1 where an angle is not finite, else 0."""
    given, wrong = _Given(code, code.number(1), packed), Variable(code, code.double(code.constant(0)))
    base, cos, sin, matrices = given.arrays("of_weights", buffer)
    for own in (0, 1):
        which, coefficients, terms = given[f"which {own}"], given[f"coefficients {own}"], given["terms by weights"]
        for u in code.loop(given[f"rotations {own}"]):
            angle = Variable(code, given[f"offsets {own}"][u])
            for k in code.loop(terms):
                at = u * terms + k
                angle.set(angle.get() + coefficients[at] * code.double(weights[which[at]]))
            wrong.set(wrong.get() + (angle.get() - angle.get()))
            if own:
                base[u] = angle.get()
            else:
                given.turn(0, angle.get(), u, cos, sin)
    code.call("build_blocks", *given.blocks(0), cos, sin, matrices)
    return code.not_a_number(wrong.get())


def _block(
    code: Code, columns: Value, inputs: Pointer, of_weights: Pointer, values: Pointer, buffer: Pointer,
    scratch: Pointer, packed: Pointer,
) -> Value:  # fmt: skip
    """Values of a block. 1 where an angle is not finite, else 0."""
    given, wrong = _Given(code, columns, packed), Variable(code, code.double(code.constant(0)))
    base, _, _, shared = given.arrays("of_weights", of_weights)
    cos, sin, own, end = given.arrays("of_block", buffer)
    _, spare, *_ = given.arrays("scratch", scratch)
    terms = given["terms by inputs"]
    for u in code.loop(given["rotations 1"]):
        for b in code.loop(columns):
            angle = Variable(code, base[u])
            for k in code.loop(terms):
                at = u * terms + k
                number = inputs[b * given["inputs"] + given["which input"][at]]
                angle.set(angle.get() + given["of input"][at] * code.double(number))
            wrong.set(wrong.get() + (angle.get() - angle.get()))
            given.turn(1, angle.get(), u * columns + b, cos, sin)
    code.call("build_blocks", *given.blocks(1), cos, sin, own)
    # Each permutation changes over to the other rows: it begins where it has to for ending at `end`
    away = given["odd"] * (code.address(spare) - code.address(end))
    start, other = code.pointer(code.address(end) + away), code.pointer(code.address(spare) - away)
    for at in code.columns(given["sequence 0"] * columns):
        start[at] = code.spread(code.constant(0), at.width)
    for b in code.loop(columns):
        start[b] = code.constant(1)
    code.call("evolve", *given.sequence, shared, own, code.number(0), start, other, start)
    half = given["states"] * columns
    for at in code.columns(half):
        re, im = end[at], (end + half)[at]
        spare[at] = code.dot((re, re), (im, im))
    found = spare + half
    for m in code.loop(given["observables"]):
        for lane in code.columns(columns):
            (total,) = code.zeros(1, lane.width)
            for i in code.loop(given["states"]):
                total.add(given["diagonal"][m * given["states"] + i], (spare + i * columns)[lane])
            found[lane] = total.get()
        for b in code.loop(columns):
            values[b * given["observables"] + m] = found[b]
    return code.not_a_number(wrong.get())


def _block_back(
    code: Code, columns: Value, cotangent: Pointer, of_weights: Pointer, buffer: Pointer, scratch: Pointer,
    share: Pointer, by_inputs: Pointer, packed: Pointer,
) -> None:  # fmt: skip
    """Derivatives by the inputs of a block, and its share of those by the weights."""
    given = _Given(code, columns, packed)
    *_, shared = given.arrays("of_weights", of_weights)
    cos, sin, own, end = given.arrays("of_block", buffer)
    sums, spare, x, adjoint, by_own, slopes, weights = given.arrays("scratch", scratch)
    of_angles, by_shared = given.arrays("share", share)
    states = given["states"]
    for m in code.loop(given["observables"]):
        for b in code.loop(columns):
            weights[m * columns + b] = cotangent[b * given["observables"] + m] * 2.0
    for i in code.loop(states):
        for lane in code.columns(columns):
            (weight,) = code.zeros(1, lane.width)
            for m in code.loop(given["observables"]):
                weight.add(given["diagonal"][m * states + i], (weights + m * columns)[lane])
            for row in (i, states + i):
                value = (end + row * columns)[lane]
                (x + row * columns)[lane] = value
                (adjoint + row * columns)[lane] = weight.get() * value
    code.call("pull_unitary", *given.sequence, shared, own, by_shared, by_own, adjoint, x, spare)
    rotations, terms = given["rotations 1"], given["terms by inputs"]
    given.zero(slopes, rotations * columns)
    given.zero(sums, given["inputs"] * columns)
    code.call("block_slopes", *given.blocks(1), cos, sin, own, by_own, slopes)
    for u in code.loop(rotations):
        total = Variable(code, code.double(code.constant(0)))
        for b in code.loop(columns):
            slope = code.double(slopes[u * columns + b])
            total.set(total.get() + slope)
            for k in code.loop(terms):
                at = u * terms + k
                place = b * given["inputs"] + given["which input"][at]
                sums[place] = sums[place] + given["of input"][at] * slope
        of_angles[u] = total.get()
    for at in code.loop(given["inputs"] * columns):
        by_inputs[at] = code.single(sums[at])


def _to_weights(
    code: Code, blocks: Value, of_weights: Pointer, shares: Pointer, by_weights: Pointer, packed: Pointer
) -> None:
    """Derivatives by the weights, from the shares of so many blocks, one behind the other; room follows them."""
    given = _Given(code, code.number(1), packed)
    _, cos, sin, matrices = given.arrays("of_weights", of_weights)
    length = given.length("share")
    sums, slopes = given.arrays("total", shares + length * blocks)
    of_angles, by_shared = given.arrays("share", shares)
    for block in code.loop(blocks, 1):
        other_angles, other_shared = given.arrays("share", shares + length * block)
        for u in code.loop(given["rotations 1"]):
            of_angles[u] = of_angles[u] + other_angles[u]
        for at in code.loop(given["blocks 0"] * 16):
            by_shared[at] = by_shared[at] + other_shared[at]
    given.zero(sums, given["weights"])
    given.zero(slopes, given["rotations 0"])
    code.call("block_slopes", *given.blocks(0), cos, sin, matrices, by_shared, slopes)
    terms = given["terms by weights"]
    for own in (0, 1):
        which, coefficients = given[f"which {own}"], given[f"coefficients {own}"]
        for u in code.loop(given[f"rotations {own}"]):
            slope = of_angles[u] if own else code.double(slopes[u])
            for k in code.loop(terms):
                at = u * terms + k
                sums[which[at]] = sums[which[at]] + coefficients[at] * slope
    for at in code.loop(given["weights"]):
        by_weights[at] = code.single(sums[at])


def _each_block(
    code: Code, columns: Value, first: Value, step: Value, batch: Value, packed: Pointer, last: Pointer
) -> Iterator[tuple[Value, Value, Value, Pointer]]:
    """Number, first sample, columns and what is packed of the blocks first, first + step, …; `last` has the rest."""
    for k in code.loop((batch + columns - 1 - first * columns + (step - 1) * columns) // (step * columns)):
        number = first + k * step
        start = number * columns
        for _ in code.where(batch - start - columns):
            yield number, start, columns, packed
        for _ in code.where(start + columns - batch - 1):
            yield number, start, batch - start, last


def _blocks(
    code: Code, columns: Value, first: Value, step: Value, batch: Value, inputs: Pointer, of_weights: Pointer,
    values: Pointer, buffers: Pointer, apart: Value, scratch: Pointer, packed: Pointer, last: Pointer,
) -> Value:  # fmt: skip
    """`_block` for one block after the other; their buffers begin `apart` numbers from each other."""
    wrong, given = Variable(code, code.number(0)), _Given(code, columns, packed)
    width, observables = given["inputs"], given["observables"]
    for number, start, count, of_block in _each_block(code, columns, first, step, batch, packed, last):
        found = code.call(
            "unitary_block", count, inputs + start * width, of_weights, values + start * observables,
            buffers + number * apart, scratch, of_block,
        )  # fmt: skip
        wrong.set(wrong.get() + found)
    return wrong.get()


def _blocks_back(
    code: Code, columns: Value, first: Value, step: Value, batch: Value, cotangent: Pointer, of_weights: Pointer,
    buffers: Pointer, scratch: Pointer, shares: Pointer, by_inputs: Pointer, packed: Pointer, last: Pointer,
) -> None:  # fmt: skip
    given = _Given(code, columns, packed)
    width, observables = given["inputs"], given["observables"]
    apart, share = given.length("of_block"), given.length("share")
    for number, start, count, of_block in _each_block(code, columns, first, step, batch, packed, last):
        code.call(
            "unitary_block_back", count, cotangent + start * observables, of_weights, buffers + number * apart,
            scratch, shares + number * share, by_inputs + start * width, of_block,
        )  # fmt: skip


def _forward(
    code: Code, columns: Value, inputs: Pointer, weights: Pointer, values: Pointer, buffer: Pointer, packed: Pointer
) -> Value:
    """All of a batch of one block; the parts of its buffer follow one another."""
    wrong = code.call("unitary_weights", weights, buffer, packed)
    given = _Given(code, columns, packed)
    block = buffer + given.length("of_weights")
    scratch = block + given.length("of_block")
    return code.call("unitary_block", columns, inputs, buffer, values, block, scratch, packed) + wrong


def _back(
    code: Code, columns: Value, cotangent: Pointer, buffer: Pointer, by_inputs: Pointer, by_weights: Pointer,
    packed: Pointer,
) -> None:  # fmt: skip
    given = _Given(code, columns, packed)
    block = buffer + given.length("of_weights")
    scratch = block + given.length("of_block")
    share = scratch + given.length("scratch")
    code.call("unitary_block_back", columns, cotangent, buffer, block, scratch, share, by_inputs, packed)
    code.call("unitary_weights_back", code.number(1), buffer, share, by_weights, packed)


kernel.KERNELS |= {
    "unitary_weights": (_of_weights, ["real", "real", "int"]),
    "unitary_block": (_block, ["n", *["real"] * 5, "int"]),
    "unitary_block_back": (_block_back, ["n", *["real"] * 6, "int"]),
    "unitary_blocks": (_blocks, ["n"] * 4 + ["real"] * 4 + ["n", "real", "int", "int"]),
    "unitary_blocks_back": (_blocks_back, ["n"] * 4 + ["real"] * 6 + ["int", "int"]),
    "unitary_weights_back": (_to_weights, ["n", "real", "real", "real", "int"]),
    "unitary": (_forward, ["n", "real", "real", "real", "real", "int"]),
    "unitary_back": (_back, ["n", "real", "real", "real", "real", "int"]),
}


# -- how it is called --------------------------------------------------------------------------------------------------


class _Layout:
    """What calls are given for blocks of so many columns: places of all arrays, and how long the parts are."""

    def __init__(self, circuit: UnitaryCircuit, columns: int) -> None:
        forth, back = circuit.sequence.constants
        lengths = circuit.lengths(columns)
        places: list[int] = []
        self.lengths: dict[str, int] = {}
        for part, names in _PARTS.items():
            *at, end = accumulate((_aligned(length) for length in lengths[part]), initial=0)
            assert len(at) == len(names)
            places += [*at, end]
            self.lengths[part] = end
        self.whole = sum(self.lengths.values())
        rows = circuit.sequence.n_rows
        self._kept = [kernel.Constants(np.array([*circuit.numbers, *places, rows, *steps])) for steps in (forth, back)]
        (self.forth,), (self.back,) = (constants.addresses for constants in self._kept)


class UnitaryCircuit:
    """Expectation values of a circuit, and their gradient. `fits` says of which.

    Args:
        program: the circuit.
        sequence: all of it.
        observables: its observables.
        dtype: np.float32 or np.float64.
    """

    def __init__(
        self, program: Program, sequence: GateSequence, observables: StateObservables, dtype: Precision
    ) -> None:
        self._made_of = program, sequence, observables, dtype
        self.sequence, self.dtype = sequence, dtype
        self.n_inputs, self.n_weights = program.input_coefficients.shape[1], program.weight_coefficients.shape[1]
        self.n_rotations, self.n_observables = len(program.offsets), len(observables)
        self.observables_bytes = observables.bytes
        self._torch = torch.float32 if dtype is np.float32 else torch.float64
        self._kernels = kernel.compiled(dtype)  # type: ignore[arg-type]
        self._layouts: dict[int, _Layout] = {}
        self._of_weights: tuple[bytes, Tensor] | None = None
        which, coefficients = program.weight_terms
        which_input, of_input = program.input_terms
        own = sequence.own
        tables: list[kernel.Constants] = []
        self.numbers: list[int] = [  # sizes and addresses, in the order of `_KINDS`
            self.n_inputs, observables.n_states, self.n_observables, len(which), len(which_input), self.n_weights,
            sum(isinstance(step, Permutation) for step in sequence.steps) % 2,
        ]  # fmt: skip
        for kind in (False, True):
            table, used = sequence.tables[kind], sequence.tables[kind].used
            sign = np.array([*sequence.sign, sequence.rate], dtype)
            constants = kernel.Constants(
                table.first, table.rotation.astype(np.int64), table.fixed, sign,
                which[:, used].T.astype(np.int64), coefficients[:, used].T, program.offsets[used],
            )  # fmt: skip
            tables.append(constants)
            self.numbers += [table.n_blocks, len(used), *constants.addresses]
        rest = kernel.Constants(which_input[:, own].T.astype(np.int64), of_input[:, own].T, observables.diagonal)
        self._kept = (*tables, rest)  # what addresses are given of
        self.numbers += rest.addresses

    def __deepcopy__(self, memo: dict) -> UnitaryCircuit:
        return self

    def __reduce__(self) -> tuple:
        return UnitaryCircuit, self._made_of

    def lengths(self, columns: int) -> dict[str, list[int]]:
        """Of each part how long its arrays are, for so many columns."""
        shared, own = (self.sequence.tables[kind] for kind in (False, True))
        rows, used = self.sequence.n_rows * columns, len(own.used) * columns
        return {
            "of_weights": [2 * len(own.used), len(shared.used), len(shared.used), 16 * len(shared.fixed)],
            "of_block": [used, used, 16 * len(own.fixed) * columns, rows],
            "scratch": [
                2 * self.n_inputs * columns, rows, rows, rows, 16 * own.n_blocks * columns, used,
                self.n_observables * columns,
            ],
            "share": [2 * len(own.used), 16 * shared.n_blocks],
            "total": [2 * self.n_weights, len(shared.used)],
        }  # fmt: skip

    @property
    def column_bytes(self) -> tuple[int, int]:
        """Bytes a sample of what is kept for the backward pass, and of its scratch."""
        lengths = self.lengths(1)
        size = np.dtype(self.dtype).itemsize
        return sum(lengths["of_block"]) * size, sum(lengths["scratch"]) * size

    def fixed_bytes(self, blocks: int) -> int:
        """Bytes of what depends on the weights alone, and of the shares of so many blocks."""
        lengths = self.lengths(1)
        numbers = sum(lengths["of_weights"]) + blocks * sum(lengths["share"]) + sum(lengths["total"])
        return numbers * np.dtype(self.dtype).itemsize + self.observables_bytes

    def layout(self, columns: int) -> _Layout:
        """That for blocks of so many columns, made once."""
        if columns not in self._layouts:
            self._layouts[columns] = _Layout(self, columns)
        return self._layouts[columns]

    def forward(
        self, inputs: Tensor, weights: Tensor, columns: int, threads: int, keep: bool = True
    ) -> tuple[Tensor, Any] | None:
        """[B, inputs], [weights] → values [B, M] and what `backward` needs; None where angles are not finite.

        Args:
            inputs: in this process's memory, as `weights`.
            weights: see there.
            columns: samples in a block.
            threads: blocks at a time.
            keep: whether there will be a backward pass.
        """
        inputs, weights, batch = inputs.contiguous(), weights.contiguous(), inputs.shape[0]
        values = inputs.new_empty((batch, self.n_observables))
        if batch <= columns and (keep or self.n_rotations < KEEP_FROM):
            layout = self.layout(batch)
            buffer = self._room(layout.whole)
            wrong = self._kernels["unitary"](
                batch, inputs.data_ptr(), weights.data_ptr(), values.data_ptr(), buffer.data_ptr(), layout.forth
            )
            return None if wrong else (values, buffer)
        of_weights = self._weights_part(weights, keep)
        if of_weights is None:
            return None
        layout, last = self.layout(columns), self.layout((batch - 1) % columns + 1)
        apart = layout.lengths["of_block"] if keep else 0
        buffers = self._room(-(-batch // columns) * apart)

        def through(first: int) -> int:
            scratch, own = self._room(layout.lengths["scratch"]), self._room(0 if keep else layout.lengths["of_block"])
            wrong: int = self._kernels["unitary_blocks"](
                columns, first, threads, batch, inputs.data_ptr(), of_weights.data_ptr(), values.data_ptr(),
                (buffers if keep else own).data_ptr(), apart, scratch.data_ptr(), layout.forth, last.forth,
            )  # fmt: skip
            return wrong

        wrong = any(in_blocks(through, range(threads), threads))
        return None if wrong else (values, (of_weights, buffers, columns, threads))

    def backward(self, cotangent: Tensor, kept: Any) -> tuple[Tensor, Tensor]:
        """Derivatives [B, M] by the values → [B, inputs] and [weights]."""
        cotangent, batch = cotangent.contiguous(), cotangent.shape[0]
        by_inputs, by_weights = cotangent.new_empty((batch, self.n_inputs)), cotangent.new_empty(self.n_weights)
        if isinstance(kept, Tensor):
            self._kernels["unitary_back"](
                batch, cotangent.data_ptr(), kept.data_ptr(), by_inputs.data_ptr(), by_weights.data_ptr(),
                self.layout(batch).back,
            )  # fmt: skip
            return by_inputs, by_weights
        of_weights, buffers, columns, threads = kept
        layout, last, blocks = self.layout(columns), self.layout((batch - 1) % columns + 1), -(-batch // columns)
        shares = self._room(layout.lengths["share"] * blocks + layout.lengths["total"])

        def back(first: int) -> None:
            scratch = self._room(layout.lengths["scratch"])
            self._kernels["unitary_blocks_back"](
                columns, first, threads, batch, cotangent.data_ptr(), of_weights.data_ptr(), buffers.data_ptr(),
                scratch.data_ptr(), shares.data_ptr(), by_inputs.data_ptr(), layout.back, last.back,
            )  # fmt: skip

        in_blocks(back, range(threads), threads)
        self._kernels["unitary_weights_back"](
            blocks, of_weights.data_ptr(), shares.data_ptr(), by_weights.data_ptr(), layout.back
        )
        return by_inputs, by_weights

    def _room(self, numbers: int) -> Tensor:
        return torch.empty(numbers, dtype=self._torch)

    def _weights_part(self, weights: Tensor, keep: bool) -> Tensor | None:
        """The part of the weights; of the last ones once, where no gradient is asked for."""
        known = b"" if keep else weights.detach().numpy().tobytes()
        if not keep and self._of_weights is not None and self._of_weights[0] == known:
            return self._of_weights[1]
        layout = self.layout(1)
        buffer = self._room(layout.lengths["of_weights"])
        if self._kernels["unitary_weights"](weights.data_ptr(), buffer.data_ptr(), layout.forth):
            return None
        if not keep:
            self._of_weights = known, buffer
        return buffer


def fits(program: Program, sequence: object, observables: object) -> bool:
    """Whether all steps are unitary, on pure states, and observables of Z alone."""
    return (
        isinstance(sequence, GateSequence)
        and isinstance(observables, StateObservables)
        and sequence.orthogonal
        and not observables.flips
        and len(observables.diagonal) == len(observables)
        and not (program.idle_inputs or program.idle_weights)
    )


def _aligned(length: int) -> int:
    """So many numbers, and up to where the next ones begin: at a multiple of 64 bytes, in either precision."""
    return -(-length // 16) * 16
