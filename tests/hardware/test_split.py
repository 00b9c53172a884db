"""Large calls become jobs below the service's limits, always in the same places, and their answers fit together."""

from __future__ import annotations

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp
from scripted import exact, pub

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.service import Pub, precision_of, shots_of
from qhw_diffusion.hardware.split import JobLimits, Piece, bases, cut, join, row_cost, split


def test_a_small_call_is_one_job() -> None:
    assert split([pub((0.1, 0.2)), pub((0.3,))]) == [[Piece(0, 0, 2), Piece(1, 0, 1)]]


def test_rows_fill_one_job_after_the_other() -> None:
    limits = JobLimits(executions=3 * 200)  # three rows of 2 settings × 100 shots
    pubs = [pub(np.arange(4.0)), pub(np.arange(3.0))]
    assert split(pubs, limits) == [[Piece(0, 0, 3)], [Piece(0, 3, 4), Piece(1, 0, 2)], [Piece(1, 2, 3)]]
    assert split(pubs, JobLimits(values=5)) == [[Piece(0, 0, 4), Piece(1, 0, 1)], [Piece(1, 1, 3)]]
    assert split(pubs, JobLimits(instructions=7 * row_cost(pubs[0])[1])) == [[Piece(0, 0, 4), Piece(1, 0, 3)]]


def test_no_job_passes_the_published_limits_and_every_row_is_in_one() -> None:
    big = pub(np.zeros(60_000), shots=4096)
    jobs = split([big])
    for pieces in jobs:
        assert sum(p.stop - p.start for p in pieces) * row_cost(big)[0] <= 10_000_000
    assert sum(p.stop - p.start for pieces in jobs for p in pieces) == 60_000
    assert len(jobs) == -(-60_000 // (10_000_000 // 8192))


def test_answers_fit_together_again() -> None:
    pubs = [pub(np.linspace(0, 1, 5)), pub(np.linspace(1, 2, 4), shots=7)]
    jobs = split(pubs, JobLimits(values=2))
    answers = [[(exact(p), exact(p) * 0, p.shots) for p in cut(pubs, pieces)] for pieces in jobs]
    whole = join(pubs, jobs, answers)
    for one, (values, _, shots) in zip(pubs, whole, strict=True):
        np.testing.assert_allclose(values, exact(one), atol=1e-12)
        assert shots == one.shots


def test_settings_of_the_measurement() -> None:
    circuit = QuantumCircuit(2)

    def count(*labels: str) -> int:
        return bases(Pub(circuit, tuple(SparsePauliOp(label) for label in labels), (), np.zeros((1, 0)), 0.1))

    assert count("ZZ", "ZI", "IZ") == 1
    assert count("ZZ", "XX", "YY") == 3
    assert count("ZI", "IX", "ZX") == 1
    assert count("II") == 1


def test_a_circuit_without_parameters_is_one_row() -> None:
    one = Pub(QuantumCircuit(1), (SparsePauliOp("Z"),), (), np.zeros((5, 0)), 0.1)
    assert split([one]) == [[Piece(0, 0, 1)]]
    assert one.as_tuple()[2] is None


@pytest.mark.parametrize("shots", [1, 2, 3, 100, 1000, 4096, 10_007, 99_999])
def test_a_precision_means_just_these_shots(shots: int) -> None:
    assert shots_of(precision_of(shots)) == shots


def test_what_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"one row of PUB 0 takes 200 executions .* use fewer shots"):
        split([pub()], JobLimits(executions=199))
    with pytest.raises(InvalidInputError, match="no PUBs"):
        split([])
    with pytest.raises(InvalidInputError, match="shots is 0"):
        precision_of(0)
    good = pub()
    for wrong in (np.zeros(3), np.zeros((0, 1)), np.zeros((2, 2)), np.full((2, 1), np.nan)):
        with pytest.raises(InvalidInputError, match="values"):
            Pub(good.circuit, good.observables, good.parameters, wrong, 0.1)
    with pytest.raises(InvalidInputError, match="observables is empty"):
        Pub(good.circuit, (), good.parameters, good.values, 0.1)
    with pytest.raises(InvalidInputError, match="precision is 0"):
        Pub(good.circuit, good.observables, good.parameters, good.values, 0)
    with pytest.raises(InvalidInputError, match="parameters must be those of the circuit"):
        Pub(QuantumCircuit(1), good.observables, good.parameters, good.values, 0.1)
