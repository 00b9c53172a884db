"""Devices of a user's own by module:name or file.py:name: wherever a name is taken, saved and found again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.cli import main
from qhw_diffusion.devices import Calibration, Device, take_snapshot
from qhw_diffusion.errors import InvalidInputError, MissingDataError, UnknownNameError
from qhw_diffusion.execution import Ideal, QuantumLayer, compile_circuit, load_layer, save_layer
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.execution.primitive import Hardware
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner

FILE = """
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer.noise import NoiseModel, depolarizing_error
from qhw_diffusion.devices import Device

ERROR = 0.01
backend = GenericBackendV2(4, noise_info=True, seed=1)
target = backend.target
ready = Device.of(backend, name="ready")
number = 3
count = 0

def generic():
    return GenericBackendV2(4, noise_info=True, seed=1)

def noisy():
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(ERROR, 2), ["cx"])
    return Device.of(target, noise_model=model, name="mine")

def untimed():
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.01, 2), ["cx"])
    line = GenericBackendV2(4, coupling_map=[[0, 1], [1, 2], [2, 3]], noise_info=False)
    return Device.of(line.target, noise_model=model, name="untimed")

def changing():
    global count
    count += 1
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.01 * count, 2), ["cx"])
    return Device.of(target, noise_model=model, name="mine")

def reserved():
    return Device.of(target, name="fake_mine")

def nothing():
    return None

def needs(qubits):
    return qubits

def fails():
    raise KeyError("calibration")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "chips.py"
    path.write_text(FILE)
    monkeypatch.chdir(tmp_path)
    forget()
    return path


def forget() -> None:
    """Have the file loaded again, as another process would."""
    for name in [name for name in sys.modules if name.startswith("qhw_extension_chips")]:
        del sys.modules[name]


def layer_on(device: Device, engine: str = "noisy") -> QuantumLayer:
    x, w = Parameter("x"), Parameter("w")
    circuit = QuantumCircuit(2)
    circuit.ry(x, 0)
    circuit.cx(0, 1)
    circuit.rx(w, 1)
    compiled = compile_circuit(circuit, device, inputs=[x], weights=[w], observables=[SparsePauliOp("ZZ")])
    return QuantumLayer(compiled, engine)


@pytest.mark.parametrize("name", ["backend", "target", "ready", "generic"])
def test_whatever_makes_a_device_is_one_by_its_name(file: Path, name: str) -> None:
    device = Device.load(f"chips.py:{name}")
    backend = GenericBackendV2(4, noise_info=True, seed=1)
    expected = Device.of(backend.target if name == "target" else backend, name="ready" if name == "ready" else None)
    assert device == expected
    assert device.provenance["loaded_by"] == f"chips.py:{name}"
    assert Device.load(f"{file}:{name}") == device  # with a path in it


def test_a_module_is_found_as_import_finds_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rename(file.with_name("chips_module.py"))
    monkeypatch.syspath_prepend(file.parent)
    assert Device.load("chips_module:ready").name == "ready"
    sys.modules.pop("chips_module")


def test_a_snapshot_of_it_needs_no_file_any_more(file: Path, tmp_path: Path) -> None:
    device = Device.load("chips.py:generic")
    path = take_snapshot("chips.py:generic")
    assert path.name == f"{device.name}.json.gz"
    layer = layer_on(device)
    save_layer(layer, tmp_path / "layer")
    file.unlink()
    forget()
    assert Device.load(path) == device
    x = torch.linspace(-1, 1, 3)[:, None]
    assert torch.equal(load_layer(tmp_path / "layer")(x), layer(x))


def test_with_a_noise_model_it_is_found_again_by_its_name(file: Path, tmp_path: Path) -> None:
    device = Device.load("chips.py:noisy")
    assert device.restorable
    path = device.save(tmp_path / "mine.json")
    assert json.loads(path.read_text())["provenance"]["loaded_by"] == "chips.py:noisy"
    forget()
    again = Device.load(path)
    assert again == device
    assert again.own_noise == device.own_noise
    layer = layer_on(device)
    save_layer(layer, tmp_path / "layer")
    forget()
    loaded = load_layer(tmp_path / "layer")
    x = torch.linspace(-1, 1, 3)[:, None]
    assert torch.equal(loaded(x), layer(x))
    assert loaded.compiled.device == device
    save_layer(loaded, tmp_path / "again")  # and once more


