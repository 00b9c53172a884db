"""A compiled circuit as a map on states, against Qiskit's own states and Aer's density-matrix method.

The ideal reference is the circuit as written, before compilation. The noisy one is Aer's density matrix of the ISA
circuit under the device's gate errors, started from the given state; readout errors are applied with numpy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import DensityMatrix, Operator, SparsePauliOp, partial_trace
from qiskit_aer import AerSimulator

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, MemoryBudgetError, UnknownNameError
from qhw_diffusion.execution import CompiledCircuit, compile_circuit, evolution, simulator
from qhw_diffusion.execution.evolution import Evolution, density_matrices, real_rows

X = tuple(Parameter(f"x{i}") for i in range(2))
W = tuple(Parameter(f"w{i}") for i in range(4))
INPUTS = torch.tensor([[0.3, -1.1], [2.0, 0.4], [-0.7, 1.9]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, -2.2, 1.3, 0.9], dtype=torch.float64)
# data and measured qubits of a circuit of 3 or 4: in any order, all of them or not
SPLITS = [
    (3, (0, 1), (2,)),
    (3, (2,), (1, 0)),
    (4, (3, 0), (2, 1)),
    (4, (1, 3, 2), (0,)),
    (3, (2, 0), ()),
    (4, (0, 2), (3,)),
]
ON_DEVICES = [(("fake_manila", "fake_marrakesh")[i % 2], *split) for i, split in enumerate(SPLITS)]
ON_DEVICES.append(("fake_manila", 4, (1, 3, 2), (0,)))


@functools.cache
def random_circuit(n: int) -> QuantumCircuit:
    """Every parameter once or more, and CNOTs between all pairs, so that a device has to route."""
    rng = np.random.default_rng(n)
    circuit = QuantumCircuit(n)
    angles = [*W, *X, 2 * X[0] - W[1], W[2] + 0.5 * X[1], W[0] + 0.4]
    for angle in angles:
        getattr(circuit, str(rng.choice(["rx", "ry", "rz"])))(angle, int(rng.integers(n)))
        circuit.sx(int(rng.integers(n)))
        first, second = (int(q) for q in rng.permutation(n)[:2])
        getattr(circuit, str(rng.choice(["cx", "cz", "swap", "cy"])))(first, second)
    return circuit


@functools.cache
def compiled(n: int, device: str, level: int = 3) -> CompiledCircuit:
    z = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in range(n)]
    return compile_circuit(
        random_circuit(n), Device.load(device), inputs=X, weights=W, observables=z, seed=5, optimization_level=level
    )


def random_pure(count: int, dim: int, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    states = torch.randn(count, dim, dtype=torch.complex128, generator=torch.Generator().manual_seed(dim))
    return (states / torch.linalg.vector_norm(states, dim=1, keepdim=True)).to(dtype)


def random_density(count: int, dim: int) -> torch.Tensor:
    factor = torch.randn(count, dim, dim, dtype=torch.complex128, generator=torch.Generator().manual_seed(dim + 1))
    rho = factor @ factor.mH
    return rho / rho.diagonal(dim1=1, dim2=2).sum(1).real[:, None, None]


def outer(states: torch.Tensor) -> torch.Tensor:
    return states[..., :, None] * states[..., None, :].conj()


def placed(rho: np.ndarray, places: Sequence[int], n: int) -> DensityMatrix:
    """rho on `places` (the first is its least significant bit), every other of n qubits in |0⟩."""
    index = [sum((i >> bit & 1) << place for bit, place in enumerate(places)) for i in range(len(rho))]
    full = np.zeros((2**n, 2**n), complex)
    full[np.ix_(index, index)] = rho
    return DensityMatrix(full)


def split(full: DensityMatrix, data: Sequence[int], measured: Sequence[int]) -> np.ndarray:
    """[K, d, d], not normalised: what is left on `data` for each outcome of `measured`, by Qiskit's projectors."""
    n, parts = full.num_qubits, []
    for outcome in range(2 ** len(measured)):
        bits = {q: outcome >> j & 1 for j, q in enumerate(measured)}
        label = "".join("IZ"[q in bits] for q in reversed(range(n)))
        projector = np.ones(1)
        for q in range(n):
            single = np.eye(2)[bits[q]] if label[n - 1 - q] == "Z" else np.ones(2)
            projector = np.kron(single, projector)
        kept = DensityMatrix(np.diag(projector) @ full.data @ np.diag(projector))
        reduced = partial_trace(kept, [q for q in range(n) if q not in data])
        order = np.argsort(np.argsort(data))  # partial_trace keeps ascending order; put the data's own order back
        tensor = reduced.data.reshape([2] * (2 * len(data)))
        m = len(data)
        axes = [m - 1 - order[m - 1 - a] for a in range(m)]
        parts.append(tensor.transpose([*axes, *(m + a for a in axes)]).reshape(2**m, 2**m))
    return np.array(parts)


