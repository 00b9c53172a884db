"""Known traps of the primitives and of qiskit-machine-learning; each test fails if we fall into one.

Where a trap lies in somebody else's code, the test shows it there first: if a release mends it, that half fails and the
detour can go.
"""

from __future__ import annotations

import ast
import functools
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives import BackendEstimatorV2, BaseEstimatorV2, StatevectorEstimator
from qiskit.quantum_info import SparsePauliOp, Statevector
from qiskit.transpiler import PassManager
from qiskit_aer import AerError, AerSimulator
from qiskit_aer.primitives import EstimatorV2 as AerEstimatorV2
from qiskit_ibm_runtime.fake_provider import FakeManilaV2, FakeMarrakesh
from qiskit_machine_learning.connectors import TorchConnector
from qiskit_machine_learning.exceptions import AlgorithmError
from qiskit_machine_learning.gradients import LinCombEstimatorGradient, ParamShiftEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN
from scipy import stats

import qhw_diffusion as qhw
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import (
    Ideal,
    Noisy,
    ParameterShift,
    Primitive,
    aer_backend,
    aer_estimator,
    runtime_estimator,
)

# Names that sort against the order in which they are given
X = [Parameter("z")]
W = [Parameter("y"), Parameter("a")]
OBSERVABLES = [SparsePauliOp("IIZ"), SparsePauliOp("IZI"), SparsePauliOp("ZII")]
ROWS = torch.from_numpy(np.random.default_rng(0).uniform(-3, 3, (4, 3)))


def circuit() -> QuantumCircuit:
    """Four rotations; each parameter of W in two of them."""
    qc = QuantumCircuit(3)
    qc.ry(X[0], 0)
    qc.rx(W[0], 1)
    qc.cx(0, 1)
    qc.rz(W[0] + W[1], 1)
    qc.ry(W[1], 2)
    qc.cx(1, 2)
    return qc


@functools.cache
def compiled(name: str = "fake_manila") -> qhw.CompiledCircuit:
    return qhw.compile_circuit(circuit(), Device.load(name), inputs=X, weights=W, observables=OBSERVABLES, seed=5)


class Spy(BaseEstimatorV2):
    """Passes PUBs on to the exact state vector and remembers them."""

    def __init__(self) -> None:
        self.inner = StatevectorEstimator(seed=1)
        self.calls: list[tuple[list[Any], float | None]] = []

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
        pubs = list(pubs)
        self.calls.append((pubs, precision))
        return self.inner.run(pubs, precision=precision)