def test_what_is_not_found_again_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Device.load("chips.py:noisy").save(tmp_path / "mine.json.gz")
    save_layer(layer_on(Device.load("chips.py:noisy")), tmp_path / "layer")
    file.write_text(FILE.replace("ERROR = 0.01", "ERROR = 0.02"))
    forget()
    with pytest.raises(InvalidInputError, match=r"'chips.py:noisy' makes another device now than when .*mine.json.gz"):
        Device.load(path)
    with pytest.raises(InvalidInputError, match=r"'chips.py:noisy' makes another device now"):
        load_layer(tmp_path / "layer")
    file.write_text(FILE.replace("def noisy", "def renamed"))
    forget()
    with pytest.raises(MissingDataError, match=r"own noise model comes from 'chips.py:noisy'.*has no 'noisy'"):
        Device.load(path)
    file.unlink()
    forget()
    with pytest.raises(MissingDataError, match=r"'chips.py:noisy': there is no file chips.py.*from the current folder"):
        load_layer(tmp_path / "layer")
    file.write_text(FILE)
    assert Device.load(path).name == "mine"


def test_a_function_that_makes_another_device_every_time_is_refused_when_it_is_saved(
    file: Path, tmp_path: Path
) -> None:
    layer = layer_on(Device.load("chips.py:changing"))
    with pytest.raises(InvalidInputError, match=r"cannot be saved.*makes another device.*the same device every time"):
        save_layer(layer, tmp_path / "layer")
    assert not (tmp_path / "layer").exists()


def test_without_a_name_a_noise_model_is_still_not_saved(file: Path, tmp_path: Path) -> None:
    device = Device.load("chips.py:noisy")
    bare = Device(Device.of(device.target, name="mine").snapshot, device.own_noise)
    assert not bare.restorable
    with pytest.raises(InvalidInputError, match=r"load it by its name, Device.load\('file.py:function'\)"):
        bare.save(tmp_path / "bare.json")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("chips.py:chip", InvalidInputError, r"device 'chips.py:chip': chips.py has no 'chip'; it has"),
        ("chip.py:ready", InvalidInputError, r"there is no file chip.py"),
        ("chipz:ready", InvalidInputError, r"device 'chipz:ready': there is no module chipz"),
        (
            "chips.py:number",
            InvalidInputError,
            r"device 'chips.py:number': give a qiskit Target or .* not int",
        ),
        ("chips.py:nothing", InvalidInputError, r"device 'chips.py:nothing': give a qiskit Target .* not NoneType"),
        ("chips.py:needs", InvalidInputError, r"'chips.py:needs' cannot be made: TypeError: .*without arguments"),
        ("chips.py:fails", InvalidInputError, r"'chips.py:fails' cannot be made: KeyError: 'calibration'"),
        ("chips.py:reserved", InvalidInputError, r"device 'chips.py:reserved': name is 'fake_mine'"),
        ("fake_manilla", UnknownNameError, r"did you mean fake_manila.*module:name or file.py:name"),
    ],
)
def test_a_name_that_is_no_device_is_refused(file: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Device.load(name)


def test_it_compiles_shows_its_calibration_and_runs_as_a_service(file: Path, tmp_path: Path) -> None:
    device = Device.load("chips.py:generic")
    assert len(Calibration.of(device).qubits) == 4
    moved = layer_on(Device.load("fake_manila")).compiled.compile_for(device)
    assert moved.device == device
    with Ledger.open(tmp_path / "ledger") as ledger, open_runner("chips.py:noisy", ledger=ledger, run="r") as runner:
        assert runner.service.device == "mine"
        assert "snapshot" in runner.service.program


def test_without_gate_durations_it_runs_and_its_cost_says_so(file: Path, tmp_path: Path) -> None:
    compiled = layer_on(Device.load("chips.py:untimed")).compiled
    cost = qpu_cost(Ideal(), compiled, 3, shots=50)
    assert cost.duration == 0
    assert "states no gate durations: they count as 0" in cost.text
    with Ledger.open(tmp_path / "ledger") as ledger, open_runner("chips.py:untimed", ledger=ledger, run="r") as runner:
        estimate = Hardware(runner, shots=50).estimate(compiled, torch.zeros(3, 2))
    assert estimate.values.shape == (3, 1)
    assert (
        "gate durations" not in qpu_cost(Ideal(), layer_on(Device.load("chips.py:generic")).compiled, 3, shots=50).text
    )


@pytest.mark.slow
def test_on_the_command_line(file: Path) -> None:
    assert main(["calibration", "snapshot", "chips.py:generic", "--out", "g.json"]) == 0
    command = [sys.executable, "-m", "qhw_diffusion.cli", "calibration", "show", "g.json"]  # which has not seen it
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "4 qubits" in done.stdout
    assert "chips.py:generic" in (file.parent / "g.json").read_text()
