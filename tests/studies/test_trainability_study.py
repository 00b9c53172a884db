"""The trainability study: its closed forms against random unitaries, its noise against an exact case, and all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import Operator, Statevector
from qiskit_aer.noise import NoiseModel, depolarizing_error
from scipy import stats

from qhw_diffusion.circuits import reverse_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import QhwError
from qhw_diffusion.execution import QuantumLayer
from qhw_diffusion.experiment import load_study, open_study, run_study, write_page
from qhw_diffusion.studies.trainability.closed_forms import two_design
from qhw_diffusion.studies.trainability.experiment import (
    TrainabilityConfig,
    denoiser_gradients,
    finite_shots,
    generator_of,
    gradients_of,
    haar_states,
    policy_compiled,
    policy_gradients,
    predicted_contraction,
    random_angles,
)
from qhw_diffusion.studies.trainability.page import closed_slope, slope

TINY = TrainabilityConfig(qubits=(2, 3), depths=(1, 3), device="fake_manila", noise_qubits=2, shots=(16, 64),
                          shots_depth=1, points=12, seeds=2)  # fmt: skip


@pytest.mark.parametrize(("n", "known"), [(2, 0.1067), (4, 0.0295), (6, 0.00769), (8, 0.00195)])
def test_the_closed_form_has_the_known_values(n: int, known: float) -> None:
    assert two_design(n, "pauli") == pytest.approx(known, rel=3e-3)
    assert two_design(n, "overlap") == pytest.approx(1 / (2 * (2**n + 1) ** 2))


@pytest.mark.parametrize("n", [1, 2])
def test_the_closed_form_is_the_variance_of_random_unitaries(n: int) -> None:
    """∂C = (i/2) tr(ρ [P, V† O V]) with ρ of U|0⟩, for Haar-random U and V."""
    d, count = 2**n, 4000
    u, v = (stats.unitary_group.rvs(d, size=count, random_state=seed) for seed in (1, 2))
    z = np.diag([1.0, -1.0])
    pauli = np.kron(z, np.eye(d // 2))
    states = u[:, :, 0]
    rho = states[:, :, None] * states[:, None].conj()
    for cost, observable in (("pauli", pauli), ("overlap", np.diag([1.0] + [0.0] * (d - 1)))):
        o = v.conj().transpose(0, 2, 1) @ observable @ v
        gradient = np.einsum("bij,bji->b", rho, 0.5j * (pauli @ o - o @ pauli)).real
        assert gradient.var() == pytest.approx(two_design(n, cost), rel=0.12)
        assert abs(gradient.mean()) < 4 * gradient.std() / math.sqrt(count)


@pytest.mark.parametrize("n", [2, 4])
def test_deep_circuits_are_two_designs(n: int) -> None:
    config = TrainabilityConfig(points=150)
    found = {"policy": policy_gradients(config, n, 16, 0), "denoiser": denoiser_gradients(config, n, 16, 0)}
    for gradients in found.values():
        for cost, values in gradients.items():
            assert values.shape == (150, 3 * n * 16)
            if cost != "start":
                assert values.square().mean() == pytest.approx(two_design(n, cost), rel=0.2)


def test_the_denoisers_gradients_are_those_of_qiskit_by_shifts() -> None:
    config = TrainabilityConfig(points=10)
    found = denoiser_gradients(config, 3, 2, 5)
    circuit = reverse_circuit(2, 1, 2)
    generator = generator_of(5, 3, 2)
    angles = random_angles(10, len(circuit.weights), generator)
    states, targets = (haar_states(10, 4, generator).numpy() for _ in range(2))

    def costs(row: int, at: np.ndarray) -> tuple[float, float]:
        bound = circuit.circuit.assign_parameters(dict(zip(circuit.weights, at, strict=True)))
        start = np.concatenate([states[row], np.zeros(4)])  # the ancilla is the most significant qubit, in |0⟩
        out = Statevector(start).evolve(Operator(bound)).data
        return abs(np.vdot(targets[row], out[:4])) ** 2, 2 * float((abs(out[:4]) ** 2).sum()) - 1

    for row, weight in ((0, 0), (3, 7), (7, 17)):
        move = np.zeros(len(circuit.weights))
        move[weight] = math.pi / 2
        plus, minus = (costs(row, angles[row].numpy() + sign * move) for sign in (1, -1))
        for k, cost in enumerate(("overlap", "pauli")):
            assert found[cost][row, weight] == pytest.approx((plus[k] - minus[k]) / 2, abs=1e-9)


def test_depolarizing_all_qubits_contracts_as_predicted() -> None:
    """Two qubits, one CX a layer: its depolarizing error is global, and takes 1 − λ of every gradient exactly."""
    strength = 0.03
    model = NoiseModel(basis_gates=["cx", "rz", "sx", "x"])
    model.add_all_qubit_quantum_error(depolarizing_error(strength, 2), ["cx"])
    device = Device.of(GenericBackendV2(2, basis_gates=["cx", "rz", "sx", "x"], seed=0), noise_model=model)
    for depth in (1, 4):
        compiled = policy_compiled(2, depth, device, 1)
        angles = random_angles(20, len(compiled.inputs), generator_of(0, 2, depth))
        ideal, noisy = (
            gradients_of(QuantumLayer(compiled, engine, dtype=torch.float64), angles) for engine in ("ideal", "noisy")
        )
        assert torch.allclose(noisy, (1 - strength) ** depth * ideal, atol=1e-9)
        assert predicted_contraction(compiled) == pytest.approx(depth * math.log(1 - strength))
    assert predicted_contraction(policy_compiled(2, 1, Device.load("ideal"), 0)) == 0


def test_shots_add_what_the_closed_form_says() -> None:
    config = TINY.replace(shots=(32,), points=200)
    [row] = finite_shots(config, 3, 2, 0)
    assert row["added"] == pytest.approx(row["closed"], rel=0.1)
    assert row["closed"] < row["bound"] == 1 / 64
    assert row["variance"] == pytest.approx(row["exact"] + row["added"], rel=0.1)
    assert row["needed"] == pytest.approx(32 * row["closed"] / row["exact"])


def test_slopes() -> None:
    x = [2, 4, 6]
    found = slope(x, [[-k + 1 for k in x], [-1.2 * k for k in x], [-0.8 * k + 5 for k in x]])
    assert (found.mean, found.n) == (pytest.approx(-1), 3)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 2) * 0.2 / math.sqrt(3))
    assert closed_slope([9, 10, 11], "pauli") == pytest.approx(-1, abs=0.01)
    assert closed_slope([9, 10, 11], "overlap") == pytest.approx(-2, abs=0.01)


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path) -> None:
    study = load_study("trainability")
    run = open_study(study, tmp_path / "run", TINY)
    results = run_study(study, run)
    assert len(results.cells) == 2 * (2 + 2 + 2)
    shown, file = write_page(results)
    assert file.exists()
    assert len(shown.findings) == 6
    assert all("nan" not in sentence for sentence in shown.findings)
    assert results.mean("variance", part="noise", engine="noisy", depth=3) < results.mean(
        "variance", part="noise", engine="ideal", depth=3
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qubits": (4, 2)}, "qubits must rise"),
        ({"qubits": (2, 13)}, "up to 12"),
        ({"depths": (1,)}, "two or more"),
        ({"noise_qubits": 9}, "noise_qubits"),
        ({"points": 3}, "points"),
        ({"shots": (0, 4)}, "shots must be positive"),
        ({"engines": ("nosy",)}, "nosy"),
        ({"engines": ()}, "at least one"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QhwError, match=words):
        TINY.replace(**changes)
