"""`Device`: names, provenance, and noise compared with Aer's own device model."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from qiskit.quantum_info import SuperOp, average_gate_fidelity
from qiskit_aer.noise import NoiseModel, ReadoutError
from qiskit_ibm_runtime.fake_provider import FakeBrisbane, FakeManilaV2, FakeMarrakesh, FakeTorino

from qhw_diffusion.devices import Device, fake_backend_names
from qhw_diffusion.errors import InvalidInputError, UnknownNameError

BACKENDS = {
    "fake_manila": (FakeManilaV2, [1, 2, 3]),
    "fake_brisbane": (FakeBrisbane, [0, 1, 2, 14]),
    "fake_torino": (FakeTorino, [0, 1, 2, 15]),
    "fake_marrakesh": (FakeMarrakesh, [1, 2, 3, 16]),
}


def aers_device_model(name: str) -> NoiseModel:
    """`NoiseModel.from_backend`, on a backend whose other qubits were made ideal (a whole Heron takes 10 s)."""
    cls, qubits = BACKENDS[name]
    backend = cls()
    for gate in ("id", "sx", "x", "cx", "ecr", "cz", "reset"):
        for place in list(backend.target[gate]) if gate in backend.target.operation_names else []:
            if not set(place) <= set(qubits):
                backend.target.update_instruction_properties(gate, place, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return NoiseModel.from_backend(backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_gate_errors_are_those_of_aers_device_model(name: str) -> None:
    qubits = BACKENDS[name][1]
    device = Device.load(name)
    reference = aers_device_model(name)
    compared = 0
    for gate, places in reference._local_quantum_errors.items():
        for place, error in places.items():
            if set(place) <= set(qubits):
                channel = device.gate_error(gate, place)
                assert channel is not None
                np.testing.assert_allclose(channel.data, SuperOp(error).data, atol=1e-13, rtol=0)
                compared += 1
    assert compared >= 3 * len(qubits) + len(qubits) - 2  # sx, x, id on each and the couplings between them

    model = device.noise_model(qubits)
    assert {*model._local_quantum_errors} <= {*reference._local_quantum_errors}
    for gate, places in model._local_quantum_errors.items():
        for place, error in places.items():
            assert error == reference._local_quantum_errors[gate][tuple(qubits[q] for q in place)]
    assert sum(map(len, model._local_quantum_errors.values())) == compared
    assert {*model.basis_gates} == {*reference.basis_gates}


def test_noise_model_follows_the_order_of_the_qubits() -> None:
    device = Device.load("fake_manila")
    forward, backward = device.noise_model([1, 2]), device.noise_model([2, 1])
    assert forward._local_quantum_errors["sx"][(0,)] == backward._local_quantum_errors["sx"][(1,)]
    assert forward._local_quantum_errors["cx"][(0, 1)] == backward._local_quantum_errors["cx"][(1, 0)]
    assert forward._local_quantum_errors["cx"][(0, 1)] != forward._local_quantum_errors["cx"][(1, 0)]


def test_gate_error_is_in_the_gates_qubit_order() -> None:
    """Heron's CZ is calibrated once for both directions, and relaxation differs from qubit to qubit: so the channel on
    (b, a) is the one on (a, b) with its subsystems exchanged, and is not equal to it.
    """
    device = Device.load("fake_marrakesh")
    first, second = device.gate_error("cz", (0, 1)), device.gate_error("cz", (1, 0))
    assert first is not None
    assert second is not None
    assert not np.allclose(first.data, second.data, atol=1e-6)
    swapped = SuperOp(np.eye(16)).compose(first, qargs=[1, 0])
    np.testing.assert_allclose(swapped.data, second.data, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gate", "place"),
    [("fake_brisbane", "ecr", (3, 2)), ("fake_marrakesh", "cz", (0, 1)), ("fake_torino", "x", (0,))],
)
def test_gate_error_has_the_calibrated_fidelity(name: str, gate: str, place: tuple[int, ...]) -> None:
    device = Device.load(name)
    assert device.target is not None
    properties = device.target[gate][place]
    channel = device.gate_error(gate, place)
    assert channel is not None
    assert channel.is_cptp()
    assert 1 - average_gate_fidelity(channel) == pytest.approx(properties.error, rel=1e-6)


def test_gate_error_is_never_below_relaxation() -> None:
    """Where the calibrated error is below what T1 and T2 alone cost (Brisbane's qubit 0), relaxation alone remains."""
    device = Device.load("fake_brisbane")
    assert device.target is not None
    properties = device.target["sx"][(0,)]
    qubit = device.target.qubit_properties[0]
    t1, t2, time = qubit.t1, min(qubit.t2, 2 * qubit.t1), properties.duration
    # average infidelity of amplitude + phase damping: (1 - F) = 1/2 - e^{-t/T1}/6 - e^{-t/T2}/3
    relaxation = 1 / 2 - np.exp(-time / t1) / 6 - np.exp(-time / t2) / 3
    assert relaxation > properties.error
    channel = device.gate_error("sx", (0,))
    assert channel is not None
    assert 1 - average_gate_fidelity(channel) == pytest.approx(relaxation, rel=1e-6)


def test_virtual_gates_and_measurement_have_no_gate_error() -> None:
    device = Device.load("fake_marrakesh")
    assert device.gate_error("rz", (5,)) is None
    assert device.gate_error("measure", (5,)) is None


def test_readout_is_asymmetric_where_aers_model_is_not() -> None:
    device = Device.load("fake_manila")
    p10, p01 = device.readout_error(2)
    assert (round(p10, 3), round(p01, 3)) == (0.070, 0.123)
    ours = device.noise_model([2])._local_readout_errors[(0,)]
    assert ours == ReadoutError([[1 - p10, p10], [p01, 1 - p01]])
    symmetric = NoiseModel.from_backend(FakeManilaV2())._local_readout_errors[(2,)].probabilities
    assert symmetric[0][1] == pytest.approx((p10 + p01) / 2, abs=1e-4)
    assert symmetric[0][1] == symmetric[1][0]
    # the provider's own simulator (FakeBackendV2.run) reads out asymmetrically too
    backend = FakeManilaV2()
    backend.properties()
    theirs = backend._get_noise_model_from_backend_v2()._local_readout_errors[(2,)].probabilities
    np.testing.assert_allclose(theirs, ours.probabilities, atol=1e-12)


@pytest.mark.parametrize("given", ["fake_marrakesh", "FakeMarrakesh", "fake-marrakesh", "FAKE_MARRAKESH"])
def test_spellings(given: str) -> None:
    assert Device.load(given) == Device.load("fake_marrakesh")


@pytest.mark.slow
def test_every_fake_backend_loads() -> None:
    names = fake_backend_names()
    assert len(names) > 50
    for name in names:
        device = Device.load(name)
        assert device.name == name
        assert device.n_qubits is not None
        assert device.n_qubits > 0
        for qubit in (0, device.n_qubits - 1):
            assert all(0 <= p <= 1 for p in device.readout_error(qubit))
    class_names = {"FakeManilaV2": "fake_manila", "FakeFractionalBackend": "fake_fractional"}
    for class_name, name in class_names.items():
        assert Device.load(class_name).name == name


@pytest.mark.slow
def test_target_is_the_providers() -> None:
    backend = FakeMarrakesh()
    target = Device.load("fake_marrakesh").target
    assert target is not None
    assert set(target.operation_names) == set(backend.target.operation_names)
    assert target.dt == backend.target.dt
    assert target.qubit_properties[7].t1 == backend.target.qubit_properties[7].t1
    for gate in ("cz", "sx", "measure"):
        assert {place: (p.error, p.duration) for place, p in target[gate].items()} == {
            place: (p.error, p.duration) for place, p in backend.target[gate].items()
        }


def test_provenance_says_where_and_when() -> None:
    provenance = Device.load("fake_marrakesh").provenance
    backend = FakeMarrakesh()
    assert provenance["source"].endswith("FakeMarrakesh")
    assert provenance["package"].startswith("qiskit-ibm-runtime ")
    assert provenance["backend_version"] == backend.backend_version
    assert provenance["date"].replace("T", " ") == str(backend.properties().last_update_date)


def test_ideal() -> None:
    device = Device.load("ideal")
    assert (device.name, device.n_qubits, device.target, device.is_ideal) == ("ideal", None, None, True)
    assert device.gate_error("cx", (0, 1)) is None
    assert device.readout_error(3) == (0.0, 0.0)
    assert device.noise_model([0, 1]).is_ideal()
    assert device != Device.load("fake_manila")


def test_frozen_hashable_and_equal_by_content() -> None:
    device, other = Device.load("fake_manila"), Device.load("fake_manila")
    assert device == other
    assert hash(device) == hash(other)
    assert device.target is not None  # a built target must not change equality
    assert device == other
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.snapshot = other.snapshot  # type: ignore[misc]
    changed = dataclasses.replace(other.snapshot, properties=other.snapshot.properties.replace("0.0702", "0.0703"))
    assert changed.properties != other.snapshot.properties
    assert Device(changed) != device


@pytest.mark.parametrize("given", ["fake_marakesh", "FakeMarakesh", "marrakesh"])
def test_unknown_names_list_near_matches(given: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean fake_marrakesh"):
        Device.load(given)


def test_bad_arguments_are_named() -> None:
    device = Device.load("fake_manila")
    with pytest.raises(UnknownNameError, match="cz"):
        device.gate_error("cz", (0, 1))
    with pytest.raises(InvalidInputError, match=r"\(0, 3\)"):
        device.gate_error("cx", (0, 3))
    with pytest.raises(InvalidInputError, match="0 to 4"):
        device.readout_error(5)
    with pytest.raises(InvalidInputError, match="0 to 4"):
        device.readout_error(-1)
    with pytest.raises(InvalidInputError, match="once"):
        device.noise_model([1, 1])
    with pytest.raises(InvalidInputError, match="name or a path"):
        Device.load(5)  # type: ignore[arg-type]
