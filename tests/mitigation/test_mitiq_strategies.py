"""Mitiq's methods as strategies, against Mitiq's own drivers, native folding, Aer and the ideal values."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import RZGate
from qiskit.quantum_info import Pauli, SparsePauliOp, SuperOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Experiment, Ideal, Noisy, compile_circuit
from qhw_diffusion.mitigation import ZNE, Cost, Mitigated, Readout
from qhw_diffusion.mitigation.mitiq_bridge import Bridge, bridge, rz_angles, to_cirq
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR, by_angle
from qhw_diffusion.mitigation.mitiq_ddd import MitiqDDD
from qhw_diffusion.mitigation.mitiq_lre import MitiqLRE
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC, inverse_paulis, representations
from qhw_diffusion.mitigation.mitiq_text import MITIQ_STRATEGIES
from qhw_diffusion.mitigation.mitiq_twirling import MitiqTwirling
from qhw_diffusion.mitigation.mitiq_zne import MitiqZNE
from qhw_diffusion.mitigation.strategy import without_delays

cirq = pytest.importorskip("cirq")
pytest.importorskip("mitiq")


@functools.cache
def pair_on(device: str) -> CompiledCircuit:
    """Two qubits, one input, two weights, three two-qubit gates."""
    x, v, w = Parameter("x"), Parameter("v"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.rx(v, 1)
    circuit.cz(0, 1)
    circuit.ry(w, 0)
    circuit.rx(x, 1)
    circuit.cz(0, 1)
    circuit.ry(v, 1)
    circuit.rx(w, 0)
    circuit.cz(0, 1)
    circuit.ry(0.4, 0)
    circuit.ry(w, 1)
    observables = [SparsePauliOp("IZ"), SparsePauliOp("ZI"), SparsePauliOp("ZZ")]
    return compile_circuit(circuit, Device.load(device), inputs=[x], weights=[v, w], observables=observables, seed=1)


@pytest.fixture
def pair() -> CompiledCircuit:
    return pair_on("fake_marrakesh")


ROWS = torch.tensor([[0.4, 0.9, -0.7], [1.1, 0.9, -0.7], [-0.6, 0.9, -0.7]], dtype=torch.float64)


class Counting(Noisy):
    """Writes down every call."""

    calls: list[list[Experiment]] = []  # noqa: RUF012

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        self.calls.append(list(experiments))
        return super().estimate_many(experiments)


@pytest.mark.parametrize(
    ("strategy", "experiments", "rows"),
    [
        (MitiqZNE(), 3, 9),
        (MitiqLRE(2, 3), 10, 30),
        (MitiqCDR(8), 2, 3 + 8),
        (MitiqCDR(8, each_row=True), 2, 3 + 24),
        (MitiqDDD(), 1, 3),
        (MitiqTwirling(5), 5, 15),
    ],
)
def test_all_circuits_and_rows_go_out_in_one_call(strategy, experiments, rows, pair):
    engine = Counting()
    engine.calls.clear()
    estimate = Mitigated(engine, [strategy]).estimate(pair, ROWS)
    assert estimate.values.shape == (3, 3)
    [sent] = engine.calls
    assert len(sent) == experiments
    assert sum(len(r) for _, r in sent) == rows
    assert all(circuit.physical_qubits == pair.physical_qubits for circuit, _ in sent)


@pytest.mark.parametrize("name", ["fake_manila", "fake_brisbane", "fake_marrakesh"])
def test_zne_is_native_zne_where_they_fold_alike(name):
    compiled = pair_on(name)
    for folding, native in [("global", "global"), ("two_qubit", "local")]:
        for extrapolation in ("linear", "polynomial2", "richardson"):
            wanted = Mitigated("noisy", [ZNE((1, 3, 5), extrapolation, native)]).estimate(compiled, ROWS).values
            given = Mitigated("noisy", [MitiqZNE((1, 3, 5), extrapolation, folding)]).estimate(compiled, ROWS).values
            np.testing.assert_allclose(given.numpy(), wanted.numpy(), atol=1e-9)


def test_zne_of_aers_density_matrices(policy, rows, aer):
    compiled = policy("fake_brisbane")
    values, strategy = rows(compiled, 1), MitiqZNE((1, 3, 5), "linear")
    at_scale = [aer(circuit, values)[0] for circuit in strategy.family(compiled).circuits]
    wanted = np.polyfit([1, 3, 5], np.array(at_scale), 1)[-1]
    estimate = Mitigated("noisy", [strategy]).estimate(compiled, values)
    np.testing.assert_allclose(estimate.values[0].numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("method", ["zne", "lre", "cdr"])
def test_the_value_is_that_of_mitiqs_own_driver(method, pair):
    from mitiq.cdr import execute_with_cdr
    from mitiq.lre import execute_with_lre
    from mitiq.zne import RichardsonFactory, execute_with_zne
    from mitiq.zne.scaling import fold_all, fold_global

    row, isa = ROWS[:1], without_delays(pair)
    bound = isa.assign_parameters(dict(zip((*pair.inputs, *pair.weights), row[0].tolist(), strict=True)))
    circuit = to_cirq(pair, [float(a) for a in rz_angles(bound)])

    def executor(engine, observable):
        def run(program) -> float:
            numeric = Bridge(replace(pair, inputs=(), weights=()), program, (), "cz").back(program)
            return float(engine.estimate(numeric, torch.zeros(1, 0, dtype=torch.float64)).values[0, observable])

        return run

    for observable in range(2):
        noisy, ideal = executor(Noisy(), observable), executor(Ideal(), observable)
        if method == "zne":
            strategy = MitiqZNE((1, 3, 5), "richardson")
            wanted = execute_with_zne(circuit, noisy, factory=RichardsonFactory([1, 3, 5]), scale_noise=fold_global)
        elif method == "lre":
            strategy = MitiqLRE(2, 2)
            wanted = execute_with_lre(circuit, noisy, 2, 1, folding_method=fold_all, num_chunks=2)
        else:
            strategy = MitiqCDR(8, 0.4, each_row=True, seed=5)
            wanted = execute_with_cdr(
                circuit,
                noisy,
                simulator=ideal,
                num_training_circuits=8,
                fraction_non_clifford=0.4,
                random_state=5,
            )
        value = Mitigated("noisy", [strategy]).estimate(pair, row).values[0, observable]
        assert float(value) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("strategies", "factor"),
    [
        ([Readout(), MitiqZNE()], 0.2),
        ([Readout(), MitiqLRE()], 0.2),
        ([MitiqCDR()], 0.5),
        ([MitiqCDR(10, each_row=True)], 0.2),
        ([Readout(), MitiqPEC(200)], 0.6),
    ],
)
def test_it_comes_closer_to_the_ideal_values(strategies, factor, pair):
    ideal = Ideal().estimate(pair, ROWS).values
    without = Noisy() if not isinstance(strategies[0], Readout) else Mitigated("noisy", [Readout()])
    before = (without.estimate(pair, ROWS).values - ideal).abs().mean()
    after = (Mitigated("noisy", strategies).estimate(pair, ROWS).values - ideal).abs().mean()
    assert after < factor * before


def test_standard_errors_are_those_of_the_weights(pair):
    strategy = MitiqZNE((1, 3, 5), "richardson")
    experiments = strategy.construct(pair, ROWS)
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(3, 3, 3, generator=generator, dtype=torch.float64) / 10
    estimates = [Estimate(torch.zeros_like(e), e) for e in errors]
    assert len(experiments) == 3
    weights = np.array([15 / 8, -10 / 8, 3 / 8])  # Lagrange at 0 through 1, 3, 5
    wanted = np.sqrt((weights[:, None, None] ** 2 * errors.numpy() ** 2).sum(0))
    np.testing.assert_allclose(strategy.combine(estimates, pair, ROWS).std_errors.numpy(), wanted, rtol=1e-9)
    assert MitiqLRE(1, 3).noise_amplification(pair) == pytest.approx((1 + 3 / 2) ** 2 + 3 / 4)


@pytest.mark.parametrize("strategy", [MitiqZNE(), MitiqLRE(1, 2), MitiqCDR(8), MitiqTwirling(3)])
def test_gradients_are_those_of_finite_differences(strategy, pair):
    engine = Mitigated("noisy", [strategy])
    assert engine.differentiable
    x, w = ROWS[:, :1].clone().requires_grad_(), ROWS[0, 1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: engine.expectation(pair, a, b), (x, w), eps=1e-5, atol=1e-6)


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


def test_pec_says_what_the_drawing_leaves_uncertain(pair):
    values = torch.stack([Mitigated("noisy", [MitiqPEC(20, seed)]).estimate(pair, ROWS).values for seed in range(5)])
    said = Mitigated("noisy", [MitiqPEC(20, 9)]).estimate(pair, ROWS).std_errors
    ratio = values.std(0).pow(2).mean().sqrt() / said.pow(2).mean().sqrt()
    assert 0.5 < ratio < 2


def test_ddd_refocuses_what_waiting_qubits_collect(unitary):
    """Every delay is given a rotation by hand; the sequence undoes most of it."""
    circuit = QuantumCircuit(3)
    circuit.h(0)
    circuit.cx(0, 1)
    for angle in (0.3, 0.8, 0.5, 1.1, 0.2, 0.9):  # qubit 0 waits
        circuit.cx(1, 2)
        circuit.ry(angle, 2)
    circuit.cx(0, 1)
    circuit.h(0)
    compiled = compile_circuit(
        circuit,
        Device.load("fake_marrakesh"),
        inputs=[],
        weights=[],
        observables=[SparsePauliOp("IIZ")],
        scheduled=True,
        optimization_level=1,
    )
    filled = MitiqDDD("xx").family(compiled).circuits[0]
    none = torch.zeros(1, 0, dtype=torch.float64)
    assert filled.isa.count_ops()["x"] > compiled.isa.count_ops().get("x", 0)
    assert unitary(filled, none[0]).equiv(unitary(compiled, none[0]))
    ideal = Ideal().estimate(compiled, none).values

    def harm(scheduled: CompiledCircuit) -> float:
        isa = scheduled.isa.copy_empty_like()
        for instruction in scheduled.isa.data:
            if instruction.operation.name == "delay":
                if scheduled.isa.find_bit(instruction.qubits[0]).index in scheduled.physical_qubits:
                    isa.append(RZGate(3e-3 * instruction.operation.duration), instruction.qubits)
            elif instruction.operation.name != "barrier":
                isa.append(instruction)
        drifting = replace(scheduled, isa=isa, scheduled=False)
        return float((Ideal().estimate(drifting, none).values - ideal).abs().max())

    assert harm(compiled) > 0.1
    assert harm(filled) < harm(compiled) / 4


@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
def test_twirled_circuits_are_the_same_unitary_and_differ(name, policy, rows, unitary):
    compiled, row = policy(name), rows(policy(name))[0]
    state = random.getstate()
    family = MitiqTwirling(4, seed=7).family(compiled)
    assert random.getstate() == state
    assert [c.isa for c in MitiqTwirling(4, seed=8).family(compiled).circuits] != [c.isa for c in family.circuits]
    for circuit in family.circuits:
        assert unitary(circuit, row).equiv(unitary(compiled, row))
        assert circuit.two_qubit_gates == compiled.two_qubit_gates
    assert any(a.isa != b.isa for a, b in zip(family.circuits, family.circuits[1:], strict=False))


def test_twirling_refuses_ecr(policy, rows):
    compiled = policy("fake_brisbane")
    for call in (lambda s: s.check(compiled), lambda s: s.construct(compiled, rows(compiled))):
        with pytest.raises(UnsupportedCircuitError, match=r"PauliTwirling\(\) takes them"):
            call(MitiqTwirling())


def test_costs(pair):
    assert MitiqZNE((1, 3)).cost(pair) == Cost(2, 2)
    assert MitiqLRE(2, 3).cost(pair) == Cost(10, 10)
    assert MitiqCDR(8).cost(pair) == Cost(1, 1, 8)
    assert MitiqCDR(8, each_row=True).cost(pair) == Cost(9, 9)
    assert MitiqTwirling(5).cost(pair) == Cost(5, 5)
    assert MitiqPEC(50).cost(pair).circuits_factor <= 51
    usage = Mitigated("shots:100", [MitiqCDR(8)]).estimate(pair, ROWS).usage
    assert (usage.circuits, usage.shots) == (11, 1100)


def test_text_makes_the_strategy_again():
    for strategy in [
        MitiqZNE((1, 1.5, 3), "richardson", "random", 4),
        MitiqLRE(2, 3, 2),
        MitiqCDR(12, 0.3, True, 5),
        MitiqCDR(),
        MitiqPEC(50, 3),
        MitiqDDD("xyxy"),
        MitiqTwirling(5, 2),
    ]:
        name, *arguments = strategy.spec.split(":")
        make, most = MITIQ_STRATEGIES[name]
        assert len(arguments) <= most
        assert make(*arguments) == strategy
        assert name == strategy.name
    with pytest.raises(InvalidInputError, match="mitiq-pec"):
        MITIQ_STRATEGIES["mitiq-pec"][0]("many")


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: MitiqZNE((1,)), InvalidInputError, "at least 2"),
        (lambda: MitiqZNE((3, 1)), InvalidInputError, "ascending"),
        (lambda: MitiqZNE((1, 3), "polynomial2"), InvalidInputError, "at least 3"),
        (lambda: MitiqZNE((1, 2), folding="all"), InvalidInputError, "odd"),
        (lambda: MitiqZNE(extrapolation="exponential"), UnknownNameError, "polynomial2"),
        (lambda: MitiqZNE(folding="locally"), UnknownNameError, "folding"),
        (lambda: MitiqLRE(0), InvalidInputError, "degree"),
        (lambda: MitiqCDR(2), InvalidInputError, "training_circuits"),
        (lambda: MitiqCDR(fraction_non_clifford=1.0), InvalidInputError, "between 0 and 1"),
        (lambda: MitiqPEC(1), InvalidInputError, "samples"),
        (lambda: MitiqDDD("zz"), UnknownNameError, "xyxy"),
        (lambda: MitiqTwirling(0), InvalidInputError, "circuits"),
        (lambda: MitiqTwirling(2.5), InvalidInputError, "integer"),
    ],
)
def test_bad_settings_are_refused(make, error, word):
    with pytest.raises(error, match=word):
        make()


def test_more_chunks_than_layers_are_refused(pair):
    with pytest.raises(InvalidInputError, match="use fewer chunks"):
        MitiqLRE(1, 500).construct(pair, ROWS)
