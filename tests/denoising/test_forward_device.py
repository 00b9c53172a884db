"""The device's own noise as a forward process: against Aer, T1/T2 formulas and its own long chain."""

from __future__ import annotations

from functools import cache
from math import exp

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Operator, SuperOp, random_density_matrix
from torch import Tensor

from qhw_diffusion.denoising.channels import check_channel, smallest_image_eigenvalue
from qhw_diffusion.denoising.device_noise import DeviceNoise, best_qubits
from qhw_diffusion.denoising.states import check_density, haar_states
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

WAYS = [{"seconds": 20e-6}, {"pairs": 3}, {"pairs": 1, "gate": "cx"}, {"pairs": 2, "gate": "cz"}]


@cache
def device(name: str = "fake_manila") -> Device:
    return Device.load(name)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def densities(count: int, n_qubits: int) -> Tensor:
    return torch.from_numpy(np.stack([random_density_matrix(2**n_qubits, seed=seed).data for seed in range(count)]))


@pytest.mark.parametrize("settings", WAYS)
@pytest.mark.parametrize("name", ["fake_manila", "fake_marrakesh"])
def test_every_step_and_every_power_is_a_channel(name: str, settings: dict) -> None:
    process = DeviceNoise(device(name), 2, 4, **settings)
    for steps in (1, 4):
        channel = process.superoperator(steps)
        check_channel(channel)
        assert smallest_image_eigenvalue(channel, seeded()) > -1e-12
    path = process.path(densities(3, 2), seeded())
    for states in path:
        check_density(states)
    assert (path[4] - path[0]).abs().max() > 1e-3, "something happens"
    torch.testing.assert_close(process.noised(path[0], 4, seeded()), path[4])


def test_waiting_is_relaxation_by_t1_and_t2() -> None:
    """ρ_11 falls by exp(−t/T1) and ρ_01 by exp(−t/T2) on the qubit named, with the calibration's own numbers."""
    for physical in (0, 3):
        t1, t2 = device().relaxation_times(physical)
        assert t1 is not None
        assert t2 is not None
        process = DeviceNoise(device(), [physical], 5, seconds=15e-6)
        state = densities(1, 1)
        for t in (1, 5):
            after, time = process.noised(state, t, seeded())[0], 15e-6 * t
            assert float(after[1, 1].real) == pytest.approx(float(state[0, 1, 1].real) * exp(-time / t1), abs=1e-12)
            assert abs(after[0, 1] - state[0, 0, 1] * exp(-time / min(t2, 2 * t1))) < 1e-12


def test_state_qubits_lie_on_the_physical_qubits_in_the_order_given() -> None:
    one, other = (DeviceNoise(device(), order, 1, seconds=50e-6).superoperator() for order in ([0, 3], [3, 0]))
    swap = SuperOp(Operator(np.eye(4)[[0, 2, 1, 3]])).data
    np.testing.assert_allclose(other.numpy(), swap @ one.numpy() @ swap, atol=1e-14)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(("gate", "qubits"), [("x", [1]), ("cx", [1, 2]), ("cx", [2, 1])])
def test_gate_pairs_are_aers_noisy_circuit(gate: str, qubits: list[int]) -> None:
    """Nothing waits in these circuits, so Aer's model without scheduling gives the same channel."""
    from qiskit_aer import AerSimulator

    process = DeviceNoise(device(), qubits, 1, pairs=2, gate=gate)
    circuit = QuantumCircuit(len(qubits))
    for _ in range(4):
        getattr(circuit, gate)(*range(len(qubits)))
        circuit.barrier()
    circuit.save_superop()
    model = device().noise_model(qubits)
    expected = AerSimulator(method="superop", noise_model=model).run(circuit, optimization_level=0).result().data()
    np.testing.assert_allclose(process.superoperator().numpy(), expected["superop"].data, atol=1e-10)


@pytest.mark.parametrize("name", ["fake_marrakesh", "fake_sherbrooke"])
def test_translated_gates_are_composed_in_time_order(name: str) -> None:
    """CX·CX where the device has CZ or ECR: the compiled circuit gate by gate, with Qiskit doing the bookkeeping."""
    chip = device(name)
    process = DeviceNoise(chip, 2, 1, pairs=1, gate="cx")
    place, expected = {physical: i for i, physical in enumerate(process.qubits)}, SuperOp(np.eye(16))
    for instruction in process.circuit.data:
        operation = instruction.operation
        physical = [process.circuit.find_bit(qubit).index for qubit in instruction.qubits]
        if operation.name == "barrier" or not set(physical) <= set(place):
            continue
        qargs = [place[qubit] for qubit in physical]
        if operation.name == "delay":
            error = chip.relaxation(physical[0], operation.duration * chip.target.dt)
        else:
            expected = expected.compose(Operator(operation), qargs=qargs)
            error = chip.gate_error(operation.name, physical)
        if error is not None:
            expected = expected.compose(error, qargs=qargs)
    np.testing.assert_allclose(process.superoperator().numpy(), expected.data, atol=1e-12)
    np.testing.assert_allclose(expected.data, np.eye(16), atol=0.1)


def test_what_waits_while_others_run_relaxes() -> None:
    """Three qubits in a row: 3 waits for CX·CX on (1, 2), then 1 waits for CX·CX on (2, 3)."""
    process = DeviceNoise(device(), [1, 2, 3], 1, pairs=1, gate="cx")
    first, second = (
        SuperOp(DeviceNoise(device(), p, 1, pairs=1, gate="cx").superoperator().numpy()) for p in ([1, 2], [2, 3])
    )
    lasts = [2 * device().target["cx"][place].duration for place in ((1, 2), (2, 3))]
    expected = SuperOp(np.eye(64))
    expected = expected.compose(first, qargs=[0, 1]).compose(device().relaxation(3, lasts[0]), qargs=[2])
    expected = expected.compose(second, qargs=[1, 2]).compose(device().relaxation(1, lasts[1]), qargs=[0])
    np.testing.assert_allclose(process.superoperator().numpy(), expected.data, atol=1e-12)


