"""The compiled inner loops: small real matrices applied to rows of an array [D, B], and their adjoints.

A state is kept as D = 2·2^n real rows (real parts, then imaginary parts), a density matrix as D = 4^n real rows in a
product basis of Hermitian matrices (`fusion`); the B columns are samples, or observables. A gate on one qubit is then
in both cases a real 4×4 matrix on groups of four rows, so that one set of loops serves both. Columns are contiguous:
the inner loops run over samples, a vector of them at a time.

All steps of a sequence are one call (`evolve`, `pull`, `pull_unitary`), and other threads run meanwhile. The loops are
written down with `native`, and compiled when a precision is first used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from qhw_diffusion.execution.fusion import Precision
from qhw_diffusion.execution.native import Code, Definition, Lane, Library, Pointer, Value, Variable

Array = np.ndarray
# Columns in a vector: 32 bytes, and half of it where four observables are taken back
_WIDTHS = {"float": (8, 4, 1), "double": (4, 1)}

# Kinds of steps in the code of a sequence: blocks whose angles the columns share, or have one each; permutation; map
SHARED, OWN, MOVE, MAP = 0, 1, 2, 3


# -- single steps ------------------------------------------------------------------------------------------------------


class _Groups:
    """Groups of four rows that a gate on one qubit acts on: runs of `run` neighbouring ones, from bases[::run] on.

    The rows of a group are its base, and from there `near`, `far`, and `near` + `far`.
    """

    arguments = ("n", "n", "n", "n", "n", "int")

    def __init__(self, code: Code, columns: Value, runs: Value, run: Value, near: Value, far: Value, bases: Pointer):
        self.code, self.columns, self.runs, self.run, self.bases = code, columns, runs, run, bases
        self.offsets = (code.number(0), near, far, near + far)

    def long(self, *arrays: Pointer) -> Iterator[tuple[list[Pointer], ...]]:
        """Four long rows of each array, of a run's `run` · B numbers each."""
        for k in self.code.loop(self.runs):
            base = self.bases[k * self.run]
            yield self._rows(base, arrays)

    def single(self, *arrays: Pointer) -> Iterator[tuple[list[Pointer], ...]]:
        """Four rows of each array, of B numbers each."""
        for k in self.code.loop(self.runs):
            base = self.bases[k * self.run]
            for r in self.code.loop(self.run):
                yield self._rows(base + r, arrays)

    def _rows(self, base: Value, arrays: Sequence[Pointer]) -> tuple[list[Pointer], ...]:
        return tuple([array + (base + offset) * self.columns for offset in self.offsets] for array in arrays)


def _times(code: Code, matrix: Sequence[Sequence[Value]], a: Sequence[Value], transposed: bool) -> list[Value]:
    rows = zip(*matrix, strict=True) if transposed else matrix
    return [code.dot(*zip(row, a, strict=True)) for row in rows]


def _square(g: Pointer) -> list[list[Value]]:
    return [[g[4 * i + j] for j in range(4)] for i in range(4)]


def _square_of(g: Pointer, columns: Value, lane: Lane) -> list[list[Value]]:
    return [[(g + columns * (4 * i + j))[lane] for j in range(4)] for i in range(4)]


def _apply_shared(transposed: bool) -> Callable[..., None]:
    """Set y to g x, or gᵀ x, with the same g [4, 4] for every column; y may be x."""

    def apply(code: Code, columns: Value, *given: Any) -> None:
        *numbers, x, y, g = given
        groups, matrix = _Groups(code, columns, *numbers), _square(g)
        for xs, ys in groups.long(x, y):
            for lane in code.columns(groups.run * columns, wide=True):
                made = _times(code, matrix, [row[lane] for row in xs], transposed)
                for row, value in zip(ys, made, strict=True):
                    row[lane] = value

    return apply


def _apply_own(transposed: bool) -> Callable[..., None]:
    """As `_apply_shared` with a matrix of its own for every column: g [4, 4, B]."""

    def apply(code: Code, columns: Value, *given: Any) -> None:
        *numbers, x, y, g = given
        groups = _Groups(code, columns, *numbers)
        for xs, ys in groups.single(x, y):
            for lane in code.columns(columns):
                made = _times(code, _square_of(g, columns, lane), [row[lane] for row in xs], transposed)
                for row, value in zip(ys, made, strict=True):
                    row[lane] = value

    return apply