class CountingPassManager(PassManager):
    """Does nothing, and counts the circuits it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.circuits = 0

    def run(self, circuits: Any, *args: Any, **options: Any) -> Any:
        self.circuits += 1 if isinstance(circuits, QuantumCircuit) else len(circuits)
        return circuits


def qnn(estimator: BaseEstimatorV2, **options: Any) -> EstimatorQNN:
    manager = options.get("pass_manager")
    return EstimatorQNN(
        circuit=circuit(),
        observables=OBSERVABLES,
        input_params=X,
        weight_params=W,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator, pass_manager=manager),
        input_gradients=True,
        **options,
    )


# --- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
def test_compiling_is_reproducible_and_lays_the_observables_out(name: str) -> None:
    first = compiled(name)
    again = qhw.compile_circuit(
        circuit(), Device.load(name), inputs=X, weights=W, observables=OBSERVABLES, seed=first.seed
    )
    assert again.isa == first.isa
    assert again.observables == first.observables
    # Without the layout the observables would stand on other qubits than the circuit, or be too narrow
    assert list(first.observables) != OBSERVABLES
    for laid_out, logical in zip(first.observables, OBSERVABLES, strict=True):
        assert laid_out == logical.apply_layout(first.isa.layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fake_manila", "fake_torino"])
def test_logical_qubits_are_found_again_where_the_layout_permutes_them(name: str) -> None:
    """Four qubits in a ring with a chord: routing on a line moves them. Reference: the state vector as written."""
    a, b = Parameter("b"), Parameter("a")
    qc = QuantumCircuit(4)
    for q in range(4):
        qc.ry(0.4 * (q + 1) * a, q)
    for control, target in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2)):
        qc.cx(control, target)
        qc.rx(b, target)
    for q in range(4):
        qc.ry(0.7 * q, q)  # so that no two qubits have the same ⟨Z⟩
    observables = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], 4) for q in range(4)]
    made, again = (
        qhw.compile_circuit(qc, Device.load(name), inputs=[a], weights=[b], observables=observables, seed=1)
        for _ in range(2)
    )
    assert made.isa == again.isa
    start, end = (made.isa.layout.initial_index_layout(True), made.isa.layout.final_index_layout(True))
    assert end != start, "the circuit is not routed"
    assert end != sorted(end), "the layout does not permute"
    rows = ROWS[:, :2]
    states = [Statevector(qc.assign_parameters({a: x, b: w})) for x, w in rows.tolist()]
    wanted = np.array([[state.expectation_value(o).real for o in observables] for state in states])
    spread = [abs(wanted[:, i] - wanted[:, j]).max() for i in range(4) for j in range(i)]
    assert min(spread) > 0.1, "qubits taken for one another would go unnoticed"
    np.testing.assert_allclose(Ideal().estimate(made, rows).values.numpy(), wanted, rtol=0, atol=1e-9)
    sent = Primitive(StatevectorEstimator(seed=0), precision=1e-9, reduced=True)
    np.testing.assert_allclose(sent.estimate(made, rows).values.numpy(), wanted, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_every_transpilation_in_the_package_is_seeded() -> None:
    calls = [
        node
        for path in sorted(Path(qhw.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("generate_preset_pass_manager", "transpile")
    ]
    assert len(calls) >= 3
    for call in calls:
        assert "seed_transpiler" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


def test_nothing_is_transpiled_after_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """EstimatorQNN sends every shifted circuit through its pass manager; a layer sends none."""
    manager = CountingPassManager()
    with torch.no_grad():
        network = qnn(StatevectorEstimator(), pass_manager=manager)
        before = manager.circuits
        network.backward(ROWS[:2, :1].numpy(), ROWS[0, 1:].numpy())
    assert manager.circuits - before >= 2 * 4, "each of the shifted circuits, at least once"

    made = compiled()

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("transpiled again")

    monkeypatch.setattr(PassManager, "run", refuse)
    engine = Primitive(StatevectorEstimator(seed=0), reduced=True)
    layer = qhw.QuantumLayer(made, engine, gradient=ParameterShift(), dtype=torch.float64)
    for _ in range(2):
        layer(ROWS[:2, :1]).sum().backward()


# --- PUBs and precision ----------------------------------------------------------------------------------------------


def test_one_pub_with_its_precision_where_estimator_qnn_sends_hundreds_without() -> None:
    """Gradient of 2 samples, 3 observables and 4 rotations: 2·2·4·3 = 48 PUBs at the estimator's own precision there,
    one PUB of 16 rows here."""
    spy = Spy()
    network = qnn(spy, default_precision=0.07)
    inputs, weights = ROWS[:2, :1], ROWS[0, 1:]
    network.backward(inputs.numpy(), weights.numpy())
    assert sum(len(pubs) for pubs, _ in spy.calls) == 48
    assert all(len(pub) < 4 or pub[3] is None for pubs, _ in spy.calls for pub in pubs)
    assert {precision for _, precision in spy.calls} == {None}, "default_precision is not passed on"

    spy = Spy()
    engine = Primitive(spy, precision=0.07, reduced=True)
    layer = qhw.QuantumLayer(compiled(), engine, gradient=ParameterShift(), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weights)
    layer(inputs.clone().requires_grad_()).sum().backward()
    assert len(compiled().program.offsets) == 4
    for (pubs, _), rows in zip(spy.calls, (2, 2 * 2 * 4), strict=True):
        (pub,) = pubs
        assert np.shape(pub[1])[:2] == (3, 1)
        assert next(iter(pub[2].values())).shape == (rows, 3 if rows == 2 else 4)
        assert pub[3] == 0.07
    assert layer.usage.shots == (2 + 16) * math.ceil(1 / 0.07**2)


def test_values_are_bound_by_parameter_and_not_by_position() -> None:
    """`circuit.parameters` is sorted by name; the columns are in the order given to `compile_circuit`."""
    assert list(compiled().isa.parameters) != [*X, *W]
    engine = Primitive(StatevectorEstimator(seed=0), precision=1e-8, reduced=True)
    torch.testing.assert_close(
        engine.estimate(compiled(), ROWS).values, Ideal().estimate(compiled(), ROWS).values, rtol=0, atol=1e-6
    )


# --- Aer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [0.0, 1e-6])
def test_aers_estimator_leaves_readout_errors_out_and_is_refused(precision: float) -> None:
    """At every precision, not at 0 only: fake_manila's readout errors move ⟨Z⟩ by several hundredths."""
    model = compiled().device.noise_model(range(5))
    estimator = AerEstimatorV2(options={"backend_options": {"noise_model": model, "method": "density_matrix"}})
    values = {(*X, *W): ROWS.numpy()}
    pub = (compiled().isa, [[o] for o in compiled().observables], values, precision)
    theirs = torch.from_numpy(estimator.run([pub]).result()[0].data.evs.T.copy())
    wanted = Noisy().estimate(compiled(), ROWS).values
    assert (theirs - wanted).abs().max() > 0.02
    with pytest.raises(InvalidInputError, match=r"leaves the readout errors.*aer_estimator"):
        Primitive(estimator)
    with pytest.raises(InvalidInputError, match="readout errors"):
        Primitive(StatevectorEstimator(), precision=0)
    # without readout errors in the model there is nothing to lose
    Primitive(AerEstimatorV2())


