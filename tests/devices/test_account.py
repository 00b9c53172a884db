"""The user's account without one, and what the client's failures are turned into; no network, no token shown.

The real client against the stand-in service: tests/devices/test_account_live.py.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import qiskit_ibm_runtime
import requests
from qiskit_ibm_runtime.accounts.exceptions import AccountNotFoundError, InvalidAccountError
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import IBMInputValueError, IBMNotAuthorizedError

from qhw_diffusion.devices import Device, connect, has_account
from qhw_diffusion.devices.account import ask, problem
from qhw_diffusion.errors import AccountError, InvalidInputError, ServiceError
from qhw_diffusion.masking import without_tokens

KEY = "QhwSecretKey-0123456789abcdefghijklmnopqr"
SAVED = "SavedSecretKey-zyxwvutsrqponmlk"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJpYXQiOjF9.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder of its own, and nothing of the machine's account."""
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_URL", "QISKIT_IBM_INSTANCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def save(home: Path, text: str) -> None:
    (home / ".qiskit").mkdir()
    (home / ".qiskit" / "qiskit-ibm.json").write_text(text)


def test_without_an_account_the_way_out_is_told_at_once_and_nothing_is_written(home: Path) -> None:
    start = time.monotonic()
    for call in (connect, lambda: Device.load("ibm_marrakesh")):
        with pytest.raises(AccountError, match="no IBM Quantum account") as caught:
            call()  # type: ignore[operator]
        for words in ("save_account", "QISKIT_IBM_TOKEN", "qhw devices", "qhw standin"):
            assert words in str(caught.value)
        assert caught.value.exit_code == 4
    assert time.monotonic() - start < 1.0
    assert list(home.iterdir()) == []


def test_no_client_is_loaded_to_see_that_there_is_no_account() -> None:
    code = "import sys; from qhw_diffusion.devices import has_account; assert not has_account(); "
    code += "sys.exit('qiskit_ibm_runtime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_accounts_are_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_account()
    save(home, "{}")
    assert not has_account()
    (home / ".qiskit" / "qiskit-ibm.json").write_text(json.dumps({"default-ibm-quantum-platform": {"token": SAVED}}))
    assert has_account()
    (home / ".qiskit" / "qiskit-ibm.json").unlink()
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    assert has_account()


def test_a_damaged_account_file_is_said_to_be_one(home: Path) -> None:
    save(home, '{"default-ibm-quantum-platform": {"tok')
    with pytest.raises(AccountError, match=r"qiskit-ibm\.json, is damaged.*save_account"):
        connect()


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def answer(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for the key {KEY}", response=response)


REFUSED = "Unable to retrieve IBM Cloud access token. API Key will be used instead. Error: no, Status code: 400"
GAVE_UP = requests.exceptions.RetryError("too many 502 error responses")
SILENT = "Unable to retrieve IBM Cloud access token. API Key will be used instead. HTTPConnectionPool(…)"


@pytest.mark.parametrize(("error", "warned", "kind", "words"), [
    (AccountNotFoundError("Unable to find account"), [], AccountError, "no IBM Quantum account"),
    (IBMNotAuthorizedError(f"401 Client Error: bad key {KEY}"), [], AccountError, "wrong, expired or disabled"),
    (RequestsApiError(f"401 {KEY}", 401), [], AccountError, "wrong, expired or disabled"),
    (RequestsApiError("403 Forbidden", 403), [], AccountError, "instance and plan"),
    (RequestsApiError("404", 404), [], AccountError, "may be retired"),
    (RequestsApiError("429 Too many", 429), [], ServiceError, "too many requests"),
    (RequestsApiError("500", 500), [], ServiceError, r"fails \(500\)"),
    (chained(RequestsApiError("maintenance"), answer(503)), [], ServiceError, r"fails \(503\)"),
    (chained(RequestsApiError("x"), GAVE_UP), [], ServiceError, r"\(502\)"),
    (RequestsApiError("Connection refused", -1), [], ServiceError, "cannot be reached"),
    (requests.ConnectionError("no route"), [], ServiceError, "cannot be reached"),
    (IBMNotAuthorizedError("401"), [REFUSED], AccountError, "wrong, expired or disabled"),
    (IBMNotAuthorizedError("401"), [SILENT], ServiceError, "identity service cannot be reached"),
    (chained(InvalidAccountError("Unable to retrieve instances"), answer(400)), [], AccountError, "save_account"),
    (IBMInputValueError(f"no access to the instance, token {KEY}"), [], AccountError, "no access to the instance"),
    (RuntimeError(f"what is this, {KEY}"), [], ServiceError, "RuntimeError: what is this, .token hidden."),
    (InvalidInputError("our own"), [], InvalidInputError, "^our own$"),
])  # fmt: skip
def test_failures_of_the_client_become_errors_that_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception, warned: list[str], kind: type[Exception], words: str
) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    found = problem(error, "the list of devices", warned=warned)
    assert type(found) is kind
    assert KEY not in str(found)
    with pytest.raises(kind, match=words):
        raise found


def test_tokens_are_masked_wherever_they_come_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    save(home, json.dumps({"mine": {"token": SAVED, "proxies": {"password_ntlm": "ntlm-password"}}}))
    text = f"{KEY} and {SAVED}; ntlm-password; Authorization: Bearer {JWT}; apikey=someone-elses-key; Bearer abc.def"
    masked = without_tokens(text)
    for secret in (KEY, SAVED, "ntlm-password", JWT, "someone-elses-key", "abc.def"):
        assert secret not in masked
    assert "Authorization:" in masked
    assert without_tokens("bearer of good news") != ""
    assert without_tokens("job d1k2 of ibm_x failed: 500") == "job d1k2 of ibm_x failed: 500"


class Broken:
    """A client that shows the key in its log, a warning and its error."""

    def __init__(self, **_: Any) -> None:
        logger = logging.getLogger("qiskit_ibm_runtime.made_only_now")
        logger.error("request with %s failed", {"Authorization": f"apikey {KEY}"})
        try:
            raise ValueError(f"inner {KEY}")
        except ValueError:
            logger.exception("went wrong with %s", KEY)
        raise IBMNotAuthorizedError(f"401: key {KEY} is unknown")


def test_neither_log_nor_message_nor_traceback_shows_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    import traceback

    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    monkeypatch.setattr(qiskit_ibm_runtime, "QiskitRuntimeService", Broken)
    closed = logging.StreamHandler(io.StringIO())  # the client has one of its own; what fails there is told, masked
    closed.stream.close()
    client = logging.getLogger("qiskit_ibm_runtime")
    monkeypatch.setattr(client, "handlers", [*client.handlers, closed])
    with caplog.at_level(logging.DEBUG), pytest.raises(AccountError, match="credentials are refused") as caught:
        connect()
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capsys.readouterr())
    assert KEY not in shown
    assert shown.count("--- Logging error ---") >= 2
    assert "went wrong with (token hidden)" in caplog.text
    assert "inner (token hidden)" in caplog.text


def test_waiting_has_an_end() -> None:
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"status of ibm_x: no answer within 0\.1 s"):
        ask("status of ibm_x", lambda: time.sleep(1.0), patience=0.1)
    assert time.monotonic() - start < 0.9
    assert ask("a number", lambda: 3) == 3
