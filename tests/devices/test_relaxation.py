"""Idle qubits: `Device.relaxation` against Aer's own treatment of delays, and against the exponential laws."""

from __future__ import annotations

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.quantum_info import DensityMatrix
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError


def waited(angle: float, qubit: int, nanoseconds: int, n_qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(n_qubits)
    circuit.u(angle, 0.4, 0.0, qubit)  # not a gate of the device, hence noiseless
    if nanoseconds:
        circuit.delay(nanoseconds, qubit, unit="ns")
    return circuit


@pytest.mark.slow
@pytest.mark.parametrize("nanoseconds", [35, 4_000, 900_000])
def test_a_delay_relaxes_as_in_aer(nanoseconds: int) -> None:
    """Aer's model of the whole backend, its pass for delays included, on a density matrix."""
    model = NoiseModel.from_backend(FakeManilaV2())
    simulator = AerSimulator(method="density_matrix", noise_model=model)
    device = Device.load("fake_manila")
    for qubit in range(5):
        circuit = waited(2.0, qubit, nanoseconds, 5)
        circuit.save_density_matrix([qubit])
        theirs = simulator.run(circuit).result().data()["density_matrix"]
        channel = device.relaxation(qubit, nanoseconds * 1e-9)
        assert channel is not None
        assert channel.is_cptp()
        ours = DensityMatrix(waited(2.0, 0, 0, 1)).evolve(channel)
        np.testing.assert_allclose(ours.data, np.asarray(theirs), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "qubit"), [("fake_marrakesh", 3), ("fake_torino", None)])
def test_populations_decay_with_t1_and_coherences_with_t2(name: str, qubit: int | None) -> None:
    device = Device.load(name)
    assert device.target is not None
    properties = device.target.qubit_properties
    if qubit is None:  # one whose calibration says T2 > 2·T1, which no qubit can have
        qubit = next(q for q, p in enumerate(properties) if p.t2 > 2 * p.t1)
    t1, seconds = properties[qubit].t1, 20e-6
    t2 = min(properties[qubit].t2, 2 * t1)
    channel = device.relaxation(qubit, seconds)
    assert channel is not None
    after = DensityMatrix(np.array([[0.3, 0.2 - 0.1j], [0.2 + 0.1j, 0.7]])).evolve(channel).data
    assert after[1, 1] == pytest.approx(0.7 * np.exp(-seconds / t1), abs=1e-12)
    assert after[0, 1] == pytest.approx((0.2 - 0.1j) * np.exp(-seconds / t2), abs=1e-12)


def test_nothing_happens_in_no_time_and_on_the_ideal_device() -> None:
    assert Device.load("fake_manila").relaxation(0, 0.0) is None
    assert Device.load("ideal").relaxation(7, 1.0) is None


def test_a_qubit_without_calibrated_times_does_not_relax() -> None:
    """fake_kingston publishes no T1 and T2 for qubit 146; Aer lets it stand still, and so do we."""
    device = Device.load("fake_kingston")
    assert device.relaxation(146, 1e-3) is None
    assert device.relaxation(145, 1e-3) is not None


def test_reset_relaxes_over_its_duration_and_nothing_else() -> None:
    device = Device.load("fake_marrakesh")
    assert device.target is not None
    duration = device.target["reset"][(4,)].duration
    error, idle = device.gate_error("reset", (4,)), device.relaxation(4, duration)
    assert error is not None
    assert idle is not None
    np.testing.assert_allclose(error.data, idle.data, atol=1e-12)
    ground = DensityMatrix(np.diag([1.0, 0.0]))
    np.testing.assert_allclose(ground.evolve(error).data, ground.data, atol=1e-15)


@pytest.mark.parametrize(("qubit", "seconds"), [(5, 1e-6), (-1, 1e-6), (0, -1e-6), (0, float("nan"))])
def test_bad_arguments(qubit: int, seconds: float) -> None:
    with pytest.raises(InvalidInputError):
        Device.load("fake_manila").relaxation(qubit, seconds)