def ideal_reference(n: int, rho: torch.Tensor, data: Sequence[int], measured: Sequence[int]) -> np.ndarray:
    """[K, B, d, d], not normalised."""
    rows = []
    for matrix, x in zip(rho.numpy(), INPUTS.numpy(), strict=True):
        values = dict(zip((*X, *W), (*x, *WEIGHTS.numpy()), strict=True))
        final = placed(matrix, data, n).evolve(random_circuit(n).assign_parameters(values))
        rows.append(split(final, data, measured))
    return np.stack(rows, 1)


def aer_reference(c: CompiledCircuit, rho: torch.Tensor, data: Sequence[int], measured: Sequence[int]) -> np.ndarray:
    """[K, B, d, d], not normalised, with gate and readout errors of the device."""
    qubits, layout = list(c.physical_qubits), c.isa.layout
    start = [qubits.index(layout.initial_virtual_layout(filter_ancillas=True)[q]) for q in c.logical.qubits]
    end = [qubits.index(layout.final_virtual_layout(filter_ancillas=True)[q]) for q in c.logical.qubits]
    simulator = AerSimulator(method="density_matrix", noise_model=c.device.noise_model(qubits), max_parallel_threads=1)
    confusion = np.ones((1, 1))
    for q in measured:
        p10, p01 = c.device.readout_error(qubits[end[q]])
        confusion = np.kron(np.array([[1 - p10, p01], [p10, 1 - p01]]), confusion)
    rows = []
    for matrix, x in zip(rho.numpy(), INPUTS.numpy(), strict=True):
        small = QuantumCircuit(len(qubits))
        small.set_density_matrix(placed(matrix, [start[q] for q in data], len(qubits)))
        for i in c.isa.data:
            if i.operation.name != "barrier":
                small.append(i.operation, [qubits.index(c.isa.find_bit(q).index) for q in i.qubits])
        small.save_density_matrix()
        bound = small.assign_parameters(dict(zip((*X, *W), (*x, *WEIGHTS.numpy()), strict=True)))
        final = DensityMatrix(np.asarray(simulator.run(bound).result().data(0)["density_matrix"]))
        true = split(final, [end[q] for q in data], [end[q] for q in measured])
        rows.append(np.einsum("kj,jab->kab", confusion, true))
    return np.stack(rows, 1)


def unnormalised(branches: evolution.Branches) -> np.ndarray:
    states = branches.states if branches.states.ndim == 4 else outer(branches.states)
    return (states * branches.probabilities[..., None, None]).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("device", "n", "data", "measured"), [*(("ideal", *split) for split in SPLITS), *ON_DEVICES])
def test_ideal_branches_agree_with_qiskit_on_the_circuit_as_written(
    device: str, n: int, data: tuple[int, ...], measured: tuple[int, ...]
) -> None:
    step = Evolution(compiled(n, device), data=data, measured=measured)
    dim = 2 ** len(data)
    pure, density = random_pure(3, dim), random_density(3, dim)
    found = step(pure, WEIGHTS, INPUTS)
    assert found.states.ndim == (3 if len(data) + len(measured) == n else 4)
    np.testing.assert_allclose(unnormalised(found), ideal_reference(n, outer(pure), data, measured), rtol=0, atol=1e-9)
    norms = (
        torch.linalg.vector_norm(found.states, dim=-1)
        if found.states.ndim == 3
        else found.states.diagonal(dim1=-2, dim2=-1).sum(-1).real
    )
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-9)
    mixed = step(density, WEIGHTS, INPUTS)
    np.testing.assert_allclose(unnormalised(mixed), ideal_reference(n, density, data, measured), rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        mixed.average().numpy(), ideal_reference(n, density, data, measured).sum(0), rtol=0, atol=1e-9
    )
    single = step(pure.to(torch.complex64), WEIGHTS.float(), INPUTS.float())
    assert single.states.dtype == torch.complex64
    np.testing.assert_allclose(unnormalised(single), unnormalised(found), rtol=0, atol=1e-5)


