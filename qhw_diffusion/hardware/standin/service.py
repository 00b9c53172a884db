"""`StandIn`: IBM's service on 127.0.0.1, for tests and rehearsals; the unmodified client talks to it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from types import TracebackType

import numpy as np

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.cost import JOB_OVERHEAD, RULE_PER_EXECUTION
from qhw_diffusion.hardware.standin.faults import Fault, Planned, RandomFaults, check_endpoint
from qhw_diffusion.hardware.standin.programs import NotOfThisTargetError, run_program
from qhw_diffusion.hardware.standin.records import JobRecord, Records, moment
from qhw_diffusion.hardware.standin.server import make_server

TOKEN = "standin-key-that-opens-nothing"
INSTANCE = "crn:v1:bluemix:public:quantum-computing:us-east:a/standin:00000000-0000-0000-0000-000000000000::"


class StandIn:
    """A local HTTP server with the endpoints of IBM's service that jobs, batches and sessions need.

    One device of the fake provider is served under a live name; jobs are run one after the other by Aer with its noise.
    What is charged is IBM's rule of thumb, 2 s a job and 0.35 ms an execution, or `seconds_per_job`.

    Args:
        device: name of a fake device, or a snapshot file.
        name: what the service calls it; begins with ``ibm_``.
        seed: of the outcomes.
        port: on 127.0.0.1; 0 for any free one.
        usage_limit_seconds: of the account.
        queue_seconds: every job waits so long.
        seconds_per_job: charged for a job; None for the rule of thumb.
        keys: API keys that are accepted; any other is refused as wrong.
        list_lag_seconds: a job is in the list of jobs only so long after it was accepted.
        tag_length: tags are cut to so many characters; None for as they come.
        filters_tags: whether the list of jobs can be asked for a tag; if not, it is always the whole list.

    Attributes:
        requests: {endpoint: how many so far}.
        hits: {endpoint: how many of them met a fault}.

    Raises:
        InvalidInputError: a name that does not begin with ``ibm_``, or the ideal device.
    """

    def __init__(
        self,
        device: str | Device = "fake_manila",
        *,
        name: str = "ibm_standin",
        seed: int = 0,
        port: int = 0,
        usage_limit_seconds: float = 600.0,
        queue_seconds: float = 0.0,
        seconds_per_job: float | None = None,
        keys: tuple[str, ...] = (TOKEN,),
        list_lag_seconds: float = 0.0,
        tag_length: int | None = None,
        filters_tags: bool = True,
    ) -> None:
        if not name.startswith("ibm_"):
            raise InvalidInputError(f"name is {name!r}; a live device's begins with ibm_, for example ibm_standin")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise InvalidInputError(f"port is {port!r}; allowed: 0 for any free one, to 65535")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InvalidInputError(f"seed is {seed!r}; allowed: whole numbers from 0")
        self.device = device if isinstance(device, Device) else Device.load(device)
        if self.device.is_ideal:
            raise InvalidInputError("the ideal device cannot be served; name a fake device or a snapshot file")
        self.name = name
        self.usage_limit_seconds = usage_limit_seconds
        self.queue_seconds = queue_seconds
        self.seconds_per_job = seconds_per_job
        self.keys = keys
        self.list_lag_seconds = list_lag_seconds
        self.tag_length = tag_length
        self.filters_tags = filters_tags
        self.expired_tokens = False
        self.records = Records()
        self.requests: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self._generator = np.random.default_rng(seed)
        self._planned: dict[str, list[Planned]] = {}
        self._random: RandomFaults | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._asked_port = port
        self._server: ThreadingHTTPServer | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> StandIn:
        """Serve from now on. Raises InvalidInputError if the port is taken."""
        try:
            server = self._server = make_server(self, self._asked_port)
        except OSError as error:
            raise InvalidInputError(f"port {self._asked_port} cannot be used ({error}); choose another") from error
        for target in (lambda: server.serve_forever(poll_interval=0.02), self._work):
            thread = threading.Thread(target=target, daemon=True, name="qhw stand-in")
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        """End the server and the job that runs."""
        self._stop.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        for thread in self._threads:
            thread.join(timeout=30)

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what a client needs ---------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None, "not started"
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Base address. The client uses an address that contains "experimental" as it is."""
        return f"http://127.0.0.1:{self.port}/experimental"

    def environment(self, key: str = TOKEN) -> dict[str, str]:
        """The environment variables that make the client talk to this server."""
        return {
            "QISKIT_IBM_TOKEN": key,
            "QISKIT_IBM_URL": self.url,
            "QISKIT_IBM_INSTANCE": INSTANCE,
            "QISKIT_IBM_CHANNEL": "ibm_quantum_platform",
            "QISKIT_FUNCTIONS_EXPERIMENTAL": "1",
            "IAM_URL": f"http://127.0.0.1:{self.port}",
        }

    @contextlib.contextmanager
    def as_account(self) -> Iterator[StandIn]:
        """Within, this process's client talks to this server."""
        before = {name: os.environ.get(name) for name in self.environment()}
        os.environ.update(self.environment())
        try:
            yield self
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    # -- faults ----------------------------------------------------------------------------------------------------

    def inject(self, endpoint: str, fault: Fault, *, times: int = 1, after: int = 0) -> None:
        """`fault` on the next `times` requests of `endpoint` (a name of `ENDPOINTS`), after `after` that go through.

        Raises UnknownNameError for another endpoint, InvalidInputError for a fault that cannot happen there.
        """
        check_endpoint(endpoint, fault)
        with self.records.lock:
            self._planned.setdefault(endpoint, []).append(Planned(fault, times, after))

    def inject_random(self, faults: RandomFaults | None) -> None:
        """Random faults from now on; None ends them."""
        self._random = faults

    def next_fault(self, endpoint: str) -> Fault | None:
        """The fault that hits this request; for the server."""
        with self.records.lock:
            self.requests[endpoint] += 1
            fault = self._due(endpoint)
            if fault is not None:
                self.hits[endpoint] += 1
            return fault

    def _due(self, endpoint: str) -> Fault | None:
        planned = self._planned.get(endpoint, [])
        if not planned:
            return self._random.draw(endpoint) if self._random is not None else None
        first = planned[0]
        if first.after > 0:
            first.after -= 1
            return None
        first.times -= 1
        if first.times <= 0:
            planned.pop(0)
        return first.fault

    def recalibrate(self, device: str | Device) -> None:
        """Serve this device's configuration, calibration and noise from now on: the same one on another day.

        Args:
            device: as for the class.
        """
        self.device = device if isinstance(device, Device) else Device.load(device)

    # -- the truth -------------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[JobRecord]:
        """Every job that was accepted, in order."""
        with self.records.lock:
            return list(self.records.jobs.values())

    @property
    def charged_seconds(self) -> float:
        """What the account was charged so far."""
        return self.records.charged_seconds

    def reset(self) -> None:
        """Forget jobs, sessions, charges, counts and faults, as if just started; outcomes go on being drawn."""
        with self.records.lock:
            self.records.jobs.clear()
            self.records.sessions.clear()
            self.requests.clear()
            self.hits.clear()
            self._planned.clear()
            self._random = None

    # -- work ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            job = self.records.next_job()
            if job is None:
                time.sleep(0.005)
                continue
            try:
                result, executions = run_program(job.program, job.params, self.device, self._generator)
            except NotOfThisTargetError as error:
                self._end(job, "Failed", str(error), 1517, 0.0)
                continue
            except Exception as error:  # the service says what it thinks of the job, whatever it was
                self._end(job, "Failed", f"{type(error).__name__}: {error}", 1500, 0.0)
                continue
            job.executions = executions
            seconds = self.seconds_per_job
            if seconds is None:
                seconds = JOB_OVERHEAD + executions * RULE_PER_EXECUTION
            if job.fails is not None:
                self._end(job, "Failed", *job.fails)
            elif job.limit_seconds is not None and seconds > job.limit_seconds:
                reason = f"the job ran longer than its maximum execution time, {job.limit_seconds} s"
                self._end(job, "Failed", reason, 1305, float(job.limit_seconds))
            else:
                job.result = result
                self._end(job, "Completed", None, None, seconds)

    def _end(self, job: JobRecord, state: str, reason: str | None, code: int | None, seconds: float) -> None:
        with self.records.lock:
            if job.state == "Running":
                job.state, job.reason, job.reason_code, job.seconds = state, reason, code, seconds
                job.finished = moment()


def serve_forever(device: str = "fake_manila", *, name: str = "ibm_standin", port: int = 0, seed: int = 0) -> None:
    """Serve until Ctrl-C; prints the lines that make a shell's client talk to it."""
    with StandIn(device, name=name, port=port, seed=seed) as standin:
        print(f"# {standin.device.name} as {name}. In another terminal:")
        for variable, value in standin.environment().items():
            print(f"export {variable}='{value}'")
        print(
            f"# then for example: qhw devices; Ctrl-C here ends it, and everything in {name} is forgotten", flush=True
        )
        while True:
            time.sleep(3600)
