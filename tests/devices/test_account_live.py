"""The real client against the stand-in service: live devices, and what goes wrong with an account."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from qhw_diffusion.devices import Calibration, Device, connect, live_backend, live_backends, take_snapshot
from qhw_diffusion.errors import AccountError, ServiceError
from qhw_diffusion.hardware.standin import TOKEN, Stall, StandIn, Status

KEY = "QhwWrongKey-0123456789abcdefghijklmnopqr"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A service with one device, and an account for it in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with StandIn("fake_manila") as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.mark.slow
def test_a_live_device_is_the_one_that_is_served(standin: StandIn, tmp_path: Path) -> None:
    live, served = Device.load("ibm_standin"), Device.load("fake_manila")
    assert live.name == "ibm_standin"
    assert Calibration.of(live).medians() == Calibration.of(served).medians()
    assert live.noise_model([0, 1, 2]) == served.noise_model([0, 1, 2])
    assert live.target is not None
    assert live.provenance["source"].startswith("qiskit_ibm_runtime.IBMBackend, read 20")
    path = take_snapshot("ibm_standin", tmp_path / "today.json.gz")
    assert Device.load(path) == live
    assert standin.requests["jobs_post"] == 0
    assert TOKEN.encode() not in path.read_bytes()


def test_a_wrong_key(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    start = time.monotonic()
    with pytest.raises(AccountError, match=r"wrong, expired or disabled.*save_account") as caught:
        Device.load("ibm_standin")
    assert time.monotonic() - start < 10.0
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_an_expired_token(standin: StandIn) -> None:
    standin.expired_tokens = True
    with pytest.raises(AccountError, match="wrong, expired or disabled"):
        connect()


def test_credentials_that_expire_after_the_connection(standin: StandIn) -> None:
    service = connect()
    standin.expired_tokens = True
    with pytest.raises(AccountError, match="list of devices: the credentials are refused"):
        live_backends(service)
    with pytest.raises(AccountError, match="credentials are refused"):
        live_backend("ibm_standin", service)


def test_a_mistyped_device_lists_those_of_the_account(standin: StandIn) -> None:
    with pytest.raises(AccountError, match=r"'ibm_standing'.*It has: ibm_standin; did you mean ibm_standin\?"):
        Device.load("ibm_standing")


def test_a_retired_device(standin: StandIn) -> None:
    """The service still lists it, and has no configuration of it any more."""
    standin.inject("configuration", Status(404), times=9)
    with pytest.raises(AccountError, match="'ibm_standin': mistyped, retired, or of another instance"):
        Device.load("ibm_standin")


@pytest.mark.parametrize(("endpoint", "fault", "kind", "words"), [
    ("usage", Status(403), AccountError, "instance and plan"),
    ("usage", Status(429, retry_after=None), ServiceError, "too many requests"),
    ("token", Status(500), ServiceError, "identity service cannot be reached"),
    ("properties", Status(404), AccountError, "calibration of ibm_standin: not known"),
])  # fmt: skip
def test_refusals_are_told_apart(
    standin: StandIn, endpoint: str, fault: Status, kind: type[Exception], words: str
) -> None:
    standin.inject(endpoint, fault, times=9)
    start = time.monotonic()
    with pytest.raises(kind, match=words):
        Device.load("ibm_standin")
    assert time.monotonic() - start < 10.0


def test_a_service_that_never_answers(standin: StandIn) -> None:
    """The client has no read time-out of its own."""
    standin.inject("usage", Stall(2.0))
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.5 s"):
        connect(patience=0.5)
    assert time.monotonic() - start < 1.5


def test_nobody_listens(standin: StandIn) -> None:
    standin.stop()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"cannot be reached\. Check the network"):
        connect()
    assert time.monotonic() - start < 15.0


def test_no_log_line_shows_the_key_or_the_access_token(
    standin: StandIn, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything logs at its lowest level, and the service repeats the key in an answer that the client logs."""
    standin.inject("configuration", Status(404, message=f"key {TOKEN} may not see this"), after=1)
    for handler in logging.getLogger("qiskit_ibm_runtime").handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr  # its own is that of the test which imported the client, and closed
    with caplog.at_level(logging.DEBUG):
        loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.DEBUG)
            Device.load("ibm_standin")
            with pytest.raises(AccountError):
                Device.load("ibm_standin")
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
    shown = caplog.text + "".join(capfd.readouterr())
    assert "may not see this" in shown
    assert TOKEN not in shown
    assert "eyJ" not in shown  # how every JSON web token begins
