"""Live devices through a stand-in for IBM's client: no network, no account."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import qiskit_ibm_runtime
from qiskit.providers.exceptions import QiskitBackendNotFoundError
from qiskit_ibm_runtime.fake_provider import FakeManilaV2, FakeMarrakesh

from qhw_diffusion.devices import Device, backend_snapshot, take_snapshot
from qhw_diffusion.devices.validate import AS_PUBLISHED
from qhw_diffusion.errors import AccountError, InvalidInputError, MissingDataError, ServiceError, UnknownNameError


class Service:
    """Hands out fake backends' own documents under a live name."""

    def __init__(self, **_: Any) -> None: ...

    def usage(self) -> dict[str, Any]:
        return {}

    def backend(self, name: str) -> Any:
        if name != "ibm_marrakesh":
            raise QiskitBackendNotFoundError(f"no backend matches; token=secret-{name}")
        return FakeMarrakesh()

    def backends(self, simulator: bool) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("ibm_torino", "ibm_marrakesh")]


class NoAccount:
    def __init__(self, **_: Any) -> None:
        raise RuntimeError("Unable to find account; you gave the token abc123-of-mine")


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("QISKIT_IBM_TOKEN", "abc123-of-mine")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "name"), [(FakeMarrakesh, "fake_marrakesh"), (FakeManilaV2, "fake_manila")])
def test_a_backends_documents_give_the_same_device(tmp_path: Path, backend: Any, name: str) -> None:
    """The client turns dates, complex numbers and dt into objects; the snapshot has to undo that."""
    live, known = Device(backend_snapshot(backend())), Device.load(name)
    assert live.snapshot.properties == known.snapshot.properties
    assert live.target is not None
    assert known.target is not None
    assert set(live.target.operation_names) == set(known.target.operation_names)
    assert live.target.dt == known.target.dt
    assert live.coupling_map == known.coupling_map
    assert live.noise_model([0, 1, 2]) == known.noise_model([0, 1, 2])
    assert live.date == known.date
    assert live.provenance.get(AS_PUBLISHED) == known.provenance.get(AS_PUBLISHED)
    again = Device.load(live.save(tmp_path / "live.json.gz"))
    assert again == live
    assert again.noise_model([0, 1]) == known.noise_model([0, 1])


@pytest.mark.slow
def test_a_live_snapshot_lands_in_a_dated_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", Service)
    monkeypatch.chdir(tmp_path)
    path = take_snapshot("ibm_marrakesh")
    assert str(path) == "fake_marrakesh-2025-02-26.json.gz"  # the stand-in calls itself so
    assert Device.load(path).provenance["source"].startswith("qiskit_ibm_runtime.FakeMarrakesh, read 20")
    with pytest.raises(InvalidInputError, match="--overwrite"):
        take_snapshot("ibm_marrakesh")
    assert take_snapshot("ibm_marrakesh", overwrite=True) == path


@pytest.mark.parametrize(("service", "name", "words"), [
    (NoAccount, "ibm_marrakesh", "RuntimeError: Unable to find account"),
    (Service, "ibm_marakesh", "It has: ibm_marrakesh, ibm_torino; did you mean ibm_marrakesh"),
])  # fmt: skip
def test_failures_say_what_to_do_and_show_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Any, name: str, words: str
) -> None:
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", service)
    with pytest.raises((AccountError, ServiceError), match=words) as caught:
        take_snapshot(name, tmp_path / "x.json.gz")
    assert "abc123" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_impossible_values_of_a_live_device_are_refused() -> None:
    backend = FakeManilaV2()
    properties = backend.properties().to_dict()
    properties["qubits"][2][0]["value"] = -1.0
    broken = SimpleNamespace(
        name="broken",
        configuration=backend.configuration,
        properties=lambda: SimpleNamespace(to_dict=lambda: properties),
    )
    with pytest.raises(InvalidInputError, match=r"calibration of fake_manila: qubit 2: T1 must be positive, not -1\.0"):
        backend_snapshot(broken)


def test_what_has_no_calibration_has_no_snapshot() -> None:
    class Simulator:
        name = "ibm_simulator"

        def properties(self) -> None:
            return None

    with pytest.raises(MissingDataError, match="ibm_simulator publishes no calibration"):
        backend_snapshot(Simulator())


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean fake_manila"):
        take_snapshot("fake_manla", tmp_path / "x.json.gz")
    with pytest.raises(InvalidInputError, match="ideal"):
        take_snapshot("ideal", tmp_path / "x.json.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        take_snapshot("fake_manila", tmp_path / "file" / "x.json.gz")
