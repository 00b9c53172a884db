"""Snapshots with missing or impossible values are refused, and the message names the field."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from qhw_diffusion.devices import Device, Snapshot, fake_backend_names
from qhw_diffusion.devices.snapshot import canonical_json
from qhw_diffusion.devices.validate import AS_PUBLISHED
from qhw_diffusion.errors import DamagedFileError, InvalidInputError

Documents = tuple[dict[str, Any], dict[str, Any]]


def documents(name: str = "fake_manila") -> Documents:
    snapshot = Device.load(name).snapshot
    return json.loads(snapshot.configuration), json.loads(snapshot.properties)


def set_qubit(name: str, value: Any, unit: str | None = None) -> Any:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        record = next(r for r in properties["qubits"][3] if r["name"] == name)
        record["value"] = value
        record["unit"] = record["unit"] if unit is None else unit

    return change


def set_gate(field: str, value: Any, gate: str = "cx") -> Any:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        entry = next(g for g in properties["gates"] if g["gate"] == gate)
        if field in entry:
            entry[field] = value
        elif value is None:
            entry["parameters"] = [p for p in entry["parameters"] if p["name"] != field]
        else:
            next(p for p in entry["parameters"] if p["name"] == field)["value"] = value

    return change


def drop_qubit(name: str) -> Any:
    def change(configuration: dict[str, Any], properties: dict[str, Any]) -> None:
        properties["qubits"][3] = [r for r in properties["qubits"][3] if not r["name"].startswith(name)]

    return change


def configure(**entries: Any) -> Any:
    return lambda configuration, properties: configuration.update(entries)


def calibrate(**entries: Any) -> Any:
    return lambda configuration, properties: properties.update(entries)


IMPOSSIBLE = [
    (set_qubit("T1", 0.0), "qubit 3: T1 must be positive"),
    (set_qubit("T2", -5.0), "qubit 3: T2 must be positive"),
    (set_qubit("T2", "long"), "qubit 3: T2 must be a finite number"),
    (set_qubit("T1", 80.0, "fortnights"), "qubit 3: T1 has unit 'fortnights'"),
    (set_qubit("prob_meas0_prep1", 1.2), r"qubit 3: prob_meas0_prep1 must lie in \[0, 1\], not 1.2"),
    (set_qubit("prob_meas1_prep0", -0.01), "qubit 3: prob_meas1_prep0"),
    (set_qubit("readout_error", True), "qubit 3: readout_error must be a finite number"),
    (drop_qubit("readout_error"), None),
    (set_gate("gate_error", 1.5), r"gate cx on .*: gate_error must lie in \[0, 1\], not 1.5"),
    (set_gate("gate_error", None), "gate cx on .*: gate_error is missing"),
    (set_gate("gate_length", -35.0, "sx"), r"gate sx on \[0\]: gate_length must not be negative, not -35.0"),
    (set_gate("gate_length", None, "sx"), r"gate sx on \[0\]: gate_length is missing"),
    (set_gate("qubits", [0, 5]), r"gate cx on \[0, 5\]: qubits must be different numbers from 0 to 4"),
    (set_gate("qubits", [2, 2]), r"gate cx on \[2, 2\]"),
    (set_gate("qubits", [0, 4]), r"gate cx on \[0, 4\]: qubits are not connected"),
    (set_gate("gate", "warp"), "gate 'warp' is neither configured nor one Qiskit knows"),
    (configure(basis_gates=["cx", "id", "rz", "sx", "flip"]), "basis_gates: 'flip'"),
    (configure(basis_gates=["cx", "id", "rz", "sx", "ecr"]), "basis_gates: 'ecr' is missing from properties.gates"),
    (configure(n_qubits=6), "6 qubits are configured but 5 are calibrated"),
    (configure(n_qubits=0), "n_qubits must be a whole number"),
    (configure(n_qubits=None), "n_qubits"),
    (configure(coupling_map=[[0, 7]]), r"coupling_map: \[0, 7\]"),
    (configure(coupling_map=None), "coupling_map is missing"),
    (calibrate(last_update_date="yesterday"), "last_update_date must be an ISO date"),
    (calibrate(qubits=None), "properties.qubits must be a list"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE)
def test_impossible_values_are_refused_at_creation_and_in_files(tmp_path: Path, change: Any, message: str) -> None:
    configuration, properties = documents()
    change(configuration, properties)
    file = Snapshot("x", canonical_json(configuration), canonical_json(properties), {"source": "by hand"}).save(
        tmp_path / "x.json"
    )
    if message is None:  # both single readout probabilities are still there, and are what counts
        assert Device.load(file).readout_error(3) == Device.load("fake_manila").readout_error(3)
        return
    with pytest.raises(InvalidInputError, match=message):
        Snapshot.from_provider(configuration, properties, "test")
    with pytest.raises(DamagedFileError, match=message):
        Device.load(file)


def test_a_qubit_without_any_readout_error_is_refused() -> None:
    configuration, properties = documents()
    drop_qubit("readout_error")(configuration, properties)
    drop_qubit("prob_meas")(configuration, properties)
    with pytest.raises(InvalidInputError, match="qubit 3: readout_error is missing"):
        Snapshot.from_provider(configuration, properties, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_qubit("T2", 9999.0), r"qubit 3: T2 = 9999.0 us is above 2·T1"),
        (drop_qubit("T1"), "qubit 3: T1 is missing"),
    ],
)
def test_what_providers_publish_against_physics_passes_only_as_they_published_it(
    tmp_path: Path, change: Any, message: str
) -> None:
    configuration, properties = documents()
    change(configuration, properties)
    taken = Snapshot.from_provider(configuration, properties, "test")
    assert "qubit 3" in taken.provenance[AS_PUBLISHED]
    assert Device.load(taken.save(tmp_path / "taken.json")).snapshot == taken
    by_hand = dataclasses.replace(taken, provenance={"source": "by hand"}).save(tmp_path / "hand.json")
    with pytest.raises(DamagedFileError, match=message):
        Device.load(by_hand)


def test_files_of_the_first_version_are_read_if_the_fake_provider_is_their_source(tmp_path: Path) -> None:
    """They hold oddities without a list; saved again, they have one."""
    device = Device.load("fake_marrakesh")
    document = json.loads(device.snapshot.to_json())
    del document["provenance"][AS_PUBLISHED]
    (tmp_path / "old.json").write_text(json.dumps({**document, "version": 1}))
    old = Device.load(tmp_path / "old.json")
    assert old == device
    assert Device.load(old.save(tmp_path / "new.json")).provenance == device.provenance
    (tmp_path / "hand.json").write_text(json.dumps({**document, "version": 1, "provenance": {"source": "me"}}))
    with pytest.raises(DamagedFileError, match="qubit 100"):
        Device.load(tmp_path / "hand.json")


def test_an_excuse_covers_its_own_value_only(tmp_path: Path) -> None:
    device = Device.load("fake_marrakesh")
    assert "qubit 100: T2 = 243.0" in device.provenance[AS_PUBLISHED]
    assert Device.load(device.save(tmp_path / "whole.json")) == device
    properties = device.snapshot.properties.replace("243.09061488642658", "299.0")
    assert properties != device.snapshot.properties
    worse = dataclasses.replace(device.snapshot, properties=properties).save(tmp_path / "worse.json")
    with pytest.raises(DamagedFileError, match=r"qubit 100: T2 = 299.0 us is above 2·T1"):
        Device.load(worse)


@pytest.mark.slow
@pytest.mark.skipif(metadata.version("qiskit-ibm-runtime") != "0.51.0", reason="the page counts in version 0.51.0")
def test_how_often_the_fake_provider_publishes_t2_above_2t1() -> None:
    """The figures of docs/calibration.md."""
    devices_of = {name: Device.load(name) for name in fake_backend_names()}
    found = {name: device.provenance.get(AS_PUBLISHED, "") for name, device in devices_of.items()}
    devices = [name for name, text in found.items() if "above 2·T1" in text]
    qubits = sum(text.count("above 2·T1") for text in found.values())
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text()
    total = sum(device.n_qubits or 0 for device in devices_of.values())
    assert f"{qubits} of {total:,} qubits, on {len(devices)} of {len(found)} devices" in " ".join(page.split())