def test_the_devices_do_route() -> None:
    """Else the test above says nothing about permuted qubits."""
    layouts = [compiled(n, d).isa.layout for n in (3, 4) for d in ("fake_manila", "fake_marrakesh")]
    assert any(layout.initial_index_layout(True) != layout.final_index_layout(True) for layout in layouts)
    assert any(layout.initial_index_layout(True) != sorted(layout.initial_index_layout(True)) for layout in layouts)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "n", "data", "measured"), ON_DEVICES)
def test_noisy_branches_agree_with_aer(device: str, n: int, data: tuple[int, ...], measured: tuple[int, ...]) -> None:
    c = compiled(n, device)
    step = Evolution(c, data=data, measured=measured, engine="noisy")
    pure, density = random_pure(3, 2 ** len(data)), random_density(3, 2 ** len(data))
    reference = aer_reference(c, density, data, measured)
    np.testing.assert_allclose(unnormalised(step(density, WEIGHTS, INPUTS)), reference, rtol=0, atol=1e-6)
    from_pure = unnormalised(step(pure, WEIGHTS, INPUTS))
    np.testing.assert_allclose(from_pure, aer_reference(c, outer(pure), data, measured), rtol=0, atol=1e-6)
    assert np.abs(reference - ideal_reference(n, density, data, measured)).max() > 1e-3, "noise to be seen"


def test_data_are_read_with_the_devices_readout_errors() -> None:
    c = compiled(3, "fake_manila")
    step = Evolution(c, data=(2, 0), measured=(1,), engine="noisy")
    true = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0]], dtype=torch.float64)
    end = c.isa.layout.final_index_layout(filter_ancillas=True)
    confusion = np.ones((1, 1))
    for q in (2, 0):
        p10, p01 = c.device.readout_error(end[q])
        confusion = np.kron(np.array([[1 - p10, p01], [p10, 1 - p01]]), confusion)
    np.testing.assert_allclose(step.read_data(true).numpy(), true.numpy() @ confusion.T, rtol=0, atol=1e-12)
    assert torch.equal(Evolution(c, data=(2, 0), measured=(1,)).read_data(true), true)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "engine", "kind"),
    [("ideal", "ideal", "pure"), ("ideal", "ideal", "density"), ("fake_manila", "noisy", "density")],
)
def test_gradients_of_states_weights_and_inputs(device: str, engine: str, kind: str) -> None:
    step = Evolution(compiled(3, device), data=(2, 0), measured=(1,), engine=engine)
    states = (random_pure(2, 4) if kind == "pure" else random_density(2, 4)).requires_grad_()
    weights, inputs = WEIGHTS.clone().requires_grad_(), INPUTS[:2].clone().requires_grad_()

    def values(states: torch.Tensor, weights: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if kind == "density":  # a map of Hermitian matrices
            states = (states + states.mH) / 2
        found = step(states, weights, inputs)
        full = found.states if found.states.ndim == 4 else outer(found.states)
        return full.real, full.imag, found.probabilities

    assert torch.autograd.gradcheck(values, (states, weights, inputs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("device", "engine"), [("ideal", "ideal"), ("fake_manila", "noisy")])
def test_chunks_and_recomputation_change_nothing(monkeypatch: pytest.MonkeyPatch, device: str, engine: str) -> None:
    step = Evolution(compiled(3, device), data=(0, 1), measured=(2,), engine=engine)

    def run() -> list[torch.Tensor]:
        states = random_pure(13, 4).requires_grad_()
        weights = WEIGHTS.clone().requires_grad_()
        inputs = torch.linspace(-2, 2, 26, dtype=torch.float64).reshape(13, 2).requires_grad_()
        found = step(states, weights, inputs)
        value = (found.states.abs() ** 2).flatten(2)[..., 1].sum() + found.probabilities[0].cos().sum()
        return [value.detach(), found.probabilities.detach(), *torch.autograd.grad(value, (states, weights, inputs))]

    reference = run()
    for settings in ({"CHUNK_BYTES": 1, "CHUNK_COLUMNS": 4, "WORK": 1}, {"KEEP_BYTES": 0}, {"COPIES_BYTES": 1}):
        for name, value in settings.items():  # one on top of the other
            monkeypatch.setattr(simulator, name, value)
        for found, wanted in zip(run(), reference, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", ["ideal", "fake_marrakesh"])
def test_kraus_operators_are_the_blocks_of_the_unitary(device: str) -> None:
    step = Evolution(compiled(4, device), data=(3, 0), measured=(2, 1))
    kraus = step.kraus(WEIGHTS, INPUTS[:1])
    torch.testing.assert_close((kraus.mH @ kraus).sum(0), torch.eye(4, dtype=torch.complex128), rtol=0, atol=1e-9)
    values = dict(zip((*X, *W), (*INPUTS[0].numpy(), *WEIGHTS.numpy()), strict=True))
    unitary = Operator(random_circuit(4).assign_parameters(values)).data
    at = [(i & 1) << 3 | (i >> 1 & 1) for i in range(4)]
    wanted = np.array([unitary[np.ix_([a + ((k & 1) << 2) + ((k >> 1 & 1) << 1) for a in at], at)] for k in range(4)])
    phase = np.vdot(wanted, kraus.numpy())
    np.testing.assert_allclose(kraus.numpy() * np.conj(phase) / abs(phase), wanted, rtol=0, atol=1e-9)
    assert step.kraus(WEIGHTS.float(), INPUTS[:1].float()).dtype == torch.complex64


def test_outcomes_are_drawn_as_likely_as_they_are() -> None:
    step = Evolution(compiled(3, "ideal"), data=(0,), measured=(1, 2))
    states = random_pure(1, 2).repeat(20_000, 1)
    found = step(states, WEIGHTS, INPUTS[:1].repeat(20_000, 1))
    outcomes = found.sample(torch.Generator().manual_seed(0))
    p = found.probabilities[:, 0]
    seen = torch.bincount(outcomes, minlength=4) / 20_000
    assert bool(((seen - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-9).all())  # five standard errors
    chosen, probability = found.select(outcomes)
    torch.testing.assert_close(probability, p[outcomes])
    torch.testing.assert_close(chosen[7], found.states[outcomes[7], 7])


def test_a_state_survives_the_real_basis() -> None:
    rho = random_density(3, 8)
    torch.testing.assert_close(density_matrices(real_rows(rho)), rho, rtol=0, atol=1e-12)


def test_no_gradient_needs_no_copies_and_a_frozen_state_none_either() -> None:
    step = Evolution(compiled(3, "ideal"), data=(0, 1), measured=(2,))
    assert not step(random_pure(3, 4), WEIGHTS, INPUTS).states.requires_grad
    weights = WEIGHTS.clone().requires_grad_()
    step(random_pure(3, 4), weights, INPUTS).probabilities[0].sum().backward()
    assert weights.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ()}, "at least one data qubit"),
        ({"data": (0, 0)}, "distinct"),
        ({"data": (0,), "measured": (0,)}, "distinct"),
        ({"data": (3,)}, "0 to 2"),
        ({"data": (0,), "engine": "noisy"}, "ideal"),
        ({"data": (0,), "engine": "shots"}, "holds no states"),
    ],
)
def test_evolutions_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Evolution(compiled(3, "ideal"), **settings)


