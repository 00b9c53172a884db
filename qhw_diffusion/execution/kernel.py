"""The compiled inner loops: small real matrices applied to rows of an array [D, B], and their adjoints.

A state is kept as D = 2·2^n real rows (real parts, then imaginary parts), a density matrix as D = 4^n real rows in a
product basis of Hermitian matrices (`fusion`); the B columns are samples, or observables. A gate on one qubit is then
in both cases a real 4×4 matrix on groups of four rows, so that one set of loops serves both. Columns are contiguous:
the inner loops run over samples and are vectorised.

Numba compiles each function at its first call (seconds in all) and keeps the result on disk; a later process loads it
(`keep_on_disk`).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache


class KernelCacheWarning(UserWarning):
    """Compiled functions could not be kept on disk: every process compiles them anew."""


class _LenientCache(FunctionCache):
    """Numba's own cache of one function; what Numba would raise to the caller ends here."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function; None, after which it is compiled and written anew, for a file that is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # reading damaged files raises errors of many kinds
            with contextlib.suppress(OSError):
                self.flush()  # an empty index in place of the damaged one
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled function; where that fails, this one is not cached, which is told once a process."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, a folder that has gone, an index that was damaged in the meantime
            self.disable()
            _tell(f"in {self.cache_path} ({error})")


_told = False


def _tell(why: str) -> None:
    global _told
    if not _told:
        _told = True
        text = (
            f"compiled functions cannot be kept {why}: every process compiles them anew, which takes some seconds; "
            "NUMBA_CACHE_DIR names another folder for them"
        )
        warnings.warn(text, KernelCacheWarning, stacklevel=3)


def keep_on_disk(function: Any) -> Any:
    """The same function of `numba.njit`, its compiled code kept on disk where a folder can be written to.

    That is the folder of NUMBA_CACHE_DIR, the package's own, or the user's cache folder.
    """
    if not hasattr(function, "py_func"):  # NUMBA_DISABLE_JIT=1: nothing is compiled
        return function
    try:
        if not os.path.isabs(os.path.expanduser("~")) and "NUMBA_CACHE_DIR" not in os.environ:
            raise RuntimeError
        function._cache = _LenientCache(function.py_func)
    except RuntimeError:  # no folder to write to, which is usual in a container: nothing to be told
        pass
    return function


Array = np.ndarray


def _compiled(function: Callable) -> Any:
    # Reassociation lets sums be vectorised; NaN and infinity keep their meaning.
    return keep_on_disk(njit(function, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}))


@_compiled
def apply_shared(x: Array, bases: Array, offsets: Array, places: Array, g: Array) -> None:
    """Matrices on single qubits, the same for every column, in place: x ← g[r] x on the four rows of each place.

    Args:
        x: [D, B] rows.
        bases: [n, groups] first row of every group of rows of a qubit.
        offsets: [n, 4] from there to the four rows of the group.
        places: [r] qubits.
        g: [r, 4, 4] their matrices.
    """
    for r in range(len(places)):
        p = places[r]
        g00, g01, g02, g03 = g[r, 0, 0], g[r, 0, 1], g[r, 0, 2], g[r, 0, 3]
        g10, g11, g12, g13 = g[r, 1, 0], g[r, 1, 1], g[r, 1, 2], g[r, 1, 3]
        g20, g21, g22, g23 = g[r, 2, 0], g[r, 2, 1], g[r, 2, 2], g[r, 2, 3]
        g30, g31, g32, g33 = g[r, 3, 0], g[r, 3, 1], g[r, 3, 2], g[r, 3, 3]
        for k in range(bases.shape[1]):
            base = bases[p, k]
            x0, x1, x2, x3 = (
                x[base + offsets[p, 0]],
                x[base + offsets[p, 1]],
                x[base + offsets[p, 2]],
                x[base + offsets[p, 3]],
            )
            for b in range(x.shape[1]):
                a0, a1, a2, a3 = x0[b], x1[b], x2[b], x3[b]
                x0[b] = g00 * a0 + g01 * a1 + g02 * a2 + g03 * a3
                x1[b] = g10 * a0 + g11 * a1 + g12 * a2 + g13 * a3
                x2[b] = g20 * a0 + g21 * a1 + g22 * a2 + g23 * a3
                x3[b] = g30 * a0 + g31 * a1 + g32 * a2 + g33 * a3


