"""A layer inside qiskit-machine-learning: Jacobians, TorchConnector trained beside QuantumLayer, EstimatorQNN."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp
from qiskit_aer.primitives import EstimatorV2 as AerEstimatorV2
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.exceptions import QiskitMachineLearningError
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN, NeuralNetwork
from torch import Tensor, nn

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, MissingDependencyError
from qhw_diffusion.execution import ParameterShift, Primitive
from qhw_diffusion.execution.primitive import on_used_qubits

# Names that sort against the order in which they are given
INPUTS = [Parameter("z"), Parameter("b")]
WEIGHTS = [Parameter("y"), Parameter("a"), Parameter("k")]
OBSERVABLES = [SparsePauliOp("IZ"), SparsePauliOp(["ZZ", "XI"], [0.6, 0.8])]
X = np.array([[0.3, -1.1], [1.2, 0.4], [-0.7, 2.0]])
W = np.array([0.4, -0.9, 1.7])


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(2)
    qc.ry(INPUTS[0], 0)
    qc.ry(INPUTS[1], 1)
    qc.rx(WEIGHTS[0], 0)
    qc.cx(0, 1)
    qc.ry(WEIGHTS[1] - 0.5 * WEIGHTS[0], 1)
    qc.cx(1, 0)
    qc.rx(WEIGHTS[2], 0)
    return qc


@functools.cache
def compiled(name: str = "fake_manila") -> qhw.CompiledCircuit:
    return qhw.compile_circuit(
        circuit(), Device.load(name), inputs=INPUTS, weights=WEIGHTS, observables=OBSERVABLES, seed=3
    )


def layer(engine: str = "noisy", dtype: torch.dtype = torch.float64) -> qhw.QuantumLayer:
    return qhw.QuantumLayer(compiled(), engine, dtype=dtype)


def test_shapes_and_settings() -> None:
    network = layer().as_neural_network()
    assert isinstance(network, NeuralNetwork)
    assert (network.num_inputs, network.num_weights, network.output_shape) == (2, 3, (2,))
    assert network.sparse is False
    assert network.forward(X, W).shape == (3, 2)
    by_inputs, by_weights = network.backward(X, W)
    assert by_inputs.shape == (3, 2, 2)
    assert by_weights.shape == (3, 2, 3)
    assert by_inputs.dtype == by_weights.dtype == np.float64
    # one sample, and samples on two axes, as qiskit-machine-learning reshapes them
    assert network.forward(X[0], W).shape == (1, 2)
    assert network.backward(X[None], W)[1].shape == (1, 3, 2, 3)
    none, again = layer().as_neural_network(input_gradients=False).backward(X, W)
    assert none is None
    np.testing.assert_array_equal(again, by_weights)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_jacobians_are_the_slopes_of_the_values(engine: str) -> None:
    """Fourth-order central differences of `forward`: error of order h⁴ ≈ 1e-8 at h = 0.01."""
    network = layer(engine).as_neural_network()
    by_inputs, by_weights = network.backward(X, W)

    def differences(move: np.ndarray, of_weights: bool) -> np.ndarray:
        def moved(k: int) -> np.ndarray:
            return network.forward(X, W + k * move) if of_weights else network.forward(X + k * move, W)

        values = [moved(k) for k in (-2, -1, 1, 2)]
        return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * 0.01)

    for i in range(2):
        np.testing.assert_allclose(by_inputs[:, :, i], differences(0.01 * np.eye(2)[i], False), atol=1e-7)
    for j in range(3):
        np.testing.assert_allclose(by_weights[:, :, j], differences(0.01 * np.eye(3)[j], True), atol=1e-7)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
def test_jacobians_are_autograds_of_the_layer(engine: str) -> None:
    """One sample and one observable at a time, on the path of shared weights, which the network does not take."""
    made = layer(engine)
    by_inputs, by_weights = made.as_neural_network().backward(X, W)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(W))
    for b, row in enumerate(X):
        for m in range(len(OBSERVABLES)):
            x = torch.from_numpy(row[None].copy()).requires_grad_()
            of_x, of_w = torch.autograd.grad(made(x)[0, m], (x, made.weight))
            np.testing.assert_allclose(by_inputs[b, m], of_x[0].numpy(), rtol=0, atol=1e-9)
            np.testing.assert_allclose(by_weights[b, m], of_w.numpy(), rtol=0, atol=1e-9)
    assert np.abs(by_weights[0] - by_weights[1]).max() > 0.1, "each sample has a Jacobian of its own"


def test_float64_stays_float64() -> None:
    """`TorchConnector` works in float32; the network beneath it keeps the layer's precision."""
    made = layer()
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(W))
        wanted = made(torch.from_numpy(X))
    network = made.as_neural_network()
    np.testing.assert_allclose(network.forward(X, W), wanted.numpy(), rtol=0, atol=1e-14)
    single = TorchConnector(network, initial_weights=W)(torch.from_numpy(X))
    assert single.dtype == torch.float32
    assert np.abs(single.detach().numpy() - wanted.numpy()).max() < 1e-6


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_through_torch_connector_gives_the_same_weights(optimizer: type[torch.optim.Optimizer]) -> None:
    """A regression with a trained linear map ahead of the circuit, so that the gradient by the inputs matters too."""
    made = layer(dtype=torch.float32)
    connector = TorchConnector(made.as_neural_network(), initial_weights=made.weight.detach().numpy())
    data = torch.from_numpy(X).float()
    target = torch.tensor([[0.2, -0.5], [0.7, 0.1], [-0.4, 0.3]])

    def train(quantum: nn.Module) -> tuple[list[Tensor], float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), quantum)
        steps = optimizer(model.parameters(), lr=0.1)  # type: ignore[call-arg]
        for _ in range(12):
            steps.zero_grad()
            loss = (model(data) - target).square().mean()
            loss.backward()
            steps.step()
        return [p.detach().clone() for p in model.parameters()], loss.item()

    start = made.weight.detach().clone()
    through_connector, loss = train(connector)
    assert torch.equal(made.weight, start), "the connector has weights of its own"
    directly, same_loss = train(made)
    assert (directly[-1] - start).abs().max() > 0.1
    assert loss == pytest.approx(same_loss, abs=1e-5)
    for a, b in zip(through_connector, directly, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)  # 12 steps of float32 rounding; Adam divides by √v


