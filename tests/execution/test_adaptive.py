"""Adaptive observables against explicit Hermitian matrices, Aer's density matrix, finite differences and statistics."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import StatevectorEstimator
from qiskit.quantum_info import Operator, SparsePauliOp, Statevector, random_hermitian
from qiskit_aer import AerSimulator

from qhw_diffusion.circuits import AdaptiveObservables
from qhw_diffusion.circuits.observables import check_observables_text
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.execution import (
    SPSA,
    CompiledCircuit,
    GradientMethod,
    Hardware,
    ParameterShift,
    Primitive,
    QuantumLayer,
    Shots,
    Surrogate,
    aer_estimator,
    compile_circuit,
    load_layer,
)
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.execution.engines import engine_of
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.split import bases_of

N = 3
X, W = ParameterVector("x", 2), ParameterVector("w", 4)
INPUTS = torch.tensor([[0.4, -1.2], [1.9, 0.3]], dtype=torch.float64)


def circuit() -> QuantumCircuit:
    qc = QuantumCircuit(N)
    qc.ry(X[0], 0)
    qc.rx(X[1], 2)
    qc.ry(W[0], 1)
    qc.cx(0, 1)
    qc.rz(W[1], 1)
    qc.cx(1, 2)
    qc.rx(W[2] + 0.5 * X[0], 0)
    qc.ry(W[3], 2)
    return qc


@functools.cache
def compiled(device: str = "fake_manila", observables: str = "adaptive:2") -> CompiledCircuit:
    return compile_circuit(
        circuit(), Device.load(device), inputs=list(X), weights=list(W), observables=observables, seed=1
    )


def layer(engine: str = "ideal", device: str = "fake_manila", **settings: object) -> QuantumLayer:
    """With coefficients that are not those it starts with."""
    made = QuantumLayer(compiled(device), engine, dtype=torch.float64, **settings)  # type: ignore[arg-type]
    assert made.coefficients is not None
    generator = torch.Generator().manual_seed(3)
    made.coefficients.data.copy_(torch.randn(len(made.coefficients), generator=generator, dtype=torch.float64))
    return made


def exact(made: QuantumLayer) -> np.ndarray:
    """[B, observables] by Qiskit: state vectors of the circuit as written, and the matrices of `operators`."""
    rows = []
    for x in INPUTS.tolist():
        state = Statevector(circuit().assign_parameters({X: x, W: made.weight.tolist()}))
        rows.append([state.expectation_value(Operator(o.to_matrix())).real for o in made.operators()])
    return np.array(rows)


# -- which observables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n", "windows"),
    [
        ("adaptive:1", 2, ((0,), (1,))),
        ("adaptive:2", 3, ((0, 1), (1, 2), (2, 0))),
        ("adaptive:2:ring", 2, ((0, 1), (1, 0))),
        ("adaptive:2:chain", 3, ((0, 1), (1, 2))),
        ("adaptive:3", 4, ((0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1))),
        ("adaptive:3:chain", 3, ((0, 1, 2),)),
    ],
)
def test_windows(text: str, n: int, windows: tuple[tuple[int, ...], ...]) -> None:
    """Ring and chain windows; every Pauli string of a window has its own coefficient, the identity none."""
    found = AdaptiveObservables.of(text, n)
    assert found.windows == windows
    assert len(found) == len(windows)
    assert found.n_coefficients == len(found.terms) == sum(4 ** len(w) - 1 for w in windows)
    labels = [s.paulis[0].to_label() for s in found.strings]
    assert len(set(labels)) == len(labels)
    assert "I" * n not in labels


@pytest.mark.parametrize("text", ["", "z", "adaptive", "adaptive:", "adaptive:0", "adaptive:7", "adaptive:2:star",
                                  "adaptive:2:", "adaptive:-1", "adaptive:²", "Adaptive:2"])  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    """The message says what was given and what is allowed."""
    with pytest.raises(QhwError, match="adaptive:K"):
        check_observables_text(text)
    with pytest.raises(QhwError):
        compile_circuit(circuit(), Device.load("ideal"), inputs=list(X), weights=list(W), observables=text)


def test_windows_that_are_none_are_refused() -> None:
    """Own windows are of different qubits that exist; a text that does not fit the width says so."""
    for windows in ((), ((),), ((0, 0),), ((0, 3),), ((0, -1),), 5, ((0.0,),)):
        with pytest.raises(InvalidInputError, match="windows"):
            AdaptiveObservables(3, windows)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="4 neighbouring qubits, the circuit has 3"):
        compile_circuit(circuit(), Device.load("ideal"), inputs=list(X), weights=list(W), observables="adaptive:4")
    own = AdaptiveObservables(2, ((0, 1),))
    with pytest.raises(InvalidInputError, match="2 qubits, the circuit has 3"):
        compile_circuit(circuit(), Device.load("ideal"), inputs=list(X), weights=list(W), observables=own)
    with pytest.raises(InvalidInputError, match="there are 15"):
        AdaptiveObservables(2, ((0, 1),)).operators([1.0])


@pytest.mark.parametrize(("text", "n", "most"), [("adaptive:1", 4, 3), ("adaptive:2", 4, 9), ("adaptive:2", 6, 9),
                                                 ("adaptive:2:chain", 5, 9), ("adaptive:2", 5, 12),
                                                 ("adaptive:3:chain", 4, 27)])  # fmt: skip
def test_few_bases(text: str, n: int, most: int) -> None:
    """3^k measurement bases, where the ring closes; an odd ring takes some more."""
    assert bases_of(AdaptiveObservables.of(text, n).strings) <= most


# -- values ------------------------------------------------------------------------------------------------------------


def test_any_hermitian_matrix_is_in_reach() -> None:
    """Coefficients tr(PH)/2^k make the value of a random H but for its trace; the start is ⟨Z⟩ of every qubit."""
    made = QuantumLayer(compiled("ideal"), dtype=torch.float64)
    z = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], N) for q in range(N)]
    assert [o.simplify() for o in made.operators()] == z
    assert np.allclose(made(INPUTS).detach(), exact(made), atol=1e-9)

    # H on (qubit 0, qubit 1), Qiskit's order: the matrix's first factor is the higher qubit
    h = random_hermitian(4, seed=8).data
    pauli = {"I": np.eye(2), "X": np.array([[0, 1], [1, 0]]), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1])}
    letters = list(itertools.product("IXYZ", repeat=2))[1:]  # (letter of qubit 0, of qubit 1)
    found = [np.trace(np.kron(pauli[b], pauli[a]) @ h).real / 4 for a, b in letters]
    assert made.coefficients is not None
    with torch.no_grad():
        made.coefficients[:15] = torch.tensor(found)
    for row, x in zip(made(INPUTS).tolist(), INPUTS.tolist(), strict=True):
        state = Statevector(circuit().assign_parameters({X: x, W: made.weight.tolist()}))
        wanted = state.expectation_value(Operator(h), [0, 1]).real - np.trace(h).real / 4
        assert row[0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("device", ["ideal", "fake_manila", "fake_torino"])
def test_ideal_values(device: str) -> None:
    """Whatever the layout: the matrices of `operators` on Qiskit's state vector."""
    made = layer(device=device)
    assert np.allclose(made(INPUTS).detach(), exact(made), atol=1e-8)


