"""One grammar of engines, understood everywhere; `spec` and `engine_of` are inverse to each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion import Device, Mitigated, Primitive, QuantumLayer, Surrogate, compile_circuit, mitigation
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import (
    ENGINES,
    CompiledCircuit,
    Engine,
    Ideal,
    NoiseTrajectories,
    Noisy,
    Shots,
    check_engine_text,
    engine_of,
    spec_of,
)
from qhw_diffusion.mitigation import (
    ZNE,
    DynamicalDecoupling,
    MitiqCDR,
    MitiqDDD,
    MitiqLRE,
    MitiqPEC,
    MitiqTwirling,
    MitiqZNE,
    PauliTwirling,
    Readout,
    Strategy,
)
from qhw_diffusion.mitigation.strategy_text import number_text

RANDOM = np.random.default_rng(5)


def whole(low: int, high: int) -> int:
    return int(RANDOM.integers(low, high))


def chosen(*words: str) -> str:
    return str(RANDOM.choice(words))


def scales(count: int) -> list[float]:
    """Ascending from 1, some round, some with all their digits, some large."""
    kind = whole(0, 3)
    steps = [float(RANDOM.uniform(0.01, 2)) if kind else float(whole(1, 4)) for _ in range(count - 1)]
    top = 100.0 if kind == 2 else 1.0
    return [1.0, *(1 + top * float(s) for s in np.cumsum(steps))]


MAKE_ENGINE: list[Callable[[], Engine]] = [
    Ideal,
    Noisy,
    lambda: Shots(whole(1, 10**6)),
    lambda: Shots(whole(1, 10**6), seed=whole(0, 2**62), noisy=bool(whole(0, 2))),
    lambda: NoiseTrajectories(whole(1, 10**6), whole(0, 2**40), bool(whole(0, 2))),
]
MAKE_STRATEGY: list[Callable[[], Strategy]] = [
    lambda: Readout(chosen("snapshot", "measured", "correlated")),  # type: ignore[arg-type]
    lambda: ZNE(
        scales(5),
        chosen("linear", "polynomial2", "polynomial4", "exponential", "richardson"),
        chosen("local", "global"),  # type: ignore[arg-type]
    ),
    lambda: PauliTwirling(whole(1, 50), whole(0, 2**40)),
    lambda: DynamicalDecoupling(chosen("xx", "xy4")),  # type: ignore[arg-type]
    lambda: MitiqZNE(scales(4), chosen("linear", "polynomial2", "richardson"), chosen("global", "random"), whole(0, 9)),
    lambda: MitiqLRE(whole(1, 3), whole(1, 6), whole(1, 4)),
    lambda: MitiqCDR(whole(3, 50), float(RANDOM.uniform(0.01, 0.99)), bool(whole(0, 2)), whole(0, 99)),
    lambda: MitiqPEC(whole(2, 500), whole(0, 99)),
    lambda: MitiqDDD(chosen("xx", "yy", "xyxy")),
    lambda: MitiqTwirling(whole(1, 50), whole(0, 99)),
]


def test_every_strategy_is_among_those_tested() -> None:
    assert {make().name for make in MAKE_STRATEGY} == set(mitigation.STRATEGIES)
    assert {make().name for make in MAKE_ENGINE} == set(ENGINES)


@pytest.mark.parametrize("make", MAKE_ENGINE)
def test_the_text_of_an_engine_makes_an_equal_one(make: Callable[[], Engine]) -> None:
    for _ in range(25):
        engine = make()
        assert engine.spec is not None
        assert engine_of(engine.spec) == engine
        assert engine_of(engine.spec).spec == engine.spec == engine.label == spec_of(engine)


@pytest.mark.parametrize("make", MAKE_STRATEGY)
def test_the_text_of_a_mitigated_engine_makes_an_equal_one(make: Callable[[], Strategy]) -> None:
    for _ in range(25):
        base = MAKE_ENGINE[whole(0, len(MAKE_ENGINE))]()
        more = [MAKE_STRATEGY[whole(0, len(MAKE_STRATEGY))]() for _ in range(whole(0, 3))]
        engine = Mitigated(base, [*more, make()])
        assert engine.spec is not None
        again = engine_of(engine.spec)
        assert again == engine
        assert isinstance(again, Mitigated)
        assert again.base == base
        assert spec_of(engine) == engine.spec


@pytest.mark.parametrize("number", [1.0, 3, 1.5, 1 / 3, 1e16, 1e-7, 123456.789, 2.0000000000000004, 1e300])
def test_numbers_lose_nothing_in_text(number: float) -> None:
    assert float(number_text(number)) == number
    assert "+" not in number_text(number)


def test_strategies_on_strategies_are_one_list() -> None:
    nested = Mitigated(Mitigated("noisy", [Readout()]), [ZNE()])
    assert nested == Mitigated("noisy", [Readout(), ZNE()]) == engine_of("noisy+readout+zne")
    assert nested.base == Noisy()


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("shots", Shots()),
        ("shots:64", Shots(64)),
        ("shots:64:ideal", Shots(64, noisy=False)),
        ("shots:64:seed=3", Shots(64, seed=3)),
        ("shots:seed=3:64:ideal", Shots(64, seed=3, noisy=False)),
        ("shots:ideal:seed=3", Shots(seed=3, noisy=False)),
        (" noisy + readout ", Mitigated("noisy", [Readout()])),
        ("shots:64:seed=3+readout+zne", Mitigated(Shots(64, seed=3), [Readout(), ZNE()])),
    ],
)
def test_text(text: str, engine: Engine) -> None:
    assert engine_of(text) == engine
    assert check_engine_text(text) == text


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bogus", UnknownNameError, "unknown engine 'bogus'"),
        ("", UnknownNameError, "unknown engine ''"),
        ("+readout", UnknownNameError, "unknown engine ''"),
        ("noisey+readout", UnknownNameError, "did you mean noisy"),
        ("ideal:3", UnknownNameError, "unknown engine 'ideal:3'; 'ideal' has no settings"),
        ("noisy:", UnknownNameError, "has no settings"),
        ("shots:", InvalidInputError, r"shots is ''; allowed: whole numbers from 1\. .*seed=S"),
        ("shots:0", InvalidInputError, "shots is '0'"),
        ("shots:many", InvalidInputError, "shots is 'many'"),
        ("shots:" + "9" * 5000, InvalidInputError, "whole numbers from 1"),
        ("shots:64:seed=-1", InvalidInputError, "seed is '-1'; allowed: whole numbers from 0"),
        ("shots:64:seed=", InvalidInputError, "seed is ''"),
        ("shots:64:sed=3", UnknownNameError, "setting of engine 'shots' 'sed=3'; did you mean seed=0"),
        ("shots:64:65", InvalidInputError, "states its shots twice"),
        ("shots:seed=1:seed=1", InvalidInputError, "states its seed twice"),
        ("shots:ideal:ideal", InvalidInputError, "states its ideal twice"),
        ("shots:64:noise", InvalidInputError, "shots is 'noise'"),
        ("noisy+zen", UnknownNameError, "mitigation strategy 'zen'"),
    ],
)
def test_bad_text_is_refused(text: str, error: type[Exception], message: str) -> None:
    for read in (engine_of, check_engine_text, mitigation.engine_of):
        with pytest.raises(error, match=message):
            read(text)


def test_a_configuration_holds_text() -> None:
    with pytest.raises(InvalidInputError, match=r"holds text, here 'shots:64:ideal'"):
        check_engine_text(Shots(64, noisy=False))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="holds text, such as 'noisy'"):
        check_engine_text(None)  # type: ignore[arg-type]


class _Own(Engine):
    """An engine of somebody's own, whose name is one of the package's."""

    name = "ideal"
    spec = "ideal"  # type: ignore[assignment]

    def estimate(self, compiled: CompiledCircuit, parameters: torch.Tensor):  # type: ignore[no-untyped-def]
        raise AssertionError


def _own_strategy() -> Strategy:
    """A strategy of somebody's own that is called like one of the package's, from a place that no text names."""

    class Own(Readout):
        pass

    return Own()


@pytest.mark.parametrize(
    "engine",
    [
        Primitive(StatevectorEstimator()),
        Mitigated(Primitive(StatevectorEstimator()), [Readout()]),
        Shots(seed=np.random.SeedSequence(3)),  # type: ignore[arg-type]
        _Own(),
        Mitigated("noisy", [_own_strategy()]),
        type("Sub", (Noisy,), {})(),
    ],
    ids=["primitive", "mitigated primitive", "seed", "own", "own strategy", "subclass"],
)
def test_what_no_text_makes_again_has_no_spec(engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot be saved.*with_engine\('noisy'\)"):
        spec_of(engine)


def test_a_label_names_what_has_no_text() -> None:
    engine = Mitigated(Primitive(StatevectorEstimator()), [Readout(), ZNE()])
    assert engine.spec is None
    assert engine.label == "primitive+readout+zne:linear:1,3,5"


@pytest.fixture(scope="module")
def compiled() -> CompiledCircuit:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.rx(w, 1)
    device = Device.load("fake_manila")
    return compile_circuit(circuit, device, inputs=[x], weights=[w], observables=[SparsePauliOp("ZZ")])


@pytest.mark.parametrize("text", ["noisy+readout", "shots:64:seed=3:ideal", "noisy+readout+zne:linear:1,3"])
def test_every_door_takes_the_whole_grammar(compiled: CompiledCircuit, text: str) -> None:
    expected = mitigation.engine_of(text)
    layer = QuantumLayer(compiled, text)
    assert layer.engine == expected
    assert QuantumLayer(compiled, "ideal").with_engine(text).engine == expected
    assert layer.with_compiled(compiled, text).engine == expected
    assert Surrogate(text).engine == expected
    x = torch.linspace(-1, 1, 5)[:, None]
    own = QuantumLayer(compiled, expected if "shots" not in text else engine_of(text))
    assert torch.equal(layer(x), own(x))
    assert Mitigated(text, [PauliTwirling(2)]).spec == f"{expected.spec}+twirling:2"
