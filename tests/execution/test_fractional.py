"""Angles of gates that a device takes in a range only: rounding at its ends, what is sent, weights to start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.quantum_info import SparsePauliOp
from qiskit_ibm_runtime.utils.utils import is_valid_rzz_pub
from scipy import stats

import qhw_diffusion as qhw
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import aer_estimator
from qhw_diffusion.execution.evolution import Evolution
from qhw_diffusion.execution.primitive import pub_of
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.service import Pub

X, W, V = Parameter("x"), Parameter("w"), Parameter("v")
HALF = math.pi / 2
EPS = float(np.finfo(np.float32).eps)


@cache
def device() -> qhw.Device:
    return qhw.Device.load("fake_marrakesh").with_fractional_gates()


def compiled(*angles: object, inputs: int = 1, on: qhw.Device | None = None) -> qhw.CompiledCircuit:
    circuit = QuantumCircuit(3)
    circuit.h([0, 1, 2])
    for number, angle in enumerate(angles):
        circuit.rzz(angle, number % 2, number % 2 + 1)
        circuit.rx(0.4, 1)
    parameters = sorted(circuit.parameters, key=lambda p: [X, W, V].index(p))
    return qhw.compile_circuit(
        circuit,
        on or device(),
        inputs=parameters[:inputs],
        weights=parameters[inputs:],
        observables=[SparsePauliOp("ZXZ")],
        optimization_level=1,
    )


def limited_angles(made: qhw.CompiledCircuit, rows: np.ndarray) -> np.ndarray:
    """[limited gates, B], by binding the ISA circuit itself."""
    found = []
    for row in rows:
        bound = made.isa.assign_parameters(dict(zip((*made.inputs, *made.weights), row, strict=True)))
        found.append([float(i.operation.params[0]) for i in bound.data if i.operation.name == "rzz"])
    return np.array(found).T


AT_THE_ENDS = [
    (lambda: 2 * X, math.pi / 4),
    (lambda: 2 * X, -1e-8),
    (lambda: 7 * X - 6.0, (HALF + 6.0) / 7),
    (lambda: 100 * X, HALF / 100),
    (lambda: HALF - X, -3 * EPS),
    (lambda: 3 - 2 * X, 1.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("angle", "value"), AT_THE_ENDS)
@pytest.mark.parametrize("nudge", [-1, 0, 1])
def test_rounding_at_the_ends_of_the_range_is_no_reason_to_refuse(
    angle: Callable[[], object], value: float, nudge: int
) -> None:
    """In single precision the nearest numbers to an end of the range may be beyond it."""
    made = compiled(angle())
    x = np.nextafter(np.float32(value), np.float32(nudge * 10)) if nudge else np.float32(value)
    rows = torch.tensor([[x], [x]])
    values = qhw.QuantumLayer(made, "noisy")(rows)
    inside = torch.from_numpy(np.clip(limited_angles(made, rows.double().numpy()), 0, HALF)[0])
    there = compiled(X)  # the same circuit with the clipped angle, in double precision
    wanted = qhw.QuantumLayer(there, "noisy", dtype=torch.float64)(inside[:, None])
    torch.testing.assert_close(values.double(), wanted, atol=2e-6, rtol=0)
    evolution = Evolution(made, data=[0, 1, 2], engine="noisy")
    states = torch.zeros(2, 8, dtype=torch.complex64)
    states[:, 0] = 1
    assert evolution(states, torch.zeros(0), rows).states.isfinite().all()


@pytest.mark.parametrize(("angle", "value"), AT_THE_ENDS)
def test_what_is_sent_passes_the_clients_own_check(angle: Callable[[], object], value: float) -> None:
    made = compiled(angle())
    x = torch.tensor([[np.float32(value)], [np.nextafter(np.float32(value), np.float32(10))],
                      [np.nextafter(np.float32(value), np.float32(-10))]])  # fmt: skip
    pub = pub_of(made, x, 0.1)
    assert is_valid_rzz_pub(EstimatorPub.coerce(pub.as_tuple())) == ""
    np.testing.assert_allclose(pub.values, x.double().numpy(), rtol=0, atol=3e-6)


def test_several_gates_and_parameters_are_brought_in_range_together() -> None:
    made = compiled(X + W, X - W, W + 0.5 * V, V)
    rows = torch.tensor([[0.0, -1e-7, 2e-7], [math.pi / 4, math.pi / 4, 0.1], [0.3, 0.1, 0.2], [0.2, 0.2, -2e-8]])
    sent = pub_of(made, rows, 0.1)
    assert is_valid_rzz_pub(EstimatorPub.coerce(sent.as_tuple())) == ""
    np.testing.assert_allclose(sent.values, rows.double().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(sent.values[2], rows[2].double().numpy())  # what is in range is sent as it is


@pytest.mark.parametrize(("dtype", "beyond"), [(torch.float32, 1e-5), (torch.float64, 1e-8), (torch.float64, 1e-5)])
def test_more_than_rounding_is_refused(dtype: torch.dtype, beyond: float) -> None:
    made = compiled(X)
    for x in (-beyond, HALF + beyond):
        with pytest.raises(InvalidInputError, match=r"rzz number 1 .* too far; the device takes 0\.0000 to 1\.5708"):
            qhw.QuantumLayer(made, "noisy", dtype=dtype)(torch.tensor([[x]], dtype=dtype))
        with pytest.raises(InvalidInputError, match="rzz number 1"):
            pub_of(made, torch.tensor([[x]], dtype=dtype), 0.1)


def test_angles_that_contradict_one_another_are_refused() -> None:
    made = compiled(X, -X - 2e-7)
    with pytest.raises(InvalidInputError, match="contradict one another"):
        pub_of(made, torch.tensor([[-1e-7]]), 0.1)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger") as opened:
        yield opened


def test_every_engine_takes_an_angle_at_the_end_of_the_range(ledger: Ledger) -> None:
    made = compiled(2 * X)
    x = torch.tensor([[math.pi / 4]])
    assert limited_angles(made, x.double().numpy())[0, 0] > HALF
    runner = open_runner("fake_marrakesh", ledger=ledger, run="test")
    wanted = qhw.QuantumLayer(made, "noisy").estimate(x).values
    for engine in (
        "shots:4000",
        qhw.Primitive(aer_estimator(made, seed=1), precision=0.02, reduced=True),
        qhw.Hardware(runner, shots=40_000),
    ):
        estimate = qhw.QuantumLayer(made, engine).estimate(x)
        assert float((estimate.values - wanted).abs()) < 5 * float(estimate.std_errors)


# -- initial weights ---------------------------------------------------------------------------------------------------

AFFINE = {
    "one": lambda: (W,),
    "scaled": lambda: (-2 * W + 1.0, 0.5 * V),
    "shared": lambda: (W, 2 * W, W - 0.1),
    "coupled": lambda: (W + V, W - V),
    "outside of the box": lambda: (0.1 * W - 2.0, V),
    "a point": lambda: (W - 0.3, 0.3 - W, V),
    "with an input": lambda: (W + X, V - W),
    "an input that 0 does not suit": lambda: (W, X - 2 + 0.001 * W, V),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINE)
def test_a_fresh_layer_starts_in_range(name: str) -> None:
    angles = AFFINE[name]()
    inputs = int(any(X in a.parameters for a in angles))
    made = compiled(*angles, inputs=inputs)
    x = 1.9 if name.startswith("an input") else 0.0
    fresh = set()
    for seed in range(20):
        for dtype in (torch.float32, torch.float64):
            layer = qhw.QuantumLayer(made, "noisy", seed=seed, dtype=dtype)
            row = torch.full((1, inputs), x, dtype=dtype)
            if x == 0.0:
                assert layer(row).isfinite().all()
            fresh.add(tuple(layer.weight.tolist()))
    assert len(fresh) == 40


@pytest.mark.slow
def test_fresh_weights_are_uniform_in_the_range_and_others_are_as_ever() -> None:
    """False alarm of the Kolmogorov-Smirnov test: 1e-4."""
    circuit = QuantumCircuit(2)
    circuit.ry(V, 0)
    circuit.rzz(2 * W, 0, 1)
    circuit.rx(X, 1)
    settings = {"inputs": [X], "weights": [V, W], "observables": [SparsePauliOp("ZZ")]}
    made = qhw.compile_circuit(circuit, device(), **settings)
    plain = qhw.compile_circuit(circuit, qhw.Device.load("fake_marrakesh"), **settings)
    drawn = torch.stack([qhw.QuantumLayer(made, seed=seed).weight.detach() for seed in range(300)])
    as_ever = torch.stack([qhw.QuantumLayer(plain, seed=seed).weight.detach() for seed in range(300)])
    torch.testing.assert_close(drawn[:, 0], as_ever[:, 0], rtol=0, atol=0)
    assert stats.kstest(drawn[:, 1].numpy(), stats.uniform(0, math.pi / 4).cdf).pvalue > 1e-4
    generator = torch.Generator().manual_seed(7)  # as published
    uniform = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 - 1) * torch.pi
    torch.testing.assert_close(as_ever[7], uniform.float(), rtol=0, atol=0)


def test_a_layer_that_no_weights_suit_is_refused_when_made() -> None:
    made = compiled(W, -W - 1.0, inputs=0)
    with pytest.raises(InvalidInputError, match="no weights keep all angles of rzz in the range that fake_marrakesh"):
        qhw.QuantumLayer(made, "noisy")


def test_fractional_gates_on_a_fake_device_in_this_process_have_their_noise(ledger: Ledger) -> None:
    """Its usual model lacks them, and Aer runs gates without errors perfectly."""
    made = compiled(*[X] * 60)
    x = torch.tensor([[math.pi / 4]])
    runner = open_runner("fake_marrakesh", ledger=ledger, run="test")
    estimate = qhw.QuantumLayer(made, qhw.Hardware(runner, shots=100_000)).estimate(x)
    noisy, ideal = (float(qhw.QuantumLayer(made, engine).estimate(x).values) for engine in ("noisy", "ideal"))
    assert abs(ideal - noisy) > 10 * float(estimate.std_errors)
    assert abs(float(estimate.values) - noisy) < 5 * float(estimate.std_errors)


def test_a_gate_that_the_fake_device_lacks_is_refused_by_name(ledger: Ledger) -> None:
    circuit = QuantumCircuit(5)
    circuit.h(2)
    pub = Pub(circuit, (SparsePauliOp("IIZII"),), (), np.zeros((1, 0)), 0.1)
    with pytest.raises(InvalidInputError, match=r"fake_manila has no 'h' on qubits \(2,\)"):
        open_runner("fake_manila", ledger=ledger, run="test").run([pub])
