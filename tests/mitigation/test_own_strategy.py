"""Strategies of a user's own: from Python and by name, saved and loaded, counted, and refused where they are wrong."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from qiskit.primitives import StatevectorEstimator
from torch import Tensor

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import EngineError, InvalidInputError, MissingDependencyError, UnknownNameError
from qhw_diffusion.execution import (
    CompiledCircuit,
    Estimate,
    Experiment,
    Primitive,
    QuantumLayer,
    compile_circuit,
    engine_of,
    load_layer,
    save_layer,
    spec_of,
)
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.mitigation import (
    STRATEGIES,
    ZNE,
    Calibration,
    Cost,
    Mitigated,
    Need,
    Readout,
    Strategy,
    folded,
    planned,
    strategies_of,
    strategy_of,
)
from qhw_diffusion.mitigation.strategy_text import grammar_of

FILE = '''
from dataclasses import dataclass
from qhw_diffusion.execution import Estimate
from qhw_diffusion.mitigation import Strategy, ZNE, folded

@dataclass(frozen=True)
class Line(Strategy):
    weight: float = 0.5
    repeats: int = 1
    careful: bool = False
    scales: tuple[float, ...] = (1, 3)

    def construct(self, compiled, rows):
        return [(folded(compiled, scale)[0], rows) for scale in self.scales] * self.repeats

    def combine(self, estimates, compiled, rows, calibration=()):
        one, three = estimates[:2]
        values = (1 + self.weight) * one.values - self.weight * three.values
        return Estimate(values, one.std_errors + three.std_errors)

class Plain(Line):
    """Without settings of its own."""

line = Line(0.25)
def made(weight: float = 0.1, repeats: int = 2) -> Strategy:
    return Line(weight, repeats)
def fails(depth: int) -> Strategy:
    raise RuntimeError("no such depth")
number = 3
class NoStrategy: ...
class Half(Strategy):
    def construct(self, compiled, rows): return []
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lines.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return "lines.py"


@dataclass(frozen=True)
class Tripled(Strategy):
    """The circuit with its gates once and three times; each of its parts can be replaced by something wrong."""

    weight: float = 0.5

    def construct(self, compiled: CompiledCircuit, rows: Tensor) -> list[Experiment]:
        return [(compiled, rows), (folded(compiled, 3)[0], rows)]

    def combine(
        self, estimates: Sequence[Estimate], compiled: CompiledCircuit, rows: Tensor, calibration: Sequence = ()
    ) -> Estimate:
        one, three = estimates
        return Estimate(
            (1 + self.weight) * one.values - self.weight * three.values, one.std_errors.hypot(three.std_errors)
        )


class Wrong(Tripled):
    """Base of the wrong ones below: the same text for all would have them mistaken for one another."""

    spec: ClassVar[Any] = None  # type: ignore[assignment]


def test_from_python_it_is_a_strategy_like_the_others(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled)
    own = Mitigated("noisy", [Readout(), Tripled(0.5)])
    linear = Mitigated("noisy", [Readout(), ZNE((1, 3))])
    torch.testing.assert_close(own.estimate(compiled, values).values, linear.estimate(compiled, values).values)
    assert own.cost(compiled, 4) == linear.cost(compiled, 4) == Cost(8)
    assert Tripled().cost(compiled, 4) == Mitigated("ideal", [Tripled()]).cost(compiled, 4) == Cost(8)
    layer = QuantumLayer(compiled, own, dtype=torch.float64)
    layer(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("lines.py:Line", "lines.py:Line"),
        ("lines.py:Line:0.25:2:yes:1,5", "lines.py:Line:0.25:2:yes:1,5"),
        ("lines.py:Line:0.5:1:no:1,3", "lines.py:Line"),
        ("lines.py:Plain", "lines.py:Plain"),
        ("lines.py:line", "lines.py:Line:0.25"),
        ("lines.py:made", "lines.py:Line:0.1:2"),
        ("lines.py:made:0.5:3", "lines.py:Line:0.5:3"),
    ],
)
def test_by_name_it_is_made_and_written_back(file, text, spec):
    strategy = strategy_of(text)
    assert strategy.spec == spec == strategy.label
    assert strategy_of(spec) == strategy
    engine = engine_of(f"shots:64:seed=3+readout+{text}+zne:linear:1,3")
    assert isinstance(engine, Mitigated)
    assert engine.spec == f"shots:64:seed=3+readout+{spec}+zne:linear:1,3" == spec_of(engine)
    assert [type(s) for s in engine.strategies] == [Readout, type(strategy), ZNE]


def test_a_module_is_found_as_import_finds_it(tmp_path, monkeypatch):
    (tmp_path / "own_lines_module.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert strategy_of("own_lines_module:Line:0.2").spec == "own_lines_module:Line:0.2"
    sys.modules.pop("own_lines_module")


def test_built_in_names_come_first(tmp_path, monkeypatch):
    (tmp_path / "zne.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    assert strategy_of("zne:linear") == ZNE()
    assert set(STRATEGIES) == {kind.name for kind in STRATEGIES.values()}


def test_a_layer_with_it_is_saved_and_loaded(file, policy, tmp_path):
    compiled = policy("fake_manila")
    layer = QuantumLayer(compiled, "noisy+readout+lines.py:Line:0.2", dtype=torch.float64)
    again = load_layer(save_layer(layer, tmp_path / "layer"))
    assert again.engine == layer.engine
    assert again.engine.spec == "noisy+readout+lines.py:Line:0.2"
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    assert torch.equal(again(x), layer(x))
    (tmp_path / "lines.py").rename(tmp_path / "moved.py")
    for name in [name for name in sys.modules if name.startswith("qhw_extension_lines")]:
        del sys.modules[name]
    with pytest.raises(InvalidInputError, match=r"there is no file lines\.py"):
        load_layer(tmp_path / "layer")
    assert load_layer(tmp_path / "layer", engine="noisy").engine.spec == "noisy"


@pytest.mark.slow
def test_a_script_that_runs_is_the_file_of_that_name(file, capsys):
    """What a script defines is saved by the script's path, and is the same class when it is named within the script."""
    with open(file, "a") as script:
        script.write(
            "from qhw_diffusion.execution import engine_of, spec_of\n"
            "from qhw_diffusion.mitigation import Mitigated\n"
            "engine = Mitigated('noisy', [Line(0.2)])\n"
            "print(spec_of(engine), engine_of('noisy+lines.py:Line:0.2') == engine)\n"
        )
    runpy.run_path(file, run_name="__main__")
    assert capsys.readouterr().out.split() == ["noisy+lines.py:Line:0.2", "True"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lines.py:Lime", InvalidInputError, r"mitigation strategy 'lines.py:Lime': lines.py has no 'Lime'; it has"),
        ("other.py:Line", InvalidInputError, r"there is no file other.py"),
        ("lines.py:number", InvalidInputError, r"'lines.py:number' is a int; wanted: a Strategy"),
        ("lines.py:NoStrategy", InvalidInputError, r"'lines.py:NoStrategy' is a type; wanted: a Strategy"),
        ("lines.py:Half", InvalidInputError, r"'lines.py:Half' does not define combine"),
        ("lines.py:line:0.5", InvalidInputError, r"'lines.py:line' is made already and takes no settings; given 0.5"),
        ("lines.py:Line:much", InvalidInputError, r"'lines.py:Line': weight of Line is 'much', which is no number"),
        ("lines.py:Line:1:x", InvalidInputError, r"repeats of Line is 'x', which is no whole number"),
        ("lines.py:Line:1:1:maybe", InvalidInputError, r"careful of Line is 'maybe'; allowed: no, yes"),
        ("lines.py:Line:1:1:no:1:9", InvalidInputError, r"has 5 settings, Line takes 4: Line\[:WEIGHT\[:REPEATS"),
        ("lines.py:made:1:1:1", InvalidInputError, r"lines.py:made takes 2"),
        ("lines.py:fails:3", InvalidInputError, r"lines.py:fails cannot be made of 3: RuntimeError: no such depth"),
        ("lines.py:fails", InvalidInputError, r"lines.py:fails cannot be made of no settings: TypeError"),
        (
            "redout:measured",
            UnknownNameError,
            r"'redout'; did you mean readout.*file.py:name, and there is no module redout",
        ),
        ("zen", UnknownNameError, r"'zen'; did you mean zne.*module:name or file.py:name"),
    ],
)
def test_a_name_that_is_no_strategy_is_refused(file, text, error, message):
    with pytest.raises(error, match=message):
        engine_of(f"noisy+{text}")
    with pytest.raises(error, match=message):
        strategies_of(text)


