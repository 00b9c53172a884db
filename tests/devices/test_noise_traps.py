"""Known traps of device noise models; each test fails if we fall into one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import Reset
from qiskit.circuit.library import CZGate, XGate
from qiskit.quantum_info import DensityMatrix, SuperOp
from qiskit.transpiler import InstructionProperties, QubitProperties, Target
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, QuantumError
from qiskit_aer.noise.device.models import basic_device_gate_errors
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.noise import device_gate_errors, gate_superop, reduced_target, relaxation_matrix
from qhw_diffusion.errors import InvalidInputError

SHOTS = 200_000


def read_one(circuit: QuantumCircuit, backend: object, **options: object) -> float:
    """Share of shots that read 1."""
    counts = backend.run(circuit, shots=SHOTS, **options).result().get_counts()  # type: ignore[attr-defined]
    return counts.get("1", 0) / SHOTS


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [0, 1])
def test_readout_is_what_the_fake_backend_samples_not_what_from_backend_says(prepared: int) -> None:
    """fake_manila, qubit 2. Sampled by `FakeManilaV2().run`; false alarm of 5 standard errors: 6e-7. The symmetrised
    model misses the same samples by 20 and more.
    """
    circuit = QuantumCircuit(3, 1)
    if prepared:
        circuit.x(2)
    circuit.measure(2, 0)
    sampled = read_one(circuit, FakeManilaV2(), seed_simulator=11)
    error = 5 * np.sqrt(sampled * (1 - sampled) / SHOTS)

    device = Device.load("fake_manila")
    p10, p01 = device.readout_error(2)
    state = DensityMatrix(np.diag([1.0, 0.0]))
    if prepared:
        channel = device.gate_error("x", (2,))
        assert channel is not None
        state = DensityMatrix(np.diag([0.0, 1.0])).evolve(channel)
    zero, one = np.real(np.diag(state.data))
    assert abs(p10 * zero + (1 - p01) * one - sampled) < error
    mean = (p10 + p01) / 2
    assert abs(mean * zero + (1 - mean) * one - sampled) > 20 / 5 * error

    # our Aer model gives the same samples
    small = QuantumCircuit(1, 1)
    if prepared:
        small.x(0)
    small.measure(0, 0)
    ours = read_one(small, AerSimulator(noise_model=device.noise_model([2])), seed_simulator=12)
    assert abs(ours - sampled) < np.sqrt(2) * error


def test_symmetrised_readout_would_move_z_by_a_twentieth() -> None:
    """⟨Z⟩ of |0⟩ and of |1⟩, read with both errors and with their mean."""
    p10, p01 = Device.load("fake_manila").readout_error(2)
    symmetric = NoiseModel.from_backend(FakeManilaV2())._local_readout_errors[(2,)].probabilities
    assert 1 - 2 * p10 - (1 - 2 * symmetric[0][1]) == pytest.approx(0.0525, abs=1e-3)
    assert (2 * p01 - 1) - (2 * symmetric[1][0] - 1) == pytest.approx(0.0525, abs=1e-3)


def test_the_model_holds_the_qubits_in_use_only() -> None:
    """Aer works through every entry of a model on every run: 4 qubits of a Heron must not bring the other 152."""
    device = Device.load("fake_marrakesh")
    model = device.noise_model([3, 4, 5, 16])
    named = {q for places in model._local_quantum_errors.values() for place in places for q in place}
    named |= {q for place in model._local_readout_errors for q in place}
    assert named == {0, 1, 2, 3}
    entries = sum(map(len, model._local_quantum_errors.values())) + len(model._local_readout_errors)
    assert entries <= 4 * 6 + 2 * 3  # sx, x, id, reset, readout and one to spare on each; cz both ways on 3 couplings
    assert model._custom_noise_passes == []  # from_backend adds one, which walks the circuit for delays


@pytest.mark.parametrize(
    ("name", "two_qubit"), [("fake_manila", "cx"), ("fake_marrakesh", "cz"), ("fake_brisbane", "ecr")]
)
def test_rz_is_noiseless_and_pulses_are_not(name: str, two_qubit: str) -> None:
    device = Device.load(name)
    assert device.target is not None
    place = next(place for place in sorted(device.target[two_qubit]) if device.target[two_qubit][place].error < 0.5)
    assert device.gate_error("rz", place[:1]) is None
    for gate, qubits in [("sx", place[:1]), ("x", place[:1]), ("id", place[:1]), (two_qubit, place)]:
        channel = device.gate_error(gate, qubits)
        assert channel is not None
        assert np.abs(channel.data - np.eye(4 ** len(qubits))).max() > 1e-5
    model = device.noise_model(list(place))
    assert "rz" not in model._local_quantum_errors
    assert {"sx", "x", "id", two_qubit} <= model._local_quantum_errors.keys()


def test_a_waiting_qubit_decays_only_through_an_explicit_delay() -> None:
    """Two qubits in |1⟩; one gets twenty gates, the other waits. Unscheduled, waiting costs nothing, in our model as in
    Aer's; what it would cost is `Device.relaxation`.
    """
    backend = FakeManilaV2()
    device = Device.load("fake_manila")
    circuit = QuantumCircuit(2)
    circuit.x(1)
    circuit.barrier()
    for _ in range(20):
        circuit.sx(0)
    once = QuantumCircuit(2)
    once.x(1)
    populations = []
    for model, given in [
        (device.noise_model([0, 1]), circuit),
        (device.noise_model([0, 1]), once),
        (NoiseModel.from_backend(backend), circuit),
    ]:
        told = given.copy()
        told.save_density_matrix([1])
        state = AerSimulator(method="density_matrix", noise_model=model).run(told).result().data()["density_matrix"]
        populations.append(float(np.real(np.asarray(state)[1, 1])))
    assert populations[0] == pytest.approx(populations[1], abs=1e-12)
    assert populations[0] == pytest.approx(populations[2], abs=1e-12)
    assert device.target is not None
    waited = device.relaxation(1, 20 * device.target["sx"][(0,)].duration)
    assert waited is not None
    lost = 1 - float(np.real(DensityMatrix(np.diag([0.0, 1.0])).evolve(waited).data[1, 1]))
    assert lost > 1e-3


TIMES = [(None, None), (80e-6, None), (None, 30e-6), (80e-6, 50e-6), (80e-6, 70e-6), (40e-6, 95e-6), (math.inf, 1e-3)]


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(None, None), (None, 3e-3), (0.0, 0.0), (0.0, 1.0), (68e-9, None), (68e-9, 3e-3), (3e-6, 1e-5), (2e-4, 0.2)],
)
def test_channels_of_gates_are_aers_whatever_the_calibration_says(seconds: float | None, error: float | None) -> None:
    """Gates on one and two qubits and a reset, on qubits with and without T1 and T2, T2 above 2·T1 among them."""
    properties = [QubitProperties(t1=t1, t2=t2, frequency=5e9) for t1, t2 in TIMES]
    target = Target(num_qubits=len(TIMES), qubit_properties=properties)
    entry = InstructionProperties(duration=seconds, error=error)
    for operation in (XGate(), CZGate(), Reset()):
        places = list(itertools.permutations(range(len(TIMES)), operation.num_qubits))[::3]
        target.add_instruction(operation, dict.fromkeys(places, entry))
    theirs = {(name, place): SuperOp(channel) for name, place, channel in basic_device_gate_errors(target=target)}
    compared = 0
    for name in target.operation_names:
        for place in target[name]:
            ours, expected = gate_superop(target, name, place), theirs.get((name, place))
            assert (ours is None) == (expected is None), (name, place)
            if ours is not None and expected is not None:
                np.testing.assert_allclose(ours.data, expected.data, atol=1e-13, rtol=0)
                compared += 1
    assert compared or not (seconds or error)


def test_a_gate_that_is_not_there_or_for_all_qubits_alike_has_no_error() -> None:
    target = Target(num_qubits=2)
    target.add_instruction(XGate(), {(0,): None})
    target.add_instruction(CZGate())
    assert [gate_superop(target, "x", (q,)) for q in (0, 1)] == [None, None]
    assert gate_superop(target, "cz", (0, 1)) is None
    assert gate_superop(target, "h", (0,)) is None


@pytest.mark.parametrize("times", [(0.0, 1e-5), (1e-5, -1.0), (math.nan, None)])
def test_a_time_that_cannot_be_is_refused(times: tuple[float | None, float | None]) -> None:
    with pytest.raises(InvalidInputError, match=r"T[12] of a qubit is .* allowed: above 0"):
        relaxation_matrix(*times, 1e-6)


def test_errors_of_instructions_that_are_kept_are_those_of_the_whole_target() -> None:
    """Both directions of a gate among them, whose errors differ."""

    def told(errors: list[tuple[str, tuple[int, ...], QuantumError]]) -> list[tuple[str, tuple[int, ...], str]]:
        """Number by number, which takes a tenth of the time that Aer's == does, whose channels agree to 1e-5 only."""
        return [(n, p, repr([e.to_dict()[key] for key in ("instructions", "probabilities")])) for n, p, e in errors]

    for name in ("fake_manila", "fake_lagosv2", "fake_marrakesh"):
        whole = Device.load(name).target
        assert whole is not None
        small = reduced_target(whole, range(5), [n for n in whole.operation_names if n != "measure"])
        expected = [(n, tuple(place), error) for n, place, error in basic_device_gate_errors(target=small)]
        assert any(place == (1, 0) for _, place, _ in expected)
        found = device_gate_errors(small)
        assert told(found) == told(expected)
        again = device_gate_errors(small)  # the channels are kept, and not to be compared once more
        assert [(n, p, id(error)) for n, p, error in again] == [(n, p, id(error)) for n, p, error in found]