@_compiled
def apply_rows(x: Array, bases: Array, offsets: Array, places: Array, g: Array) -> None:
    """As `apply_shared` with a matrix of its own for every column: g [r, 4, 4, B]."""
    for r in range(len(places)):
        p = places[r]
        m = g[r]
        for k in range(bases.shape[1]):
            base = bases[p, k]
            x0, x1, x2, x3 = (
                x[base + offsets[p, 0]],
                x[base + offsets[p, 1]],
                x[base + offsets[p, 2]],
                x[base + offsets[p, 3]],
            )
            for b in range(x.shape[1]):
                a0, a1, a2, a3 = x0[b], x1[b], x2[b], x3[b]
                x0[b] = m[0, 0, b] * a0 + m[0, 1, b] * a1 + m[0, 2, b] * a2 + m[0, 3, b] * a3
                x1[b] = m[1, 0, b] * a0 + m[1, 1, b] * a1 + m[1, 2, b] * a2 + m[1, 3, b] * a3
                x2[b] = m[2, 0, b] * a0 + m[2, 1, b] * a1 + m[2, 2, b] * a2 + m[2, 3, b] * a3
                x3[b] = m[3, 0, b] * a0 + m[3, 1, b] * a1 + m[3, 2, b] * a2 + m[3, 3, b] * a3


@_compiled
def apply_map(x: Array, bases: Array, offsets: Array, g: Array, rows: Array) -> None:
    """A matrix on several qubits, the same for every column, in place: x ← g x on each group of d rows.

    Blocks of 4×4, so that sixteen coefficients stay in registers while a block of columns passes.

    Args:
        x: [D, B] rows.
        bases: [groups] first row of each group.
        offsets: [d] from there to its rows.
        g: [d, d], d a multiple of 4.
        rows: [d, B] scratch.
    """
    d = len(offsets)
    for k in range(len(bases)):
        base = bases[k]
        for j in range(d):
            from_row, to_row = x[base + offsets[j]], rows[j]
            for b in range(x.shape[1]):
                to_row[b] = from_row[b]
        for i in range(0, d, 4):
            x0, x1, x2, x3 = (
                x[base + offsets[i]],
                x[base + offsets[i + 1]],
                x[base + offsets[i + 2]],
                x[base + offsets[i + 3]],
            )
            for j in range(0, d, 4):
                a0, a1, a2, a3 = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
                g00, g01, g02, g03 = g[i, j], g[i, j + 1], g[i, j + 2], g[i, j + 3]
                g10, g11, g12, g13 = g[i + 1, j], g[i + 1, j + 1], g[i + 1, j + 2], g[i + 1, j + 3]
                g20, g21, g22, g23 = g[i + 2, j], g[i + 2, j + 1], g[i + 2, j + 2], g[i + 2, j + 3]
                g30, g31, g32, g33 = g[i + 3, j], g[i + 3, j + 1], g[i + 3, j + 2], g[i + 3, j + 3]
                kept = x.dtype.type(min(j, 1))  # 0 in the first block of columns: overwrite; then 1: add
                for b in range(x.shape[1]):
                    c0, c1, c2, c3 = a0[b], a1[b], a2[b], a3[b]
                    x0[b] = kept * x0[b] + (g00 * c0 + g01 * c1 + g02 * c2 + g03 * c3)
                    x1[b] = kept * x1[b] + (g10 * c0 + g11 * c1 + g12 * c2 + g13 * c3)
                    x2[b] = kept * x2[b] + (g20 * c0 + g21 * c1 + g22 * c2 + g23 * c3)
                    x3[b] = kept * x3[b] + (g30 * c0 + g31 * c1 + g32 * c2 + g33 * c3)


@_compiled
def move_rows(x: Array, y: Array, source: Array, sign: Array) -> None:
    """y[i] = sign[i] · x[source[i]]: a signed permutation of all rows."""
    for i in range(len(source)):
        s = sign[i]
        from_row, to_row = x[source[i]], y[i]
        for b in range(x.shape[1]):
            to_row[b] = s * from_row[b]


