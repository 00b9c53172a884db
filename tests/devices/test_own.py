"""Devices of one's own: from targets, backends and Aer noise models, against Aer itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Delay, Parameter
from qiskit.circuit.library import CXGate, CZGate, IGate, Measure, RXGate, RZGate, RZZGate, SXGate, XGate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import DensityMatrix, SparsePauliOp, SuperOp
from qiskit.transpiler import InstructionProperties, Target
from qiskit_aer import AerSimulator
from qiskit_aer.noise import (
    LocalNoisePass,
    NoiseModel,
    RelaxationNoisePass,
    amplitude_damping_error,
    coherent_unitary_error,
    depolarizing_error,
    pauli_error,
    reset_error,
)
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

import qhw_diffusion as qhw
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.devices import Calibration, Device, calibration_text, rank_layouts
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import aer_estimator
from qhw_diffusion.guidance import QuantumPolicy, compile_policy, load_policy_model, save_policy_model
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner

X, W = Parameter("x"), Parameter("w")
LINE = [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]


def generic(noise_info: bool = True, **settings: Any) -> GenericBackendV2:
    return GenericBackendV2(4, noise_info=noise_info, seed=5, coupling_map=LINE, **settings)


def circuit() -> QuantumCircuit:
    made = QuantumCircuit(3)
    made.ry(X, 0)
    made.rx(0.4, 1)
    made.cx(0, 1)
    made.ry(W, 1)
    made.cx(2, 1)
    made.rx(0.9, 2)
    made.reset(0)
    made.ry(0.7, 0)
    made.cx(0, 1)
    return made


OBSERVABLES = [SparsePauliOp("ZII"), SparsePauliOp(["XYZ", "IZI"], [0.7, -0.4])]


def compiled(device: Device, made: QuantumCircuit | None = None, **settings: Any) -> qhw.CompiledCircuit:
    given = made or circuit()
    parameters = sorted(given.parameters, key=lambda p: [X, W].index(p))
    return qhw.compile_circuit(
        given, device, inputs=parameters[:1], weights=parameters[1:], observables=OBSERVABLES, optimization_level=1,
        **settings
    )  # fmt: skip


def by_aer(made: qhw.CompiledCircuit, model: NoiseModel, row: list[float]) -> np.ndarray:
    """Aer's own density matrix of the ISA circuit at the device's width, with the given model; readout by hand."""
    bound = made.isa.assign_parameters(dict(zip((*made.inputs, *made.weights), row, strict=True)))
    bound.save_density_matrix()
    simulator = AerSimulator(method="density_matrix", noise_model=model, max_parallel_threads=1)
    rho = DensityMatrix(simulator.run(bound).result().data()["density_matrix"])
    values = []
    for observable in made.observables:
        total = 0.0
        for label, coefficient in observable.to_list():
            operator = np.ones((1, 1))
            for qubit, factor in enumerate(label[::-1]):
                pauli = SparsePauliOp(factor).to_matrix()
                if factor != "I":
                    error = model._local_readout_errors.get((qubit,), model._default_readout_error)
                    (_, p10), (p01, _) = [[1, 0], [0, 1]] if error is None else error.probabilities
                    pauli = (1 - p10 - p01) * pauli + (p01 - p10) * np.eye(2)
                operator = np.kron(pauli, operator)
            total += float(np.real(coefficient * np.trace(operator @ rho.data)))
        values.append(total)
    return np.array(values)


def model_of_channels() -> NoiseModel:
    """Default and local errors, coherent, non-unital, on two qubits with an order, reset, asymmetric readout."""
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.02, 2), ["cx"])
    lopsided = amplitude_damping_error(0.2).tensor(coherent_unitary_error(RZGate(0.3).to_matrix()))
    model.add_quantum_error(lopsided, "cx", [0, 1])
    model.add_quantum_error(lopsided.compose(depolarizing_error(0.1, 2)), "cx", [2, 1])
    model.add_all_qubit_quantum_error(pauli_error([("X", 0.01), ("I", 0.99)]), ["sx", "x"])
    model.add_quantum_error(amplitude_damping_error(0.1), "sx", [1])
    model.add_all_qubit_quantum_error(reset_error(0.05), ["rz"])
    model.add_all_qubit_quantum_error(pauli_error([("X", 0.03), ("I", 0.97)]), ["reset"])
    model.add_all_qubit_readout_error([[0.97, 0.03], [0.08, 0.92]])
    model.add_readout_error([[0.9, 0.1], [0.15, 0.85]], [1])
    return model


def noise_cases() -> dict[str, Callable[[], tuple[Device, NoiseModel]]]:
    backend = generic()
    return {
        "generic": lambda: (Device.of(backend), NoiseModel.from_backend(backend)),
        "its target": lambda: (Device.of(backend.target), NoiseModel.from_backend(backend)),
        "its noise model": lambda: (
            Device.of(generic(False), noise_model=NoiseModel.from_backend(backend)), NoiseModel.from_backend(backend)
        ),
        "channels": lambda: (Device.of(generic(False).target, noise_model=model_of_channels()), model_of_channels()),
        "channels over errors": lambda: (Device.of(generic(), noise_model=model_of_channels()), model_of_channels()),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", noise_cases())
def test_the_noisy_engine_is_aer_with_the_given_noise(case: str) -> None:
    device, model = noise_cases()[case]()
    made = compiled(device)
    row = [0.6, -1.1]
    layer = qhw.QuantumLayer(made, "noisy", dtype=torch.float64)
    layer.weight.data.fill_(row[1])
    wanted = by_aer(made, model, row)
    np.testing.assert_allclose(layer(torch.tensor([row[:1]], dtype=torch.float64)).detach()[0], wanted, atol=1e-6)
    assert (
        np.abs(wanted - layer.with_engine("ideal")(torch.tensor([row[:1]]).double()).detach().numpy()[0]).max() > 1e-3
    )
    estimator = qhw.Primitive(aer_estimator(made, seed=3), precision=0.01, reduced=True)
    for engine in (estimator, "shots:40000"):
        estimate = layer.with_engine(engine).estimate(torch.tensor([row[:1]], dtype=torch.float64))
        assert (np.abs(estimate.values[0].numpy() - wanted) < 6 * estimate.std_errors[0].numpy()).all()


@pytest.mark.parametrize("given", [False, True], ids=["target", "noise model"])
def test_waiting_qubits_relax_as_in_aer(given: bool) -> None:
    backend = generic()
    model = NoiseModel.from_backend(backend)
    device = Device.of(backend, noise_model=model if given else None)
    made = compiled(device, scheduled=True)
    assert any(isinstance(i.operation, Delay) for i in made.isa.data)
    layer = qhw.QuantumLayer(made, "noisy", dtype=torch.float64)
    layer.weight.data.fill_(-1.1)
    x = torch.tensor([[0.6]], dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach()[0], by_aer(made, model, [0.6, -1.1]), atol=1e-6)
    estimator = qhw.Primitive(aer_estimator(made, seed=3), precision=0.01, reduced=True)
    estimate = layer.with_engine(estimator).estimate(x)
    assert ((estimate.values - layer(x).detach()).abs() < 6 * estimate.std_errors).all()


def test_channels_and_target_of_a_generic_backend() -> None:
    backend = generic()
    device = Device.of(backend)
    target = device.target
    assert target is not None
    for name in ("cx", "sx", "x", "id", "rz", "measure"):
        for place, entry in backend.target[name].items():
            assert (target[name][place].error, target[name][place].duration) == (entry.error, entry.duration)
    assert target.dt == pytest.approx(backend.target.dt, rel=1e-12)
    for name, errors in NoiseModel.from_backend(backend)._local_quantum_errors.items():
        for place, error in errors.items():
            channel = device.gate_error(name, place)
            assert channel is not None
            np.testing.assert_allclose(channel.data, SuperOp(error).data, atol=1e-12)
    properties = backend.target.qubit_properties
    assert device.relaxation_times(2) == (properties[2].t1, properties[2].t2)
    assert (device.name, device.date, device.n_qubits) == ("generic_backend_4q", None, 4)
    assert "date    not stated" in calibration_text(Calibration.of(device))
    ranked = rank_layouts(device, circuit(), top=4, seeds=1)
    assert len(ranked.layouts) == 4


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    device = Device.of(generic())
    assert device == Device.of(generic())
    assert device != Device.of(generic(), name="other")
    assert device.restorable
    again = Device.load(device.save(tmp_path / "device.json.gz"))
    assert again == device
    assert again.fingerprint == device.fingerprint
    assert again.gate_error("cx", (0, 1)) == device.gate_error("cx", (0, 1))


def test_one_with_a_noise_model_is_not_saved(tmp_path: Path) -> None:
    device = Device.of(generic(), noise_model=model_of_channels())
    assert not device.restorable
    with pytest.raises(InvalidInputError, match="noise model of your own, which no snapshot holds"):
        device.save(tmp_path / "device.json.gz")
    policy = policy_circuit(entanglement="chain")
    for chosen in (device, Device.of(generic())):
        layer = qhw.QuantumLayer(compile_policy(policy, chosen, optimization_level=1), "noisy")
        actor = QuantumPolicy(layer, policy)
        if chosen is device:
            with pytest.raises(InvalidInputError, match="noise model of your own"):
                save_policy_model(actor, tmp_path / "actor")
        else:
            again = load_policy_model(save_policy_model(actor, tmp_path / "other"))
            assert isinstance(again, QuantumPolicy)
            assert again.layer.compiled.device == chosen


def test_equality_and_fingerprints_count_the_noise_model() -> None:
    target = generic(False).target
    first, second = (Device.of(target, noise_model=model_of_channels()) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    model = model_of_channels()
    third = Device.of(target, noise_model=model)
    model.add_quantum_error(depolarizing_error(0.5, 1), "x", [0], warnings=False)  # the device has a copy
    assert third == first
    other = Device.of(target, noise_model=model)
    assert other != first
    assert len({first.fingerprint, second.fingerprint, other.fingerprint, Device.of(target).fingerprint}) == 3


def test_the_ledger_does_not_mix_up_noise_models(tmp_path: Path) -> None:
    target = generic(False).target
    model = model_of_channels()
    model.add_readout_error([[0.5, 0.5], [0.5, 0.5]], [0], warnings=False)
    made_values = []
    with Ledger.open(tmp_path / "ledger") as ledger:
        for given in (model_of_channels(), model):
            device = Device.of(target, noise_model=given)
            runner = open_runner(device, ledger=ledger, run="test")
            made = compiled(device, measured_first())
            engine = qhw.Hardware(runner, shots=500)
            made_values.append(qhw.QuantumLayer(made, engine).estimate(torch.zeros(1, 1)).values)
        assert len(ledger.rows()) == 2
    assert not torch.equal(*made_values)


def measured_first() -> QuantumCircuit:
    made = QuantumCircuit(3)
    made.ry(X, 0)
    made.cx(0, 1)
    made.cx(1, 2)
    made.ry(W, 0)
    return made


def test_a_target_without_errors_has_no_noise_and_says_so() -> None:
    device = Device.of(generic(False))
    assert not device.has_noise
    assert not device.has_durations
    made = compiled(device, measured_first())
    assert made.duration is None
    for engine in ("noisy", "shots:100"):
        with pytest.raises(InvalidInputError, match="'generic_backend_4q' has no noise"):
            qhw.QuantumLayer(made, engine)
    with pytest.raises(InvalidInputError, match="generic_backend_4q does not state"):
        compiled(device, measured_first(), scheduled=True)
    with pytest.raises(InvalidInputError, match="generic_backend_4q states no gate durations"):
        DeviceNoise(device, 2, 3, pairs=1)
    sampled = qhw.Primitive(aer_estimator(made, seed=1), precision=0.02, reduced=True)
    estimate = qhw.QuantumLayer(made, sampled).estimate(torch.zeros(1, 1))
    assert ((estimate.values - qhw.QuantumLayer(made).estimate(torch.zeros(1, 1)).values).abs() < 0.1).all()
    exact = qhw.QuantumLayer(made)(torch.zeros(1, 1))
    everything = compiled(Device.load("ideal"), measured_first())
    torch.testing.assert_close(exact, qhw.QuantumLayer(everything)(torch.zeros(1, 1)))
    assert Device.load("fake_manila").has_noise
    assert not Device.load("ideal").has_noise


def test_a_backend_of_the_runtime_client_is_read_by_its_documents() -> None:
    """Its target knows the mean of both readout errors only."""
    device, known = Device.of(FakeManilaV2()), Device.load("fake_manila")
    assert device.readout_error(2) == known.readout_error(2)
    assert device.gate_error("cx", (0, 1)) == known.gate_error("cx", (0, 1))
    assert device.name == "fake_manila"
    changed = FakeManilaV2()
    changed.target.update_instruction_properties("cx", (0, 1), InstructionProperties(error=0.3, duration=1e-7))
    with pytest.raises(InvalidInputError, match=r"fake_manila was changed by hand \(cx on \(0, 1\)\)"):
        Device.of(changed)
    own = Device.of(changed.target, name="my_manila")
    assert own.target is not None
    assert own.target["cx"][0, 1].error == 0.3
    assert Device.of(FakeManilaV2(), noise_model=model_of_channels()).name == "own_fake_manila"


# -- targets by hand ---------------------------------------------------------------------------------------------------


def target_of(
    cx: dict[tuple[int, int], InstructionProperties | None],
    sx: list[InstructionProperties | None],
    measure: list[InstructionProperties | None],
    **settings: Any,
) -> Target:
    target = Target(num_qubits=len(sx), **settings)
    target.add_instruction(CXGate(), cx)
    target.add_instruction(SXGate(), {(q,): entry for q, entry in enumerate(sx)})
    target.add_instruction(RZGate(Parameter("t")), {(q,): None for q in range(len(sx))})
    target.add_instruction(Measure(), {(q,): entry for q, entry in enumerate(measure)})
    return target


def error(value: float, duration: float | None = None) -> InstructionProperties:
    return InstructionProperties(error=value, duration=duration)


def test_what_has_no_error_beside_what_has_is_no_part_of_the_device() -> None:
    cx: dict[tuple[int, int], InstructionProperties | None] = {
        (0, 1): error(0.01), (1, 2): None, (2, 3): error(math.nan), (3, 4): error(0.02)
    }  # fmt: skip
    device = Device.of(target_of(cx, [error(1e-3)] * 5, [error(0.02)] * 5))
    assert device.couplings_in_use == ((0, 1), (3, 4))
    device = Device.of(target_of(cx, [error(1e-3), None, *[error(1e-3)] * 3], [error(0.02)] * 4 + [None]))
    assert device.usable_qubits == (0, 2, 3)
    device = Device.of(target_of({(0, 1): error(1.0), (1, 2): error(0.01)}, [error(1e-3)] * 3, [error(0.02)] * 3))
    assert device.couplings_in_use == ((1, 2),)


def test_a_whole_gate_without_errors_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="errors of sx but none of cx, and absent is not perfect"):
        Device.of(target_of({(0, 1): None}, [error(1e-3)] * 2, [error(0.02)] * 2))
    with pytest.raises(InvalidInputError, match="errors of gates but none of measure"):
        Device.of(target_of({(0, 1): error(0.01)}, [error(1e-3)] * 2, [None] * 2))
    device = Device.of(target_of({(0, 1): error(0.0)}, [error(1e-3)] * 2, [error(0.0)] * 2))
    assert device.gate_error("cx", (0, 1)) is None
    with pytest.raises(InvalidInputError, match=r"states durations, but none of cx on \(0, 1\)"):
        Device.of(target_of({(0, 1): error(0.01)}, [error(1e-3, 1e-8)] * 2, [error(0.02)] * 2))


def test_gates_of_other_kinds_are_left_out_and_listed() -> None:
    target = target_of({(0, 1): error(0.01)}, [error(1e-3)] * 2, [error(0.02)] * 2)
    target.add_instruction(RXGate(math.pi / 2), {(0,): error(1e-3)}, name="rx_quarter")
    target.add_instruction(XGate(label="mine"), {(0,): error(1e-3)}, name="sneaky_x")
    target.add_instruction(IGate(), {(0,): None, (1,): None})
    device = Device.of(target)
    assert device.provenance["left_out"] == "rx_quarter, sneaky_x, id"
    assert set(device.basis_gates) == {"cx", "sx", "rz"}


def test_angles_of_rzz_are_free_unless_the_target_bounds_them() -> None:
    for bounds, limits in ((None, None), ([(0, math.pi / 2)], (0.0, math.pi / 2))):
        target = target_of({(0, 1): error(0.01)}, [error(1e-3)] * 3, [error(0.02)] * 3)
        places = {(0, 1): error(0.02), (1, 2): error(0.02)}
        target.add_instruction(RZZGate(Parameter("t")), places, angle_bounds=bounds)
        device = Device.of(target)
        assert device.angle_limits("rzz") == limits
        assert device.target is not None
        assert device.target.gate_has_angle_bounds("rzz") == (limits is not None)
    target.add_instruction(RXGate(Parameter("t")), {(0,): error(0.02)}, angle_bounds=[(0, 1)])
    with pytest.raises(InvalidInputError, match="bounds the angles of rx"):
        Device.of(target)


def test_gates_on_all_qubits() -> None:
    target = Target(num_qubits=3)
    target.add_instruction(CZGate(), None)
    target.add_instruction(SXGate(), None)
    target.add_instruction(RZGate(Parameter("t")), None)
    device = Device.of(target, name="everywhere")
    assert len(device.coupling_map) == 6
    assert compiled(device, measured_first()).two_qubit_gates == 2


class OldBackend:
    """As BackendV1 was."""

    def configuration(self) -> None: ...


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (OldBackend(), "OldBackend is a backend without a target"),
        (AerSimulator(), "AerSimulator is a simulator"),
        ("fake_manila", "give a qiskit Target or a BackendV2, not str"),
        (None, "not NoneType"),
        (Target(), "states no number of qubits"),
        (Target(num_qubits=3), "no gate of Qiskit's standard library"),
    ],
)
def test_what_cannot_be_a_device_is_refused(source: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Device.of(source)


@pytest.mark.parametrize("name", ["ideal", "fake_mine", "ibm_mine", "", "Ideal", 3])
def test_names_that_mean_other_devices_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="name is"):
        Device.of(generic(), name=name)


def changed(change: Callable[[NoiseModel], Any]) -> NoiseModel:
    model = model_of_channels()
    change(model)
    return model


UNSUPPORTED: dict[str, tuple[Callable[[NoiseModel], Any], str]] = {
    "measure": (
        lambda m: m.add_all_qubit_quantum_error(pauli_error([("X", 0.1), ("I", 0.9)]), "measure"),
        "a quantum error of 'measure'",
    ),
    "delay": (lambda m: m.add_quantum_error(amplitude_damping_error(0.1), "delay", [0]), "a quantum error of 'delay'"),
    "label": (
        lambda m: m.add_all_qubit_quantum_error(depolarizing_error(0.1, 1), "mine"), "an error of the label 'mine'"
    ),
    "readout of two": (
        lambda m: m.add_readout_error(np.full((4, 4), 0.25), [0, 1]), r"a readout error of the qubits \(0, 1\) together"
    ),
    "pass": (
        lambda m: m._custom_noise_passes.append(LocalNoisePass(lambda op, qubits: None)), "noise pass LocalNoisePass"
    ),
    "relaxation of gates": (
        lambda m: m._custom_noise_passes.append(RelaxationNoisePass([1e-4] * 4, [1e-4] * 4, dt=1e-9)),
        "the noise pass RelaxationNoisePass",
    ),
    "excited": (
        lambda m: m._custom_noise_passes.append(RelaxationNoisePass([1e-4] * 4, [1e-4] * 4, 1e-9, Delay, [0.1] * 4)),
        "the noise pass RelaxationNoisePass",
    ),
    "other qubits": (
        lambda m: m.add_quantum_error(depolarizing_error(0.1, 1), "sx", [7]), r"an error of 'sx' on \(7,\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_parts_of_a_noise_model_that_cannot_be_represented_are_named(name: str) -> None:
    change, message = UNSUPPORTED[name]
    with pytest.raises(InvalidInputError, match=f"the noise model has .*{message}.*cannot be represented"):
        Device.of(generic(), noise_model=changed(change))


def test_a_noise_model_for_other_gates_is_refused() -> None:
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.1, 2), "cz")
    with pytest.raises(InvalidInputError, match="has errors of cz only, and the target none"):
        Device.of(generic(), noise_model=model)
    with pytest.raises(InvalidInputError, match="noise_model is a dict"):
        Device.of(generic(), noise_model={})


def test_circuits_are_placed_by_the_noise_model() -> None:
    model = NoiseModel()
    for a, b in LINE:
        model.add_quantum_error(depolarizing_error(0.01 if {a, b} == {2, 3} else 0.2, 2), "cx", [a, b])
    pair = QuantumCircuit(2)
    pair.ry(X, 0)
    pair.cx(0, 1)
    device = Device.of(generic(False), noise_model=model)
    made = qhw.compile_circuit(pair, device, inputs=[X], weights=[], observables=[SparsePauliOp("ZZ")])
    assert made.physical_qubits == (2, 3)
    assert set(rank_layouts(device, pair, top=1, seeds=1).layouts[0].qubits) == {2, 3}
