"""Snapshots: what is written is what is read; anything else is refused with a reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from qhw_diffusion.devices import Device, Snapshot
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError


@pytest.mark.slow
@pytest.mark.parametrize("file", ["device.json.gz", "deeper/device.json"])
@pytest.mark.parametrize("name", ["fake_manila", "fake_brisbane"])
def test_round_trip_gives_an_equal_device_with_equal_noise(tmp_path: Path, name: str, file: str) -> None:
    device = Device.load(name)
    path = device.save(tmp_path / file)
    again = Device.load(str(path))
    assert again == device
    assert again.provenance == device.provenance
    assert again.noise_model([1, 2]) == device.noise_model([1, 2])
    assert [again.readout_error(q) for q in range(5)] == [device.readout_error(q) for q in range(5)]
    for place in [(0,), (3,)]:
        ours, theirs = again.gate_error("sx", place), device.gate_error("sx", place)
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.data, theirs.data)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file left


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    device = Device.load("fake_manila")
    assert device.save(tmp_path / "a.json.gz").read_bytes() == device.save(tmp_path / "b.json.gz").read_bytes()


def test_the_ideal_device_round_trips(tmp_path: Path) -> None:
    assert Device.load(Device.load("ideal").save(tmp_path / "i.json")) == Device.load("ideal")


def write(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    return path


def edited(change: dict[str, object]) -> bytes:
    return json.dumps({**json.loads(Device.load("fake_manila").snapshot.to_json()), **change}).encode()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="does not exist"):
        Device.load(tmp_path / "nothing.json.gz")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.json\.gz"):
        Device.load("fake_manila").save(tmp_path / "device.pkl")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "readable"),
        (b"\x1f\x8b garbage", "readable"),
        (b"\x80\x04\x95 a pickle", "readable"),
        (b'{"a": 1}', "not a device snapshot"),
        (b"[1, 2]", "not a device snapshot"),
        (b'{"format": "qhw-device-snapshot", "version": 1}', "damaged"),
        (b'{"format": "qhw-device-snapshot", "version": 99}', "format version 99"),
    ],
)
def test_foreign_and_damaged_files(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(DamagedFileError, match=reason):
        Device.load(write(tmp_path / "x.json.gz", data))


def test_truncated_and_edited_files(tmp_path: Path) -> None:
    whole = Device.load("fake_manila").save(tmp_path / "whole.json.gz").read_bytes()
    for cut in (len(whole) // 2, len(whole) - 3):
        with pytest.raises(DamagedFileError):
            Device.load(write(tmp_path / "cut.json.gz", whole[:cut]))
    text = gzip.decompress(whole)
    assert b"0.0702" in text
    with pytest.raises(DamagedFileError, match="changed"):
        Device.load(write(tmp_path / "edited.json", text.replace(b"0.0702", b"0.0102")))
    with pytest.raises(DamagedFileError, match="changed"):
        Device.load(write(tmp_path / "renamed.json", edited({"name": "fake_torino"})))


def test_a_well_formed_snapshot_of_something_else(tmp_path: Path) -> None:
    for configuration, properties in [("{}", "{}"), ('{"n_qubits":3}', '{"qubits":[]}'), ("[]", "[]")]:
        path = Snapshot("odd", configuration, properties, {"source": "test"}).save(tmp_path / "odd.json")
        with pytest.raises(DamagedFileError):
            Device.load(path)
