"""HTTP under the client of IBM's service: read time-outs, and repeats only of requests that are safe to repeat.

The client's own HTTP adapter has no read time-out, sends a job again after a 5xx answer, and gives up at once on a 429
answer to a job. `Transport` is mounted in its place (`requests.Session.mount`).
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from qhw_diffusion.hardware.wait import Times

_BUSY = 429
_TEMPORARY = frozenset({408, 425, _BUSY, 500, 502, 503, 504, 520, 521, 522, 524})


class Transport(HTTPAdapter):
    """One adapter for all sessions of a client.

    Reading requests, closing a session and asking for a cancellation are repeated after a temporary status (429 with
    or without Retry-After, 5xx), a lost or cut-off reply, or a time-out. So is opening a batch or session: one that
    gets no job costs nothing. A job (POST …/jobs) is repeated only where it was certainly not accepted: after a 429
    answer, or when no connection could be opened. Its last outcome is kept in `posted`.

    Args:
        times: time-outs, attempts, pauses.
        sleep: waits for so many seconds; tests replace it.

    Attributes:
        posted: of the last job sent: None before the request left, an HTTP status, or ``"refused"`` (no connection) or
            ``"lost"`` (no reply).
    """

    def __init__(self, times: Times, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(max_retries=0)
        self.times = times
        self.posted: int | str | None = None
        self._sleep = sleep
        self._random = random.Random()  # jitter must differ between processes

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request, and repeat it where that is safe (see the class).

        Args:
            request: the prepared request.
            stream: whether the body is left to be read later.
            timeout: not used: `Times.connect`, `Times.read` and `Times.accept` count, in seconds.
            verify: as in `requests.Session.send`.
            cert: as in `requests.Session.send`.
            proxies: as in `requests.Session.send`.

        Returns:
            The last response, whatever its status.

        Raises:
            requests.RequestException: no response within the attempts; a job whose reply was lost is not repeated.
        """
        job = request.method == "POST" and urlsplit(request.url or "").path.rstrip("/").endswith("/jobs")
        patience = self.times.accept if job else self.times.read
        for attempt in range(1, self.times.attempts + 1):
            last = attempt == self.times.attempts
            try:
                response = super().send(request, stream, (self.times.connect, patience), verify, cert, proxies)
                if not stream:
                    response.content  # noqa: B018 (a reply cut off, or never ending, shows here)
            except requests.RequestException as error:
                unsent = _never_sent(error)
                if job:
                    self.posted = "refused" if unsent else "lost"
                if last or (job and not unsent):
                    raise
                self._pause(attempt)
                continue
            if job:
                self.posted = response.status_code
            if last or response.status_code not in (frozenset({_BUSY}) if job else _TEMPORARY):
                return response
            asked = retry_after(response.headers.get("Retry-After"))
            if asked is not None and asked > self.times.retry_after_most:
                return response
            self._pause(attempt, asked)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int, asked: float | None = None) -> None:
        backoff = min(self.times.backoff * 2 ** (attempt - 1), self.times.backoff_most)
        self._sleep(max(asked or 0.0, backoff * self._random.uniform(0.5, 1.5)))


def _never_sent(error: requests.RequestException) -> bool:
    """Whether no connection was opened, so that the service has seen nothing."""
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else None
    return isinstance(error, requests.ConnectionError) and isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None if it says nothing."""
    if not header:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
