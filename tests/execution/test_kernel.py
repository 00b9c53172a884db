"""The compiled loops against plain NumPy, for numbers of columns that fill vectors and that do not; no files."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import warnings

import numpy as np
import pytest

from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.kernel import MAP, MOVE, OWN, SHARED, Constants, Steps, Table

RNG = np.random.default_rng(0)
COLUMNS = (1, 3, 4, 8, 13, 21)
N = 3  # qubits
STRIDES = {"state": 2, "density": 4}


def real(*shape: int, dtype: type = np.float64) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def places(basis: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Rows, and of every qubit the first rows of its groups [n, groups] and the offsets of their four rows [n, 4]."""
    size = 2 ** (N + 1) if basis == "state" else 4**N
    offsets = [[0, 2**q, 2**N, 2**N + 2**q] if basis == "state" else [k * 4**q for k in range(4)] for q in range(N)]
    bases = []
    for q in range(N):
        index = np.arange(size)
        free = index // STRIDES[basis] ** q % STRIDES[basis] == 0
        bases.append(index[free & (index < 2**N) if basis == "state" else free])
    return size, np.array(bases), np.array(offsets)


def on_qubit(x: np.ndarray, g: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """g [4, 4] or [4, 4, B] on the groups of a qubit."""
    result, at = x.copy(), rows[:, None] + offsets
    result[at] = np.einsum("ijb,kjb->kib", np.broadcast_to(g.reshape(4, 4, -1), (4, 4, x.shape[1])), x[at])
    return result


def steps_of(basis: str, dtype: type, *, back: bool = False) -> tuple[Steps, np.ndarray, np.ndarray, np.ndarray]:
    """Two moments, a permutation and a map on the qubits 2 and 0; the permutation and the matrix of the map."""
    size, bases, offsets = places(basis)
    rng = np.random.default_rng(1)
    source, sign, d = rng.permutation(size), rng.choice([-1.0, 1.0], size), 8 if basis == "state" else 16
    g = np.linalg.qr(rng.normal(size=(d, d)))[0]
    axes = [4, 1, 2**N] if basis == "state" else [16, 1]  # strides of qubit 2, of qubit 0, of the imaginary part
    digits = [2, 2, 2] if basis == "state" else [4, 4]
    pair = np.zeros(1, np.int64)
    for stride, digit in zip(axes, digits, strict=True):
        pair = (pair[None] + stride * np.arange(digit)[:, None]).reshape(-1)
    starts = np.array([k for k in range(size) if all(k // s % b == 0 for s, b in zip(axes, digits, strict=True))])
    code = [(SHARED + 4, 0, 1), (SHARED, 1, 0), (MOVE, 0, 0), (OWN + 4, 0, 2), (MAP, 0, 0), (SHARED + 4, 2, 2)]
    maps = np.array([[0, len(starts), len(starts), d, 0, 1]])
    undone = np.argsort(source)
    made = Steps(
        np.array(code), bases, offsets, (undone if back else source)[None], (sign[undone] if back else sign)[None]
        .astype(dtype), maps, np.concatenate([starts, pair]), (g.T if back else g).astype(dtype).reshape(-1),
        np.arange(3), np.arange(1),
    )  # fmt: skip
    return made, source, sign, (g, starts, pair)  # type: ignore[return-value]


def expected(basis: str, x: np.ndarray, shared: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What the steps of `steps_of` do."""
    _, bases, offsets = places(basis)
    _, source, sign, (g, starts, pair) = steps_of(basis, np.float64)
    for block, q in ((0, 1), (1, 0)):
        x = on_qubit(x, shared[block], bases[q], offsets[q])
    x = sign[:, None] * x[source]
    x = on_qubit(x, own[0], bases[2], offsets[2])
    at = starts[:, None] + pair
    y = x.copy()
    y[at] = np.einsum("ij,kjb->kib", g, x[at])
    return on_qubit(y, shared[2], bases[2], offsets[2])


def unitary(*shape: int) -> np.ndarray:
    """Real 4×4 matrices of unitary 2×2 ones of determinant 1."""
    a, b, c, d = (v / np.sqrt(sum(v**2 for v in vs)) for vs in [real(4, *shape)] for v in vs)
    u = np.array([[a + 1j * b, -c + 1j * d], [c + 1j * d, a - 1j * b]])
    return np.concatenate([np.concatenate([u.real, -u.imag], 1), np.concatenate([u.imag, u.real], 1)], 0)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("basis", ["state", "density"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_forwards_and_backwards(dtype: type, basis: str, columns: int) -> None:
    """Against NumPy; backwards by ⟨adjoint, J dx⟩ = ⟨Jᵀ adjoint, dx⟩, and by matrices through finite differences."""
    size = places(basis)[0]
    x, adjoint = real(size, columns), real(size, columns)
    shared = np.moveaxis(unitary(3), -1, 0)[..., None] if basis == "state" else real(3, 4, 4, 1)
    own = unitary(columns)[None] if basis == "state" else real(1, 4, 4, columns)
    tolerance = 1e-11 if dtype is np.float64 else 2e-4
    wanted = expected(basis, x, shared, own)

    def given(array: np.ndarray) -> np.ndarray:
        return np.array(array, dtype, order="C")

    rows, spare, copies = given(x), np.empty((size, columns), dtype), np.empty((3, size, columns), dtype)
    found = (rows, spare)[steps_of(basis, dtype)[0].evolve(rows, spare, given(shared), given(own), copies)].copy()
    np.testing.assert_allclose(found, wanted, atol=tolerance * 10)
    np.testing.assert_allclose(copies[0], x, atol=tolerance)

    back = steps_of(basis, dtype, back=True)[0]
    by_shared, by_own = np.empty((3, 4, 4, 1), dtype), np.empty((1, 4, 4, columns), dtype)
    spares = [np.empty((size, columns), dtype) for _ in range(2)]
    matrices = given(shared), given(own), by_shared, by_own
    taken = given(adjoint)
    if basis == "state":
        pulled = (taken, found, spares[0])[back.pull_unitary(taken, found, spares[0], *matrices)]
    else:
        befores = np.empty((1, size, columns), dtype)
        pulled = (taken, spares[0])[back.pull(taken, spares[0], copies, befores, *matrices)]
    dx = real(size, columns)
    np.testing.assert_allclose(
        (pulled * dx).sum(), (adjoint * expected(basis, dx, shared, own)).sum(), rtol=tolerance * 100
    )
    for matrix, by in ((shared, by_shared), (own, by_own)):
        for block in range(len(matrix)):
            # along the matrix itself turned a little: a unitary one stays unitary
            turn = unitary_direction(matrix[block]) if basis == "state" else real(*matrix[block].shape)
            moved = [matrix.copy(), matrix.copy()]
            for k, step in enumerate((1e-5, -1e-5)):
                moved[k][block] += step * turn
            ends = [expected(basis, x, *((m, own) if matrix is shared else (shared, m))) for m in moved]
            slope = (adjoint * (ends[0] - ends[1])).sum() / 2e-5
            np.testing.assert_allclose(
                (by[block] * turn).sum(), slope, rtol=1e-5 + tolerance * 100, atol=tolerance * 100
            )


def unitary_direction(g: np.ndarray) -> np.ndarray:
    """A derivative of g along i(h₁X + h₂Y + h₃Z) g."""
    h = real(3)
    generator = 1j * np.array([[h[2], h[0] - 1j * h[1]], [h[0] + 1j * h[1], -h[2]]])
    turn = np.block([[generator.real, -generator.imag], [generator.imag, generator.real]])
    return np.einsum("ij,jkb->ikb", turn, g)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("sign", [(1, -1), (0, 1)])
def test_matrices_of_blocks_and_their_slopes(sign: tuple[int, int], columns: int) -> None:
    first, rotation, row = np.array([0, 2, 3]), np.array([1, 0, 2]), np.array([4, 0, 2])
    fixed, angles = real(5, 4, 4), real(3, columns)
    table = Table(first, rotation, fixed, np.array([*sign, 0.5]), row)

    def built(angles: np.ndarray) -> np.ndarray:
        steps = np.empty((5, 4, 4, columns))
        table.build(np.cos(angles), np.sin(angles), steps)
        return steps

    def turn(angle: float) -> np.ndarray:
        c, s = [np.cos(k * angle) for k in sign], [np.sin(k * angle) for k in sign]
        matrix = np.diag([c[0], c[1], c[0], c[1]])
        matrix[0, 2], matrix[2, 0], matrix[1, 3], matrix[3, 1] = s[0], -s[0], s[1], -s[1]
        return matrix

    steps = built(angles)
    for b in range(columns):
        a = angles[:, b]
        wanted = fixed[2] @ turn(a[0]) @ fixed[1] @ turn(a[1]) @ fixed[0], fixed[4] @ turn(a[2]) @ fixed[3]
        np.testing.assert_allclose(steps[2, ..., b], wanted[0], atol=1e-12)
        np.testing.assert_allclose(steps[4, ..., b], wanted[1], atol=1e-12)
    s, slopes = real(2, 4, 4, columns), np.zeros((5, columns))
    table.slopes(np.cos(angles), np.sin(angles), steps, s.copy(), slopes)
    for which, at in ((0, 0), (1, 4), (2, 2)):  # of an angle its row
        moved = [angles.copy() for _ in range(2)]
        moved[0][which] += 1e-6
        moved[1][which] -= 1e-6
        ends = [(s * built(m)[[2, 4]]).sum((0, 1, 2)) for m in moved]
        np.testing.assert_allclose(slopes[at], 0.5 * (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)
    assert not slopes[[1, 3]].any()


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("back", [False, True])
def test_paulis_on_states(back: bool, columns: int) -> None:
    x, y = real(2 * 2**N, columns), np.empty((2 * 2**N, columns))
    flips, phases = (RNG.integers(0, 2**N, columns) for _ in range(2))
    kernel.apply_frames(x, y, flips, phases, back)
    for b in range(columns):
        for i in range(2**N):
            j = i ^ int(flips[b])
            sign = (-1) ** (int(phases[b]) & (j if back else i)).bit_count()
            assert y[i, b] == sign * x[j, b]
            assert y[2**N + i, b] == sign * x[2**N + j, b]


@pytest.mark.parametrize("columns", COLUMNS)
def test_paulis_through_a_circuit(columns: int) -> None:
    """An X and a Z on qubit 0 and an X on qubit 1, a CNOT's bits, then the sign of an angle on qubit 1."""
    bits, signs = np.zeros((4, columns), np.uint8), np.ones((2, columns), np.float32)
    code = np.array([(2, 0, 1), (2, 1, -1), (0, 1, 0), (1, 1, 1), (0, 2, 3)])
    column = np.array([columns - 1, 0])
    kernel.carry_frames(bits, code, np.array([0, 1, 2]), column, np.array([0b0111, 0b10]), signs)
    wanted = np.zeros((4, columns), np.uint8)
    wanted[[0, 2, 1], columns - 1] = 1
    wanted[3, 0] ^= 1  # a Z on qubit 1
    wanted[1] ^= wanted[0]
    wanted[2] ^= wanted[3]
    assert np.array_equal(bits, wanted)
    assert np.array_equal(signs[1], 1 - 2 * wanted[1].astype(np.float32))
    assert (signs[0] == 1).all()


def test_what_kernels_are_given_again_and_again_survives_copies() -> None:
    made = Constants(np.arange(5), real(2, 3).T)
    assert copy.deepcopy(made) is made
    again = pickle.loads(pickle.dumps(made))
    assert again.addresses != made.addresses
    assert all(np.array_equal(a, b) for a, b in zip(again.arrays, made.arrays, strict=True))


def test_arrays_that_are_not_contiguous_are_refused() -> None:
    with pytest.raises(AssertionError):
        kernel.apply_frames(real(2, 2 * 2**N).T, real(2 * 2**N, 2), np.zeros(2, int), np.zeros(2, int), False)


def test_processes_side_by_side_compile_without_files() -> None:
    """Nothing is kept on disk: eight at once that can write no file, and have no home, get the same bits."""
    angles = real(3, 5)

    def matrices() -> bytes:
        kernel.compiled.cache_clear()
        steps = np.empty((5, 4, 4, 5))
        table = Table(np.array([0, 2, 3]), np.array([1, 0, 2]), FIXED, np.array([1, -1, 0.5]), np.array([4, 0, 2]))
        table.build(np.cos(angles), np.sin(angles), steps)
        return steps.tobytes()

    wanted, children = matrices(), []
    for _ in range(8):
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads
            child = os.fork()
        if child == 0:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
                os.environ.update(HOME="/nowhere", TMPDIR="/nowhere")
                os.write(write, matrices())
            finally:
                os._exit(0)
        os.close(write)
        children.append((child, read))
    for child, read in children:
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == wanted
        os.waitpid(child, 0)


FIXED = np.random.default_rng(2).normal(size=(5, 4, 4))