def test_estimator_qnn_gives_the_same_values_and_gradients() -> None:
    """The slow witness: qiskit-machine-learning's own network, parameter-shift on the exact state vector."""
    estimator = StatevectorEstimator()
    witness = EstimatorQNN(
        circuit=circuit(),
        observables=OBSERVABLES,
        input_params=INPUTS,
        weight_params=WEIGHTS,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
        input_gradients=True,
        default_precision=0.0,
    )
    network = layer("ideal").as_neural_network()
    np.testing.assert_allclose(network.forward(X, W), witness.forward(X, W), atol=1e-10)
    for ours, theirs in zip(network.backward(X, W), witness.backward(X, W), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def read_out(observable: SparsePauliOp, device: Device, qubits: tuple[int, ...]) -> SparsePauliOp:
    """What a device with readout errors measures in place of an observable on `qubits`, in closed form.

    With p10 = p(read 1 | 0) and p01 = p(read 0 | 1), each Pauli P of a string becomes (1 − p10 − p01)·P + (p01 − p10).
    """
    measured = []
    for label, coefficient in observable.to_list():
        terms = [("", coefficient)]
        for letter, qubit in zip(label, reversed(qubits), strict=True):
            p10, p01 = device.readout_error(qubit)
            if letter == "I":
                terms = [(string + "I", k) for string, k in terms]
            else:
                terms = [(string + letter, k * (1 - p10 - p01)) for string, k in terms] + [
                    (string + "I", k * (p01 - p10)) for string, k in terms
                ]
        measured += terms
    return SparsePauliOp.from_list(measured).simplify()


def test_estimator_qnn_on_aer_gives_the_same_noisy_values_and_gradients() -> None:
    """The slow witness under noise: parameter-shift on Aer's density matrices of the ISA circuit, exact.

    Aer's estimator at precision 0 leaves readout errors out; they are put into the observables instead.
    """
    made = compiled()
    isa, observables = on_used_qubits(made)
    backend = {"noise_model": made.device.noise_model(made.physical_qubits), "method": "density_matrix"}
    estimator = AerEstimatorV2(options={"default_precision": 0.0, "backend_options": backend})
    witness = EstimatorQNN(
        circuit=isa,
        observables=[read_out(o, made.device, made.physical_qubits) for o in observables],
        input_params=INPUTS,
        weight_params=WEIGHTS,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
        input_gradients=True,
        default_precision=0.0,
    )
    x = X[:2]
    network, without_noise = layer("noisy").as_neural_network(), layer("ideal").as_neural_network()
    wanted = witness.forward(x, W)
    np.testing.assert_allclose(network.forward(x, W), wanted, rtol=0, atol=1e-9)
    assert np.abs(without_noise.forward(x, W) - wanted).max() > 0.01
    gradients = zip(network.backward(x, W), witness.backward(x, W), without_noise.backward(x, W), strict=True)
    for ours, theirs, ideal in gradients:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        assert np.abs(ideal - theirs).max() > 0.01


def test_a_primitive_needs_a_gradient_method_and_its_usage_counts() -> None:
    """Precision 1e-9: exact for this purpose. Three samples; a backward pass for each of two observables."""
    engine = Primitive(StatevectorEstimator(seed=1), precision=1e-9, reduced=True)
    with pytest.raises(InvalidInputError, match="gives no gradient"):
        layer().with_engine(engine).as_neural_network()
    made = layer().with_engine(engine, gradient=ParameterShift())
    network, wanted = made.as_neural_network(), layer("ideal").as_neural_network()
    np.testing.assert_allclose(network.forward(X, W), wanted.forward(X, W), atol=1e-7)
    groups = 2  # ZI and ZZ together, XI apart
    assert made.usage.circuits == 3 * groups
    for ours, exact in zip(network.backward(X, W), wanted.backward(X, W), strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-7)
    rotations = len(compiled().program.offsets)
    assert made.usage.circuits == (3 + 3 + 2 * (2 * 3 * rotations)) * groups


def test_without_inputs_or_without_weights() -> None:
    qc = QuantumCircuit(1)
    qc.ry(WEIGHTS[0], 0)
    device, observables = Device.load("ideal"), [SparsePauliOp("Z")]
    only_weights = qhw.compile_circuit(qc, device, inputs=[], weights=WEIGHTS[:1], observables=observables)
    network = qhw.QuantumLayer(only_weights, dtype=torch.float64).as_neural_network()
    np.testing.assert_allclose(network.forward(None, [0.3]), [[np.cos(0.3)]], atol=1e-12)
    none, slope = network.backward(None, [0.3])
    assert none is None
    np.testing.assert_allclose(slope, [[[-np.sin(0.3)]]], atol=1e-12)
    only_inputs = qhw.compile_circuit(qc, device, inputs=WEIGHTS[:1], weights=[], observables=observables)
    network = qhw.QuantumLayer(only_inputs, dtype=torch.float64).as_neural_network()
    slope, none = network.backward([[0.3], [0.5]], None)
    assert none is None
    np.testing.assert_allclose(slope[:, 0, 0], -np.sin([0.3, 0.5]), atol=1e-12)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qiskit_machine_learning.neural_networks", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'qhw-diffusion\[qml\]'"):
        layer().as_neural_network()


@pytest.mark.parametrize("call", ["forward", "backward"])
@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (np.where(X > 1, np.nan, X), W, "NaN or infinity"),
        (X, np.array([0.1, np.inf, 0.2]), "NaN or infinity"),
        (None, W, r"\[rows, 5\]"),
        (X, None, r"\[rows, 5\]"),
        (np.zeros((0, 2)), W, "no rows"),
    ],
    ids=["nan input", "infinite weight", "no inputs", "no weights", "no rows"],
)
def test_bad_values_are_refused_forwards_and_backwards(call: str, x: Any, w: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        getattr(layer().as_neural_network(), call)(x, w)


@pytest.mark.parametrize("call", ["forward", "backward"])
def test_other_shapes_are_refused(call: str) -> None:
    network = layer().as_neural_network()
    with pytest.raises(QiskitMachineLearningError, match="number of inputs: 2, but got: 3"):
        getattr(network, call)(np.zeros((2, 3)), W)
    with pytest.raises(ValueError, match="cannot reshape"):
        getattr(network, call)(X, W[:2])
