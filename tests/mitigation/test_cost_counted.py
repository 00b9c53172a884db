"""What evaluations take is known before: every strategy, every pair of them, the first evaluation and later ones."""

from __future__ import annotations

import functools
import itertools
import re

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.execution import CompiledCircuit, Primitive, Usage, compile_circuit
from qhw_diffusion.execution.engine import circuits_with_shots
from qhw_diffusion.hardware.split import bases_of
from qhw_diffusion.mitigation import Cost, Mitigated, engine_of, strategy_of
from qhw_diffusion.mitigation.registry import STRATEGIES

TEXTS = [
    "readout", "readout:measured", "readout:correlated", "zne:linear:1,3", "zne:linear:1,2,3:global", "twirling:2",
    "decoupling:xx", "mitiq-zne:linear:1,3", "mitiq-lre:1:2", "mitiq-cdr:6", "mitiq-cdr:6:0.5:rows", "mitiq-pec:3",
    "mitiq-ddd", "mitiq-twirling:2",
]  # fmt: skip
SHOTS = 64


@functools.cache
def circuit(scheduled: bool = False) -> CompiledCircuit:
    """Two qubits that wait, two two-qubit gates; observables in two bases."""
    x, w = Parameter("x"), Parameter("w")
    made = QuantumCircuit(2)
    made.ry(x, 0)
    made.rx(w, 1)
    made.cx(0, 1)
    made.ry(w, 0)
    made.ry(x, 0)
    made.ry(0.4, 1)
    made.cx(0, 1)
    made.ry(x, 1)
    observables = [SparsePauliOp("IZ"), SparsePauliOp(["ZZ", "IX"], [1.0, 0.5]), SparsePauliOp("ZI")]
    return compile_circuit(made, Device.load("fake_manila"), inputs=[x], weights=[w], observables=observables,
                           scheduled=scheduled, seed=1)  # fmt: skip


def rows(number: int) -> torch.Tensor:
    values = torch.linspace(0.2, 1.1, number, dtype=torch.float64)
    return torch.stack([values, torch.full_like(values, 0.7)], dim=1)


def checked_cost(engine: Mitigated, compiled: CompiledCircuit, number: int) -> Cost:
    """As a run does it: the circuit is checked, then the cost is told."""
    engine.check(compiled)
    return engine.cost(compiled, number)


def test_every_strategy_is_tried() -> None:
    assert {text.split(":")[0] for text in TEXTS} == set(STRATEGIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts", [*((text,) for text in TEXTS), *itertools.product(TEXTS, TEXTS)], ids=lambda texts: "+".join(texts)
)
def test_circuits_and_shots_are_those_of_the_evaluation(texts: tuple[str, ...]) -> None:
    """On the engine that executes shots: the first evaluation calibrates, once, and the second does not."""
    compiled = circuit(scheduled=any(text.startswith("decoupling") for text in texts))
    engine = engine_of("+".join([f"shots:{SHOTS}", *texts]))
    assert isinstance(engine, Mitigated)
    number = 2
    refusal: QhwError | None = None
    try:
        first, second = (engine.estimate(compiled, rows(number)).usage for _ in range(2))
    except QhwError as error:
        refusal = error
    if refusal is not None and "no line can be learned" not in str(refusal):
        # a pair that does not go together: told before as well, in the same words
        with pytest.raises(type(refusal), match=re.escape(str(refusal))):
            checked_cost(engine, compiled, number)
        return
    cost = engine.cost(compiled, number)
    if refusal is not None:  # depends on the values, of which nothing is known before
        return
    assert cost.usage(SHOTS) == first
    assert cost.usage(SHOTS, first=False) == second
    assert cost.circuits == second.circuits
    assert second.shots == SHOTS * second.circuits


@pytest.mark.parametrize("text", TEXTS)
def test_each_number_of_rows_and_no_evaluation_is_needed(text: str) -> None:
    compiled = circuit(scheduled=text.startswith("decoupling"))
    for number in (1, 3, 7):
        engine = engine_of(f"shots:{SHOTS}+{text}")
        assert isinstance(engine, Mitigated)
        before = engine.base.draws.generator.bit_generator.state  # type: ignore[attr-defined]
        cost = engine.cost(compiled, number)
        assert engine.base.draws.generator.bit_generator.state == before  # type: ignore[attr-defined]
        assert not engine._calibrations
        assert engine.estimate(compiled, rows(number)).usage == cost.usage(SHOTS)
        assert strategy_of(text).cost(compiled, number) == cost


