"""Rows, medians, drift, tables and pictures of calibrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit_ibm_runtime.fake_provider import FakeBrisbane

from qhw_diffusion.devices import (
    Calibration,
    Device,
    Drift,
    Snapshot,
    calibration_text,
    draw_calibration,
    drift_text,
    parse_qubits,
)
from qhw_diffusion.devices.pictures import qubit_places
from qhw_diffusion.devices.snapshot import canonical_json
from qhw_diffusion.errors import InvalidInputError


def changed(device: Device, change: Any) -> Device:
    configuration, properties = json.loads(device.snapshot.configuration), json.loads(device.snapshot.properties)
    change(properties)
    return Device(Snapshot(device.name, canonical_json(configuration), canonical_json(properties), device.provenance))


def test_rows_and_medians_are_the_providers() -> None:
    backend = FakeBrisbane()
    properties = backend.properties()
    calibration = Calibration.of(Device.load("fake_brisbane"))
    for qubit in (0, 17, 126):
        row = calibration.qubits[qubit]
        assert row.t1 == pytest.approx(properties.t1(qubit), rel=1e-12)
        assert row.t2 == pytest.approx(properties.t2(qubit), rel=1e-12)
        assert row.p10 == properties.qubit_property(qubit, "prob_meas1_prep0")[0]
        assert row.p01 == properties.qubit_property(qubit, "prob_meas0_prep1")[0]
        assert row.gate_error == properties.gate_error("sx", qubit)
    assert len(calibration.couplings) == 144
    for row in calibration.couplings[::20]:
        place = row.pair if row.pair in backend.target["ecr"] else row.pair[::-1]
        assert (row.error, row.duration) == (backend.target["ecr"][place].error, backend.target["ecr"][place].duration)
    errors = [p.error for p in backend.target["ecr"].values() if p.error < 1]
    assert calibration.medians()["gate_2q"] == pytest.approx(float(np.median(errors)))
    assert sum(not row.in_use for row in calibration.couplings) == 1
    assert calibration.processor == "Eagle r3"


def test_accessors() -> None:
    device = Device.load("fake_manila")
    assert device.basis_gates == ["cx", "id", "rz", "sx", "x"]
    assert device.coupling_map == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3)]
    assert device.date == "2024-05-27T15:27:23-03:00"
    assert device.coordinates == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2)]
    ideal = Device.load("ideal")
    assert (ideal.basis_gates, ideal.coupling_map, ideal.date, ideal.coordinates) == ([], [], None, None)
    assert ideal.relaxation_times(3) == (None, None)
    with pytest.raises(InvalidInputError, match="0 to 4"):
        device.relaxation_times(5)


def test_text_says_what_a_physicist_looks_for() -> None:
    text = calibration_text(Calibration.of(Device.load("fake_marrakesh")), [2, 3, 4, 16])
    assert "fake_marrakesh (Heron r2), 156 qubits" in text
    assert "2025-02-26T14:52:45-05:00" in text
    assert "qubit 100: T2 = 243.09" in text
    assert " 3  344.8  301.5  0.0020  0.0181  1.00e-04" in text
    assert [line.split()[0] for line in text.splitlines() if " cz " in line] == ["2-3", "3-4", "3-16"]
    assert "13 of 176 two-qubit gates of the device are out of use" in text
    assert "out of use" in calibration_text(Calibration.of(Device.load("fake_marrakesh")), [23, 24])
    # a device with a qubit without times, one without couplings, one of the first generation
    for name in ("fake_kingston", "fake_armonk", "fake_cambridge"):
        assert name in calibration_text(Calibration.of(Device.load(name)))


def test_the_ideal_device_has_no_calibration() -> None:
    with pytest.raises(InvalidInputError, match="ideal device has no calibration"):
        Calibration.of(Device.load("ideal"))


def test_drift_finds_what_was_changed_and_nothing_else() -> None:
    before = Device.load("fake_manila")

    def change(properties: Any) -> None:
        properties["qubits"][3][0]["value"] /= 4  # T1
        for gate in properties["gates"]:
            if gate["gate"] == "cx" and set(gate["qubits"]) == {1, 2}:
                gate["parameters"][0]["value"] *= 2

    drift = Drift.between(before, changed(before, change))
    assert [(c.where, c.quantity) for c in drift.changes()] == [("qubit 3", "t1"), ("cx 1-2", "gate_2q")]
    assert [c.factor for c in drift.changes()] == pytest.approx([0.25, 2.0])
    text = drift_text(drift, top=1)
    assert "qubit 3" in text
    assert "cx 1-2" not in text
    assert "1 of 2 values" in text
    assert Drift.between(before, before).changes() == []
    assert "no qubit and no gate changed" in drift_text(Drift.between(before, before))


def test_drift_of_different_topologies_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="fake_manila has 5 qubits, fake_torino has 133"):
        Drift.between(Device.load("fake_manila"), Device.load("fake_torino"))
    with pytest.raises(InvalidInputError, match=r"fake_manila of 2024.* has cx on 2-3, fake_lima"):
        Drift.between(Device.load("fake_manila"), Device.load("fake_lima"))


@pytest.mark.parametrize(("text", "qubits"), [("0-3", [0, 1, 2, 3]), ("4, 0-1", [0, 1, 4]), ("2", [2]), ("1-1,1", [1])])
def test_qubit_lists(text: str, qubits: list[int]) -> None:
    assert parse_qubits(text, Device.load("fake_manila")) == qubits


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-5", "-1", "1;2"])
def test_bad_qubit_lists(text: str) -> None:
    with pytest.raises(InvalidInputError, match="qubits"):
        parse_qubits(text, Device.load("fake_manila"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ending"),
    [("fake_manila", "svg"), ("fake_armonk", "png"), ("fake_yorktown", "png"), ("fake_kingston", "png")],
)
def test_pictures_are_drawn(tmp_path: Path, name: str, ending: str) -> None:
    device = Device.load(name)
    path = draw_calibration(Calibration.of(device), tmp_path / f"map.{ending}")
    start = path.read_bytes()[:400]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<svg" in start or b"<?xml" in start
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_every_qubit_has_its_place() -> None:
    """Where the provider gives none, connected qubits are drawn next to each other and none on top of another."""
    for name in ("fake_melbourne", "fake_yorktown", "fake_marrakesh"):
        device = Device.load(name)
        places = qubit_places(device)
        assert places.shape == (device.n_qubits, 2)
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        assert apart[~np.eye(len(places), dtype=bool)].min() > 0.4
        assert max(apart[a, b] for a, b in device.coupling_map) < 3
    assert Device.load("fake_melbourne").coordinates is None


def test_bad_picture_names(tmp_path: Path) -> None:
    calibration = Calibration.of(Device.load("fake_manila"))
    with pytest.raises(InvalidInputError, match=r"\.png, \.svg, \.pdf"):
        draw_calibration(calibration, tmp_path / "map.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        draw_calibration(calibration, tmp_path / "file" / "map.png")
