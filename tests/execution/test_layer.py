"""QuantumLayer: gradients, shapes, copies, dtypes, and what it refuses. Agreement with Aer: test_aer_agreement.py."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp, Statevector

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError, UnknownNameError, UnsupportedCircuitError
from qhw_diffusion.execution import Noisy, Shots, Usage, engine_of

X = [Parameter(f"x{i}") for i in range(3)]
W = [Parameter(f"w{i}") for i in range(4)]


def circuit(reuploading: bool = False) -> QuantumCircuit:
    """Three qubits; every parameter more than once, with factors and offsets."""
    qc = QuantumCircuit(3)
    for i in range(3):
        qc.ry(X[i], i)
    qc.rz(0.5 * X[0] + W[0], 1)
    qc.cx(0, 1)
    qc.rx(W[1] + 0.3, 1)
    qc.cx(1, 2)
    if reuploading:
        qc.ry(X[0] + 2 * X[1], 2)
        qc.rxx(W[3], 0, 2)
    qc.rzz(W[2] - W[0], 0, 2)
    qc.ry(2 * W[3], 0)
    qc.h(2)
    return qc


OBSERVABLES = [
    SparsePauliOp("IIZ"),
    SparsePauliOp(["XYI", "ZZZ"], [0.5, -0.3]),
    SparsePauliOp(["III", "YIX"], [0.2, 1]),
]


def compiled(device: str = "fake_manila", reuploading: bool = False) -> qhw.CompiledCircuit:
    return qhw.compile_circuit(
        circuit(reuploading), qhw.Device.load(device), inputs=X, weights=W, observables=OBSERVABLES
    )


def statevector_values(qc: QuantumCircuit, x: np.ndarray, w: np.ndarray) -> list[float]:
    state = Statevector(qc.assign_parameters(dict(zip([*X, *W], [*x, *w], strict=True))))
    return [float(state.expectation_value(o).real) for o in OBSERVABLES]


@pytest.mark.parametrize("device", ["ideal", "fake_manila"])
@pytest.mark.parametrize("reuploading", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 20])  # below and above the number of observables and of basis states
def test_ideal_values_are_the_statevector_of_the_logical_circuit(device: str, reuploading: bool, batch: int) -> None:
    layer = qhw.QuantumLayer(compiled(device, reuploading), "ideal", dtype=torch.float64, seed=3)
    x = np.random.default_rng(0).normal(size=(batch, 3))
    expected = [statevector_values(circuit(reuploading), row, layer.weight.detach().numpy()) for row in x]
    np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("reuploading", [False, True])
@pytest.mark.parametrize("batch", [2, 20])
def test_gradients_are_finite_differences(engine: str, reuploading: bool, batch: int) -> None:
    layer = qhw.QuantumLayer(compiled(reuploading=reuploading), engine, dtype=torch.float64)
    x = torch.randn(batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def value(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (inputs,))

    assert torch.autograd.gradcheck(value, (x, layer.weight), atol=1e-7)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_gradients_above_the_dense_limit(engine: str) -> None:
    """Seven qubits (five under noise) run maps on pairs of qubits; finite differences again."""
    n = 7 if engine == "ideal" else 5
    qc = QuantumCircuit(n)
    for q in range(n):
        qc.ry(X[q % 3], q)
    for q in range(n):
        qc.cx(q, (q + 1) % n)
        qc.rx(W[q % 4] * 1.5, q)
    qc.rz(X[0] + W[0], 1)
    qc.cx(1, 3)
    qc.ry(W[2], 3)
    observables = [SparsePauliOp.from_sparse_list([("ZX", [1, 3], 1.0)], n)]
    manila_or_ideal = qhw.Device.load("ideal" if engine == "ideal" else "fake_manila")
    made = qhw.compile_circuit(qc, manila_or_ideal, inputs=X, weights=W, observables=observables)
    layer = qhw.QuantumLayer(made, engine, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda inputs, weight: torch.func.functional_call(layer, {"weight": weight}, (inputs,)),
        (x, layer.weight),
        atol=1e-7,
    )
    if engine == "ideal":
        state = Statevector(
            qc.assign_parameters(dict(zip([*X, *W], [*x[1].tolist(), *layer.weight.tolist()], strict=True)))
        )
        assert float(layer(x)[1, 0].detach()) == pytest.approx(state.expectation_value(observables[0]).real, abs=1e-12)


def test_noise_pulls_values_towards_zero_and_float32_agrees_with_float64() -> None:
    made = compiled()
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    ideal, noisy = qhw.QuantumLayer(made, "ideal"), qhw.QuantumLayer(made, "noisy")
    shift = (ideal(x) - noisy(x)).detach().abs().max()
    assert 0.01 < float(shift) < 0.4
    double = noisy.with_engine("noisy").double()
    assert double.weight.dtype == torch.float64
    torch.testing.assert_close(double(x.double()).float(), noisy(x), atol=5e-6, rtol=0)


def test_copies_share_nothing_but_values() -> None:
    layer = qhw.QuantumLayer(compiled(), "noisy", seed=5)
    x = torch.randn(4, 3)
    other = layer.with_engine("ideal")
    torch.testing.assert_close(other.weight, layer.weight)
    with torch.no_grad():
        other.weight.add_(1.0)
    assert not torch.equal(other.weight, layer.weight)
    elsewhere = layer.with_compiled(layer.compiled.compile_for(qhw.Device.load("ideal")), "ideal")
    torch.testing.assert_close(elsewhere(x), layer.with_engine("ideal")(x), atol=1e-5, rtol=0)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x), layer(x))
    assert list(layer.state_dict()) == ["weight"]


def test_same_seed_same_weights_and_same_layout() -> None:
    a, b = compiled("fake_marrakesh"), compiled("fake_marrakesh")
    assert a.isa == b.isa
    assert a.physical_qubits == b.physical_qubits
    assert torch.equal(qhw.QuantumLayer(a, seed=1).weight, qhw.QuantumLayer(b, seed=1).weight)
    assert not torch.equal(qhw.QuantumLayer(a, seed=1).weight, qhw.QuantumLayer(b, seed=2).weight)


def test_compiled_figures_are_those_of_the_isa_circuit() -> None:
    made = compiled("fake_marrakesh")
    assert made.isa.num_qubits == 156
    assert made.isa.layout is not None
    assert made.two_qubit_gates == made.isa.count_ops()["cz"]
    assert made.depth == made.isa.depth()
    assert made.duration is not None
    assert 1e-7 < made.duration < 1e-5
    assert made.observables[0].num_qubits == 156
    assert set(made.physical_qubits) == {
        made.isa.find_bit(q).index for instruction in made.isa.data for q in instruction.qubits
    }
    assert compiled("ideal").duration is None


def test_a_circuit_without_inputs_or_without_weights() -> None:
    qc = QuantumCircuit(1)
    qc.ry(W[0], 0)
    z = [SparsePauliOp("Z")]
    made = qhw.compile_circuit(qc, qhw.Device.load("ideal"), inputs=[], weights=W[:1], observables=z)
    layer = qhw.QuantumLayer(made)
    torch.testing.assert_close(layer(torch.zeros(5, 0)), layer.weight.cos().expand(5, 1))
    made = qhw.compile_circuit(qc, qhw.Device.load("ideal"), inputs=W[:1], weights=[], observables=z)
    torch.testing.assert_close(qhw.QuantumLayer(made)(torch.tensor([[0.5]])), torch.tensor([[0.5]]).cos())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(3), r"shape \[batch, 3\], given \(3,\)"),
        (torch.zeros(2, 4), r"given \(2, 4\)"),
        (np.zeros((2, 3)), "ndarray"),
        (torch.zeros(0, 3), "no rows"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), "NaN"),
        (torch.tensor([[0.0, float("inf"), 0.0]]), "infinity"),
    ],
)
def test_bad_inputs(inputs: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        qhw.QuantumLayer(compiled())(inputs)


@pytest.mark.slow
def test_bad_engines_and_dtypes() -> None:
    with pytest.raises(UnknownNameError, match="did you mean noisy"):
        qhw.QuantumLayer(compiled(), "nosy")
    with pytest.raises(InvalidInputError, match="has no noise"):
        qhw.QuantumLayer(compiled("ideal"), "noisy")
    with pytest.raises(InvalidInputError, match="float16"):
        qhw.QuantumLayer(compiled(), dtype=torch.float16)
    with pytest.raises(InvalidInputError, match="bfloat16"):
        qhw.QuantumLayer(compiled()).to(torch.bfloat16)(torch.zeros(1, 3))


def test_what_does_not_fit_says_so_before_allocating() -> None:
    qc = QuantumCircuit(20)
    for q in range(20):
        qc.ry(W[0], q)
    made = qhw.compile_circuit(
        qc, qhw.Device.load("fake_brisbane"), inputs=[], weights=W[:1], observables=[SparsePauliOp("Z" * 20)]
    )
    with pytest.raises(MemoryBudgetError, match=r"20 active qubits.*GiB"):
        qhw.QuantumLayer(made, "noisy")
    with pytest.raises(MemoryBudgetError, match="smaller batch"):
        qhw.QuantumLayer(compiled(), "noisy")(torch.zeros(1, 3).expand(10**9, 3))


def compile_with(qc: QuantumCircuit, **changes: object) -> qhw.CompiledCircuit:
    settings = {"inputs": [], "weights": list(qc.parameters), "observables": [SparsePauliOp("Z" * qc.num_qubits)]}
    return qhw.compile_circuit(qc, qhw.Device.load("fake_manila"), **(settings | changes))


def test_refused_circuits_name_the_culprit() -> None:
    qc = QuantumCircuit(1)
    qc.ry(W[0] * W[1], 0)
    with pytest.raises(UnsupportedCircuitError, match=r"'ry' on qubit 0 has the angle w0\*w1, which is not affine"):
        compile_with(qc)
    qc = QuantumCircuit(1)
    qc.rz(W[0].sin(), 0)
    with pytest.raises(UnsupportedCircuitError, match=r"'rz'.*not affine in 'w0'"):
        compile_with(qc)
    qc = QuantumCircuit(1, 1)
    qc.ry(W[0], 0)
    qc.measure(0, 0)
    with qc.while_loop((0, 1)):
        qc.x(0)
    with pytest.raises(UnsupportedCircuitError, match="'while_loop'"):
        compile_with(qc)


def test_refused_arguments() -> None:
    qc = QuantumCircuit(2)
    qc.ry(W[0], 0)
    qc.cx(0, 1)
    with pytest.raises(InvalidInputError, match="neither inputs nor weights: w0"):
        compile_with(qc, weights=[])
    with pytest.raises(InvalidInputError, match="does not contain: w1"):
        compile_with(qc, weights=W[:2])
    with pytest.raises(InvalidInputError, match=r"more than once.*w0"):
        compile_with(qc, inputs=W[:1], weights=W[:1])
    with pytest.raises(InvalidInputError, match="acts on 3 qubits, the circuit has 2"):
        compile_with(qc, observables=[SparsePauliOp("ZZZ")])
    with pytest.raises(InvalidInputError, match="complex coefficients"):
        compile_with(qc, observables=[SparsePauliOp("ZZ", 1j)])
    with pytest.raises(InvalidInputError, match="observables is empty"):
        compile_with(qc, observables=[])
    with pytest.raises(InvalidInputError, match="allowed: 0, 1, 2, 3"):
        compile_with(qc, optimization_level=4)
    with pytest.raises(InvalidInputError, match="6 qubits but fake_manila has 5"):
        compile_with(QuantumCircuit(6), observables=[SparsePauliOp("Z" * 6)])
    with pytest.raises(InvalidInputError, match=r"Device\.load"):
        qhw.compile_circuit(qc, "fake_manila", inputs=[], weights=W[:1], observables=[SparsePauliOp("ZZ")])  # type: ignore[arg-type]


def test_engines_by_name_and_by_object() -> None:
    assert engine_of("shots:77") == Shots(77)
    assert engine_of("shots:77").spec == "shots:77"
    assert engine_of(Shots(5, seed=3)) == Shots(5, seed=3)
    assert isinstance(engine_of("noisy"), Noisy)
    for wrong in ("noisey", "ideal:3", "shots4096", ""):
        with pytest.raises(UnknownNameError, match="unknown engine"):
            engine_of(wrong)
    for wrong in ("shots:0", "shots:many", "shots:-4"):
        with pytest.raises(InvalidInputError, match="whole numbers from 1"):
            engine_of(wrong)


def test_usage_is_counted() -> None:
    layer = qhw.QuantumLayer(compiled(), "shots:100")
    x = torch.zeros(4, 3)
    with torch.no_grad():
        layer(x)
    layer.estimate(x)
    assert layer.usage.shots == 100 * layer.usage.circuits
    assert layer.usage.circuits % 8 == 0, "two calls of four rows"
    assert layer.usage.circuits > 0
    exact = qhw.QuantumLayer(compiled(), "noisy")
    exact(x)
    assert exact.usage == Usage()
