"""Composition: order, one call for everything, cost, gradients through layers, text and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import (
    Engine,
    Ideal,
    Noisy,
    ParameterShift,
    Primitive,
    QuantumLayer,
    Shots,
    aer_estimator,
)
from qhw_diffusion.mitigation import (
    ZNE,
    Cost,
    DynamicalDecoupling,
    Mitigated,
    PauliTwirling,
    Readout,
    engine_of,
    strategy_of,
)


@dataclass(frozen=True)
class Watched(Engine):
    """The noisy engine, with a record of the calls; it has no gradient."""

    calls: list[list[int]] = field(default_factory=list)
    name: ClassVar[str] = "watched"

    def estimate(self, compiled, parameters):
        return Noisy().estimate(compiled, parameters)

    def estimate_many(self, experiments):
        self.calls.append([len(compiled.observables) for compiled, _ in experiments])
        return super().estimate_many(experiments)


def test_the_last_strategy_expands_first_and_the_first_corrects_each(policy, rows):
    compiled = policy("fake_brisbane")
    values = rows(compiled)
    strategy = ZNE((1, 3, 5), "exponential")
    corrected = [
        Mitigated("noisy", [Readout()]).estimate(circuit, values) for circuit, _ in strategy.construct(compiled, values)
    ]
    by_hand = strategy.combine(corrected, compiled, values).values
    composed = Mitigated("noisy", [Readout(), strategy]).estimate(compiled, values).values
    assert torch.equal(composed, by_hand)
    other = Mitigated("noisy", [strategy, Readout()]).estimate(compiled, values).values
    assert not torch.allclose(composed, other, atol=1e-6), "logarithms of misread values are another thing"


def test_everything_goes_out_in_one_call(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled)
    base = Watched()
    engine = Mitigated(base, [Readout("measured"), PauliTwirling(4), ZNE((1, 3, 5))])
    engine.estimate_many([(compiled, values), (compiled, values[:1])])
    assert base.calls == [[4] * (2 * 3 * 4 + 2)], "all leaves, and the calibration once"
    engine.estimate(compiled, values)
    assert base.calls[1:] == [[4] * 12]
    assert engine.cost(compiled) == Cost(12, 2)


def test_several_experiments_are_answered_in_order(policy, rows):
    first, second = policy("fake_manila"), policy("fake_brisbane")
    engine = Mitigated("noisy", [Readout("measured"), ZNE((1, 3))])
    many = engine.estimate_many([(first, rows(first)), (second, rows(second, 2))])
    alone = [engine.estimate(first, rows(first)), engine.estimate(second, rows(second, 2))]
    for one, other in zip(many, alone, strict=True):
        assert torch.equal(one.values, other.values)


def test_usage_is_summed_and_the_first_call_pays_for_the_calibration(policy, rows):
    compiled = policy("fake_manila")
    engine = Mitigated("shots:100", [Readout("measured"), ZNE((1, 3))])
    first, second = (engine.estimate(compiled, rows(compiled)).usage for _ in range(2))
    assert (first.circuits, first.shots) == (3 * 2 + 2, 800)
    assert (second.circuits, second.shots) == (6, 600)


def test_a_layer_trains_through_it(policy):
    compiled = policy("fake_manila")
    layer = QuantumLayer(compiled, Mitigated("noisy", [Readout(), ZNE()]), dtype=torch.float64)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    loss = (layer(x) ** 2).sum()
    loss.backward()
    with torch.no_grad():
        layer.weight -= 0.1 * layer.weight.grad
    assert (layer(x) ** 2).sum() < loss
    shift = layer.with_engine(Mitigated(Watched(), [Readout(), ZNE()]), gradient=ParameterShift())
    own = layer.with_engine(layer.engine)
    for each in (shift, own):
        each(x).sum().backward()
    torch.testing.assert_close(shift.weight.grad, own.weight.grad, atol=1e-8, rtol=0)


def test_an_engine_without_gradient_stays_without(policy):
    engine = Mitigated(Watched(), [ZNE()])
    assert not engine.differentiable
    with pytest.raises(InvalidInputError, match="gives no gradient"):
        QuantumLayer(policy("fake_manila"), engine)(torch.zeros(1, 6))


def test_shots_give_sampled_values_and_record_their_cost(policy, rows):
    compiled = policy("fake_manila")
    layer = QuantumLayer(compiled, "noisy", dtype=torch.float64).with_engine(
        Mitigated(Shots(50, seed=2), [Readout("measured"), ZNE((1, 3))])
    )
    x = rows(compiled, 5)[:, : compiled.n_inputs]
    layer(x).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.usage.circuits == 5 * 2 + 2


def test_through_a_primitive_all_scales_carry_errors(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled, 1, seed=5)
    primitive = Primitive(aer_estimator(compiled, seed=4), precision=0.02, reduced=True)
    strategies = [Readout(), ZNE((1, 3))]
    exact = Mitigated("noisy", strategies).estimate(compiled, values).values
    estimate = Mitigated(primitive, strategies).estimate(compiled, values)
    assert ((estimate.values - exact).abs() < 4 * estimate.std_errors).all()
    assert (estimate.std_errors > 0.02).all()


@pytest.mark.parametrize(
    ("text", "strategies"),
    [
        ("noisy+readout+zne:linear:1,3,5", [Readout(), ZNE((1, 3, 5))]),
        (
            "shots:4096+readout:measured+zne:exponential:1,1.5,2:global",
            [Readout("measured"), ZNE((1, 1.5, 2), "exponential", "global")],
        ),
        ("noisy+readout:correlated", [Readout("correlated")]),
        (
            "noisy+decoupling:xy4+twirling:4:7+zne:richardson:1,3",
            [DynamicalDecoupling("xy4"), PauliTwirling(4, 7), ZNE((1, 3), "richardson")],
        ),
    ],
)
def test_text_and_back(text, strategies):
    engine = engine_of(text)
    assert isinstance(engine, Mitigated)
    assert engine.strategies == tuple(strategies)
    assert engine.spec == text
    assert engine_of(engine.spec) == engine


def test_short_text():
    assert engine_of("noisy") == Noisy()
    assert engine_of("shots:64").shots == 64
    assert engine_of(Ideal()) == Ideal()
    assert engine_of("noisy + readout + zne") == Mitigated(Noisy(), [Readout(), ZNE()])
    assert strategy_of("twirling") == PauliTwirling(8)
    assert strategy_of("zne:exponential") == ZNE(extrapolation="exponential")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("noisy+zen", UnknownNameError, "mitigation strategy 'zen'; did you mean zne"),
        ("nosy+zne", UnknownNameError, "engine 'nosy'; did you mean noisy"),
        ("noisy+", UnknownNameError, "mitigation strategy ''"),
        ("noisy+zne:linear:1,x", InvalidInputError, "scale_factors of zne is 'x'"),
        ("noisy+zne:linear:1,3:local:4", InvalidInputError, "zne takes 3"),
        ("noisy+zne:cubic", UnknownNameError, "extrapolation 'cubic'"),
        ("noisy+twirling:many", InvalidInputError, "randomisations of twirling is 'many'"),
        ("noisy+readout:snap", UnknownNameError, "snapshot"),
        ("noisy+decoupling:xx:2", InvalidInputError, "decoupling takes 1"),
    ],
)
def test_bad_text_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        engine_of(text)


def test_bad_lists_are_refused(policy):
    with pytest.raises(InvalidInputError, match="at least one mitigation strategy"):
        Mitigated("noisy", [])
    with pytest.raises(InvalidInputError, match=r"at least one mitigation strategy.*'zne'"):
        Mitigated("noisy", ["zne"])
    assert Mitigated("noisy", ZNE()).strategies == (ZNE(),)
    with pytest.raises(InvalidInputError, match=r"shape \[rows"):
        Mitigated("noisy", [ZNE()]).estimate(policy("fake_manila"), torch.zeros(1, 2))