def test_aers_from_backend_refuses_logical_circuits_and_takes_ours() -> None:
    estimator = AerEstimatorV2.from_backend(FakeManilaV2())
    with pytest.raises(AerError, match="unknown instruction"):
        estimator.run([(circuit(), OBSERVABLES[0], ROWS[0].numpy())]).result()
    estimate = Primitive(fake_manila_on_aer(), precision=0.02).estimate(compiled(), ROWS)
    # Its readout errors are the mean of the two, which moves the ⟨Z⟩ of a qubit by p01 − p10 and nothing else
    p10, p01 = np.array([compiled().device.readout_error(q) for q in compiled().isa.layout.final_index_layout()]).T
    wanted = Noisy().estimate(compiled(), ROWS).values - torch.from_numpy(p01 - p10)
    # χ² of 12 values, false alarm 1e-5
    chi2 = float(((estimate.values - wanted) / estimate.std_errors).square().sum())
    low, high = stats.chi2.ppf([5e-6, 1 - 5e-6], wanted.numel())
    assert low < chi2 < high


def fake_manila_on_aer() -> BackendEstimatorV2:
    """Aer with the limits and the noise of the device: its basis, its width, its couplings."""
    return BackendEstimatorV2(backend=AerSimulator.from_backend(FakeManilaV2()), options={"seed_simulator": 11})


def test_parameter_shift_works_where_linear_combinations_of_unitaries_do_not() -> None:
    """LinComb adds a qubit and gates that are not the device's; our shifts are values of the same ISA circuit.

    Each derivative by a rotation has a standard error of at most precision/√2, and each parameter has at most two
    rotations: 6 standard errors, false alarms below 1e-8. Means of readout errors do not matter to derivatives.
    """
    isa, values = compiled().isa, dict(zip([*X, *W], ROWS[0].tolist(), strict=True))
    theirs = LinCombEstimatorGradient(fake_manila_on_aer())
    with pytest.raises(AlgorithmError):
        theirs.run([isa], [compiled().observables[1]], [[values[p] for p in isa.parameters]]).result()
    precision = 0.01

    def gradient(layer: qhw.QuantumLayer) -> torch.Tensor:
        with torch.no_grad():
            layer.weight.copy_(ROWS[0, 1:])
        x = ROWS[:1, :1].clone().requires_grad_()
        return torch.cat([g.flatten() for g in torch.autograd.grad(layer(x)[0, 1], (x, layer.weight))])

    shifted = qhw.QuantumLayer(
        compiled(), Primitive(fake_manila_on_aer(), precision), gradient=ParameterShift(), dtype=torch.float64
    )
    wanted = gradient(qhw.QuantumLayer(compiled(), "noisy", dtype=torch.float64))
    assert wanted.abs().max() > 0.1
    assert (gradient(shifted) - wanted).abs().max() < 6 * precision


def test_a_seeded_estimator_repeats_its_draws_and_ours_draws_on() -> None:
    """Training with the same shot noise in every step would fit that noise."""
    backend = aer_backend(compiled())
    frozen = Primitive(BackendEstimatorV2(backend=backend, options={"seed_simulator": 7}), 0.05, reduced=True)
    assert torch.equal(frozen.estimate(compiled(), ROWS).values, frozen.estimate(compiled(), ROWS).values)
    ours = Primitive(aer_estimator(compiled(), seed=7), 0.05, reduced=True)
    first, second = (ours.estimate(compiled(), ROWS).values for _ in range(2))
    assert not torch.equal(first, second)
    again = Primitive(aer_estimator(compiled(), seed=7), 0.05, reduced=True)
    assert torch.equal(again.estimate(compiled(), ROWS).values, first)