def test_unknown_engine_unused_qubits_and_too_many() -> None:
    with pytest.raises(UnknownNameError):
        Evolution(compiled(3, "ideal"), data=(0,), engine="exact")
    circuit = QuantumCircuit(3)
    circuit.rx(W[0], 0)
    small = compile_circuit(circuit, Device.load("ideal"), inputs=(), weights=W[:1], observables=[SparsePauliOp("IIZ")])
    with pytest.raises(InvalidInputError, match=r"qubits \[2\]"):
        Evolution(small, data=(0, 2))
    wide = QuantumCircuit(40)
    for q in range(40):
        wide.rx(W[0], q)
    large = compile_circuit(wide, Device.load("ideal"), inputs=(), weights=W[:1], observables=[SparsePauliOp("Z" * 40)])
    with pytest.raises(MemoryBudgetError):
        Evolution(large, data=range(39), measured=(39,))


def test_shapes_and_types_that_do_not_fit() -> None:
    step = Evolution(compiled(3, "ideal"), data=(0, 1), measured=(2,))
    good = random_pure(3, 4)
    for states in (good.real, random_pure(3, 8), good[0], random_density(3, 4)[:, :2], good[:0]):
        with pytest.raises(InvalidInputError, match="states"):
            step(states, WEIGHTS, INPUTS[: len(states)])
    with pytest.raises(InvalidInputError, match=r"weights have shape \(3,\)"):
        step(good, WEIGHTS[:3], INPUTS)
    with pytest.raises(InvalidInputError, match=r"inputs have shape \(3, 0\)"):
        step(good, WEIGHTS)
    with pytest.raises(InvalidInputError, match="one operator per outcome"):
        Evolution(compiled(3, "ideal"), data=(0, 1)).kraus(WEIGHTS, INPUTS[:1])