def test_the_numbers_by_hand() -> None:
    """16 rows in two bases. Two scales and two preparations: 2 · 32 + 2; two randomisations and 4 preparations."""
    compiled = circuit()
    assert engine_of("noisy+readout:measured+zne:linear:1,3").cost(compiled, 16) == Cost(64, 2)  # type: ignore[attr-defined]
    assert engine_of("noisy+readout:correlated+twirling:2").cost(compiled, 16) == Cost(64, 4)  # type: ignore[attr-defined]
    assert engine_of("noisy+mitiq-cdr:24").cost(compiled, 16) == Cost(2 * (16 + 24))  # type: ignore[attr-defined]
    assert Cost(64, 2).usage(100) == Usage(66, 6600)
    assert Cost(64, 2).usage(100, first=False) == Usage(64, 6400)


def test_several_experiments_of_one_call_calibrate_once() -> None:
    compiled = circuit()
    engine = engine_of(f"shots:{SHOTS}+readout:measured+twirling:2")
    assert isinstance(engine, Mitigated)
    cost = engine.cost(compiled, 3)
    both = engine.estimate_many([(compiled, rows(3)), (compiled, rows(3))])
    assert sum(estimate.usage.circuits for estimate in both) == 2 * cost.circuits + cost.calibration_circuits


class Tally(StatevectorEstimator):
    """Counts what it is sent, by Qiskit's own grouping."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.circuits = 0

    def run(self, pubs, *, precision=None):
        for _, observables, bindings, _ in pubs:
            number = 1 if bindings is None else len(next(iter(bindings.values())))
            union = SparsePauliOp.sum([o for [o] in observables]).paulis
            grouped = union[(union.x | union.z).any(axis=1)].group_commuting(qubit_wise=True)
            self.circuits += number * len(grouped)
        return super().run(pubs, precision=precision)


@pytest.mark.parametrize("text", ["", "+zne:linear:1,3", "+readout:correlated+twirling:2", "+mitiq-pec:3"])
def test_a_primitive_is_sent_as_many(text: str) -> None:
    compiled, primitive = circuit(), Primitive(Tally(), precision=0.1)
    if not text:
        assert primitive.circuits_of(compiled, 5) == primitive.estimate(compiled, rows(5)).usage.circuits
        assert primitive.estimator.circuits == primitive.circuits_of(compiled, 5)
        return
    engine = Mitigated(primitive, [strategy_of(one) for one in text[1:].split("+")])
    cost = engine.cost(compiled, 5)
    usage = engine.estimate(compiled, rows(5)).usage
    assert primitive.estimator.circuits == usage.circuits == cost.circuits + cost.calibration_circuits


def test_observables_that_primitives_group_better_than_our_shots() -> None:
    """Greedy groups in the order given are five here, the best ones four: each engine counts what it executes."""
    labels = [["XII", "IXX", "XXY", "YYY"], ["XIY", "IZI", "ZXX", "YIZ"], ["YIZ", "YII"]]
    observables = [SparsePauliOp(each) for each in labels]
    x = Parameter("x")
    made = QuantumCircuit(3)
    made.rx(x, 0)
    made.cx(0, 1)
    made.cx(1, 2)
    compiled = compile_circuit(made, Device.load("fake_manila"), inputs=[x], weights=[], observables=observables)
    primitive = Primitive(Tally(), precision=0.1)
    values = torch.zeros(3, 1, dtype=torch.float64)
    assert bases_of(compiled.observables) == 4
    assert circuits_with_shots(compiled, 3) == 15 == engine_of("shots:10").estimate(compiled, values).usage.circuits
    assert primitive.circuits_of(compiled, 3) == 12 == primitive.estimate(compiled, values).usage.circuits


@pytest.mark.parametrize("number", [0, -1, True, 2.0])
def test_rows_that_are_none(number: object) -> None:
    with pytest.raises(InvalidInputError, match="whole numbers from 1"):
        engine_of("noisy+zne").cost(circuit(), number)  # type: ignore[attr-defined]