@_compiled
def outer_shared(adjoint: Array, x: Array, bases: Array, offsets: Array, places: Array, s: Array) -> None:
    """s[r, i, j] = Σ over groups and columns of adjoint[row i] · x[row j]: the derivative by g[r] of `apply_shared`."""
    for r in range(len(places)):
        p = places[r]
        zero = x.dtype.type(0)
        s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
        s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
        for k in range(bases.shape[1]):
            o0, o1, o2, o3 = (
                bases[p, k] + offsets[p, 0],
                bases[p, k] + offsets[p, 1],
                bases[p, k] + offsets[p, 2],
                bases[p, k] + offsets[p, 3],
            )
            x0, x1, x2, x3 = x[o0], x[o1], x[o2], x[o3]
            l0, l1, l2, l3 = adjoint[o0], adjoint[o1], adjoint[o2], adjoint[o3]
            for b in range(x.shape[1]):
                a0, a1, a2, a3 = x0[b], x1[b], x2[b], x3[b]
                c0, c1, c2, c3 = l0[b], l1[b], l2[b], l3[b]
                s00 += c0 * a0
                s01 += c0 * a1
                s02 += c0 * a2
                s03 += c0 * a3
                s10 += c1 * a0
                s11 += c1 * a1
                s12 += c1 * a2
                s13 += c1 * a3
                s20 += c2 * a0
                s21 += c2 * a1
                s22 += c2 * a2
                s23 += c2 * a3
                s30 += c3 * a0
                s31 += c3 * a1
                s32 += c3 * a2
                s33 += c3 * a3
        s[r, 0, 0], s[r, 0, 1], s[r, 0, 2], s[r, 0, 3] = s00, s01, s02, s03
        s[r, 1, 0], s[r, 1, 1], s[r, 1, 2], s[r, 1, 3] = s10, s11, s12, s13
        s[r, 2, 0], s[r, 2, 1], s[r, 2, 2], s[r, 2, 3] = s20, s21, s22, s23
        s[r, 3, 0], s[r, 3, 1], s[r, 3, 2], s[r, 3, 3] = s30, s31, s32, s33


@_compiled
def outer_rows(adjoint: Array, x: Array, bases: Array, offsets: Array, places: Array, s: Array) -> None:
    """As `outer_shared`, column by column: s [r, 4, 4, B]."""
    s[:] = 0
    for r in range(len(places)):
        p = places[r]
        for i in range(4):
            s0, s1, s2, s3 = s[r, i, 0], s[r, i, 1], s[r, i, 2], s[r, i, 3]
            for k in range(bases.shape[1]):
                base = bases[p, k]
                x0, x1, x2, x3 = (
                    x[base + offsets[p, 0]],
                    x[base + offsets[p, 1]],
                    x[base + offsets[p, 2]],
                    x[base + offsets[p, 3]],
                )
                row = adjoint[base + offsets[p, i]]
                for b in range(x.shape[1]):
                    c = row[b]
                    s0[b] += c * x0[b]
                    s1[b] += c * x1[b]
                    s2[b] += c * x2[b]
                    s3[b] += c * x3[b]


@_compiled
def build_blocks(
    first: Array, rotation: Array, fixed: Array, cos: Array, sin: Array, sign: Array, steps: Array
) -> None:
    """The matrices of fused blocks F_K · R(θ_K) · F_K−1 · … · R(θ_1) · F_0, and of all their beginnings.

    Args:
        first: [blocks + 1]; block r has the rotations first[r] to first[r + 1] − 1.
        rotation: of each rotation its row of `cos` and `sin`.
        fixed: [·, 4, 4]; block r has the matrices first[r] + r to first[r + 1] + r.
        cos: [rotations, columns] cosine of the angle by which R turns.
        sin: [rotations, columns] sine of it.
        sign: [2]: R turns the coordinates (0, 2) by sign[0] times the angle, (1, 3) by sign[1] times; ±1, or 0 for not.
        steps: [len(fixed), 4, 4, columns], filled: steps[first[r] + r + k] = F_k · R(θ_k) · … · F_0.
    """
    columns = cos.shape[1]
    one = cos.dtype.type(1)
    g, h = sign[0], sign[1]
    for r in range(len(first) - 1):
        for k in range(4):
            for i in range(4):
                for b in range(columns):
                    steps[first[r] + r, i, k, b] = fixed[first[r] + r, i, k]
            for t in range(first[r], first[r + 1]):
                c, s, f = cos[rotation[t]], sin[rotation[t]], fixed[t + r + 1]
                x0, x1, x2, x3 = steps[t + r, 0, k], steps[t + r, 1, k], steps[t + r, 2, k], steps[t + r, 3, k]
                for i in range(4):
                    y, f0, f1, f2, f3 = steps[t + r + 1, i, k], f[i, 0], f[i, 1], f[i, 2], f[i, 3]
                    for b in range(columns):
                        c0, s0 = one + g * g * (c[b] - one), g * s[b]
                        c1, s1 = one + h * h * (c[b] - one), h * s[b]
                        y[b] = (
                            f0 * (c0 * x0[b] + s0 * x2[b])
                            + f2 * (c0 * x2[b] - s0 * x0[b])
                            + f1 * (c1 * x1[b] + s1 * x3[b])
                            + f3 * (c1 * x3[b] - s1 * x1[b])
                        )


