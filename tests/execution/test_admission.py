"""What `compile_circuit` takes: parameters that cancel, measurements, resets, odd operations and odd arguments.

Everything either works on all engines alike or is refused with an error of the package that names the culprit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit import AnnotatedOperation, Gate, Instruction, Parameter, ParameterVector, PowerModifier
from qiskit.circuit.classical import expr
from qiskit.circuit.library import (
    HamiltonianGate,
    LinearFunction,
    PauliEvolutionGate,
    RVGate,
    RXGate,
    RZGate,
    UnitaryGate,
)
from qiskit.primitives import BackendEstimatorV2, BaseEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import Clifford, Kraus, Operator, Pauli, SparsePauliOp, Statevector, random_unitary
from qiskit_aer import AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimatorV2

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, QhwError, UnsupportedCircuitError
from qhw_diffusion.execution import (
    Hardware,
    Ideal,
    Noisy,
    ParameterShift,
    Primitive,
    Shots,
    aer_backend,
    aer_estimator,
    runtime_estimator,
)
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.hardware import Ledger, open_runner

X, Y, W = Parameter("x"), Parameter("y"), Parameter("w")
DEVICES = ("ideal", "fake_manila")


@functools.cache
def device(name: str = "fake_manila") -> Device:
    return Device.load(name)


def compiled(circuit: QuantumCircuit, name: str = "ideal", **changes: Any) -> qhw.CompiledCircuit:
    n = circuit.num_qubits
    settings: dict[str, Any] = {
        "inputs": [],
        "weights": list(circuit.parameters),
        "observables": [SparsePauliOp("Z" * n), SparsePauliOp("X" * n)],
    }
    return qhw.compile_circuit(circuit, device(name), **(settings | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


# -- parameters that cancel --------------------------------------------------------------------------------------------


def from_gate(gate: Gate, qubits: int = 2) -> QuantumCircuit:
    """The gate in superposition, so that its angles matter, and a rotation by Y."""
    circuit = QuantumCircuit(qubits)
    circuit.h(range(qubits))
    circuit.append(gate, range(gate.num_qubits))
    circuit.ry(Y, 0)
    circuit.cx(0, 1)
    return circuit


def composite(angle: Any, phase: Any = 0, controlled: bool = False) -> Gate:
    inner = QuantumCircuit(1, global_phase=phase)
    inner.rx(Y, 0)
    inner.rz(angle, 0)
    return inner.to_gate().control(1) if controlled else inner.to_gate()


def phased() -> QuantumCircuit:
    circuit = from_gate(RXGate(Y))
    circuit.global_phase = 2 * X - 0.3
    return circuit


def of(method: str, *arguments: Any) -> Callable[[], QuantumCircuit]:
    """A circuit of one standard gate, by the name of the method that appends it."""

    def make() -> QuantumCircuit:
        gate = QuantumCircuit(2)
        getattr(gate, method)(*arguments)
        return from_gate(gate.data[0].operation)

    return make


CANCELLING: dict[str, Callable[[], QuantumCircuit]] = {
    "x - x": of("rz", X - X, 0),
    "0 x": of("rx", 0 * X, 0),
    "2 x - x - x": of("ry", 2 * X - X - X, 0),
    "x - x + .3": of("rz", X - X + 0.3, 0),
    "x/2 + x/2 - x": of("p", X / 2 + X / 2 - X, 0),
    "y + 0 x": of("rx", Y + 0 * X, 0),
    "y + x - x": of("rx", Y + X - X, 0),
    "rxx": of("rxx", 0 * X, 0, 1),
    "rzz beside y": of("rzz", X - X + 0.5 * Y, 0, 1),
    "controlled": of("crz", X - X, 0, 1),
    "cp": of("cp", 0 * X, 0, 1),
    "u": of("u", X - X, Y, 0 * X, 0),
    "u whose translation cancels": of("u", 0, X, -X, 0),
    "cu": of("cu", X, X, -X, 0 * X, 0, 1),
    "in a gate of one's own": lambda: from_gate(composite(X - X)),
    "in the global phase": phased,
    "in the global phase of a gate": lambda: from_gate(composite(0.2, X)),
    "in a controlled gate, where the phase counts": lambda: from_gate(composite(X - X, X, controlled=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("circuit", CANCELLING.values(), ids=CANCELLING.keys())
def test_parameters_that_cancel_are_legal(circuit: Callable[[], QuantumCircuit], name: str, level: int) -> None:
    """Values and slopes against Qiskit's Statevector of the circuit as written."""
    logical = circuit()
    made = compiled(logical, name, inputs=[X], weights=[Y], optimization_level=level)
    assert all(p in (X, Y) for p in made.isa.parameters)
    assert not getattr(made.isa.global_phase, "parameters", None)
    layer = qhw.QuantumLayer(made, "ideal", dtype=torch.float64)
    x = torch.tensor([[0.4], [1.9]], dtype=torch.float64, requires_grad=True)
    values = layer(x)
    values.sum().backward()

    def exact(x: float, y: float) -> np.ndarray:
        state = Statevector(logical.assign_parameters({X: x, Y: y}))
        return np.array([state.expectation_value(o).real for o in made.logical_observables])

    w, step = float(layer.weight.detach()[0]), 1e-5
    np.testing.assert_allclose(values.detach().numpy(), [exact(0.4, w), exact(1.9, w)], rtol=0, atol=1e-9)
    slopes = [(exact(v + step, w) - exact(v - step, w)).sum() / (2 * step) for v in (0.4, 1.9)]
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[:, 0].numpy(), slopes, rtol=0, atol=1e-8)
    by_weight = sum((exact(v, w + step) - exact(v, w - step)).sum() for v in (0.4, 1.9)) / (2 * step)
    assert layer.weight.grad is not None
    assert float(layer.weight.grad[0]) == pytest.approx(by_weight, abs=1e-8)


