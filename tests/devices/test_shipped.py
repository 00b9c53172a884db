"""`calibration/`: the files are what the fake provider says, and the README's table is theirs."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from qiskit.quantum_info import SuperOp
from qiskit_ibm_runtime.fake_provider import FakeBrisbane, FakeMarrakesh, FakeTorino

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.shipped import SHIPPED, shipped_files, with_table, write_shipped

FOLDER = Path(__file__).parents[2] / "calibration"
BACKENDS = {"fake_marrakesh": FakeMarrakesh, "fake_torino": FakeTorino, "fake_brisbane": FakeBrisbane}


@functools.cache
def loaded(path: Path) -> Device:
    """One of the files, which do not change."""
    return Device.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", shipped_files(FOLDER), ids=lambda path: path.name)
def test_files_hold_the_providers_calibration_under_its_date(path: Path) -> None:
    device = loaded(path)
    assert device == Device.load(device.name)
    properties = BACKENDS[device.name]().properties()
    assert path.name == f"{device.name}-{properties.last_update_date:%Y-%m-%d}.json.gz"


def test_two_herons_and_an_eagle_and_nothing_else() -> None:
    devices = [loaded(path) for path in shipped_files(FOLDER)]
    assert [device.processor_type["family"] for device in devices] == ["Heron", "Heron", "Eagle"]
    files = {path.name for path in shipped_files(FOLDER)}
    pictures = {name.replace(".json.gz", ".png") for name in files}
    assert {path.name for path in FOLDER.iterdir()} == files | pictures | {"README.md"}
    assert all(f"]({name})" in (FOLDER / "README.md").read_text() for name in pictures)


def test_the_table_is_that_of_the_files() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert with_table(readme, FOLDER) == readme
    assert readme.count("| `fake_") == len(SHIPPED)


@pytest.mark.slow
def test_only_the_folder_of_the_calibrations_is_written_to(tmp_path: Path) -> None:
    """`--help` is no folder, and what is not the folder of the calibrations stays as it is."""
    command = [sys.executable, "-m", "qhw_diffusion.devices.shipped"]
    (tmp_path / "README.md").write_text("somebody's")
    for arguments, code in ((["--help"], 0), (["."], 1)):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.slow
def test_the_folder_can_be_written_anew(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "README.md", tmp_path)
    written = write_shipped(tmp_path)
    assert {path.name for path in written} == {path.name for path in FOLDER.iterdir()}
    for path in shipped_files(tmp_path):
        assert Device.load(path).snapshot == loaded(FOLDER / path.name).snapshot
    assert (tmp_path / "README.md").read_text() == (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", shipped_files(FOLDER), ids=lambda path: path.name)
def test_noise_from_a_file_is_that_of_the_backend(path: Path) -> None:
    """Every gate error on every 24th qubit and coupling against Aer's model of the backend's own target; every readout
    error against the backend's properties.
    """
    from qiskit_aer.noise.device.models import basic_device_gate_errors

    device = loaded(path)
    backend = BACKENDS[device.name]()
    for name in backend.target.operation_names:
        places = backend.target[name] if name not in ("delay", "measure") else None
        for index, place in enumerate(places or []):
            if place is not None and index % 24:
                backend.target.update_instruction_properties(name, place, None)
    compared = 0
    for name, place, error in basic_device_gate_errors(target=backend.target):
        ours = device.gate_error(name, place)
        assert ours is not None
        np.testing.assert_allclose(ours.data, SuperOp(error).data, atol=1e-13, rtol=0)
        compared += 1
    assert compared > 4 * (device.n_qubits or 0) // 24
    properties = backend.properties()
    for qubit in range(device.n_qubits or 0):
        assert device.readout_error(qubit) == (
            properties.qubit_property(qubit, "prob_meas1_prep0")[0],
            properties.qubit_property(qubit, "prob_meas0_prep1")[0],
        )
