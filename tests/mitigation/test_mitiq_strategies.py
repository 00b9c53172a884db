"""Mitiq's methods as strategies, against Mitiq's own drivers, native folding, Aer and the ideal values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mitiq_circuits import ROWS, Counting, pair_on

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, Estimate, Ideal, Noisy
from qhw_diffusion.mitigation import STRATEGIES, ZNE, Cost, Mitigated, Readout, strategy_of
from qhw_diffusion.mitigation.mitiq_bridge import Bridge, rz_angles, to_cirq
from qhw_diffusion.mitigation.mitiq_cdr import MitiqCDR
from qhw_diffusion.mitigation.mitiq_pec import MitiqPEC
from qhw_diffusion.mitigation.mitiq_weighted import MitiqDDD, MitiqLRE, MitiqTwirling, MitiqZNE
from qhw_diffusion.mitigation.rewriting import without_delays

cirq = pytest.importorskip("cirq")
pytest.importorskip("mitiq")


@pytest.fixture
def pair() -> CompiledCircuit:
    return pair_on("fake_marrakesh")


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


@pytest.mark.slow
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


def test_costs(pair):
    assert MitiqZNE((1, 3)).cost(pair) == Cost(2)
    assert MitiqLRE(2, 3).cost(pair) == Cost(10)
    assert MitiqCDR(8).cost(pair, rows=5) == Cost(5 + 8)
    assert MitiqCDR(8, each_row=True).cost(pair, rows=5) == Cost(5 + 5 * 8)
    assert MitiqTwirling(5).cost(pair) == Cost(5)
    assert MitiqPEC(50).cost(pair).circuits <= 51
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
        name, *settings = strategy.spec.split(":")
        assert STRATEGIES[name].from_settings(settings) == strategy == strategy_of(strategy.spec)
        assert name == strategy.name
    with pytest.raises(InvalidInputError, match="samples of mitiq-pec is 'many'"):
        strategy_of("mitiq-pec:many")


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