def _map(
    code: Code, columns: Value, starts: Value, d: Value, run: Value, x: Pointer, bases: Pointer, offsets: Pointer,
    g: Pointer,
) -> None:  # fmt: skip
    """Set x to g x, g [d, d], 4 | d, on the rows bases[k · run] + offsets and the `run` − 1 next to each."""
    for k in code.loop(starts):
        base = bases[k * run]
        for lane in code.columns(run * columns, wide=True):
            width = lane.width
            scratch = code.scratch(16 * width)
            for j in code.loop(d):
                scratch[Lane(j * width, width)] = (x + (base + offsets[j]) * columns)[lane]
            for i in code.loop(d, 0, 4):
                sums = code.zeros(4, width)
                for j in code.loop(d, 0, 4):
                    a = [scratch[Lane((j + m) * width, width)] for m in range(4)]
                    for n, total in enumerate(sums):
                        row = g + ((i + n) * d + j)
                        total.set(total.get() + code.dot(*((row[m], a[m]) for m in range(4))))
                for n, total in enumerate(sums):
                    (x + (base + offsets[i + n]) * columns)[lane] = total.get()


def _move(code: Code, columns: Value, count: Value, x: Pointer, y: Pointer, source: Pointer, sign: Pointer) -> None:
    """y[i] = sign[i] · x[source[i]]: a signed permutation of all rows."""
    for i in code.loop(count):
        s, from_row, to_row = sign[i], x + source[i] * columns, y + i * columns
        for lane in code.columns(columns):
            to_row[lane] = s * from_row[lane]


def _copy(code: Code, columns: Value, count: Value, x: Pointer, y: Pointer) -> None:
    """So many rows of y ← x."""
    for lane in code.columns(count * columns):
        y[lane] = x[lane]