def test_aer_relaxes_waiting_qubits_of_a_scheduled_circuit() -> None:
    """The reduced noise model knows no delays; dropped, a wait of 60 µs would go unnoticed."""

    def made(microseconds: int) -> qhw.CompiledCircuit:
        qc = QuantumCircuit(1)
        qc.rx(X[0], 0)
        qc.delay(microseconds, 0, unit="us")
        device = Device.load("fake_manila")
        return qhw.compile_circuit(qc, device, inputs=X, weights=[], observables=[SparsePauliOp("Z")])

    row = torch.tensor([[3.0]], dtype=torch.float64)
    wanted, at_once = (Noisy().estimate(made(wait), row).values for wait in (60, 0))
    assert wanted - at_once > 0.2
    found = Primitive(aer_estimator(made(60), seed=1), precision=0.005, reduced=True).estimate(made(60), row)
    assert abs(found.values - wanted) < 5 * found.std_errors  # false alarm 6e-7


# --- the runtime client ----------------------------------------------------------------------------------------------


def distance(*estimators: BaseEstimatorV2) -> float:
    """Root mean square of the errors against the noiseless values, over all estimators."""
    values = [Primitive(estimator, precision=0.006).estimate(compiled(), ROWS).values for estimator in estimators]
    return float((torch.stack(values) - Ideal().estimate(compiled(), ROWS).values).square().mean().sqrt())


def options(level: int, seed: int = 5) -> dict[str, Any]:
    return {"resilience_level": level, "simulator": {"seed_simulator": seed}}


@pytest.mark.slow
def test_the_new_estimator_applies_resilience_options() -> None:
    """fake_manila, rms error of 24 values: about .10 without, .02 with readout mitigation.

    Shot noise is .006, about .008 after mitigation. False alarm below 1e-100: χ² of 24 values above 700.
    """
    backend = FakeManilaV2()
    plain, mitigated = (
        distance(*(runtime_estimator(backend, options=options(level, seed)) for seed in (5, 6))) for level in (0, 1)
    )
    assert plain > 0.05
    assert mitigated < 0.5 * plain


@pytest.mark.slow
def test_the_deprecated_estimator_works_but_ignores_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says so
        plain, mitigated = (
            distance(runtime_estimator(FakeManilaV2(), options=options(level), legacy=True)) for level in (0, 1)
        )
    assert plain == mitigated
    assert plain > 0.05


def test_no_deprecation_warning_escapes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        estimator = runtime_estimator(FakeManilaV2(), legacy=True)
        Primitive(estimator, precision=0.2).estimate(compiled(), ROWS[:1])


def test_the_new_estimator_on_a_wide_fake_backend_needs_the_qubits_in_use_only() -> None:
    """In local mode it measures all 156 qubits of a Heron, which no simulator holds. On Aer with the reduced model it
    gives the noisy engine's values, asymmetric readout included: χ² of 12 values, false alarm 1e-5."""
    made = compiled("fake_marrakesh")
    with pytest.raises(InvalidInputError, match="simulates all 156 qubits"):
        Primitive(runtime_estimator(FakeMarrakesh())).estimate(made, ROWS)
    with pytest.raises(InvalidInputError, match="cannot hold the 156 qubits"):
        Primitive(StatevectorEstimator()).estimate(made, ROWS)
    engine = Primitive(runtime_estimator(aer_backend(made), options=options(0)), precision=0.006, reduced=True)
    estimate = engine.estimate(made, ROWS)
    chi2 = float(((estimate.values - Noisy().estimate(made, ROWS).values) / estimate.std_errors).square().sum())
    low, high = stats.chi2.ppf([5e-6, 1 - 5e-6], estimate.values.numel())
    assert low < chi2 < high


# --- qiskit-machine-learning ------------------------------------------------------------------------------------------


def test_torch_connector_takes_a_full_jacobian_in_float32_and_the_layer_neither() -> None:
    layer = qhw.QuantumLayer(compiled(), "noisy", dtype=torch.float64)
    network = layer.as_neural_network()
    shapes: list[tuple[int, ...]] = []
    backward = network.backward
    network.backward = lambda x, w: [shapes.append(j.shape) or j for j in backward(x, w)]  # type: ignore[func-returns-value]
    connector = TorchConnector(network, initial_weights=layer.weight.detach().numpy())
    values = connector(ROWS[:, :1])
    values.sum().backward()
    assert values.dtype == connector.weight.dtype == torch.float32
    assert shapes == [(4, 3, 1), (4, 3, 2)]
    direct = layer(ROWS[:, :1])
    direct.sum().backward()
    assert layer.weight.grad is not None
    assert direct.dtype == layer.weight.grad.dtype == torch.float64
    torch.testing.assert_close(connector.weight.grad.double(), layer.weight.grad, rtol=0, atol=1e-5)
