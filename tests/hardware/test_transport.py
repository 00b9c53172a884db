"""Which requests are repeated, and what is known of a job afterwards: against a server on a socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate

import pytest
import requests

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.transport import Transport, retry_after
from qhw_diffusion.hardware.wait import Times

TIMES = Times(connect=1.0, read=0.15, accept=0.15, attempts=3, backoff=0.001, backoff_most=0.002, retry_after_most=5.0)


class Server:
    """Answers each connection with the next of `replies`: bytes, "drop", "slow" (0.3 s), or "stall"."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.replies: list[bytes | str] = []
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        held = []
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.requests.append(connection.recv(65536).decode().split(" HTTP")[0])
            reply = self.replies.pop(0) if self.replies else answer(200)
            if reply == "stall":
                held.append(connection)
                continue
            if reply == "slow":
                time.sleep(0.3)
                reply = answer(200)
            if isinstance(reply, bytes):
                connection.sendall(reply)
            connection.close()


def answer(status: int, body: str = "{}", header: str = "", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{header}\r\n{body}".encode()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.socket.close()


def session() -> tuple[requests.Session, Transport, list[float]]:
    pauses: list[float] = []
    transport = Transport(TIMES, pauses.append)
    made = requests.Session()
    made.mount("http://", transport)
    return made, transport, pauses


CUT_OFF = answer(200, '{"a": 1', length=50)


@pytest.mark.parametrize(
    "trouble",
    [answer(500), answer(503), answer(429), answer(408), "drop", "stall", CUT_OFF],
    ids=["500", "503", "429", "408", "drop", "stall", "cut off"],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/jobs/1"), ("POST", "/jobs/1/cancel"), ("POST", "/sessions")])
def test_what_is_safe_to_repeat_is_repeated(server: Server, method: str, path: str, trouble: bytes | str) -> None:
    made, transport, pauses = session()
    server.replies = [trouble, trouble, answer(200, '{"a": 1}')]
    assert made.request(method, server.url + path).json() == {"a": 1}
    assert (len(server.requests), len(pauses), transport.posted) == (3, 2, None)


@pytest.mark.parametrize(
    "trouble",
    ["drop", "stall", CUT_OFF, answer(500), answer(503), answer(408)],
    ids=["drop", "stall", "cut off", "500", "503", "408"],
)
def test_a_job_is_sent_once_when_it_may_have_been_accepted(server: Server, trouble: bytes | str) -> None:
    made, transport, _ = session()
    server.replies = [trouble]
    try:
        status: int | str = made.post(server.url + "/jobs", data="{}").status_code
    except requests.RequestException:
        status = "lost"
    assert transport.posted == status != 200
    assert server.requests == ["POST /jobs"]


def test_a_job_is_repeated_after_too_many_requests(server: Server) -> None:
    made, transport, pauses = session()
    server.replies = [answer(429, header="Retry-After: 2\r\n"), answer(429)]
    assert made.post(server.url + "/jobs").status_code == 200
    assert (len(server.requests), transport.posted) == (3, 200)
    assert pauses[0] == 2.0
    assert pauses[1] < 0.01


def test_a_job_is_repeated_when_no_connection_was_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    made, transport, pauses = session()
    with pytest.raises(requests.ConnectionError):
        made.post(f"http://127.0.0.1:{port}/jobs")
    assert (transport.posted, len(pauses)) == ("refused", 2)


def test_a_long_retry_after_and_the_last_attempt_are_handed_on(server: Server) -> None:
    made, _, pauses = session()
    server.replies = [answer(429, header="Retry-After: 3600\r\n")]
    assert made.get(server.url).status_code == 429
    assert pauses == []
    server.replies = [answer(500)] * 3
    assert made.get(server.url).status_code == 500
    assert len(server.requests) == 4


def test_a_silent_server_does_not_hold_us(server: Server) -> None:
    made, _, _ = session()
    server.replies = ["stall"] * 3
    started = time.monotonic()
    with pytest.raises(requests.RequestException):
        made.get(server.url, timeout=900)  # the client asks for this
    assert time.monotonic() - started < 3


def test_a_job_may_take_longer_to_be_accepted(server: Server) -> None:
    made, transport, _ = session()
    transport.times = replace(TIMES, accept=5.0)
    server.replies = ["slow"]
    assert made.post(server.url + "/jobs").status_code == 200
    assert (server.requests, transport.posted) == (["POST /jobs"], 200)


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("-1") == 0
    assert 50 < (retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    assert retry_after("soon") is retry_after(None) is None


def test_times_are_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"Times.attempts is 0; allowed: numbers from 1"):
        Times(attempts=0)
    with pytest.raises(InvalidInputError, match=r"Times.read is nan"):
        Times(read=float("nan"))