ROWS = torch.tensor([[0.4, -1.1], [1.9, 0.3], [-2.0, 2.5]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("circuit", ["x - x", "y + 0 x", "in the global phase", "u whose translation cancels"])
def test_primitives_and_devices_take_rows_with_parameters_no_gate_has(circuit: str, ledger: Ledger) -> None:
    """6 standard errors for each value: false alarms below 1e-7. The client's estimator has symmetric readout errors:
    it is compared without any noise."""
    made = compiled(CANCELLING[circuit](), "fake_manila", inputs=[X], weights=[Y])
    clean = compiled(CANCELLING[circuit](), "ideal", inputs=[X], weights=[Y])
    runner = open_runner("fake_manila", ledger=ledger, run="test")
    client = runtime_estimator(AerSimulator(), options={"resilience_level": 0, "simulator": {"seed_simulator": 3}})
    for engine, what, reference in [
        (Primitive(StatevectorEstimator(seed=1), 0.01, reduced=True), clean, Ideal()),
        (Primitive(client, 0.02, reduced=True), made, Ideal()),
        (Primitive(aer_estimator(made, seed=2), 0.02, reduced=True), made, Noisy()),
        (Hardware(runner, shots=2500), made, Noisy()),
        (Shots(2500, seed=3), made, Noisy()),
    ]:
        found, wanted = engine.estimate(what, ROWS), reference.estimate(what, ROWS).values
        assert found.values.shape == (3, 2)
        assert ((found.values - wanted).abs() < 6 * found.std_errors + 1e-9).all(), engine.name
    shifted = qhw.QuantumLayer(made, Noisy(), gradient=ParameterShift(), dtype=torch.float64)
    x = ROWS[:, :1].clone().requires_grad_()
    shifted(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-12


def test_a_circuit_whose_parameters_all_cancel_has_one_value_for_every_row() -> None:
    circuit = QuantumCircuit(1, global_phase=X)
    circuit.ry(0.4, 0)
    circuit.rz(Y - Y, 0)
    made = compiled(circuit, "fake_manila", inputs=[X], weights=[Y])
    assert not made.isa.parameters
    found = Primitive(StatevectorEstimator(seed=1), 1e-7).estimate(made, ROWS)
    wanted = torch.tensor([math.cos(0.4), math.sin(0.4)], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(found.values, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(Ideal().estimate(made, ROWS).values, wanted, rtol=0, atol=1e-9)


# -- measurements at the end -------------------------------------------------------------------------------------------


def ended(how: str) -> QuantumCircuit:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.cx(0, 1)
    if how == "measure_all":
        circuit.measure_all()
    elif how == "one qubit":
        circuit.measure(1, 0)
    elif how == "twice":
        circuit.measure(0, 0)
        circuit.measure(0, 1)
    elif how == "before a barrier":
        circuit.measure(0, 0)
        circuit.barrier()
        circuit.x(1)
    elif how == "in an instruction":
        inner = QuantumCircuit(2, 1)
        inner.x(1)
        inner.measure(1, 0)
        circuit.append(inner.to_instruction(), [1, 0], [1])
    return circuit


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("how", ["measure_all", "one qubit", "twice", "before a barrier", "in an instruction"])
def test_a_measurement_at_the_end_of_an_estimators_circuit_is_refused(how: str, name: str) -> None:
    circuit = ended(how)
    with pytest.raises(InvalidInputError, match=r"ends with a measurement of qubit \d into classical bit \d") as caught:
        compiled(circuit, name)
    if how in ("before a barrier", "in an instruction"):
        assert "remove_final_measurements" not in str(caught.value), "it would not help"
    else:
        assert "remove_final_measurements(inplace=False)" in str(caught.value)
        bare = circuit.remove_final_measurements(inplace=False)
        values = Ideal().estimate(compiled(bare, name), torch.zeros(1, 0)).values
        torch.testing.assert_close(values, torch.ones(1, 2), rtol=0, atol=1e-6)


def test_measurements_at_the_end_that_have_a_meaning() -> None:
    """Post-selected on; or of a qubit that no observable acts on, where outcomes can be drawn and no value changes."""
    circuit = ended("one qubit")
    none = torch.zeros(200, 0)
    ancilla = [SparsePauliOp("IZ"), SparsePauliOp("IX")]
    forgotten = compiled(circuit, observables=ancilla)
    torch.testing.assert_close(Ideal().estimate(forgotten, none[:1]).values, torch.zeros(1, 2), rtol=0, atol=1e-6)
    drawn = qhw.QuantumLayer(forgotten).sample(none, torch.Generator().manual_seed(0))
    assert 0 < drawn.outcomes.sum() < 200
    torch.testing.assert_close(drawn.values[:, :1], 1.0 - 2 * drawn.outcomes, rtol=0, atol=1e-6)
    kept = compiled(circuit, postselect={0: 1})
    torch.testing.assert_close(Ideal().estimate(kept, none[:1]).values, torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-6)
    # all outcomes, as strings of bits: the observable is the identity then
    both = compiled(ended("measure_all"), observables=[SparsePauliOp("II")])
    bits = qhw.QuantumLayer(both).sample(none, torch.Generator().manual_seed(1)).outcomes
    assert torch.equal(bits[:, 0], bits[:, 1])
    # a measurement before one that is post-selected on is not the last word
    circuit = ended("twice")
    assert compiled(circuit, postselect={1: 0}).postselect == ((1, 0),)
    inner = compiled(ended("in an instruction"), postselect={1: 1})
    torch.testing.assert_close(Ideal().estimate(inner, none[:1]).values[:, :1], -torch.ones(1, 1), rtol=0, atol=1e-6)


def test_an_evolution_refuses_a_measurement_of_its_data_at_the_end() -> None:
    made = compiled(ended("one qubit"), observables=[SparsePauliOp("IZ")])
    with pytest.raises(InvalidInputError, match=r"ends with a measurement of the data qubits \[1\]"):
        Evolution(made, data=[1], measured=[0])
    probabilities = Evolution(made, data=[0], measured=[1])(torch.eye(2, dtype=torch.complex64), torch.zeros(0))
    torch.testing.assert_close(probabilities.probabilities.sum(0), torch.ones(2))


# -- resets and measurements in mid-circuit, through primitives --------------------------------------------------------


def mixed(kind: str) -> QuantumCircuit:
    circuit = QuantumCircuit(2, 1 if kind == "measure" else 0)
    circuit.ry(1.1, 0)
    circuit.cx(0, 1)
    if kind == "measure":
        circuit.measure(0, 0)
    else:
        circuit.reset(0)
    circuit.ry(0.6, 0)
    circuit.cx(0, 1)
    circuit.h(1)
    return circuit


LOCAL = [SparsePauliOp(label) for label in ("ZI", "IZ", "XI", "IX")]


class Unknown(BaseEstimatorV2):
    """Somebody's estimator, of which nothing is known."""

    def run(self, pubs: Any, *, precision: float | None = None) -> Any:
        raise AssertionError("not to be asked")


@pytest.mark.parametrize("kind", ["reset", "measure"])
def test_estimators_that_follow_one_state_are_refused_resets(kind: str) -> None:
    """StatevectorEstimator draws a reset's outcome once for all values: it is shown to be wrong first."""
    made = compiled(mixed(kind), observables=LOCAL)
    if kind == "reset":
        wanted = Ideal().estimate(made, torch.zeros(1, 0)).values[0].numpy()
        for seed in range(20):
            np.random.seed(seed)  # noqa: NPY002 (that is where it draws from)
            pub = (made.isa, [[o] for o in made.observables], None, 1e-3)
            found = StatevectorEstimator(seed=seed).run([pub]).result()[0].data.evs[:, 0]
            assert np.abs(found - wanted).max() > 0.1
    for estimator in (StatevectorEstimator(), Unknown(), AerEstimatorV2()):
        with pytest.raises(UnsupportedCircuitError, match=rf"no right value for a circuit with {kind}.*aer_estimator"):
            qhw.QuantumLayer(made, Primitive(estimator))
        # without, there is nothing to refuse
        Primitive(estimator).check(compiled(ended("")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reset", "measure"])
def test_estimators_that_run_every_shot_take_resets(kind: str) -> None:
    """Against the exact engines: 5 standard errors for each of 4 values, false alarms below 1e-5."""
    made = compiled(mixed(kind), "fake_manila", observables=LOCAL)
    aer = BackendEstimatorV2(backend=AerSimulator(), options={"seed_simulator": 4})
    density = AerEstimatorV2(options={"backend_options": {"method": "density_matrix"}, "run_options": {"seed": 5}})
    client = runtime_estimator(aer_backend(made), options={"resilience_level": 0, "simulator": {"seed_simulator": 6}})
    takes = [
        (Primitive(aer, 0.02, reduced=True), Ideal()),
        (Primitive(density, 0.02, reduced=True), Ideal()),
        (Primitive(aer_estimator(made, seed=2), 0.02, reduced=True), Noisy()),
    ]
    if kind == "reset":
        takes.append((Primitive(client, 0.02, reduced=True), Noisy()))
    else:
        with pytest.raises(UnsupportedCircuitError, match=r"Estimator gives no right value .* measure"):
            Primitive(client, reduced=True).check(made)
    for engine, exact in takes:
        found, wanted = engine.estimate(made, torch.zeros(1, 0)), exact.estimate(made, torch.zeros(1, 0)).values
        assert ((found.values - wanted).abs() < 5 * found.std_errors).all()


def test_a_fake_device_takes_resets_unless_its_estimator_does_not(ledger: Ledger) -> None:
    made = compiled(mixed("reset"), "fake_manila", observables=LOCAL)
    none = torch.zeros(1, 0)
    usual = Hardware(open_runner("fake_manila", ledger=ledger, run="test"), shots=2500)
    found, wanted = usual.estimate(made, none), Noisy().estimate(made, none).values
    assert ((found.values - wanted).abs() < 5 * found.std_errors).all()
    rows = ledger.rows()
    other = open_runner("fake_manila", ledger=ledger, run="test", estimator=StatevectorEstimator())
    with pytest.raises(UnsupportedCircuitError, match="no right value for a circuit with reset"):
        Hardware(other).estimate(made, none)
    assert ledger.rows() == rows


# -- odd operations ----------------------------------------------------------------------------------------------------


def alone(operation: Any, qubits: int = 2, clbits: int = 0, wires: tuple[int, ...] = (0,)) -> QuantumCircuit:
    circuit = QuantumCircuit(max(qubits, 1), clbits)
    circuit.h(0)
    circuit.append(operation, list(wires), list(range(getattr(operation, "num_clbits", 0))))
    return circuit


def named(name: str, width: int = 1) -> Gate:
    """A gate of one's own with the name of another."""
    inner = QuantumCircuit(width, name=name)
    inner.rx(0.7, 0)
    return inner.to_gate()


def within(operation: Any) -> Gate:
    inner = QuantumCircuit(operation.num_qubits, name="outer")
    inner.append(operation, range(operation.num_qubits))
    return inner.to_gate()


def built(write: Callable[[QuantumCircuit], Any], clbits: int = 1) -> Callable[[], QuantumCircuit]:
    def make() -> QuantumCircuit:
        circuit = QuantumCircuit(2, clbits)
        circuit.h(0)
        write(circuit)
        return circuit

    return make


def with_if(circuit: QuantumCircuit) -> None:
    circuit.measure(0, 0)
    with circuit.if_test((0, 1)):
        with_while(circuit)


def with_while(circuit: QuantumCircuit) -> None:
    with circuit.while_loop((circuit.clbits[0], 0)):
        circuit.h(0)
        circuit.measure(0, 0)


def with_for(circuit: QuantumCircuit) -> None:
    with circuit.for_loop(range(3)) as index:
        circuit.rx(0.1 * index, 0)


def with_box(circuit: QuantumCircuit) -> None:
    with circuit.box():
        circuit.h(0)


def with_store(circuit: QuantumCircuit) -> None:
    circuit.store(circuit.add_var("a", expr.lift(False)), True)


REFUSED: dict[str, tuple[Callable[[], QuantumCircuit], str]] = {
    "no definition": (lambda: alone(Gate("mystery", 2, []), wires=(1, 0)), r"'mystery' on qubits \[1, 0\] has no def"),
    "no definition, parameter": (lambda: alone(Gate("mystery", 1, [X])), r"'mystery' on qubit 0 has no definition"),
    "no definition, within": (lambda: alone(within(Gate("mystery", 1, []))), r"'mystery' in 'outer' on qubit 0"),
    "instruction": (lambda: alone(Instruction("foo", 1, 1, []), clbits=1), r"'foo' on qubit 0 has no definition"),
    "rv": (lambda: alone(RVGate(X, Y, 0.1), wires=(1,)), r"fails on 'rv' on qubit 1 for .*TranspilerError"),
    "rv within": (lambda: alone(within(RVGate(X, Y, 0.1))), r"fails on 'outer' on qubit 0 for .*\"rv\""),
    "hamiltonian": (lambda: alone(HamiltonianGate(Operator(Pauli("XY")), X), wires=(0, 1)), r"'hamiltonian' on qubits"),
    "power": (lambda: alone(AnnotatedOperation(RXGate(X), PowerModifier(0.5))), r"'annotated' on qubit 0"),
    "channel": (lambda: alone(Kraus([np.diag([1, 0]), np.diag([0, 1])]).to_instruction()), "'kraus' on qubit 0"),
    "save": (built(lambda c: c.save_statevector()), r"'save_statevector' on qubits \[0, 1\]"),
    "save density": (built(lambda c: c.save_density_matrix()), r"'save_density_matrix' on qubits \[0, 1\]"),
    "save value": (built(lambda c: c.save_expectation_value(Pauli("Z"), [1])), r"'save_expval' on qubit 1"),
    "set": (built(lambda c: c.set_statevector(Statevector.from_label("00"))), "'set_statevector' on qubits"),
    "delay by a parameter": (built(lambda c: c.delay(X, 1, unit="s")), "'delay' on qubit 1 has the length x"),
    "delay by a stretch": (built(lambda c: c.delay(c.add_stretch("a"), 0)), "stretches"),
    "store": (built(with_store), "classical variables"),
    "initialize": (built(lambda c: c.initialize([0, 1], 1)), "'initialize' on qubit 1 is not supported"),
    "while within if": (built(with_if), "'while_loop' on qubit 0 in 'if_else' on qubit 0"),
    "while": (built(with_while), "'while_loop' on qubit 0"),
    "for": (built(with_for), "'for_loop' on qubit 0"),
    "box": (built(with_box), "'box' on qubit 0"),
    "square": (lambda: alone(RXGate(X * X)), "'rx' on qubit 0 has the angle x.*not affine in 'x'"),
    "product within": (lambda: alone(within(RXGate(X * Y))), "not affine"),
    "inverse": (lambda: alone(RZGate(1 / X)), "not affine"),
    "named like a gate": (lambda: alone(named("u")), "'u' on qubit 0 has the name of a standard operation"),
    "named like a gate, within": (lambda: alone(within(named("y"))), "'y' in 'outer' on qubit 0 has the name"),
    "named like a barrier": (lambda: alone(named("barrier")), "'barrier' on qubit 0 has the name"),
    "named like a delay": (lambda: alone(named("delay")), "'delay' on qubit 0 has the name"),
    "nothing": (lambda: QuantumCircuit(0), "nothing to run"),
    "classical bits only": (lambda: QuantumCircuit(0, 2), "nothing to run"),
}


@pytest.mark.parametrize(("name", "scheduled"), [("ideal", False), ("fake_manila", False), ("fake_manila", True)])
@pytest.mark.parametrize(("circuit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_evaluated_is_refused_by_name(
    circuit: Callable[[], QuantumCircuit], message: str, name: str, scheduled: bool
) -> None:
    with pytest.raises(QhwError, match=message):
        compiled(circuit(), name, scheduled=scheduled)


def annotated() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.append(RXGate(X).inverse(annotated=True), [0])
    circuit.append(RXGate(Y).control(1, annotated=True), [0, 1])
    return circuit


TAKEN: dict[str, Callable[[], QuantumCircuit]] = {
    "unitary": lambda: alone(UnitaryGate(random_unitary(4, seed=1)), wires=(1, 0)),
    "unitary on three": lambda: alone(UnitaryGate(random_unitary(8, seed=1)), 3, wires=(0, 1, 2)),
    "evolution": lambda: alone(PauliEvolutionGate(SparsePauliOp(["XY", "ZI"]), time=X), wires=(0, 1)),
    "clifford": lambda: alone(Clifford(from_gate(RXGate(math.pi / 2)).assign_parameters({Y: 0.0})), wires=(0, 1)),
    "linear function": lambda: alone(LinearFunction([[1, 1], [0, 1]]), wires=(0, 1)),
    "annotated": annotated,
    "rv of numbers": lambda: alone(RVGate(0.3, 0.2, 0.1)),
    "prepared": built(lambda c: c.prepare_state([0.6, 0, 0, 0.8], [0, 1]) if not c.data.pop() else None),
    "barriers": built(lambda c: (c.barrier(), c.ry(X, 1), c.barrier(1), c.cx(0, 1))),
    "barriers only": lambda: barriers(),
    "empty": lambda: QuantumCircuit(2, 2),
    "mcx": built(lambda c: (c.h(1), c.mcx([0], 1), c.crx(X, 1, 0))),
    "a gate of one's own": lambda: alone(named("turn")),
}


def barriers() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.barrier()
    return circuit


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheduled"), [("ideal", False), ("fake_manila", False), ("fake_manila", True)])
@pytest.mark.parametrize("circuit", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_has_the_values_of_the_circuit_as_written(
    circuit: Callable[[], QuantumCircuit], name: str, scheduled: bool
) -> None:
    logical = circuit()
    made = compiled(logical, name, scheduled=scheduled)
    row = torch.full((1, made.n_weights), 0.8, dtype=torch.float64)
    bound = logical.assign_parameters(dict.fromkeys(logical.parameters, 0.8))
    state = Statevector(bound.decompose([PauliEvolutionGate]))  # its one Trotter step, not the exact exponential
    wanted = [[state.expectation_value(o).real for o in made.logical_observables]]
    np.testing.assert_allclose(Ideal().estimate(made, row).values.numpy(), wanted, rtol=0, atol=1e-7)
    if name != "ideal":
        assert bool(torch.isfinite(Noisy().estimate(made, row).values).all())


@pytest.mark.parametrize(("length", "unit"), [(13, "dt"), (20, "ns")])
def test_a_delay_off_the_devices_clock(length: float, unit: str) -> None:
    """fake_manila starts gates at multiples of 16 dt; a schedule moves them there."""
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.delay(length, 0, unit=unit)
    circuit.h(0)
    with pytest.raises(UnsupportedCircuitError, match=r"'delay' on qubit 0.*multiples of 16 dt.*scheduled=True"):
        compiled(circuit, "fake_manila")
    for works in (compiled(circuit, "fake_manila", scheduled=True), compiled(circuit, "ideal")):
        assert float(Ideal().estimate(works, torch.zeros(1, 0)).values[0, 0]) == pytest.approx(1, abs=1e-6)


def test_one_classical_bit_measured_twice() -> None:
    circuit = QuantumCircuit(1, 1)
    for _ in range(2):
        circuit.ry(0.7, 0)
        circuit.measure(0, 0)
    circuit.ry(0.7, 0)
    made = compiled(circuit)
    value = Ideal().estimate(made, torch.zeros(1, 0)).values[0, 0]
    assert float(value) == pytest.approx(math.cos(0.7) ** 3, abs=1e-6)
    assert qhw.QuantumLayer(made).sample(torch.zeros(3, 0), torch.Generator()).clbits == (0, 0)
    with pytest.raises(InvalidInputError, match="measured exactly once"):
        compiled(circuit, postselect={0: 0})


# -- odd arguments -----------------------------------------------------------------------------------------------------


def two() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.rx(X, 0)
    circuit.ry(Y, 1)
    circuit.cx(0, 1)
    return circuit


VECTOR = ParameterVector("v", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ["x"], "weights": ["y"]}, r"inputs holds a str, 'x'; give the circuit's Parameter objects"),
        ({"inputs": "x", "weights": [Y]}, r"inputs is a str, 'x'; give a list of Parameter objects"),
        ({"inputs": X, "weights": [Y]}, r"inputs is a Parameter, .*; give a list"),
        ({"inputs": None, "weights": [X, Y]}, r"inputs is a NoneType, None"),
        ({"inputs": [X + 1], "weights": [Y]}, r"inputs holds a ParameterExpression"),
        ({"inputs": [VECTOR], "weights": [X, Y]}, r"inputs holds a ParameterVector.*inputs=vector"),
        ({"inputs": [X], "weights": 7}, r"weights is a int, 7"),
        ({"inputs": [X], "weights": [0.3]}, r"weights holds a float, 0\.3"),
        ({"inputs": [X, X], "weights": [Y]}, r"more than once.*: x"),
        ({"inputs": [X], "weights": [X, Y]}, r"more than once.*: x"),
        ({"inputs": [X], "weights": []}, r"neither inputs nor weights: y"),
        (
            {"inputs": [Parameter("x")], "weights": [Y]},
            r"neither .*: x; another Parameter of that name is not the same",
        ),
        ({"weights": [X, Y, W]}, r"does not contain: w"),
        ({"observables": SparsePauliOp("ZZ")}, r"observables is a SparsePauliOp.*give a list"),
        ({"observables": "ZZ"}, r"observables is a str, 'ZZ'"),
        ({"observables": None}, r"observables is a NoneType"),
        ({"observables": ["ZZ"]}, r"observable 0 is a str"),
        ({"observables": [SparsePauliOp("ZZ"), Pauli("ZZ")]}, r"observable 1 is a Pauli"),
        ({"observables": [SparsePauliOp("Z")]}, r"acts on 1 qubits, the circuit has 2"),
        ({"observables": [SparsePauliOp(["ZZ", "XX"], [X, 1.0])]}, r"observable 0 .*with the parameters x; give num"),
        ({"postselect": {0: 1}}, r"this circuit measures none"),
        ({"postselect": [0]}, r"postselect is \[0\]; give \{classical bit: 0 or 1\}"),
        ({"seed": -1}, r"seed is -1; allowed: whole numbers from 0"),
        ({"seed": "a"}, r"seed is 'a'; allowed"),
    ],
)
def test_odd_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        compiled(two(), **changes)


def test_lists_of_any_kind_are_taken() -> None:
    circuit = QuantumCircuit(2)
    circuit.rx(VECTOR[0], 0)
    circuit.ry(VECTOR[1], 1)
    half = SparsePauliOp(["ZZ"], np.array([W], dtype=object)).assign_parameters([0.5])
    made = compiled(circuit, inputs=iter(VECTOR), weights=(), observables=iter([half, SparsePauliOp("ZZ")]))
    assert made.inputs == tuple(VECTOR)
    values = Ideal().estimate(made, torch.tensor([[0.3, 0.4]])).values
    torch.testing.assert_close(2 * values[:, 0], values[:, 1])


def _fixed_block(circuit: QuantumCircuit) -> None:
    for angle, pair in ((0.3, (0, 1)), (0.7, (1, 0)), (0.2, (0, 1))):
        circuit.ry(angle, pair[0])
        circuit.cx(*pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(_fixed_block, id="gates without parameters"),
        pytest.param(lambda c: c.unitary(random_unitary(4, seed=1), [0, 1]), id="unitary"),
        pytest.param(lambda c: (c.rxx(W, 0, 1), _fixed_block(c), c.rzx(0.4, 1, 0), c.ryy(W, 0, 1)), id="pairs"),
    ],
)
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_one_seed_gives_one_circuit(build: Callable[[QuantumCircuit], object], name: str, level: int) -> None:
    circuit = QuantumCircuit(2)
    build(circuit)
    circuit.ry(W, 0)
    settings = {"inputs": [], "weights": [W], "observables": [SparsePauliOp("ZX")], "optimization_level": level}
    made = [qhw.compile_circuit(circuit, device(name), **settings) for _ in range(6)]
    assert len({qasm3.dumps(one.isa) for one in made}) == 1
    layer = qhw.QuantumLayer(made[0], "ideal", dtype=torch.float64)
    exact = Statevector(circuit.assign_parameters({W: layer.weight.item()})).expectation_value(SparsePauliOp("ZX"))
    assert layer(torch.zeros(1, 0)).item() == pytest.approx(exact.real, abs=1e-9)