def _outer_shared(code: Code, columns: Value, *given: Any) -> None:
    """s[i, j] = Σ over groups and columns of adjoint[row i] · x[row j]: the derivative by g of g x."""
    *numbers, adjoint, x, s = given
    groups = _Groups(code, columns, *numbers)
    for half in (0, 2):  # of s: as much as there are registers for
        sums = {width: code.zeros(8, width) for width in code.widths}
        for xs, ls in groups.long(x, adjoint):
            for lane in code.columns(groups.run * columns):
                a, c = [row[lane] for row in xs], [row[lane] for row in ls[half : half + 2]]
                for at, total in enumerate(sums[lane.width]):
                    total.add(c[at // 4], a[at % 4])
        for at in range(8):
            s[4 * half + at] = code.total([sums[width][at].get() for width in code.widths])


def _outer_own(code: Code, columns: Value, *given: Any) -> None:
    """As `_outer_shared`, column by column: s [4, 4, B]."""
    *numbers, adjoint, x, s = given
    groups = _Groups(code, columns, *numbers)
    for lane in code.columns(columns):
        for half in (0, 2):
            sums = code.zeros(8, lane.width)
            for xs, ls in groups.single(x, adjoint):
                a, c = [row[lane] for row in xs], [row[lane] for row in ls[half : half + 2]]
                for at, total in enumerate(sums):
                    total.add(c[at // 4], a[at % 4])
            for at, total in enumerate(sums):
                (s + columns * (4 * half + at))[lane] = total.get()


def _turn(sums: Sequence[Variable], a: Sequence[Value], c: Sequence[Value]) -> None:
    """Add a group's part of the derivatives by h₁, h₂, h₃ of i·(h₁X + h₂Y + h₃Z): c adjoint, a the rows."""
    by_x, by_y, by_z = sums
    for total, pairs in (
        (by_x, ((2, 1), (3, 0), (0, 3), (1, 2))),
        (by_y, ((0, 1), (2, 3), (1, 0), (3, 2))),
        (by_z, ((2, 0), (1, 3), (0, 2), (3, 1))),
    ):
        for number, (i, j) in enumerate(pairs):
            total.add(c[i] if number < 2 else -c[i], a[j])


def _along(by: Sequence[Value], g: Sequence[Sequence[Value]]) -> list[Value]:
    """Such s [4, 4] that Σ s·dg is the derivative along dg = i·(h₁X + h₂Y + h₃Z) g, from those by h₁, h₂, h₃."""
    u, v, w = (one * 0.25 for one in by)
    return [
        *(v * g[1][j] - u * g[3][j] - w * g[2][j] for j in range(4)),
        *(w * g[3][j] - u * g[2][j] - v * g[0][j] for j in range(4)),
        *(v * g[3][j] + u * g[1][j] + w * g[0][j] for j in range(4)),
        *(u * g[0][j] - v * g[2][j] - w * g[1][j] for j in range(4)),
    ]


def _turn_shared(code: Code, columns: Value, *given: Any) -> None:
    """Take a unitary g back from x and from the adjoint, in place, on states, and fill s with a derivative by g.

    dg·g† of a unitary g of one qubit without a phase is i·(h₁X + h₂Y + h₃Z), so three numbers say all about the
    derivatives by its angles: those by h. They do not change when other qubits are taken back as well.
    """
    *numbers, adjoint, x, g, s = given
    groups, matrix = _Groups(code, columns, *numbers), _square(g)
    sums = {width: code.zeros(3, width) for width in code.widths}
    for xs, ls in groups.long(x, adjoint):
        for lane in code.columns(groups.run * columns):
            a, c = [row[lane] for row in xs], [row[lane] for row in ls]
            _turn(sums[lane.width], a, c)
            for rows, values in ((xs, a), (ls, c)):
                for row, value in zip(rows, _times(code, matrix, values, True), strict=True):
                    row[lane] = value
    totals = [code.total([sums[width][at].get() for width in code.widths]) for at in range(3)]
    for at, value in enumerate(_along(totals, matrix)):
        s[at] = value


def _turn_own(code: Code, columns: Value, *given: Any) -> None:
    """As `_turn_shared`, column by column: g and s [4, 4, B]."""
    *numbers, adjoint, x, g, s = given
    groups = _Groups(code, columns, *numbers)
    for lane in code.columns(columns):
        sums = code.zeros(3, lane.width)
        for xs, ls in groups.single(x, adjoint):
            a, c = [row[lane] for row in xs], [row[lane] for row in ls]
            _turn(sums, a, c)
            for rows, values in ((xs, a), (ls, c)):
                made = _times(code, _square_of(g, columns, lane), values, True)
                for row, value in zip(rows, made, strict=True):
                    row[lane] = value
        for at, value in enumerate(_along([total.get() for total in sums], _square_of(g, columns, lane))):
            (s + columns * at)[lane] = value


STEPS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "apply_shared": (_apply_shared(False), (*_Groups.arguments, "real", "real", "real")),
    "apply_shared_back": (_apply_shared(True), (*_Groups.arguments, "real", "real", "real")),
    "apply_own": (_apply_own(False), (*_Groups.arguments, "real", "real", "real")),
    "apply_own_back": (_apply_own(True), (*_Groups.arguments, "real", "real", "real")),
    "map": (_map, ("n", "n", "n", "n", "real", "int", "int", "real")),
    "move": (_move, ("n", "n", "real", "real", "int", "real")),
    "copy": (_copy, ("n", "n", "real", "real")),
    "outer_shared": (_outer_shared, (*_Groups.arguments, "real", "real", "real")),
    "outer_own": (_outer_own, (*_Groups.arguments, "real", "real", "real")),
    "turn_shared": (_turn_shared, (*_Groups.arguments, "real", "real", "real", "real")),
    "turn_own": (_turn_own, (*_Groups.arguments, "real", "real", "real", "real")),
}


# -- all steps of a sequence -------------------------------------------------------------------------------------------


class _Sequence:
    """What the functions below are given of a sequence of steps, and single steps of it."""

    arguments = ("n",) * 4 + ("int", "int", "int", "int", "real", "int", "int", "real", "int", "int", "real", "real")

    def __init__(
        self, code: Code, columns: Value, rows: Value, groups: Value, steps: Value, tape: Pointer, bases: Pointer,
        offsets: Pointer, moves: Pointer, signs: Pointer, maps: Pointer, indices: Pointer, matrices: Pointer,
        last_shared: Pointer, last_own: Pointer, shared: Pointer, own: Pointer,
    ) -> None:  # fmt: skip
        self.code, self.columns, self.rows, self.groups, self.steps = code, columns, rows, groups, steps
        self.tape, self.bases, self.offsets, self.shared, self.own = tape, bases, offsets, shared, own
        self.last_shared, self.last_own = last_shared, last_own
        self.moves, self.signs, self.maps, self.indices, self.matrices = moves, signs, maps, indices, matrices

    def block(
        self, name: str, own: bool, at: Value, q: Value, x: Pointer, y: Pointer, by: Pointer | None = None,
        *, back: bool = False,
    ) -> None:  # fmt: skip
        """A step with the matrix of block `at` on qubit q, or its transpose; `by`: derivatives by all of them."""
        code, size = self.code, self.columns * 16 if own else self.code.number(16)
        offsets = self.offsets + q * 4
        run, far = offsets[1], offsets[2]
        where = (self.columns, self.groups // run, run, run, far, self.bases + q * self.groups)
        matrix = self.own + self.last_own[at] * size if own else self.shared + self.last_shared[at] * size
        last = [] if by is None else [by + at * size]
        if name != "outer":
            last = [matrix, *last]
        code.call(f"{name}_{'own' if own else 'shared'}{'_back' * back}", *where, x, y, *last)

    def move(self, at: Value, x: Pointer, y: Pointer) -> None:
        """Set y to the permutation number `at` of x."""
        self.code.call("move", self.columns, self.rows, x, y, self.moves + at * self.rows, self.signs + at * self.rows)

    def map(self, at: Value, x: Pointer) -> None:
        """Set x to the map number `at` of it."""
        first_base, groups, first_offset, d, matrix, run = (self.maps[at * 6 + k] for k in range(6))
        places = self.indices + first_base, self.indices + first_offset
        self.code.call("map", self.columns, groups // run, d, run, x, *places, self.matrices + matrix)


# What kernels are given of a sequence but columns and matrices: `GateSequence.constants`, after the number of rows
SEQUENCE = _Sequence.arguments[1:-2]


class _Swapped:
    """Arrays of rows that take turns."""

    def __init__(self, code: Code, *arrays: Pointer) -> None:
        self.code = code
        self.places = [Variable(code, code.address(array)) for array in arrays]
        self.numbers = [Variable(code, code.number(k)) for k in range(len(arrays))]

    def __getitem__(self, k: int) -> Pointer:
        return self.code.pointer(self.places[k].get())

    def swap(self, i: int, j: int) -> None:
        """Exchange two of them."""
        for kept in (self.places, self.numbers):
            one, other = kept[i].get(), kept[j].get()
            kept[i].set(other)
            kept[j].set(one)


def _evolve(code: Code, *given: Any) -> Value:
    *of_sequence, keep, x, spare, copies = given
    steps = _Sequence(code, *of_sequence)
    rows, moment = _Swapped(code, x, spare), Variable(code, code.number(0))
    size = steps.rows * steps.columns
    for t in code.loop(steps.steps):
        kind, at, q = (steps.tape[t * 3 + k] for k in range(3))
        for _ in code.where(keep - 1):
            for _ in code.where(kind - 4):
                code.call("copy", steps.columns, steps.rows, rows[0], copies + moment.get() * size)
                moment.set(moment.get() + 1)

        def move(at: Value = at) -> None:
            steps.move(at, rows[0], rows[1])
            rows.swap(0, 1)

        code.choose(
            kind & 3,
            [
                lambda at=at, q=q: steps.block("apply", False, at, q, rows[0], rows[0]),  # type: ignore[misc]
                lambda at=at, q=q: steps.block("apply", True, at, q, rows[0], rows[0]),  # type: ignore[misc]
                move,
                lambda at=at: steps.map(at, rows[0]),  # type: ignore[misc]
            ],
        )  # fmt: skip
    return rows.numbers[0].get()


def _pull_unitary(code: Code, *given: Any) -> Value:
    *of_sequence, by_shared, by_own, adjoint, x, spare = given
    steps = _Sequence(code, *of_sequence)
    rows = _Swapped(code, adjoint, x, spare)
    for t in code.loop(code.number(-1), steps.steps - 1, -1):
        kind, at, q = (steps.tape[t * 3 + k] for k in range(3))

        def move(at: Value = at) -> None:
            for k in (0, 1):
                steps.move(at, rows[k], rows[2])
                rows.swap(k, 2)

        def multiply(at: Value = at) -> None:
            for k in (0, 1):
                steps.map(at, rows[k])

        code.choose(
            kind & 3,
            [
                lambda at=at, q=q: steps.block("turn", False, at, q, rows[0], rows[1], by_shared),  # type: ignore[misc]
                lambda at=at, q=q: steps.block("turn", True, at, q, rows[0], rows[1], by_own),  # type: ignore[misc]
                move,
                multiply,
            ],
        )  # fmt: skip
    return rows.numbers[0].get()


def _pull(code: Code, *given: Any) -> Value:
    *of_sequence, by_shared, by_own, moments, adjoint, spare, copies, befores = given
    steps = _Sequence(code, *of_sequence)
    tape, size = steps.tape, steps.rows * steps.columns
    rows, moment = _Swapped(code, adjoint, spare), Variable(code, moments)
    last, first = Variable(code, steps.steps - 1), Variable(code, code.number(0))
    before = Variable(code, code.number(0))  # address of the rows before a block

    def blocks(own: bool) -> None:
        moment.set(moment.get() - 1)
        kept = copies + moment.get() * size
        for _ in code.whilst(lambda: 3 - tape[first.get() * 3]):
            first.set(first.get() - 1)
        begin, end = first.get(), last.get()
        before.set(code.address(kept))
        for t in code.loop(end, begin):
            following = befores + (t - begin) * size
            steps.block("apply", own, tape[t * 3 + 1], tape[t * 3 + 2], code.pointer(before.get()), following)
            before.set(code.address(following))
        for t in code.loop(begin - 1, end, -1):
            before.set(code.address(kept))
            for _ in code.where(t - begin - 1):
                before.set(code.address(befores + (t - begin - 1) * size))
            at, q = tape[t * 3 + 1], tape[t * 3 + 2]
            by = by_own if own else by_shared
            steps.block("outer", own, at, q, rows[0], code.pointer(before.get()), by)
            steps.block("apply", own, at, q, rows[0], rows[0], back=True)

    def move() -> None:
        steps.move(tape[last.get() * 3 + 1], rows[0], rows[1])
        rows.swap(0, 1)

    for _ in code.whilst(last.get):
        first.set(last.get())
        code.choose(
            tape[last.get() * 3] & 3,
            [
                lambda: blocks(False),
                lambda: blocks(True),
                move,
                lambda: steps.map(tape[last.get() * 3 + 1], rows[0]),
            ],
        )  # fmt: skip
        last.set(first.get() - 1)
    return rows.numbers[0].get()


# -- matrices of fused blocks ------------------------------------------------------------------------------------------


def _turns(code: Code, c: Value, s: Value, g: Value, h: Value) -> tuple[Value, Value, Value, Value]:
    """Cosines and sines of the two turns of a rotation."""
    less = c - 1.0
    return g * g * less + 1.0, g * s, h * h * less + 1.0, h * s


def _build_blocks(
    code: Code, columns: Value, blocks: Value, first: Pointer, rotation: Pointer, fixed: Pointer, sign: Pointer,
    row: Pointer, cos: Pointer, sin: Pointer, steps: Pointer,
) -> None:  # fmt: skip
    g, h = sign[0], sign[1]
    for r in code.loop(blocks):
        begin, end = first[r], first[r + 1]
        start = begin + r
        f, y = fixed + start * 16, steps + start * 16 * columns
        for at in code.loop(16):
            for lane in code.columns(columns):
                (y + at * columns)[lane] = code.spread(f[at], lane.width)
        for t in code.loop(end, begin):
            c_row, s_row = cos + rotation[t] * columns, sin + rotation[t] * columns
            f, x, y = (fixed + (t + r + 1) * 16, steps + (t + r) * 16 * columns, steps + (t + r + 1) * 16 * columns)
            for lane in code.columns(columns):
                c0, s0, c1, s1 = _turns(code, c_row[lane], s_row[lane], g, h)
                for k in code.loop(4):
                    x0, x1, x2, x3 = ((x + (4 * i + k) * columns)[lane] for i in range(4))
                    t0, t2 = code.dot((s0, x2), (c0, x0)), code.fused(c0, x2, -(s0 * x0))
                    t1, t3 = code.dot((c1, x1), (s1, x3)), code.fused(c1, x3, -(s1 * x1))
                    for i in range(4):
                        row = f + 4 * i
                        total = code.dot((row[2], t2), (row[0], t0), (row[1], t1), (row[3], t3))
                        (y + (4 * i + k) * columns)[lane] = total


def _block_slopes(
    code: Code, columns: Value, blocks: Value, first: Pointer, rotation: Pointer, fixed: Pointer, sign: Pointer,
    row: Pointer, cos: Pointer, sin: Pointer, steps: Pointer, s: Pointer, slopes: Pointer,
) -> None:  # fmt: skip
    g, h, rate = sign[0], sign[1], sign[2]
    for r in code.loop(blocks):
        begin, end = first[r], first[r + 1]
        adjoint = s + r * 16 * columns
        for t in code.loop(begin - 1, end - 1, -1):
            c_row, s_row = cos + rotation[t] * columns, sin + rotation[t] * columns
            slope = slopes + row[t] * columns
            f, x = fixed + (t + r + 1) * 16, steps + (t + r) * 16 * columns
            for lane in code.columns(columns):
                c0, s0, c1, s1 = _turns(code, c_row[lane], s_row[lane], g, h)
                (total,) = code.zeros(1, lane.width)
                for k in code.loop(4):
                    rows = [adjoint + (4 * i + k) * columns for i in range(4)]
                    a = [each[lane] for each in rows]
                    e0, e1, e2, e3 = (code.dot(*((f[4 * m + i], a[m]) for m in range(4))) for i in range(4))
                    x0, x1, x2, x3 = ((x + (4 * i + k) * columns)[lane] for i in range(4))
                    u0, u2 = code.fused(c0, x2, -(s0 * x0)), code.dot((s0, x2), (c0, x0))
                    u1, u3 = code.fused(c1, x3, -(s1 * x1)), code.dot((s1, x3), (c1, x1))
                    total.add(g, code.fused(e0, u0, -(e2 * u2)))
                    total.add(h, code.fused(e1, u1, -(e3 * u3)))
                    rows[0][lane], rows[2][lane] = code.fused(c0, e0, -(s0 * e2)), code.dot((s0, e0), (c0, e2))
                    rows[1][lane], rows[3][lane] = code.fused(c1, e1, -(s1 * e3)), code.dot((s1, e1), (c1, e3))
                slope[lane] = slope[lane] + rate * total.get()


# -- Paulis carried through a circuit (`pauli_frames`) -----------------------------------------------------------------


def _carry_frames(
    code: Code, columns: Value, n: Value, steps: Value, bits: Pointer, tape: Pointer, first: Pointer, column: Pointer,
    number: Pointer, signs: Pointer,
) -> None:  # fmt: skip
    place = Variable(code, code.number(0))
    for step in code.loop(steps):
        kind, a, b = (tape[step * 3 + k] for k in range(3))

        def xor(a: Value = a, b: Value = b) -> None:
            for lane in code.columns(columns):
                (bits + a * columns)[lane] = (bits + a * columns)[lane] ^ (bits + b * columns)[lane]

        def sign(a: Value = a, b: Value = b) -> None:
            for lane in code.columns(columns):
                (signs + b * columns)[lane] = 1.0 - 2.0 * code.real_of((bits + a * columns)[lane])

        def flip(row: Value, c: Value, bit: Value) -> None:
            bits[row * columns + c] = bits[row * columns + c] ^ (bit & 1)

        def errors(a: Value = a, b: Value = b) -> None:
            at = place.get()
            for event in code.loop(first[at + 1], first[at]):
                c, p = column[event], number[event]
                flip(a, c, p)
                flip(n + a, c, p >> 1)
                for _ in code.where(b):
                    flip(b, c, p >> 2)
                    flip(n + b, c, p >> 3)
            place.set(at + 1)

        code.choose(kind, [xor, sign, errors])


def _apply_frames(
    code: Code, columns: Value, size: Value, back: Value, x: Pointer, y: Pointer, flips: Pointer, phases: Pointer
) -> None:
    for i in code.loop(size):
        for c in code.loop(columns):
            turned = flips[c]
            j = i ^ turned
            odd = code.odd(phases[c] & (i ^ (turned * back)))
            sign = 1.0 - 2.0 * code.real_of(odd)
            y[i * columns + c] = sign * x[j * columns + c]
            y[(size + i) * columns + c] = sign * x[(size + j) * columns + c]


_TABLE = ("n", "n", "int", "int", "real", "real")
KERNELS: dict[str, Definition] = {  # and those of other files, which add theirs
    **STEPS,
    "evolve": (_evolve, [*_Sequence.arguments, "n", "real", "real", "real"]),
    "pull_unitary": (_pull_unitary, [*_Sequence.arguments, *["real"] * 5]),
    "pull": (_pull, [*_Sequence.arguments, "real", "real", "n", *["real"] * 4]),
    "build_blocks": (_build_blocks, [*_TABLE, "int", "real", "real", "real"]),
    "block_slopes": (_block_slopes, [*_TABLE, "int", *["real"] * 5]),
    "carry_frames": (_carry_frames, ["n"] * 3 + ["byte", "int", "int", "int", "int", "real"]),
    "apply_frames": (_apply_frames, ["n"] * 3 + ["real", "real", "int", "int"]),
}


@cache
def compiled(dtype: Precision) -> Library:
    """The kernels of a precision by name, each compiled at its first call. They take whole numbers and addresses."""
    real = "float" if dtype is np.float32 else "double"
    return Library(real, KERNELS, _WIDTHS[real])


class Constants:
    """Arrays that kernels are given again and again: contiguous, and never changed. Copies share them."""

    def __init__(self, *arrays: Array) -> None:
        self.arrays = tuple(np.ascontiguousarray(array) for array in arrays)
        self.addresses = [_address(array) for array in self.arrays]

    def __deepcopy__(self, memo: dict) -> Constants:
        return self

    def __reduce__(self) -> tuple:
        return Constants, self.arrays


def _address(array: Array) -> int:
    if not array.size:
        return 0
    assert array.flags.c_contiguous
    if array.flags.writeable:
        return ctypes.addressof(_BYTE.from_buffer(array))  # type: ignore[arg-type]  # faster than array.ctypes
    return int(array.ctypes.data)


_BYTE = ctypes.c_char


class Steps:
    """All steps of a sequence as the kernels take them.

    Args:
        code: int64 [steps, 3]: (SHARED or OWN, block, qubit), (MOVE, permutation, –), (MAP, map, –); a step of blocks
            that begins a moment has 4 added to its kind.
        bases: int64 [n, groups] first row of every group of four rows that a gate on that qubit acts on.
        offsets: int64 [n, 4] from there to the rows of the group.
        moves: int64 [permutations, D] sources.
        signs: [permutations, D] signs.
        maps: int64 [maps, 6] where in `indices` the bases begin, how many, where the offsets begin, how many, where in
            `matrices` the matrix begins, and how many bases follow one another.
        indices: int64: bases and offsets of maps, one behind the other.
        matrices: matrices of maps, one behind the other.
        last_shared: int64: where the finished matrix of every block with shared angles is (`Table`).
        last_own: int64: the same of blocks with angles of every column.
    """

    def __init__(self, code: Array, bases: Array, *others: Array) -> None:
        self.sizes = bases.shape[1], len(code)
        self.constants = Constants(code, bases, *others)

    def evolve(self, x: Array, spare: Array, shared: Array, own: Array, copies: Array) -> int:
        """In time order on rows x [D, B], overwritten.

        Args:
            x: rows.
            spare: like x.
            shared: [·, 4, 4, 1] from `Table.build`.
            own: [·, 4, 4, B] from `Table.build`.
            copies: [moments, D, B], filled with the rows before each moment of blocks; or empty.

        Returns:
            0 or 1: the result is in x or spare.
        """
        return self._run("evolve", x, (shared, own), len(copies), x, spare, copies)

    def pull_unitary(
        self, adjoint: Array, x: Array, spare: Array, shared: Array, own: Array, by_shared: Array, by_own: Array
    ) -> int:
        """Back, where all steps are unitary on states and permutations and maps are the inverse ones.

        Args:
            adjoint: [D, B] derivatives by the result, overwritten.
            x: [D, B] the result, overwritten.
            spare: like x.
            shared: see `evolve`.
            own: see `evolve`.
            by_shared: [blocks, 4, 4, 1], filled: derivatives by the matrices.
            by_own: [blocks, 4, 4, B], filled.

        Returns:
            0, 1 or 2: the derivatives by the start are in adjoint, x or spare.
        """
        return self._run("pull_unitary", x, (shared, own, by_shared, by_own), adjoint, x, spare)

    def pull(
        self, adjoint: Array, spare: Array, copies: Array, befores: Array, shared: Array, own: Array, by_shared: Array,
        by_own: Array,
    ) -> int:  # fmt: skip
        """As `pull_unitary` for any steps, with the rows that `evolve` has left in `copies`.

        Within a moment the blocks before one are done again: a derivative by a matrix needs the rows just before it.

        Args:
            adjoint: [D, B] derivatives by the result, overwritten.
            spare: like it.
            copies: from `evolve`.
            befores: [most blocks in a moment − 1, D, B] scratch.
            shared: see `pull_unitary`.
            own: see there.
            by_shared: see there.
            by_own: see there.

        Returns:
            0 or 1: the derivatives by the start are in adjoint or spare.
        """
        matrices = shared, own, by_shared, by_own
        return self._run("pull", adjoint, matrices, len(copies), adjoint, spare, copies, befores)

    def _run(self, name: str, x: Array, matrices: tuple[Array, ...], *given: Array | int) -> int:
        rows, columns = x.shape
        return _run(name, x.dtype, columns, rows, *self.sizes, *self.constants.addresses, *matrices, *given)


class Table:
    """Fused blocks F_K · R(θ_K) · F_K−1 · … · R(θ_1) · F_0 as the kernels take them.

    Args:
        first: int64 [blocks + 1]; block r has the rotations first[r] to first[r + 1] − 1.
        rotation: int64: of each rotation its row of cosines and sines.
        fixed: [·, 4, 4]; block r has the matrices first[r] + r to first[r + 1] + r.
        sign: [3]: R turns the coordinates (0, 2) by sign[0] times the angle, (1, 3) by sign[1] times; ±1, or 0 for
            not; and what the angle is, in angles of the circuit.
        row: int64: of each rotation its row of all angles.
    """

    def __init__(self, first: Array, rotation: Array, fixed: Array, sign: Array, row: Array) -> None:
        self.n_blocks = len(first) - 1
        self.constants = Constants(first, rotation, fixed, sign, row)

    def build(self, cos: Array, sin: Array, steps: Array) -> None:
        """Fill steps [len(fixed), 4, 4, B]: steps[first[r] + r + k] = F_k · R(θ_k) · … · F_0, of turns [·, B]."""
        if self.n_blocks:
            _run("build_blocks", steps.dtype, steps.shape[3], self.n_blocks, *self.constants.addresses, cos, sin, steps)

    def slopes(self, cos: Array, sin: Array, steps: Array, s: Array, slopes: Array) -> None:
        """Add to slopes [R, B] the derivatives by angles, from s [blocks, 4, 4, B] by matrices, which is used up."""
        if self.n_blocks:
            turns = cos, sin, steps
            _run(
                "block_slopes", steps.dtype, steps.shape[3], self.n_blocks, *self.constants.addresses, *turns, s, slopes
            )


def _run(name: str, dtype: np.dtype, *given: Array | int) -> int:
    """Call a kernel with whole numbers and arrays."""
    return compiled(dtype.type)[name](*[one if type(one) is int else _address(one) for one in given])  # type: ignore[arg-type]


def carry_frames(bits: Array, code: Array, first: Array, column: Array, number: Array, signs: Array) -> None:
    """Carry Paulis through a circuit (`pauli_frames`): what they do to the signs of angles, and what is left of them.

    Args:
        bits: [2n, C] uint8, zeros, filled: X (row q) and Z (row n + q) on every qubit at the end.
        code: [steps, 3] in time order: (0, a, b): bits[a] ^= bits[b]; (1, q, r): signs[r] is −1 where qubit q holds an
            X; (2, q, p): errors drawn on the qubits q and p (−1: on q alone).
        first: errors number first[k] to first[k + 1] − 1 are drawn at the k-th step of kind 2.
        column: of each error.
        number: its Pauli: bits 0 and 1 an X and a Z on q, bits 2 and 3 on p.
        signs: [R, C], ones, filled.
    """
    given = bits, code, first, column, number, signs
    _run("carry_frames", signs.dtype, bits.shape[1], len(bits) // 2, len(code), *given)


def apply_frames(x: Array, y: Array, flips: Array, phases: Array, back: bool) -> None:
    """State rows x → y, both [2·2^n, C], with a Pauli of its own on every column: y[i] = ±x[i ^ flips].

    Args:
        x: rows.
        y: rows, filled.
        flips: int64 [C], bit q an X on qubit q.
        phases: int64 [C], bit q a Z on qubit q, after the X; with `back` ahead of it, which undoes the other.
        back: see `phases`.
    """
    _run("apply_frames", x.dtype, x.shape[1], len(x) // 2, int(back), x, y, flips, phases)
