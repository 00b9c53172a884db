"""Random circuits: the same unitary as Qiskit's, the ranges stated, and where the ensemble ends."""

from __future__ import annotations

from itertools import combinations
from math import pi

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Operator
from torch import Tensor

from qhw_diffusion.denoising.channels import is_completely_positive, is_trace_preserving, superoperator_of
from qhw_diffusion.denoising.forward import Scrambling, scramble
from qhw_diffusion.denoising.states import haar_states
from qhw_diffusion.errors import InvalidInputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def circuit_of(single: Tensor, pair: float) -> QuantumCircuit:
    n = single.shape[0]
    circuit = QuantumCircuit(n)
    for qubit in range(n):
        circuit.rz(float(single[qubit, 0]), qubit)
        circuit.ry(float(single[qubit, 1]), qubit)
        circuit.rz(float(single[qubit, 2]), qubit)
    for a, b in combinations(range(n), 2):
        circuit.rzz(pair, a, b)
    return circuit


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_step_is_the_circuit_it_claims(n: int) -> None:
    process = Scrambling(n, 4, (3.0, 9.0))
    states = haar_states(5, 2**n, seeded(), torch.complex128)
    single, pairs = process.angles(5, 3, seeded(1))
    ours = process.step(states, 3, seeded(1))
    for row in range(5):
        expected = Operator(circuit_of(single[row], float(pairs[row]))).data @ states[row].numpy()
        np.testing.assert_allclose(ours[row].numpy(), expected, atol=1e-13)


def test_averaged_over_its_angles_a_step_is_a_channel() -> None:
    process = Scrambling(2, 3)
    single, pairs = process.angles(64, 3, seeded())

    def average(density: Tensor) -> Tensor:
        unitaries = [
            torch.from_numpy(Operator(circuit_of(s, float(p))).data) for s, p in zip(single, pairs, strict=True)
        ]
        return torch.stack([u @ density @ u.mH for u in unitaries]).mean(0)

    channel = superoperator_of(average, 4)
    assert is_trace_preserving(channel)
    assert is_completely_positive(channel)


def test_angles_fill_their_ranges_and_are_each_samples_own() -> None:
    process = Scrambling(3, 20)
    assert process.strengths[0] == pytest.approx(0.5)
    assert process.strengths[-1] == 4.0
    assert np.allclose(np.diff(process.strengths), 3.5 / 19)
    for t in (1, 20):
        h = process.strengths[t - 1]
        single, pairs = process.angles(4000, t, seeded())
        assert single.shape == (4000, 3, 3)
        assert h * pi / 8 * 0.99 < float(single.abs().max()) <= h * pi / 8
        assert single.mean().abs() < 0.02 * h
        shared = pairs * 2 * 3**0.5 / h
        assert 0.4 <= float(shared.min()) < 0.41
        assert 0.59 < float(shared.max()) <= 0.6
        assert len(pairs.unique()) > 3990
        assert len(single.flatten().unique()) > 35_900


def test_every_sample_gets_its_own_circuit() -> None:
    data = haar_states(1, 4, seeded(), torch.complex128).repeat(20, 1)
    out = Scrambling(2, 3).step(data, 1, seeded())
    fidelity = (out.conj() @ out.T).abs().square()
    assert (fidelity.fill_diagonal_(0) < 1 - 1e-9).all()


def test_the_end_is_close_to_haar_random_and_the_start_is_not() -> None:
    """Mean and second moment of pair fidelities: 1/d and 2/(d(d+1)) for Haar. 20,000 pairs, standard error < 0.003."""
    for n, tolerance in ((1, 0.015), (2, 0.015)):
        dim, process = 2**n, Scrambling(n, 20)
        data = torch.zeros(40_000, dim)
        data[:, 0] = 1
        path = process.path(data.to(torch.complex64), seeded())
        fidelity = [(states[::2].conj() * states[1::2]).sum(1).abs().square() for states in path]
        assert fidelity[20].mean() == pytest.approx(1 / dim, abs=tolerance)
        assert fidelity[20].square().mean() == pytest.approx(2 / (dim * (dim + 1)), abs=tolerance)
        assert fidelity[1].mean() > 0.9
        means = torch.stack([f.mean() for f in fidelity])
        assert (means[:11].diff() < 0).all(), "the ensemble spreads from step to step"


def test_scrambling_is_differentiable_in_the_states() -> None:
    states = haar_states(2, 4, seeded(), torch.complex128).requires_grad_()
    single, pairs = Scrambling(2, 2).angles(2, 1, seeded())
    assert torch.autograd.gradcheck(lambda s: scramble(s, single, pairs), (states,))


def test_bad_settings_and_other_sizes_are_refused() -> None:
    for settings in [(0, 3), (2, 0)]:
        with pytest.raises(InvalidInputError, match="≥ 1"):
            Scrambling(*settings)
    for strength in [(-1.0, 2.0), (3.0, 2.0), (0.0, float("inf"))]:
        with pytest.raises(InvalidInputError, match="strength"):
            Scrambling(2, 3, strength)
    assert Scrambling(2, 1, (0.5, 4.0)).strengths == (4.0,)
    with pytest.raises(InvalidInputError, match="acts on 2 qubits, d = 4; the states have d = 8"):
        Scrambling(2, 3).noised(haar_states(1, 8, seeded()), 1, seeded())
    with pytest.raises(InvalidInputError, match="dimension 4, not 8"):
        Scrambling(2, 3).prior(1, 8, seeded())
