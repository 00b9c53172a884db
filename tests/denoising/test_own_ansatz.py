"""An ansatz of a user's own: trained, counted, compared, saved and loaded as the built-in ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter, ParameterVector
from qiskit.quantum_info import Operator

from qhw_diffusion.denoising import (
    AmplitudeQDM,
    ReverseConfig,
    ReverseProcess,
    TrainConfig,
    from_pretrained,
    infidelity,
    save_pretrained,
    train_qdm,
)
from qhw_diffusion.denoising.baselines import with_classical
from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError

FILE = '''
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector


def shared(n_qubits, layer):
    """RX and RZZ with one angle each for all qubits."""
    circuit, angles = QuantumCircuit(n_qubits), ParameterVector("angle", 2)
    for qubit in range(n_qubits):
        circuit.rx(angles[0], qubit)
    for qubit in range(n_qubits - 1):
        circuit.rzz(angles[1], qubit, qubit + 1)
    circuit.ry(0.3, 0)
    return circuit
'''


def general(n_qubits: int, layer: int) -> QuantumCircuit:
    angles = ParameterVector("angle", 2 * n_qubits)
    circuit = QuantumCircuit(n_qubits)
    for qubit in range(n_qubits):
        circuit.rx(angles[2 * qubit], qubit)
        circuit.cp(angles[2 * qubit + 1], qubit, (qubit + 1) % n_qubits)
    return circuit


def squared(n_qubits: int, layer: int) -> QuantumCircuit:
    angle, circuit = Parameter("a"), QuantumCircuit(n_qubits)
    circuit.rx(angle * angle, 0)
    return circuit


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    return "mine.py:shared"


def config(ansatz: object, **changes: object) -> ReverseConfig:
    return ReverseConfig(n_qubits=2, n_steps=2, depth=3, init_scale=0.5, ansatz=ansatz, **changes)  # type: ignore[arg-type]


def test_every_count_comes_from_the_circuit(file: str) -> None:
    process = ReverseProcess(config(file, conditioning="angles", n_labels=3))
    assert process.weight.shape == (2, 1, 1, 2 * 3)
    assert process.n_circuit_parameters == 12
    assert process.n_parameters == 12 + 2 * 3 * (2 * 3)
    model = AmplitudeQDM(config(general, weight_sharing="hypernetwork"), image_shape=(1, 2, 2))
    assert model.reverse.n_circuit_parameters == 3 * 6
    small = with_classical(model).reverse.n_parameters
    assert isinstance(small, int)
    assert model.reverse.n_parameters - (4 * 4 + 1 + 2) < small <= model.reverse.n_parameters


def test_states_pass_as_the_circuit_says() -> None:
    process = ReverseProcess(config(general, kind="measured"), dtype=torch.float64)
    values = dict(zip(process.circuit.weights, process.weights_of(2).tolist(), strict=True))
    unitary = Operator(process.circuit.circuit.assign_parameters(values)).data
    state = torch.tensor([[0.6, 0.0, 0.8j, 0.0]], dtype=torch.complex128)
    out = unitary @ np.concatenate([state[0].numpy(), np.zeros(4)])  # the ancilla, qubit 2, in |0⟩
    with torch.no_grad():
        branches = process.step(state, 2)
    for outcome in (0, 1):
        part = out[4 * outcome : 4 * outcome + 4]
        probability = float(np.vdot(part, part).real)
        assert float(branches.probabilities[outcome, 0]) == pytest.approx(probability, abs=1e-12)
        made = branches.states[outcome, 0].numpy()
        assert abs(np.vdot(made, part / math.sqrt(probability))) == pytest.approx(1, abs=1e-12)


def test_it_trains_and_writes_a_dynamic_circuit(file: str) -> None:
    model = AmplitudeQDM(config(general), image_shape=(1, 2, 2))
    data = torch.tensor([[[[1.0, -1.0], [0.5, -0.5]]]]).repeat(4, 1, 1, 1)
    train = TrainConfig("mmd", "joint", iterations=40, batch_size=64, targets=2, learning_rate=0.1)

    def distance() -> float:
        states = model.sample(400, torch.Generator().manual_seed(1)).states
        return float(infidelity(states, model.encode(data[:1])).mean())

    before = distance()
    train_qdm(model, data, train)
    assert distance() < 0.6 * before
    circuit = ReverseProcess(config(file)).dynamic_circuit()
    assert circuit.count_ops()["rzz"] == 2 * 3 * 2
    assert [register.name for register in circuit.cregs] == ["m2", "m1", "x"]
    assert not circuit.parameters


def test_a_folder_holds_the_circuit_and_needs_no_function(file: str, tmp_path: Path) -> None:
    model = AmplitudeQDM(config(file, conditioning="qubits", n_labels=2), image_shape=(1, 2, 2))
    with torch.no_grad():
        model.reverse.weight += 0.2
    folder = save_pretrained(model, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["reverse"]["ansatz"] == file
    labels = torch.tensor([0, 1, 1])

    def samples(each: AmplitudeQDM) -> torch.Tensor:
        return each.sample(3, torch.Generator().manual_seed(1), labels).states

    (tmp_path / "mine.py").unlink()
    again = from_pretrained(folder)
    assert isinstance(again, AmplitudeQDM)
    assert again.config() == model.config()
    assert torch.equal(samples(again), samples(model))
    moved = from_pretrained(folder, device="fake_manila", engine="noisy")
    assert moved.reverse.compiled.device.name == "fake_manila"
    (tmp_path / "mine.py").write_text("raise RuntimeError('loading must not run this')")
    assert torch.equal(samples(from_pretrained(save_pretrained(again, tmp_path / "second"))), samples(model))  # type: ignore[arg-type]


def test_a_run_folder_finds_it_again_by_its_name(file: str) -> None:
    first = config(file)
    again = ReverseConfig.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again == first
    assert ReverseProcess(again).circuit.circuit == ReverseProcess(first).circuit.circuit


def test_a_function_is_saved_by_its_name_or_refused(tmp_path: Path) -> None:
    named = AmplitudeQDM(config(general), image_shape=(1, 2, 2))
    again = from_pretrained(save_pretrained(named, tmp_path / "named"))
    assert again.reverse.config.ansatz.endswith("test_own_ansatz:general")
    nameless = AmplitudeQDM(config(lambda n, layer: general(n, layer)), image_shape=(1, 2, 2))
    assert nameless.sample(2, torch.Generator().manual_seed(0)).states.shape == (2, 4)
    assert nameless.on(engine="noisy", device="fake_manila").reverse.config.engine == "noisy"
    with pytest.raises(InvalidInputError, match="no name by which it is found again"):
        save_pretrained(nameless, tmp_path / "nameless")
    assert not (tmp_path / "nameless").exists()


def test_faults_are_found_before_training_and_name_the_ansatz(file: str) -> None:
    with pytest.raises(UnsupportedCircuitError, match=r"ansatz '.*test_own_ansatz:squared': .*affine"):
        ReverseProcess(config(squared))
    with pytest.raises(InvalidInputError, match=r"ansatz 'mine\.py:other'"):
        ReverseProcess(config("mine.py:other"))
    with pytest.raises(InvalidInputError, match=r"ansatz 'nowhere:shared': there is no module"):
        ReverseProcess(config("nowhere:shared"))


def test_a_compiled_circuit_of_another_width_is_refused(file: str) -> None:
    compiled = ReverseProcess(config(file)).compiled
    with pytest.raises(InvalidInputError, match=r"\(qubits, inputs\) = \(3, 0\)"):
        ReverseProcess(config(file, conditioning="angles", n_labels=2), compiled=compiled)
    with pytest.raises(InvalidInputError, match=r"\(qubits, inputs\) = \(3, 0\)"):
        ReverseProcess(config(file).replace(n_qubits=1), compiled=compiled)
