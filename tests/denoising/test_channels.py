"""Superoperators and Choi matrices against qiskit.quantum_info."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit.quantum_info import Choi, SuperOp, random_density_matrix, random_quantum_channel
from torch import Tensor

from qhw_diffusion.denoising.channels import (
    apply_local,
    apply_superoperator,
    check_channel,
    choi_matrix,
    is_completely_positive,
    is_trace_preserving,
    smallest_image_eigenvalue,
    superoperator_of,
    trace_deviation,
)
from qhw_diffusion.errors import InvalidInputError


def random_channel(n_qubits: int, seed: int) -> SuperOp:
    dim = 2**n_qubits
    return SuperOp(random_quantum_channel(dim, dim, seed=seed))


def tensor(channel: SuperOp) -> Tensor:
    return torch.from_numpy(np.asarray(channel.data))


def transposition(states: Tensor) -> Tensor:
    return states.transpose(1, 2)


@pytest.mark.parametrize("n_qubits", [1, 2])
def test_superoperator_and_choi_are_qiskits(n_qubits: int) -> None:
    channel = random_channel(n_qubits, seed=n_qubits)
    ours = superoperator_of(lambda states: apply_superoperator(tensor(channel), states), 2**n_qubits)
    np.testing.assert_allclose(ours.numpy(), channel.data, atol=1e-13)
    np.testing.assert_allclose(choi_matrix(ours).numpy(), Choi(channel).data, atol=1e-13)


def test_the_function_need_not_be_unital_or_symmetric() -> None:
    """Every column of the superoperator is told apart: a unitary conjugation without symmetry."""
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)) + 1j * np.eye(4))[0]
    unitary = torch.from_numpy(matrix)
    found = superoperator_of(lambda states: unitary @ states @ unitary.mH, 4)
    np.testing.assert_allclose(found.numpy(), np.kron(matrix.conj(), matrix), atol=1e-13)


@pytest.mark.parametrize(("n_qubits", "qubits"), [(1, [0]), (3, [1]), (3, [2, 0]), (3, [0, 1]), (2, [1, 0])])
def test_a_map_on_some_qubits_is_evolve_with_qargs(n_qubits: int, qubits: list[int]) -> None:
    channel = random_channel(len(qubits), seed=3)
    states = [random_density_matrix(2**n_qubits, seed=seed) for seed in range(4)]
    ours = apply_local(tensor(channel), torch.from_numpy(np.stack([state.data for state in states])), qubits)
    expected = np.stack([state.evolve(channel, qargs=qubits).data for state in states])
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-13)


def test_a_map_keeps_the_dtype_of_the_states() -> None:
    state = torch.from_numpy(random_density_matrix(4, seed=1).data)[None].to(torch.complex64)
    assert apply_local(tensor(random_channel(1, seed=1)), state, [1]).dtype == torch.complex64


def test_random_channels_pass() -> None:
    for seed in range(5):
        channel = tensor(random_channel(1, seed))
        assert is_trace_preserving(channel)
        assert is_completely_positive(channel)
        check_channel(channel)


def test_transposition_is_positive_and_not_completely() -> None:
    generator = torch.Generator().manual_seed(0)
    transpose = superoperator_of(transposition, 2)
    assert is_trace_preserving(transpose)
    assert smallest_image_eigenvalue(transpose, generator) > -1e-12
    assert not is_completely_positive(transpose)
    with pytest.raises(InvalidInputError, match=r"T is not completely positive.*-1"):
        check_channel(transpose, "T")


def test_a_map_that_is_not_positive_is_found() -> None:
    overshoot = superoperator_of(lambda states: 1.5 * states - 0.25 * torch.eye(2), 2)
    assert is_trace_preserving(overshoot)
    assert smallest_image_eigenvalue(overshoot, torch.Generator().manual_seed(0)) == pytest.approx(-0.25, abs=1e-12)


def test_a_map_that_loses_trace_is_found() -> None:
    projection = superoperator_of(lambda states: states * torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2)
    assert not is_trace_preserving(projection)
    assert is_completely_positive(projection)
    assert trace_deviation(projection) == pytest.approx(1.0)
    with pytest.raises(InvalidInputError, match="changes the trace by 1"):
        check_channel(projection)


def test_a_map_that_is_not_hermitian_is_found() -> None:
    skewed = torch.eye(4, dtype=torch.complex128)
    skewed[1, 1] = 0.5j
    assert not is_completely_positive(skewed)
    with pytest.raises(InvalidInputError, match="not Hermitian"):
        check_channel(skewed)


def test_shapes_that_are_no_superoperator_are_refused() -> None:
    for shape in [(3, 3), (4, 2), (4,), (1, 1)]:
        with pytest.raises(InvalidInputError, match="shape"):
            choi_matrix(torch.zeros(shape, dtype=torch.complex128))
    with pytest.raises(InvalidInputError, match="dimension"):
        superoperator_of(transposition, 1)
