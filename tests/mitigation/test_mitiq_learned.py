"""CDR and PEC: what is learned, what is drawn, and how uncertain it leaves the values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mitiq_circuits import ROWS, Counting, pair_on
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import Pauli, SparsePauliOp, SuperOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Ideal, Noisy, compile_circuit
from qhw_diffusion.mitigation import Mitigated, Readout
from qhw_diffusion.mitigation.mitiq_bridge import bridge, rz_angles
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR, by_angle, regress
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC, inverse_paulis, representations

cirq = pytest.importorskip("cirq")
pytest.importorskip("mitiq")


@pytest.fixture
def pair() -> CompiledCircuit:
    return pair_on("fake_marrakesh")


def test_cdr_for_each_row_has_no_gradient(pair):
    assert not Mitigated("noisy", [MitiqCDR(each_row=True)]).differentiable


def test_cdr_learns_through_the_strategies_before_it(pair):
    engine = Counting()
    engine.calls.clear()
    after_readout = Mitigated(engine, [Readout(), MitiqCDR(each_row=True)]).estimate(pair, ROWS).values
    [sent] = engine.calls
    ideal = Ideal().estimate(pair, ROWS).values
    raw = Noisy().estimate(pair, ROWS).values
    assert len(sent) == 2
    assert (after_readout - ideal).abs().mean() < 0.3 * (raw - ideal).abs().mean()


def test_cdr_angles_give_back_the_circuit(pair):
    bound = []
    for row in ROWS.tolist():
        isa = pair.isa.assign_parameters(dict(zip((*pair.inputs, *pair.weights), row, strict=True)))
        bound.append([float(angle) for angle in rz_angles(isa)])
    angles = torch.tensor(bound, dtype=torch.float64)
    for engine in (Ideal(), Noisy()):
        wanted = engine.estimate(pair, ROWS).values
        torch.testing.assert_close(engine.estimate(by_angle(pair), angles).values, wanted, atol=1e-12, rtol=0)


def test_cdr_refuses_training_circuits_from_which_nothing_can_be_learned():
    circuit = QuantumCircuit(2)
    x = Parameter("x")
    circuit.rz(x, 0)
    circuit.h(1)
    circuit.cx(1, 0)
    compiled = compile_circuit(
        circuit, Device.load("fake_manila"), inputs=[x], weights=[], observables=[SparsePauliOp("ZI")]
    )
    with pytest.raises(InvalidInputError, match="no line can be learned"):
        Mitigated("noisy", [MitiqCDR()]).estimate(compiled, torch.tensor([[0.3]], dtype=torch.float64))


def test_pec_inverts_pauli_channels_exactly():
    generator = np.random.default_rng(3)
    labels = [a + b for a in "IXYZ" for b in "IXYZ"]
    probabilities = np.array([0.9, *(0.1 * generator.dirichlet(np.ones(15)))])

    def channel(weights: dict[str, float]) -> np.ndarray:
        return sum(w * np.kron(Pauli(p).to_matrix().conj(), Pauli(p).to_matrix()) for p, w in weights.items())

    error = channel(dict(zip(labels, probabilities, strict=True)))
    inverse = inverse_paulis(SuperOp(error))
    np.testing.assert_allclose(channel(inverse) @ error, np.eye(16), atol=1e-12)
    assert sum(inverse.values()) == pytest.approx(1)
    with pytest.raises(InvalidInputError, match="cannot be inverted"):
        inverse_paulis(SuperOp(channel({"II": 0.4, "XX": 0.6})))


def test_pec_represents_gates_as_mitiq_does_for_depolarizing_noise():
    """Only the norms can be compared: Mitiq's own representation of depolarizing noise against ours."""
    from mitiq.pec.representations import represent_operation_with_global_depolarizing_noise

    level = 0.02
    weights = {"II": 1 - level, **dict.fromkeys([a + b for a in "IXYZ" for b in "IXYZ" if a + b != "II"], level / 15)}
    error = sum(w * np.kron(Pauli(p).to_matrix().conj(), Pauli(p).to_matrix()) for p, w in weights.items())
    ideal = cirq.Circuit(cirq.CZ(*cirq.LineQubit.range(2)))
    theirs = represent_operation_with_global_depolarizing_noise(ideal, level)
    ours = inverse_paulis(SuperOp(error))
    assert sorted(ours.values()) == pytest.approx(sorted(theirs.coeffs))


def test_pec_draws_what_mitiqs_own_sampling_draws(pair):
    """Same norm; and the same mean of signed circuits' values within the error of 400 draws of Mitiq's."""
    from mitiq.pec import sample_circuit

    source, strategy = bridge(pair), MitiqPEC(300, seed=2)
    with pytest.warns(UserWarning, match="No representation found"):
        circuits, signs, norm = sample_circuit(
            source.circuit, representations(pair), random_state=np.random.RandomState(0), num_samples=150
        )
    assert norm**2 == pytest.approx(strategy.overhead(pair))
    drawn = [len(list(c.all_operations())) - len(list(source.circuit.all_operations())) for c in circuits]
    without = np.mean([d == 0 for d in drawn])
    family = strategy.family(pair)
    exact = float(family.weights[0]) / norm
    assert abs(without - exact) < 4 * np.sqrt(exact * (1 - exact) / 150)
    assert float(family.weights[1:].abs().sum()) == pytest.approx(norm * (1 - exact))
    assert sum(family.draws) == 300
    assert family.draws[0] == 0
    # Nearly all circuits with one Pauli have a minus sign
    assert abs(np.mean(signs) - (2 * exact - 1)) < 0.15


@pytest.mark.slow
def test_pec_says_what_the_drawing_leaves_uncertain(pair):
    values = torch.stack([Mitigated("noisy", [MitiqPEC(20, seed)]).estimate(pair, ROWS).values for seed in range(5)])
    said = Mitigated("noisy", [MitiqPEC(20, 9)]).estimate(pair, ROWS).std_errors
    ratio = values.std(0).pow(2).mean().sqrt() / said.pow(2).mean().sqrt()
    assert 0.5 < ratio < 2


@pytest.mark.parametrize("spread", [0.3, 0.03])
def test_cdr_error_bars_hold_under_shot_noise(spread):
    """300 sets at once. Shot noise flattens the lines of the narrow ones: without that in the bars, off is 4."""
    generator, shot = torch.Generator().manual_seed(1), 0.02

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ideal = spread * noise(300, 24, 1)
    noisy = 0.8 * ideal + 0.03 + shot * noise(300, 24, 1)
    measured = Estimate(0.8 * 0.4 + 0.03 + shot * noise(300, 1), torch.full((300, 1), shot, dtype=torch.float64))
    result = regress(ideal, noisy, torch.full_like(noisy, shot), measured)
    off = (result.values - 0.4) / result.std_errors
    assert 0.4 < float(off.square().mean().sqrt()) < 1.5
