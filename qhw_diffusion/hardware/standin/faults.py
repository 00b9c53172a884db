"""What can go wrong between a client and the service, to be injected into the stand-in, one endpoint at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qhw_diffusion.errors import InvalidInputError, UnknownNameError

# name → (method, path pattern), in the order they are matched; `{}` stands for one part of a path
ENDPOINTS: dict[str, tuple[str, str]] = {
    "token": ("POST", "/identity/token"),
    "backends": ("GET", "/backends"),
    "configuration": ("GET", "/backends/{}/configuration"),
    "properties": ("GET", "/backends/{}/properties"),
    "status": ("GET", "/backends/{}/status"),
    "usage": ("GET", "/instances/usage"),
    "jobs_post": ("POST", "/jobs"),
    "jobs_get": ("GET", "/jobs"),
    "job_get": ("GET", "/jobs/{}"),
    "results": ("GET", "/jobs/{}/results"),
    "metrics": ("GET", "/jobs/{}/metrics"),
    "logs": ("GET", "/jobs/{}/logs"),
    "cancel": ("POST", "/jobs/{}/cancel"),
    "tags": ("PUT", "/jobs/{}/tags"),
    "sessions_post": ("POST", "/sessions"),
    "session_get": ("GET", "/sessions/{}"),
    "session_patch": ("PATCH", "/sessions/{}"),
    "session_close": ("DELETE", "/sessions/{}/close"),
}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong; see the subclasses."""


@dataclass(frozen=True)
class Status(Fault):
    """The request is not carried out and answered with this HTTP status; `code` is the service's own error code."""

    status: int
    retry_after: float | None = None
    code: int = 0
    message: str = "injected by the stand-in"


@dataclass(frozen=True)
class Drop(Fault):
    """The connection closes without a reply; the request is not carried out."""


@dataclass(frozen=True)
class LostReply(Fault):
    """The request is carried out, then the connection closes without a reply."""


@dataclass(frozen=True)
class Stall(Fault):
    """The request is carried out, and the reply waits this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Truncate(Fault):
    """The reply's body is cut in half: with a length that says so, or (abrupt) the connection breaks in the middle."""

    abrupt: bool = False


@dataclass(frozen=True)
class Body(Fault):
    """The request is carried out, and answered with this text instead."""

    text: str


@dataclass(frozen=True)
class FailJob(Fault):
    """On ``jobs_post``: the job is accepted and fails, charged with `seconds`."""

    reason: str = "the control system failed"
    code: int = 1517
    seconds: float = 0.0


@dataclass(frozen=True)
class CancelJob(Fault):
    """On ``jobs_post``: the job is accepted, then cancelled by the service."""


@dataclass(frozen=True)
class Delay(Fault):
    """On ``jobs_post``: the job is accepted and waits this long in the queue."""

    seconds: float


@dataclass(frozen=True)
class ExpireSession(Fault):
    """On ``jobs_post``: the job's session or batch is closed, and the job refused (400, code 1217)."""


@dataclass(frozen=True)
class UsageLimit(Fault):
    """On ``jobs_post``: the account has no time left; the job is refused (403)."""


_POST_ONLY = (FailJob, CancelJob, Delay, ExpireSession, UsageLimit)


@dataclass
class Planned:
    """A fault that is due on the next requests of one endpoint: `after` are let through, then `times` are hit."""

    fault: Fault
    times: int = 1
    after: int = 0


@dataclass
class RandomFaults:
    """Each request of the endpoints is hit with probability `rate`, by a fault drawn from `kinds`.

    Args:
        seed: of the draws. Each endpoint has its own, so that how often a client polls changes nothing for its jobs.
        rate: probability, 0 to 1.
        kinds: {endpoint: faults to draw from}; None: replies lost, connections dropped, 429, 500, 503 and truncation
            wherever they can happen, and failing jobs nowhere.
    """

    seed: int = 0
    rate: float = 0.1
    kinds: dict[str, Sequence[Fault]] | None = None
    generators: dict[str, np.random.Generator] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise InvalidInputError(f"rate is {self.rate!r}; allowed: 0 to 1")
        if self.kinds is None:
            troubles = [Status(500), Status(503), Status(429, retry_after=0.02), Drop(), LostReply()]
            self.kinds = {
                "jobs_post": troubles,
                "jobs_get": troubles,
                "job_get": troubles,
                "results": [*troubles, Truncate(), Truncate(abrupt=True)],
                "metrics": troubles,
                "usage": troubles,
            }
        for endpoint, kinds in self.kinds.items():
            for fault in kinds:
                check_endpoint(endpoint, fault)
        self.generators = {
            endpoint: np.random.default_rng([self.seed, list(ENDPOINTS).index(endpoint)]) for endpoint in self.kinds
        }

    def draw(self, endpoint: str) -> Fault | None:
        """The fault that hits this request, or None."""
        assert self.kinds is not None
        choices = self.kinds.get(endpoint)
        if not choices or self.generators[endpoint].random() >= self.rate:
            return None
        return choices[int(self.generators[endpoint].integers(len(choices)))]


def check_endpoint(name: str, fault: Fault | None = None) -> None:
    """Raise UnknownNameError for an unknown endpoint, InvalidInputError for a fault that cannot happen there."""
    if name not in ENDPOINTS:
        raise UnknownNameError.of("endpoint", name, ENDPOINTS)
    if isinstance(fault, _POST_ONLY) and name != "jobs_post":
        raise InvalidInputError(f"{type(fault).__name__} happens on 'jobs_post' only, not on {name!r}")


def endpoint_of(method: str, path: str) -> tuple[str, str] | None:
    """(name of the endpoint, the `{}` part of the path) of a request; None for one that the stand-in does not have."""
    parts = path.strip("/").split("/")
    for name, (wanted, pattern) in ENDPOINTS.items():
        expected = pattern.strip("/").split("/")
        if wanted == method and len(expected) == len(parts):
            pairs = list(zip(expected, parts, strict=True))
            if all(e in ("{}", p) for e, p in pairs):
                return name, next((p for e, p in pairs if e == "{}"), "")
    return None
