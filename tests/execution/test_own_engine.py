"""Engines of a user's own: by Python and by module:name, checked, tried before a training, saved by their text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion import Device, Mitigated, ParameterShift, QuantumLayer, Surrogate, compile_circuit
from qhw_diffusion.errors import EngineError, InvalidInputError, QhwError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import (
    ENGINES,
    CompiledCircuit,
    Engine,
    Estimate,
    Ideal,
    Noisy,
    Usage,
    check_engine_text,
    engine_of,
    spec_of,
)
from qhw_diffusion.mitigation import Readout

MODULE = """
import torch
from qhw_diffusion.execution import Engine, Estimate, Ideal

class Halved(Engine):
    def __init__(self, factor=0.5):
        self.factor = factor
    def estimate(self, compiled, parameters):
        exact = Ideal().estimate(compiled, parameters)
        return Estimate(self.factor * exact.values, exact.std_errors)

halved = Halved()
number = 3
def made():
    return Halved(0.25)
def unmade():
    raise OSError("no such server")
def wants(argument):
    return Halved()
def none():
    return None
"""


@pytest.fixture(scope="module")
def compiled() -> CompiledCircuit:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.rx(w, 1)
    observables = [SparsePauliOp("ZZ"), SparsePauliOp("IX")]
    return compile_circuit(circuit, Device.load("fake_manila"), inputs=[x], weights=[w], observables=observables)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


X = torch.linspace(-1, 1, 3)[:, None]


@pytest.mark.parametrize(("name", "factor"), [("halved", 0.5), ("made", 0.25), ("Halved", 0.5)])
def test_a_text_names_an_engine_a_class_or_a_function(
    compiled: CompiledCircuit, file: Path, name: str, factor: float
) -> None:
    text = f"{file}:{name}"
    assert check_engine_text(text) == text
    engine = engine_of(f" {text} ")
    assert engine.spec == engine.label == spec_of(engine) == text
    assert engine.name == "Halved"
    layer = QuantumLayer(compiled, text, gradient=ParameterShift())
    exact = layer.with_engine("ideal")
    torch.testing.assert_close(layer(X), factor * exact(X))
    layer(X).sum().backward()
    exact(X).sum().backward()
    torch.testing.assert_close(layer.weight.grad, factor * exact.weight.grad)


def test_the_whole_grammar_goes_with_it(compiled: CompiledCircuit, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    engine = engine_of("mine:halved+readout")
    assert isinstance(engine, Mitigated)
    assert engine.strategies == (Readout(),)
    assert engine.spec == spec_of(engine) == "mine:halved+readout"
    assert engine.cost(compiled, 3).circuits == 6
    with pytest.raises(InvalidInputError, match="gives no gradient and cannot be a surrogate"):
        Surrogate("mine:halved")


def test_a_layer_is_saved_with_its_text(compiled: CompiledCircuit, file: Path, tmp_path: Path) -> None:
    layer = QuantumLayer(compiled, f"{file}:made", gradient=ParameterShift())
    again = QuantumLayer.load(layer.save(tmp_path / "layer"))
    assert torch.equal(again(X), layer(X))
    made = type(layer.engine)()
    with pytest.raises(InvalidInputError, match="cannot be saved"):
        layer.with_engine(made).save(tmp_path / "other")
    file.unlink()
    with pytest.raises(InvalidInputError, match="there is no file"):
        engine_of(f"{file}:made")


def test_an_own_engine_becomes_a_built_in_one_as_it_is(
    compiled: CompiledCircuit, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "halved", type(engine_of(f"{file}:Halved")))
    built = engine_of("halved")
    assert (built.spec, spec_of(built), engine_of("halved+readout").spec) == ("halved", "halved", "halved+readout")
    layer = QuantumLayer(compiled, "halved", gradient=ParameterShift())
    assert torch.equal(QuantumLayer.load(layer.save(tmp_path / "layer"))(X), layer(X))
    with pytest.raises(UnknownNameError, match="has no settings"):
        engine_of("halved:0.3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("halvd", "has no 'halvd'"),
        ("number", r"is a int; wanted is an engine \(a class derived from qhw_diffusion.execution.Engine"),
        ("none", "is a NoneType; wanted is an engine"),
        ("unmade", "making it fails: OSError: no such server"),
        ("wants", "making it fails: TypeError"),
        ("Engine", "making it fails: TypeError: Can't instantiate abstract class"),
    ],
)
def test_a_text_that_names_none_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as refused:
        check_engine_text(f"{file}:{name}")
    assert f"engine '{file}:{name}'" in str(refused.value)


def test_an_unknown_name_says_that_ones_own_are_possible() -> None:
    with pytest.raises(UnknownNameError, match=r"'nosy'; did you mean noisy\? One of your own is module:name"):
        engine_of("nosy")
    with pytest.raises(InvalidInputError, match="there is no module nowhere"):
        engine_of("nowhere:engine")


class Answering(Engine):
    """Answers with whatever it is given."""

    def __init__(self, answer: Callable[[CompiledCircuit, Tensor], Any]) -> None:
        self.answer, self.calls = answer, 0

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        self.calls += 1
        return self.answer(compiled, parameters)


def of_shape(*shape: int, fill: float = 0.0, error: float = 0.0) -> Estimate:
    return Estimate(torch.full(shape, fill), torch.full(shape, error))


WRONG: dict[str, tuple[Callable[[CompiledCircuit, Tensor], Any], str]] = {
    "type": (lambda c, p: torch.zeros(len(p), 2), "answered with a Tensor; wanted is an Estimate"),
    "none": (lambda c, p: None, "answered with a NoneType; wanted is an Estimate"),
    "rows": (lambda c, p: of_shape(len(p) + 1, 2), r"values torch.float32 \(2, 2\); wanted is .* \(1, 2\)"),
    "columns": (lambda c, p: of_shape(len(p), 1), r"values torch.float32 \(1, 1\); wanted"),
    "whole": (lambda c, p: Estimate(torch.zeros(len(p), 2).long(), torch.zeros(len(p), 2)), "values torch.int64"),
    "list": (lambda c, p: Estimate([[0.0] * 2], torch.zeros(len(p), 2)), "values list; wanted"),  # type: ignore[arg-type]
    "errors": (lambda c, p: Estimate(torch.zeros(len(p), 2), torch.zeros(2)), r"std_errors torch.float32 \(2,\)"),
    "nan": (lambda c, p: of_shape(len(p), 2, fill=float("nan")), "values that are NaN or infinite"),
    "infinite": (lambda c, p: of_shape(len(p), 2, fill=float("inf")), "values that are NaN or infinite"),
    "negative": (lambda c, p: of_shape(len(p), 2, error=-1.0), "standard errors that are NaN or negative"),
    "usage": (lambda c, p: Estimate(torch.zeros(len(p), 2), torch.zeros(len(p), 2), 3), "answered with usage 3"),  # type: ignore[arg-type]
    "raises": (lambda c, p: 1 / 0, "fails: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_an_engine_does_wrong_is_told_when_the_layer_is_made(compiled: CompiledCircuit, what: str) -> None:
    answer, message = WRONG[what]
    engine = Answering(answer)
    with pytest.raises(EngineError, match=message) as refused:
        QuantumLayer(compiled, engine, gradient=ParameterShift())
    assert "engine 'Answering' (test_own_engine.Answering)" in str(refused.value)
    assert engine.calls == 1


def test_errors_of_the_package_pass_through(compiled: CompiledCircuit) -> None:
    def refuse(c: CompiledCircuit, p: Tensor) -> Estimate:
        raise UnsupportedCircuitError("no such gate here")

    with pytest.raises(UnsupportedCircuitError, match=r"^no such gate here$"):
        QuantumLayer(compiled, Answering(refuse))


def test_an_engine_that_costs_something_is_not_tried(compiled: CompiledCircuit) -> None:
    class Paid(Answering):
        tried = False

    engine = Paid(WRONG["nan"][0])
    layer = QuantumLayer(compiled, engine, gradient=ParameterShift())
    assert engine.calls == 0
    with pytest.raises(EngineError, match="NaN or infinite"):
        layer(X)


def test_infinite_standard_errors_are_allowed(compiled: CompiledCircuit) -> None:
    layer = QuantumLayer(compiled, Answering(lambda c, p: of_shape(len(p), 2, error=float("inf"))))
    assert bool(layer.estimate(X).std_errors.isinf().all())


def test_answers_to_several_circuits_and_gradients_of_its_own_are_checked(compiled: CompiledCircuit) -> None:
    class Several(Answering):
        differentiable = True
        wrong: Any = None

        def estimate_many(self, experiments: Any) -> Any:
            return self.wrong

        def expectation(self, compiled: Any, inputs: Tensor, weights: Tensor, record: Any = None) -> Any:
            return self.wrong

    engine = Several(lambda c, p: of_shape(len(p), 2))
    layer = QuantumLayer(compiled, engine)
    for wrong, message in (
        (None, r"values NoneType; wanted is a tensor \(3, 2\)"),
        (torch.zeros(2), r"values \(2,\); wanted"),
        (torch.full((3, 2), float("nan")), "NaN or infinite"),
    ):
        engine.wrong = wrong
        with pytest.raises(EngineError, match=message):
            layer(X)
    rows = torch.zeros(3, 2)
    for wrong, message in (
        (None, "answered with NoneType to 1 circuits"),
        ([], "answered with 0 entries to 1 circuits"),
        ([of_shape(1, 2)], r"values torch.float32 \(1, 2\); wanted"),
    ):
        engine.wrong = wrong
        with pytest.raises(EngineError, match=message):
            engine.estimate_many([(compiled, rows)])
    engine.wrong = [of_shape(3, 2)]
    (estimate,) = engine.estimate_many([(compiled, rows)])
    assert estimate.usage == Usage()


def test_what_derives_from_an_engine_of_the_package_keeps_its_evaluation(compiled: CompiledCircuit) -> None:
    class Mine(Noisy):
        """Nothing of its own but its name."""

        name = "mine"

    assert torch.equal(QuantumLayer(compiled, Mine())(X), QuantumLayer(compiled, "noisy")(X))
    assert isinstance(Mine(), Ideal)
    with pytest.raises(QhwError, match="cannot be saved"):
        spec_of(Mine())