@_compiled
def block_slopes(
    first: Array, rotation: Array, fixed: Array, cos: Array, sin: Array, sign: Array, steps: Array, s: Array,
    slopes: Array,
) -> None:  # fmt: skip
    """Derivatives by the angles of blocks: s [blocks, 4, 4, columns] by their matrices → slopes [rotations, columns].

    By the angle of which `cos` and `sin` are; the rest as in `build_blocks`. `s` is used up, `slopes` is added to.
    """
    columns = cos.shape[1]
    one = cos.dtype.type(1)
    g, h = sign[0], sign[1]
    for r in range(len(first) - 1):
        for t in range(first[r + 1] - 1, first[r] - 1, -1):
            c, d, f, slope = cos[rotation[t]], sin[rotation[t]], fixed[t + r + 1], slopes[rotation[t]]
            for k in range(4):
                x0, x1, x2, x3 = steps[t + r, 0, k], steps[t + r, 1, k], steps[t + r, 2, k], steps[t + r, 3, k]
                l0, l1, l2, l3 = s[r, 0, k], s[r, 1, k], s[r, 2, k], s[r, 3, k]
                for b in range(columns):
                    a0, a1, a2, a3 = l0[b], l1[b], l2[b], l3[b]
                    e0 = f[0, 0] * a0 + f[1, 0] * a1 + f[2, 0] * a2 + f[3, 0] * a3
                    e1 = f[0, 1] * a0 + f[1, 1] * a1 + f[2, 1] * a2 + f[3, 1] * a3
                    e2 = f[0, 2] * a0 + f[1, 2] * a1 + f[2, 2] * a2 + f[3, 2] * a3
                    e3 = f[0, 3] * a0 + f[1, 3] * a1 + f[2, 3] * a2 + f[3, 3] * a3
                    c0, s0 = one + g * g * (c[b] - one), g * d[b]
                    c1, s1 = one + h * h * (c[b] - one), h * d[b]
                    slope[b] += g * (e0 * (c0 * x2[b] - s0 * x0[b]) - e2 * (c0 * x0[b] + s0 * x2[b]))
                    slope[b] += h * (e1 * (c1 * x3[b] - s1 * x1[b]) - e3 * (c1 * x1[b] + s1 * x3[b]))
                    l0[b], l2[b] = c0 * e0 - s0 * e2, c0 * e2 + s0 * e0
                    l1[b], l3[b] = c1 * e1 - s1 * e3, c1 * e3 + s1 * e1


@_compiled
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
    n, place = len(bits) // 2, 0
    for step in range(len(code)):
        kind, a, b = code[step, 0], code[step, 1], code[step, 2]
        if kind == 0:
            to_row, from_row = bits[a], bits[b]
            for c in range(bits.shape[1]):
                to_row[c] ^= from_row[c]
        elif kind == 1:
            row, sign = bits[a], signs[b]
            for c in range(bits.shape[1]):
                sign[c] = 1 - 2 * np.int64(row[c])
        else:
            for event in range(first[place], first[place + 1]):
                c, p = column[event], number[event]
                bits[a, c] ^= np.uint8(p & 1)
                bits[n + a, c] ^= np.uint8(p >> 1 & 1)
                if b >= 0:
                    bits[b, c] ^= np.uint8(p >> 2 & 1)
                    bits[n + b, c] ^= np.uint8(p >> 3 & 1)
            place += 1


@_compiled
def apply_frames(x: Array, y: Array, flips: Array, phases: Array, back: bool) -> None:
    """State rows x → y, both [2·2^n, C], with a Pauli of its own on every column: y[i] = ±x[i ^ flips].

    Args:
        x: rows.
        y: rows, filled.
        flips: int64 [C], bit q an X on qubit q.
        phases: int64 [C], bit q a Z on qubit q, after the X; with `back` ahead of it, which undoes the other.
        back: see `phases`.
    """
    size = len(x) // 2
    for i in range(size):
        for c in range(x.shape[1]):
            j = i ^ flips[c]
            parity = phases[c] & (j if back else i)
            parity ^= parity >> 16
            parity ^= parity >> 8
            parity ^= parity >> 4
            parity ^= parity >> 2
            parity ^= parity >> 1
            sign = x.dtype.type(1 - 2 * (parity & 1))
            y[i, c] = sign * x[j, c]
            y[size + i, c] = sign * x[size + j, c]
