"""The HTTP side of the stand-in: requests in, faults applied, JSON out."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from qhw_diffusion.hardware.standin.faults import (
    Body,
    CancelJob,
    Delay,
    Drop,
    ExpireSession,
    FailJob,
    Fault,
    LostReply,
    Stall,
    Status,
    Truncate,
    UsageLimit,
    endpoint_of,
)

if TYPE_CHECKING:
    from qhw_diffusion.hardware.standin.service import StandIn

Reply = tuple[int, Any]


def make_server(standin: StandIn, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 that answers for `standin`; not yet serving."""
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    standin: StandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet: `StandIn.requests` counts."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        found = endpoint_of(method, address.path.removeprefix("/experimental"))
        if found is None:
            self._send(404, _error(1404, f"the stand-in has no {method} {address.path}"))
            return
        endpoint, name = found
        fault = self.standin.next_fault(endpoint)
        if isinstance(fault, Drop):
            self._break()
            return
        if isinstance(fault, Status):
            retry = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
            self._send(fault.status, _error(fault.code, fault.message), retry)
            return
        status, reply = self._answer(endpoint, name, parse_qs(address.query), body, fault)
        if isinstance(fault, LostReply):
            self._break()
            return
        if isinstance(fault, Stall):
            time.sleep(fault.seconds)
        if isinstance(fault, Body):
            reply = fault.text
        self._send(status, reply, truncate=fault if isinstance(fault, Truncate) else None)

    def _answer(self, endpoint: str, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        if endpoint == "token":
            return self._token(body)
        if refusal := self._unauthorized():
            return refusal
        answer = getattr(self, f"_{endpoint}")
        reply: Reply = answer(name, query, body, fault)
        return reply

    # -- identity and devices ---------------------------------------------------------------------------------------

    def _token(self, body: bytes) -> Reply:
        key = parse_qs(body.decode()).get("apikey", [""])[0]
        if key not in self.standin.keys:
            message = "Provided API key could not be found."
            return 400, {"errorCode": "BXNIM0415E", "errorMessage": message, "context": {}}
        return 200, access_token(3600)

    def _unauthorized(self) -> Reply | None:
        given = self.headers.get("Authorization") or ""
        if self.standin.expired_tokens or not given.startswith("Bearer "):
            return 401, _error(1200, "The access token is wrong or expired.")
        return None

    def _backends(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        device = self.standin.device
        entry = {
            "name": self.standin.name,
            "status": {"name": "online", "reason": "available"},
            "queue_length": self._queue_length(),
            "qubits": device.n_qubits,
            "is_simulator": False,
        }
        return 200, {"devices": [entry]}

    def _configuration(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        if refusal := self._unknown_device(name):
            return refusal
        configuration = json.loads(self.standin.device.snapshot.configuration)
        return 200, {**configuration, "backend_name": name, "simulator": False, "local": False}

    def _properties(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        if refusal := self._unknown_device(name):
            return refusal
        return 200, {**json.loads(self.standin.device.snapshot.properties), "backend_name": name}

    def _status(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        if refusal := self._unknown_device(name):
            return refusal
        return 200, {"state": True, "status": "active", "backend_version": "1", "length_queue": self._queue_length()}

    def _usage(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        limit, used = self.standin.usage_limit_seconds, self.standin.charged_seconds
        return 200, {
            "instance_id": "standin",
            "plan_id": "standin",
            "usage_consumed_seconds": used,
            "usage_limit_seconds": limit,
            "usage_limit_reached": used >= limit,
        }

    def _unknown_device(self, name: str) -> Reply | None:
        return None if name == self.standin.name else (404, _error(1210, f"Backend {name} not found."))

    def _queue_length(self) -> int:
        return sum(job.state in ("Queued", "Running") for job in self.standin.jobs)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _jobs_post(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        posted, records = json.loads(body), self.standin.records
        if refusal := self._unknown_device(posted.get("backend", "")):
            return refusal
        if isinstance(fault, UsageLimit):
            return 403, _error(1206, "This instance has met its usage limit.")
        session = records.sessions.get(posted.get("session_id") or "")
        if posted.get("session_id"):
            if session is None:
                return 404, _error(1218, "Session not found.")
            if isinstance(fault, ExpireSession):
                session.close()
            session.expire()
            if not session.accepting:
                return 400, _error(1217, "Session has been closed and accepts no more jobs.")
        wait = self.standin.queue_seconds + (fault.seconds if isinstance(fault, Delay) else 0.0)
        with records.lock:
            posted["tags"] = [tag[: self.standin.tag_length] for tag in posted.get("tags") or ()]
            job = records.add_job(posted, json.dumps(posted["params"]), wait=wait)
            if isinstance(fault, FailJob):
                job.fails = (fault.reason, fault.code, fault.seconds)
            if isinstance(fault, CancelJob):
                job.cancel("cancelled by the service")
        return 200, {"id": job.id, "backend": job.backend}

    def _jobs_get(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        tags = query.get("tags", []) if self.standin.filters_tags else []
        jobs = self.standin.records.tagged(tags, lag=self.standin.list_lag_seconds)
        for key, attribute in (("session_id", "session_id"), ("program", "program"), ("backend", "backend")):
            if key in query:
                jobs = [job for job in jobs if getattr(job, attribute) == query[key][0]]
        offset, limit = int(query.get("offset", ["0"])[0]), int(query.get("limit", ["20"])[0])
        return 200, {"jobs": [job.to_json() for job in jobs[offset : offset + limit]], "count": len(jobs)}

    def _job_get(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        job = self.standin.records.jobs.get(name)
        return (404, _error(1291, f"Job {name} not found.")) if job is None else (200, job.to_json())

    def _results(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        job = self.standin.records.jobs.get(name)
        if job is None:
            return 404, _error(1291, f"Job {name} not found.")
        return (204, None) if job.result is None else (200, job.result)

    def _metrics(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        job = self.standin.records.jobs.get(name)
        return (404, _error(1291, f"Job {name} not found.")) if job is None else (200, job.metrics())

    def _logs(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        return 200, "the stand-in keeps no logs"

    def _cancel(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        records = self.standin.records
        with records.lock:
            job = records.jobs.get(name)
            if job is None:
                return 404, _error(1291, f"Job {name} not found.")
            if job.state not in ("Queued", "Running"):
                return 409, _error(1292, f"Job {name} has ended already.")
            job.cancel("cancelled by the user")
        return 204, None

    def _tags(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        job = self.standin.records.jobs.get(name)
        if job is None:
            return 404, _error(1291, f"Job {name} not found.")
        job.tags = tuple(json.loads(body)["tags"])
        return 204, None

    # -- sessions --------------------------------------------------------------------------------------------------

    def _sessions_post(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        return 200, self.standin.records.add_session(json.loads(body)).to_json()

    def _session_get(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        session = self.standin.records.sessions.get(name)
        if session is None:
            return 404, _error(1218, "Session not found.")
        session.expire()
        return 200, session.to_json()

    def _session_patch(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        session = self.standin.records.sessions.get(name)
        if session is None:
            return 404, _error(1218, "Session not found.")
        if json.loads(body).get("accepting_jobs") is False:
            session.close()
        return 204, None

    def _session_close(self, name: str, query: dict[str, list[str]], body: bytes, fault: Fault | None) -> Reply:
        records = self.standin.records
        with records.lock:
            if (session := records.sessions.get(name)) is None:
                return 404, _error(1218, "Session not found.")
            session.close()
            for job in records.jobs.values():
                if job.session_id == name and job.state in ("Queued", "Running"):
                    job.cancel("its session was cancelled")
        return 204, None

    # -- wire ------------------------------------------------------------------------------------------------------

    def _send(
        self, status: int, reply: Any, headers: dict[str, str] | None = None, truncate: Truncate | None = None
    ) -> None:
        body = b"" if reply is None else reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        whole = len(body)
        if truncate is not None:
            body = body[: whole // 2]
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(whole if truncate is not None and truncate.abrupt else len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):  # the client has gone; the request has been carried out
            self.close_connection = True
        if truncate is not None and truncate.abrupt:
            self._break()

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _error(code: int, message: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message, "solution": "", "more_info": ""}], "trace": "standin"}


def access_token(lifetime: float) -> dict[str, Any]:
    """What the identity service answers: an unsigned JSON web token that ends in `lifetime` seconds."""
    now = int(time.time())
    parts = ({"alg": "HS256", "typ": "JWT"}, {"iat": now, "exp": now + int(lifetime), "iam_id": "standin"})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    token = ".".join([*coded, "c3RhbmRpbg"])
    return {
        "access_token": token,
        "refresh_token": "not_supported",
        "token_type": "Bearer",
        "expires_in": int(lifetime),
        "expiration": now + int(lifetime),
        "scope": "ibm openid",
    }