class NoCircuits(Wrong):
    def construct(self, compiled, rows):
        return []


class NoList(Wrong):
    def construct(self, compiled, rows):
        return None


class NoPairs(Wrong):
    def construct(self, compiled, rows):
        return [compiled]


class NarrowRows(Wrong):
    def construct(self, compiled, rows):
        return [(compiled, rows[:, :1]), (compiled, rows)]


class OtherObservables(Wrong):
    def construct(self, compiled, rows):
        return [(replace(compiled, observables=compiled.observables[::-1]), rows), (compiled, rows)]


class Fails(Wrong):
    def construct(self, compiled, rows):
        return [][0]


class WrongCost(Wrong):
    def cost(self, compiled, rows=1):
        return Cost(rows)


class WrongPlan(Wrong):
    def plan(self, compiled, rows):
        return [(compiled, rows)]


class OwnWeights(Wrong):
    def construct(self, compiled, rows):
        return [(compiled, rows + torch.arange(len(rows))[:, None]), (compiled, rows)]


class WrongShape(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        return Estimate(estimates[0].values[:, :1], estimates[0].std_errors)


class WrongErrors(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        return Estimate(estimates[0].values, estimates[0].std_errors[0])


class NoEstimate(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        return estimates[0].values


class NaN(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        values = estimates[0].values
        return Estimate((values - 2).log() * values, estimates[0].std_errors)


class CutsGradient(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        return Estimate(torch.from_numpy(estimates[0].values.detach().numpy()), estimates[0].std_errors)


class FailsLater(Wrong):
    def combine(self, estimates, compiled, rows, calibration=()):
        return estimates[2]


class NoCalibration(Wrong):
    def calibration(self, compiled):
        return [compiled]


class WideCalibration(Wrong):
    def calibration(self, compiled):
        return Calibration(("all",), ((compiled, torch.zeros(1, 1)),))


WRONG = [
    (NoCircuits, InvalidInputError, "construct returned no circuits"),
    (NoList, InvalidInputError, "construct returned a NoneType; wanted: a list"),
    (NoPairs, InvalidInputError, "construct returned as circuit 0 CompiledCircuit; wanted"),
    (NarrowRows, InvalidInputError, r"circuit 0 one with rows \(2, 1\); wanted: \[rows, 18\]"),
    (OtherObservables, InvalidInputError, "circuit 0 of construct measures other observables"),
    (Fails, EngineError, "construct fails: IndexError"),
    (WrongCost, InvalidInputError, r"states for 2 rows Cost\(circuits=2.*make Cost\(circuits=4"),
    (WrongPlan, InvalidInputError, "with 1 circuits in plan.*with 2"),
    (OwnWeights, InvalidInputError, "rows have different weights"),
    (WrongShape, InvalidInputError, r"returned values of shape \(2, 1\).*wanted: real numbers of shape \(2, 4\)"),
    (WrongErrors, InvalidInputError, r"returned std_errors of shape \(4,\).*shape \(2, 4\)"),
    (NoEstimate, InvalidInputError, "returned a Tensor; wanted: an Estimate"),
    (NaN, InvalidInputError, "returned values with NaN"),
    (CutsGradient, InvalidInputError, "combine cuts the gradient"),
    (FailsLater, EngineError, "combine fails: IndexError"),
    (NoCalibration, InvalidInputError, "calibration returned a list; wanted: a Calibration"),
    (WideCalibration, InvalidInputError, r"calibration asks as circuit 0 for one with rows \(1, 1\)"),
]


class NeverAsked(StatevectorEstimator):
    """A primitive that must not be sent anything."""

    def run(self, *arguments: Any, **settings: Any) -> Any:
        raise AssertionError("something was sent")


@pytest.mark.parametrize(("kind", "error", "message"), WRONG, ids=lambda each: getattr(each, "__name__", ""))
def test_what_it_does_wrong_is_told_before_anything_is_sent(kind, error, message, policy, rows):
    compiled = policy("fake_manila")
    named = f"mitigation strategy {kind.__name__}.*{message}"
    engine = Mitigated(Primitive(NeverAsked()), [Readout(), kind()])
    with pytest.raises(error, match=named):
        engine.check(compiled)
    with pytest.raises(error, match=named):
        QuantumLayer(compiled, Mitigated("noisy", [kind()]))
    with pytest.raises(error, match=named):
        engine.estimate(compiled, rows(compiled))
    with pytest.raises(error, match=named):
        engine.cost(compiled, 2)
    with pytest.raises(error, match=named):
        planned([kind()], compiled, 2)
    with pytest.raises(error, match=named):
        qpu_cost(Mitigated("ideal", [kind()]), compiled, 2, shots=64)


def test_what_only_real_values_show_is_told_as_well(policy, rows):
    """A combine that is right for the values it is tried out on, and not later."""

    class Sometimes(Wrong):
        def combine(self, estimates, compiled, rows, calibration=()):
            good = Estimate(estimates[0].values, estimates[0].std_errors)
            return good if len(rows) == 2 else Estimate(good.values * torch.nan, good.std_errors)

    compiled = policy("fake_manila")
    engine = Mitigated("noisy", [Sometimes()])
    engine.check(compiled)
    with pytest.raises(InvalidInputError, match="Sometimes: combine returned values with NaN"):
        engine.estimate(compiled, rows(compiled, 3))


def test_on_a_wide_circuit_shapes_are_looked_at_and_values_are_not():
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp

    circuit = QuantumCircuit(9)
    circuit.h(0)
    for qubit in range(8):
        circuit.cx(qubit, qubit + 1)
    observables = [SparsePauliOp("Z" * 9), SparsePauliOp("X" * 9)]
    compiled = compile_circuit(
        circuit, Device.load("fake_guadalupe"), inputs=[], weights=[], observables=observables, optimization_level=1
    )
    engine = Primitive(NeverAsked())
    for kind, message in ((WrongShape, "shape"), (WrongCost, "states"), (NoCircuits, "no circuits")):
        with pytest.raises(InvalidInputError, match=f"mitigation strategy {kind.__name__}.*{message}"):
            Mitigated(engine, [kind()]).check(compiled)
    for kind in (NaN, FailsLater, Tripled):
        Mitigated(engine, [kind()]).check(compiled)


def test_its_needs_are_checked(policy):
    class NeedsShots(Wrong):
        needs = frozenset({Need.SHOTS})

    class NeedsSchedule(Wrong):
        needs = frozenset({Need.SCHEDULE})

    compiled = policy("fake_manila")
    Mitigated("shots:64", [NeedsShots()]).check(compiled)
    with pytest.raises(InvalidInputError, match=r"NeedsShots: engine 'noisy' is exact.*shots:4096"):
        Mitigated("noisy", [NeedsShots()]).check(compiled)
    with pytest.raises(InvalidInputError, match="NeedsSchedule: a scheduled circuit is needed"):
        Mitigated("noisy", [NeedsSchedule()]).check(compiled)
    Mitigated("noisy", [NeedsSchedule()]).check(policy("fake_manila", scheduled=True))


def test_a_need_for_mitiq_is_checked(policy, monkeypatch):
    class NeedsMitiq(Wrong):
        needs = frozenset({Need.MITIQ})

    monkeypatch.setattr("qhw_diffusion.mitigation.strategy.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        Mitigated("noisy", [NeedsMitiq()]).check(policy("fake_manila"))


def test_built_in_strategies_state_what_they_need():
    assert strategy_of("readout").needs == {Need.READOUT_DATA}
    assert strategy_of("readout:measured").needs == strategy_of("zne").needs == strategy_of("twirling").needs == set()
    assert strategy_of("decoupling").needs == {Need.SCHEDULE}
    for name in STRATEGIES:
        assert (Need.MITIQ in strategy_of(name).needs) == name.startswith("mitiq-")
    assert Need.GATE_DATA in strategy_of("mitiq-pec").needs
    assert Need.NOISELESS_SIMULATOR in strategy_of("mitiq-cdr").needs


def test_labels_and_grammar():
    assert [strategy_of(text).label for text in ("readout:measured", "zne:linear:1,3", "mitiq-cdr", "twirling")] == [
        "readout measured", "ZNE linear 1, 3", "Mitiq CDR, 24 circuits", "twirling, 8 circuits"
    ]  # fmt: skip
    assert len({strategy_of(name).label for name in STRATEGIES}) == len(STRATEGIES)
    assert ZNE.grammar() == "zne[:EXTRAPOLATION[:SCALE_FACTOR,SCALE_FACTOR,…[:local|global]]]"
    assert grammar_of(Tripled, "Tripled") == "Tripled[:WEIGHT]"


def test_a_strategy_that_no_text_makes_has_a_label_and_is_not_saved(policy):
    @dataclass(frozen=True)
    class Local(Tripled):
        pass

    engine = Mitigated("noisy", [Local()])
    assert engine.spec is None
    assert engine.label == "noisy+Local"
    with pytest.raises(InvalidInputError, match="cannot be saved"):
        spec_of(engine)
