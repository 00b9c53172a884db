"""Numbers that are none, or not real: refused with the gate, the observable or the weights named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import SparsePauliOp

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError, QhwError, UnsupportedCircuitError
from qhw_diffusion.execution import SPSA, ParameterShift, Surrogate, aer_estimator
from qhw_diffusion.execution.compile import CompiledCircuit, compile_circuit
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner

X, W = Parameter("x"), Parameter("w")
NAN, INF = math.nan, math.inf


def compiled(
    change: Callable[[QuantumCircuit], object] = lambda circuit: None, observable: SparsePauliOp | None = None
) -> CompiledCircuit:
    circuit = QuantumCircuit(2)
    circuit.ry(X, 0)
    circuit.ry(W, 1)
    change(circuit)
    chosen = SparsePauliOp("ZZ") if observable is None else observable
    device = qhw.Device.load("fake_manila")
    return compile_circuit(circuit, device, inputs=[X], weights=[W], observables=[chosen], optimization_level=1)


def inside(angle: object) -> Callable[[QuantumCircuit], object]:
    part = QuantumCircuit(1, name="part")
    part.rz(angle, 0)
    whole = QuantumCircuit(1, name="whole")
    whole.append(part.to_gate(), [0])
    return lambda circuit: circuit.append(whole.to_gate(), [1])


def bad_unitary(circuit: QuantumCircuit) -> None:
    circuit.append(UnitaryGate(np.array([[NAN, 0], [0, 1]]), check_input=False), [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.rz(X + 1j, 1), r"'rz' on qubit 1 has the angle .* not real"),
        (lambda c: c.rz(1j * W, 1), r"'rz' on qubit 1 has the angle .* not real"),
        (lambda c: c.rzz(2 * X - W + 0.5 + 1e-3j, 0, 1), r"'rzz' on qubits 0, 1 has the angle .* not real"),
        (inside(W + 1j), r"'rz' on qubit 1 has the angle .* not real"),
        (lambda c: c.rx(NAN, 0), r"'rx' on qubit 0 has the parameter nan"),
        (lambda c: c.rz(INF, 0), r"'rz' on qubit 0 has the parameter inf"),
        (lambda c: c.p(-INF, 1), r"'p' on qubit 1 has the parameter -inf"),
        (inside(NAN), r"'rz' on qubit 1 has the parameter nan"),
        (bad_unitary, r"'unitary' on qubit 1 has the parameter"),
        (lambda c: c.delay(NAN, 0, "s"), r"'delay' on qubit 0 has the parameter nan"),
        (lambda c: setattr(c, "global_phase", NAN), "global phase"),
    ],
)  # fmt: skip
def test_angles_that_are_no_real_numbers_name_gate_and_qubit(
    change: Callable[[QuantumCircuit], object], message: str
) -> None:
    with pytest.raises(UnsupportedCircuitError, match=message):
        compiled(change)


def test_angles_whose_imaginary_parts_cancel_are_real() -> None:
    made = compiled(lambda c: c.rx((W * 1j) * -1j + (X + 1j) - 1j, 0))
    reference = compiled(lambda c: c.rx(W + X, 0))
    x = torch.tensor([[0.3]])
    torch.testing.assert_close(qhw.QuantumLayer(made)(x), qhw.QuantumLayer(reference)(x))


@pytest.mark.parametrize("coefficient", [1j, 1 + 1e-6j, NAN, INF, -INF, complex(0, NAN), W], ids=str)
def test_coefficients_that_are_no_real_numbers_name_the_observable(coefficient: object) -> None:
    observable = SparsePauliOp(["ZI", "IZ"], np.array([1.0, W]))
    if coefficient is not W:
        observable = SparsePauliOp(["ZI", "IZ"])
        observable.coeffs = np.array([1.0, coefficient])
    with pytest.raises(InvalidInputError, match="observable 0 has"):
        compiled(observable=observable)


# -- weights -----------------------------------------------------------------------------------------------------------


def with_weight(engine: object, value: float, **settings: object) -> qhw.QuantumLayer:
    layer = qhw.QuantumLayer(compiled(), engine, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer


def primitive() -> qhw.Primitive:
    return qhw.Primitive(aer_estimator(compiled(), seed=0), precision=0.1, reduced=True)


ENGINES: dict[str, Callable[[], object]] = {
    "ideal": lambda: "ideal",
    "noisy": lambda: "noisy",
    "shots": lambda: "shots:64",
    "primitive": primitive,
}
METHODS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "shift": ParameterShift,
    "spsa": SPSA,
    "surrogate": lambda: Surrogate("noisy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_no_numbers_are_refused_by_every_engine_and_method(
    engine: str, method: str, value: float
) -> None:
    if method == "none" and engine == "primitive":
        layer = with_weight(ENGINES[engine](), value, gradient=ParameterShift())
    else:
        layer = with_weight(ENGINES[engine](), value, gradient=METHODS[method]())
    x = torch.zeros(3, 1)
    for evaluate in (layer, layer.estimate):
        with pytest.raises(InvalidInputError, match=r"weights|parameters"), torch.set_grad_enabled(evaluate is layer):
            evaluate(x)
    with pytest.raises(InvalidInputError, match=r"weights|parameters"), torch.no_grad():
        layer(x)
    assert layer.usage.circuits == 0


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers_reach_no_device(tmp_path: Path, value: float) -> None:
    with Ledger.open(tmp_path / "ledger") as ledger:
        engine = qhw.Hardware(open_runner("fake_manila", ledger=ledger, run="test"), shots=64)
        layer = with_weight(engine, value, gradient=ParameterShift())
        with pytest.raises(InvalidInputError, match=r"weights|parameters"):
            layer(torch.zeros(1, 1))


@pytest.mark.parametrize("noisy", ["ideal", "noisy"])
@pytest.mark.parametrize(("weight", "x", "named"), [(NAN, 0.0, "weights"), (0.0, NAN, "inputs"), (INF, 0.0, "weights")])
def test_evolution_refuses_them_too(noisy: str, weight: float, x: float, named: str) -> None:
    evolution = Evolution(compiled(), data=[0], measured=[1], engine=noisy)
    states = torch.tensor([[1.0, 0.0]], dtype=torch.complex128)
    with pytest.raises(InvalidInputError, match=named):
        evolution(states, torch.tensor([weight], dtype=torch.float64), torch.tensor([[x]], dtype=torch.float64))


def test_a_weight_too_large_for_its_coefficient_is_refused() -> None:
    made = compiled(lambda c: c.rx(1e10 * W, 0))
    layer = qhw.QuantumLayer(made, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(1e300)
    with pytest.raises(QhwError, match="too large"):
        layer(torch.zeros(1, 1, dtype=torch.float64))