def test_noisy_values_are_aers() -> None:
    """Density matrix by Aer, every Pauli read out in its basis with the qubits' readout errors."""
    made = layer("noisy")
    c = made.compiled
    qubits, values = list(c.physical_qubits), []
    small = QuantumCircuit(len(qubits))
    for i in c.isa.data:
        if i.operation.name != "barrier":
            small.append(i.operation, [qubits.index(c.isa.find_bit(q).index) for q in i.qubits])
    small.save_density_matrix()
    noise = c.device.noise_model(qubits)
    simulator = AerSimulator(method="density_matrix", noise_model=noise, max_parallel_threads=1)
    to_z = {"X": np.array([[1, 1], [1, -1]]) / np.sqrt(2), "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2)}

    def read(letter: str, qubit: int) -> np.ndarray:
        """What is measured in the place of a Pauli: its outcomes' signs behind the confusion of the readout."""
        p10, p01 = c.device.readout_error(qubit)
        confusion = np.array([[1 - p10, p01], [p10, 1 - p01]])
        change = to_z.get(letter, np.eye(2))
        signs = np.array([1.0, -1.0]) @ confusion
        return np.eye(2) if letter == "I" else change.conj().T @ np.diag(signs) @ change

    operators = [o.apply_layout(c.isa.layout) for o in made.operators()]
    for x in INPUTS.tolist():
        rho = simulator.run(small.assign_parameters({X: x, W: made.weight.tolist()})).result().data(0)["density_matrix"]
        row = []
        for operator in operators:
            total = 0.0
            for pauli, k in zip(operator.paulis, operator.coeffs, strict=True):
                label = pauli.to_label()[::-1]
                full = functools.reduce(lambda low, q: np.kron(read(label[q], q), low), qubits, np.eye(1))
                total += k.real * np.trace(full @ np.asarray(rho)).real
            row.append(total)
        values.append(row)
    assert np.allclose(made(INPUTS).detach(), values, atol=1e-7)
    assert not np.allclose(values, exact(made), atol=1e-2)  # there is noise to be agreed on


@pytest.mark.parametrize("which", ["shots", "aer", "statevector", "hardware", "mitigated"])
def test_engines_with_standard_errors(which: str, tmp_path: Path) -> None:
    """Sampled values lie within five standard errors of the exact ones, in few bases; the ledger pays once."""
    shots, made = 4096, layer("noisy")
    bases = bases_of(made.compiled.observables)
    wanted = made(INPUTS).detach()
    if which == "shots":
        engine = Shots(shots, seed=4)
    elif which == "mitigated":
        engine = engine_of(f"shots:{shots}:seed=4+readout")  # type: ignore[assignment]
        wanted = layer("noisy+readout")(INPUTS).detach()
    elif which == "hardware":
        engine = Hardware(open_runner("fake_manila", ledger=Ledger.open(tmp_path), run="test"), shots=shots)  # type: ignore[assignment]
    elif which == "aer":
        estimator = aer_estimator(made.compiled, seed=2)
        engine = Primitive(estimator, precision=shots**-0.5, reduced=True)  # type: ignore[assignment]
    else:
        engine = Primitive(StatevectorEstimator(seed=3), precision=shots**-0.5)  # type: ignore[assignment]
        wanted = layer("ideal")(INPUTS).detach()
    estimate = made.estimate(INPUTS, engine)
    assert estimate.values.shape == estimate.std_errors.shape == (2, N)
    assert bool((estimate.std_errors > 0).all())
    assert bool(((estimate.values - wanted).abs() < 5 * estimate.std_errors).all())
    if which == "mitigated":
        return
    assert estimate.usage.circuits in (2 * bases, 2 * len(made.compiled.measurement_groups))
    if which == "hardware":
        cost = qpu_cost(engine_of("ideal"), made.compiled, 2, shots=shots)
        assert cost.circuits == 2 * bases
        with torch.no_grad():  # other coefficients: the same measurement, so it is taken from the ledger
            assert made.coefficients is not None
            made.coefficients.mul_(2)
        again = made.estimate(INPUTS, engine)
        assert torch.equal(again.values, 2 * estimate.values)
        assert engine.runner.ledger.rows()[1:] == []  # type: ignore[attr-defined]


@pytest.mark.slow
def test_standard_errors_of_shots_are_the_spread() -> None:
    """Covariances included: the stated error is the standard deviation over 400 repetitions, not the bound."""
    made = layer(f"shots:{200}:seed=1")
    bound = super(Shots, made.engine).estimate_combined(  # type: ignore[misc]
        made.compiled, torch.cat([INPUTS, made.weight.detach().expand(2, -1)], 1), made.coefficients
    )
    drawn = [made.estimate(INPUTS) for _ in range(400)]
    spread = torch.stack([e.values for e in drawn]).std(0)
    stated = torch.stack([e.std_errors for e in drawn]).mean(0)
    assert torch.allclose(stated, spread, rtol=0.12)
    assert bool((bound.std_errors > 1.3 * spread).all())


# -- gradients ---------------------------------------------------------------------------------------------------------


def finite_differences(function: Callable[[], float], parameters: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    flat, slopes = parameters.data.view(-1), []
    for at in range(len(flat)):
        old, both = float(flat[at]), []
        for sign in (1, -1):
            flat[at] = old + sign * step
            both.append(function())
        flat[at] = old
        slopes.append((both[0] - both[1]) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("engine", ["ideal", "noisy"])
@pytest.mark.parametrize("method", [None, ParameterShift(), Surrogate("noisy"), SPSA(repetitions=3)])
def test_gradients_by_finite_differences(engine: str, method: GradientMethod | None) -> None:
    """Exact for coefficients by every method; for weights and inputs by those that are exact."""
    made = layer(engine, gradient=method)
    assert made.coefficients is not None
    cotangent = torch.tensor([[0.3, -1.0, 0.7], [1.1, 0.2, -0.4]], dtype=torch.float64)
    x = INPUTS.clone().requires_grad_()

    def value() -> float:
        with torch.no_grad():
            return float((made(x) * cotangent).sum())

    (made(x) * cotangent).sum().backward()  # type: ignore[no-untyped-call]
    assert made.coefficients.grad is not None
    assert torch.allclose(made.coefficients.grad, finite_differences(value, made.coefficients), atol=1e-8)
    if isinstance(method, SPSA) or (engine == "ideal" and isinstance(method, Surrogate)):
        return
    assert made.weight.grad is not None
    assert x.grad is not None
    assert torch.allclose(made.weight.grad, finite_differences(value, made.weight), atol=1e-7)
    assert torch.allclose(x.grad.view(-1), finite_differences(value, x), atol=1e-7)


def test_coefficients_are_trained_without_a_gradient_of_the_engine() -> None:
    """With frozen weights, an engine without gradients trains the coefficients: their gradient is what was measured."""
    made = layer("ideal").with_engine(Primitive(StatevectorEstimator(seed=1), precision=0.01))
    made.weight.requires_grad_(False)
    values = made(INPUTS)
    values[:, 0].sum().backward()
    assert made.coefficients is not None
    assert made.coefficients.grad is not None
    with torch.no_grad():
        assert torch.isclose(made.coefficients.grad @ made.coefficients, values[:, 0].sum(), atol=1e-9)
    assert not made.coefficients.grad[15:].any()  # of the other windows
    made.weight.requires_grad_(True)
    with pytest.raises(InvalidInputError, match="gives no gradient"):
        made(INPUTS)


# -- copies, files, other interfaces -----------------------------------------------------------------------------------


def test_copies_and_files(tmp_path: Path) -> None:
    """deepcopy, other engines and devices, state_dict and folders keep the coefficients."""
    made = layer("noisy")
    values = made(INPUTS).detach()
    assert made.coefficients is not None
    made.coefficients.requires_grad_(False)
    made.save(tmp_path / "layer")
    loaded = load_layer(tmp_path / "layer")
    fresh = QuantumLayer(compiled(), "noisy", dtype=torch.float64)
    fresh.load_state_dict(made.state_dict())
    for other in (copy.deepcopy(made), loaded.double(), made.with_engine("ideal").with_engine("noisy"), fresh):
        assert torch.allclose(other(INPUTS), values, atol=1e-9)
    assert loaded.compiled.adaptive == made.compiled.adaptive
    assert loaded.coefficients is not None
    assert not loaded.coefficients.requires_grad
    moved = load_layer(tmp_path / "layer", device="fake_torino", engine="ideal").double()
    assert torch.allclose(moved(INPUTS), layer("ideal")(INPUTS), atol=1e-8)
    elsewhere = made.with_compiled(made.compiled.compile_for(Device.load("fake_torino")))
    assert torch.equal(elsewhere.coefficients.data, made.coefficients.data)  # type: ignore[union-attr]
    with pytest.raises(InvalidInputError, match="other adaptive observables"):
        made.with_compiled(compiled(observables="adaptive:1"))
    assert "3 observables of 45 coefficients" in repr(made)


def test_folders_of_earlier_versions_have_none(tmp_path: Path) -> None:
    """What was saved without the entry loads as fixed observables."""
    z = [SparsePauliOp("IIZ"), SparsePauliOp("ZII")]
    plain = compile_circuit(circuit(), Device.load("ideal"), inputs=list(X), weights=list(W), observables=z)
    from qhw_diffusion.execution.saving import read_compiled, write_compiled

    saved = json.loads(json.dumps(write_compiled(plain, tmp_path)))
    assert saved.pop("adaptive") is None
    assert read_compiled(tmp_path, saved).adaptive is None
    assert QuantumLayer(plain).coefficients is None
    with pytest.raises(InvalidInputError, match="no adaptive observables"):
        engine_of("ideal").estimate_combined(plain, torch.zeros(1, 6), torch.zeros(1))


def test_in_qiskit_machine_learning() -> None:
    """As a NeuralNetwork: coefficients behind the weights, values and Jacobians those of the layer."""
    pytest.importorskip("qiskit_machine_learning")
    made = layer("noisy")
    assert made.coefficients is not None
    network = made.as_neural_network()
    w = torch.cat([made.weight, made.coefficients]).detach().numpy()
    assert (network.num_weights, network.output_shape) == (4 + 45, (3,))
    assert np.allclose(network.forward(INPUTS.numpy(), w), made(INPUTS).detach(), atol=1e-9)
    by_inputs, by_weights = network.backward(INPUTS.numpy(), w)
    x = INPUTS.clone().requires_grad_()
    out = made(x)
    for m in range(3):
        found = torch.autograd.grad(out[:, m].sum(), [x, made.weight, made.coefficients], retain_graph=True)
        assert np.allclose(by_inputs[:, m], found[0], atol=1e-9)
        assert np.allclose(by_weights[:, m].sum(0), torch.cat(found[1:]), atol=1e-9)


def test_own_windows_and_unknown_errors() -> None:
    """Windows of different sizes that repeat; a string whose error is not known counts only where it is used."""
    own = AdaptiveObservables(N, ((0, 2), (1,), (0, 2)))
    c = compile_circuit(circuit(), Device.load("ideal"), inputs=list(X), weights=list(W), observables=own)
    made = QuantumLayer(c, dtype=torch.float64)
    assert made.coefficients is not None
    with torch.no_grad():
        made.coefficients.copy_(torch.linspace(-1, 1, 33, dtype=torch.float64))
    assert np.allclose(made(INPUTS).detach(), exact(made), atol=1e-9)

    from qhw_diffusion.execution.adaptive import bound

    errors = torch.full((1, len(own.strings)), 0.5, dtype=torch.float64)
    errors[0, own.terms[0][1]] = torch.inf
    coefficients = torch.zeros(33, dtype=torch.float64)
    coefficients[1], coefficients[2], coefficients[15] = 2.0, -1.0, 3.0
    assert bound(own, errors, coefficients).tolist() == [[1.5, 1.5, 0.0]]
    coefficients[18] = 1.0
    assert bound(own, errors, coefficients)[0, 2] == torch.inf


def test_unknown_text_names_what_is_allowed() -> None:
    """A text that is no kind of observables is an unknown name."""
    with pytest.raises(UnknownNameError, match="'adaptive:K'"):
        AdaptiveObservables.of("z", 3)