@pytest.mark.parametrize("settings", WAYS)
def test_the_prior_is_where_the_chain_from_the_mixed_state_ends(settings: dict) -> None:
    process = DeviceNoise(device(), 2, 4, **settings)
    fixed = process.fixed_point
    check_density(fixed[None])
    step = process.step(fixed[None], 1, seeded())[0]
    assert (step - fixed).abs().max() < 1e-9
    mixed = torch.eye(4, dtype=torch.complex128).T.reshape(-1) / 4
    far = torch.linalg.matrix_power(process.superoperator(), 2**14) @ mixed
    assert (far.reshape(4, 4).T - fixed).abs().max() < 1e-7
    prior = process.prior(3, 4, seeded())
    check_density(prior)
    assert prior.dtype == torch.complex64
    torch.testing.assert_close(prior[2], fixed.to(torch.complex64))


def test_waiting_ends_in_zero_and_flipping_near_the_mixed_state() -> None:
    waiting = DeviceNoise(device(), 2, 4, seconds=20e-6).fixed_point
    assert float(waiting[0, 0].real) == pytest.approx(1, abs=1e-9)
    flipping = DeviceNoise(device(), [1], 4, pairs=10).fixed_point
    assert (flipping - torch.eye(2) / 2).abs().max() < 0.02


def test_a_long_chain_forgets_its_data() -> None:
    process = DeviceNoise(device(), 2, 40, seconds=100e-6)
    data = haar_states(4, 4, seeded(), torch.complex128)
    prior = process.prior(4, 4, seeded(), torch.complex128)
    distances = [(process.noised(data, t, seeded()) - prior).abs().max() for t in (0, 1, 10, 40)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


def test_without_t1_populations_stay() -> None:
    """Dephasing has many fixed points; from I/d the chain stays there. (No device is so: the channel is put in.)"""
    process = DeviceNoise(device(), [0], 4, seconds=20e-6)
    process.maps = [((0,), torch.diag(torch.tensor([1.0, 0.6, 0.6, 1.0], dtype=torch.complex128)))]
    assert (process.fixed_point - torch.eye(2) / 2).abs().max() < 1e-12
    state = densities(1, 1)
    assert torch.equal(process.noised(state, 4, seeded())[0].diagonal(), state[0].diagonal())


def test_a_very_short_wait_still_has_its_fixed_point() -> None:
    assert float(DeviceNoise(device(), 3, 4, seconds=1e-9).fixed_point[0, 0].real) == pytest.approx(1, abs=1e-5)


def test_best_qubits_are_connected_and_start_at_the_longest_t1() -> None:
    lives = [device("fake_marrakesh").relaxation_times(q)[0] or 0 for q in range(156)]
    group = best_qubits(device("fake_marrakesh"), 5)
    assert group[0] == int(np.argmax(lives))
    edges = {frozenset(pair) for pair in device("fake_marrakesh").coupling_map}
    for i in range(1, 5):
        assert any(frozenset((group[i], earlier)) in edges for earlier in group[:i])
    assert DeviceNoise(device("fake_marrakesh"), 5, 2, seconds=1e-5).qubits == group
    with pytest.raises(InvalidInputError, match="has 5 qubits; 6 were asked for"):
        best_qubits(device(), 6)


def test_six_qubits_need_no_superoperator() -> None:
    process = DeviceNoise(device("fake_marrakesh"), 6, 3, pairs=2, gate="cz")
    states = process.noised(haar_states(4, 64, seeded()), 3, seeded())
    check_density(states)
    check_density(process.prior(1, 64, seeded()))
    with pytest.raises(InvalidInputError, match="4 qubits"):
        process.superoperator()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="ideal device has no noise"):
        DeviceNoise(Device.load("ideal"), 2, 3, seconds=1e-6)
    with pytest.raises(InvalidInputError, match="either seconds"):
        DeviceNoise(device(), 2, 3)
    with pytest.raises(InvalidInputError, match="either seconds"):
        DeviceNoise(device(), 2, 3, seconds=1e-6, pairs=2)
    for seconds in (0.0, -1e-6, float("inf")):
        with pytest.raises(InvalidInputError, match="seconds per step"):
            DeviceNoise(device(), 2, 3, seconds=seconds)
    with pytest.raises(InvalidInputError, match="pairs per step"):
        DeviceNoise(device(), 2, 3, pairs=0)
    with pytest.raises(InvalidInputError, match="n_steps"):
        DeviceNoise(device(), 2, 0, pairs=1)
    with pytest.raises(UnknownNameError, match="identity gate 'h'"):
        DeviceNoise(device(), 2, 3, pairs=1, gate="h")
    for qubits in ([0, 0], [5], [-1], []):
        with pytest.raises(InvalidInputError, match="qubits 0 to 4, each to be named once"):
            DeviceNoise(device(), qubits, 3, pairs=1)
    with pytest.raises(InvalidInputError, match=r"no two of the qubits \[0, 2\]"):
        DeviceNoise(device(), [0, 2], 3, pairs=1, gate="cx")
    with pytest.raises(InvalidInputError, match="acts on 2 qubits, d = 4; the states have d = 8"):
        DeviceNoise(device(), 2, 3, pairs=1).noised(haar_states(1, 8, seeded()), 1, seeded())
    with pytest.raises(InvalidInputError, match="dimension 4, not 8"):
        DeviceNoise(device(), 2, 3, pairs=1).prior(1, 8, seeded())
