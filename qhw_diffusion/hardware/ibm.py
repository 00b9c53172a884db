"""The one adapter to qiskit-ibm-runtime: jobs of its primitives, sent once, found again by tag, decoded offline.

The default program is ``"executor"``, of the client's `executor_estimator.Estimator` and `executor_sampler.Sampler`,
which prepare circuits and post-process counts on this side; the post-processing travels with the job, so a stored
answer can be decoded at any later time. ``"estimator"`` and ``"sampler"`` are the deprecated `EstimatorV2` and
`SamplerV2`, whose processing is the service's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, reduce
from typing import Any, TypeVar

import numpy as np
from qiskit.circuit import ControlFlowOp
from qiskit.primitives import PrimitiveResult
from qiskit_ibm_runtime import RuntimeJobV2
from qiskit_ibm_runtime.decoders.defaults import DEFAULT_DECODERS
from qiskit_ibm_runtime.decoders.result_decoder import ResultDecoder
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    RuntimeInvalidStateError,
    RuntimeJobNotFound,
)
from qiskit_ibm_runtime.utils import validate_isa_circuits

from qhw_diffusion.devices import Device
from qhw_diffusion.devices.account import ask, connect, live_backend, remember_account
from qhw_diffusion.devices.snapshot import Snapshot
from qhw_diffusion.errors import (
    AccountError,
    BudgetError,
    DamagedFileError,
    InvalidInputError,
    JobError,
    MissingDataError,
    QhwError,
    ServiceError,
)
from qhw_diffusion.hardware.modes import Context, seconds_stated
from qhw_diffusion.hardware.sampling import check_conditions, check_most_shots, flat_bits
from qhw_diffusion.hardware.service import (
    AnyPub,
    JobState,
    Limits,
    Measured,
    NotSentError,
    RefusedError,
    Sampled,
    SamplerPub,
    UncertainError,
    primitive_of,
)
from qhw_diffusion.hardware.transport import Transport
from qhw_diffusion.hardware.wait import Times
from qhw_diffusion.masking import without_tokens

PROGRAMS = ("executor", "estimator", "sampler")
# The service's code for a job sent to a session that takes no more
_SESSION_CLOSED = "1217"
# Options that are the runner's own business
_RESERVED = ("max_execution_time", "environment")

# Options without an effect on the result of PUBs that state their precision; simulators' too
_NOT_OF_THE_RESULT = (*_RESERVED, "simulator", "default_precision", "default_shots", "experimental", "_VERSION")
# How the service calls what a job runs in
_MODES = {"dedicated": "session", "batch": "batch"}
# Characters of a time; what is longer is none
_LONGEST_TIME = 40
# To wait for the list of the account's instances, which another service has
_PLAN_SECONDS = 15.0

# Jobs to a page of the service's list, and how many of them are read at most
_PAGE, _MOST_LISTED = 50, 20_000

T = TypeVar("T")


class IBMService:
    """A device of IBM Quantum through the user's account (`service.Service`).

    Every method that asks the service may raise ServiceError (no answer) and AccountError (credentials not taken).

    Args:
        device: name of the device, ``"ibm_…"``.
        client: a connected `QiskitRuntimeService`; None connects with the saved account or the environment.
        program: ``"executor"`` for both primitives, ``"estimator"`` or ``"sampler"`` for one of them.
        times: time-outs and pauses.
        sleep: waits for so many seconds.

    Raises:
        AccountError: no account, wrong credentials, or a device that the account cannot use.
        InvalidInputError: another program.
    """

    paid = True

    def __init__(
        self,
        device: str,
        *,
        client: Any = None,
        program: str = "executor",
        times: Times | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if program not in PROGRAMS:
            raise InvalidInputError(f"program is {program!r}; allowed: {', '.join(PROGRAMS)}")
        client = connect() if client is None else client
        remember_account(client)
        self.device = device
        self.program = program
        self.times = times or Times()
        self._client = client
        self._sleep = sleep
        self._transport = Transport(self.times, sleep)
        self._mount()
        self._jobs: dict[str, RuntimeJobV2] = {}
        self._places: dict[str, dict[str, Any]] = {}
        self._stated: dict[str, dict[str, Any]] = {}
        self._context: Context | None = None
        self._backend = live_backend(device, client)
        self._instance = self._backend._instance
        self.instance = hashlib.sha256(str(self._instance).encode()).hexdigest()[:16] if self._instance else ""
        self._mount()  # another instance's connection may have been made to find the device

    def snapshot(self) -> Device:
        """Read the device's calibration of this moment.

        Returns:
            The device with today's gate lengths and errors.

        Raises:
            ServiceError: no answer, or one without meaning.
            MissingDataError: the device publishes no calibration.
        """
        from qhw_diffusion.devices import backend_snapshot

        def read() -> Snapshot:
            if self._backend.properties(refresh=True) is None:  # the client would hand out what it read before
                raise MissingDataError(f"{self.device} publishes no calibration now")
            return backend_snapshot(self._backend)

        return Device(self._ask(f"read the calibration of {self.device}", read))

    @cached_property
    def plan(self) -> str:
        """Plan of the account's instance, as the client states it; empty where it does not, or not in time."""
        with contextlib.suppress(QhwError):  # worth knowing, not worth failing for
            for one in ask("the account's instances", self._client.instances, patience=_PLAN_SECONDS):
                if isinstance(one, Mapping) and one.get("crn") == self._instance:
                    return str(one.get("plan") or "")
        return ""

    def effective(self, options: Mapping[str, Any], primitive: str = "estimator") -> dict[str, Any]:
        """The options that a job runs with, as the client resolves them.

        Args:
            options: options of the client's primitive, plain values.
            primitive: ``"estimator"`` or ``"sampler"``.

        Returns:
            With the client's defaults, those of the resilience level included, for the executor; of the other programs,
            whose defaults are the service's, what the client sends. Without what the runner sets itself.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = self._primitive(primitive, self._backend, options, [], Limits())
                if self.program != "executor":
                    from qiskit_ibm_runtime.options.utils import remove_dict_unset_values, remove_empty_dict

                    found = asdict(made.options)
                    remove_dict_unset_values(found)
                    remove_empty_dict(found)
                else:
                    found = made.finalize_options().model_dump(mode="json")
        except Exception:  # the client's own affairs; what was asked for is known
            return dict(options)
        return {name: value for name, value in found.items() if name not in _NOT_OF_THE_RESULT}

    def check(self, pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> None:
        """Check circuits and options against the device's target and the client, before anything is sent.

        Args:
            pubs: what one job is to evaluate.
            options: options of the client's primitive, plain values.

        Raises:
            InvalidInputError: an option that the runner sets itself or the client refuses; PUBs of another primitive
                than the program's; a circuit that is no ISA circuit of this device, or that it has no control flow
                for; more shots than it takes, or shots that differ among a Sampler's PUBs.
            ServiceError: no answer, or one without meaning.
        """
        if reserved := [name for name in _RESERVED if name in options]:
            raise InvalidInputError(
                f"option {reserved[0]!r} is set by the runner (tags, limits from the cap); leave it out"
            )
        primitive = primitive_of(pubs)
        if self.program not in ("executor", primitive):
            raise InvalidInputError(
                f"program {self.program!r} takes no PUBs of the client's {primitive.title()}: open the runner with "
                f"program='executor', or {primitive!r}"
            )
        if len(shots := {pub.shots for pub in pubs}) > 1 and primitive == "sampler":
            raise InvalidInputError(
                f"the circuits of one call have {sorted(shots)} shots, and the client's Sampler takes one number for "
                "all of them: make a call for each"
            )
        target = self._ask(f"read the target of {self.device}", lambda: self._backend.target)
        for pub in pubs:
            width = target.num_qubits
            if pub.circuit.num_qubits > width:
                raise InvalidInputError(
                    f"the circuit has {pub.circuit.num_qubits} qubits, {self.device} has {width}; compile it for "
                    f"this device, compile_circuit(…, Device.load({self.device!r}))"
                )
            if isinstance(pub, SamplerPub):
                check_conditions(pub.circuit, target, self.device)
                self._check_most_shots(pub.shots)
                continue
            flow = sorted({one.name for one in pub.circuit.data if isinstance(one.operation, ControlFlowOp)})
            if flow and self.program == "executor":
                raise InvalidInputError(
                    f"the circuit has {', '.join(flow)}, and the client's Estimator takes no control flow; measure at "
                    "the end instead (deferred measurement)"
                )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._primitive(primitive, self._backend, options, [], Limits())
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(f"the client refuses these options: {self._clean(error)}") from None
        if (options.get("execution") or {}).get("meas_type", "classified") != "classified":
            raise InvalidInputError(
                f"option meas_type is {options['execution']['meas_type']!r}; allowed: 'classified', since bits are "
                "what is stored and counted"
            )
        try:
            validate_isa_circuits([pub.circuit for pub in pubs], target)
        except ValueError as error:
            raise InvalidInputError(
                f"the circuit does not fit {self.device}: {self._clean(error)} Compile it for this device"
            ) from None

    def submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        """Send one job, once; a batch or session that the service has closed is opened again.

        Args:
            pubs: what one job is to evaluate.
            options: options of the client's primitive, plain values.
            tags: tags of the job; the last one finds it again.
            limits: QPU seconds, mode and wall-clock seconds that the job may take.

        Returns:
            The job's id.

        Raises:
            NotSentError: the job was certainly not accepted, and may be sent again.
            UncertainError: no usable reply: it may have been accepted.
            RefusedError: the service refused it and says why.
            BudgetError: the account has no time left.
            InvalidInputError: the client refuses the job.
            AccountError: the credentials are not taken.
        """
        for _ in range(4):  # a session closed, the one opened again closed, a batch closed, and a last one
            refusal: RefusedError | None = None
            try:
                return self._authorized(lambda: self._submit(pubs, options, tags, limits))
            except _SessionClosedError as error:
                refusal = RefusedError(str(error))
                if self._context is not None:
                    self._context.forget()
        assert refusal is not None
        raise refusal

    def find(self, tag: str) -> list[str]:
        """Look jobs up by a tag, through all pages of the service's list.

        Args:
            tag: the tag that the jobs must have.

        Returns:
            Ids of the jobs with this tag, oldest first.

        Raises:
            ServiceError: no answer, or a list too long to be read to its end.
        """
        api = self._client._get_api_client(self._instance)
        found: dict[str, str] = {}
        seen = 0
        while seen < _MOST_LISTED:

            def page(skip: int = seen) -> tuple[list[dict[str, Any]], int]:
                told = api.jobs_get(limit=_PAGE, skip=skip, job_tags=[tag])
                return list(told["jobs"]), int(told["count"])

            jobs, count = self._ask(f"find jobs tagged {tag}", page)
            seen += len(jobs)
            # the service may take no notice of the tag
            found |= {job["id"]: str(job.get("created")) for job in jobs if tag in (job.get("tags") or [])}
            if not jobs or (len(jobs) < _PAGE and seen >= count):
                return sorted(found, key=lambda job_id: (found[job_id], job_id))
        raise ServiceError(
            f"the service lists {_MOST_LISTED:,} jobs and more, asked for those tagged {tag}: it cannot be said "
            "whether there is one"
        )

    def status(self, job_id: str) -> JobState:
        """Ask for the state of a job.

        Args:
            job_id: the service's id of the job.

        Returns:
            Its state; UNKNOWN where the service does not know the job.

        Raises:
            ServiceError: no answer, or a state that this package does not know.
        """
        try:
            job = self._job(job_id)
            name = self._ask(f"look at job {job_id}", job.status)
        except UnknownJobError:
            return JobState("UNKNOWN", "the service does not know this job")
        if name in ("QUEUED", "RUNNING", "DONE", "INITIALIZING"):
            return JobState("QUEUED" if name == "INITIALIZING" else name)
        if name != "ERROR" and not name.startswith("CANCELLED"):  # the client passes on what it does not know itself
            raise ServiceError(f"job {job_id} is in state {name!r}, which this package does not know; its row stays")
        reason = getattr(job, "_reason", None) or ("" if name == "CANCELLED" else job.error_message())
        return JobState("CANCELLED" if name == "CANCELLED" else "ERROR", self._clean(reason or "no reason given"))

    def raw(self, job_id: str) -> str:
        """Fetch the answer of a job that is done.

        Args:
            job_id: the service's id of the job.

        Returns:
            The service's text before any post-processing; empty if the service sent none.

        Raises:
            UnknownJobError: the service does not know the job.
            ServiceError: no answer, or one without meaning.
        """
        job = self._job(job_id)
        text = self._ask(f"read the answer of job {job_id}", lambda: job.result(decoder=RawText))
        return text if isinstance(text, str) else ""  # no content; `decode` says that it is no result

    def decode(self, raw: str) -> list[Measured] | list[Sampled]:
        """Decode the text of a job's answer; nothing is asked of the service.

        Args:
            raw: what `raw` returned.

        Returns:
            Values [M, B], standard errors [M, B] and shots of each PUB; of a Sampler's the bits of each register.

        Raises:
            DamagedFileError: the text is no result of these programs.
        """
        return decode(raw)

    def qpu_seconds(self, job_id: str) -> float | None:
        """Ask for what a job was charged.

        Args:
            job_id: the service's id of the job.

        Returns:
            QPU seconds, finite and ≥ 0; None while the service states no such number, or does not know the job.

        Raises:
            ServiceError: no answer, or one without meaning.
        """
        try:
            metrics = self._ask(f"read the usage of job {job_id}", lambda: self._job(job_id).metrics())
        except UnknownJobError:  # of another account, or long ago
            return None
        if isinstance(metrics, dict):
            self._stated[job_id] = stated_in(metrics)
        usage = metrics.get("usage") if isinstance(metrics, dict) else None
        if not isinstance(usage, dict) or usage.get("status") == "pending":
            return None
        stated = (seconds_stated(usage.get(name)) for name in ("qpu_charge_time_seconds", "quantum_seconds"))
        return next((seconds for seconds in stated if seconds is not None), None)

    def where(self, job_id: str) -> dict[str, Any]:
        """What a job runs in, asked for unless this object has sent it.

        Args:
            job_id: the service's id of the job.

        Returns:
            ``mode`` (``"job"``, ``"batch"`` or ``"session"``) and ``session_id``, as far as the service tells.

        Raises:
            ServiceError: no answer, or one without meaning.
        """
        if job_id not in self._places:
            try:
                job = self._job(job_id)
            except UnknownJobError:
                return {}
            session = self._ask(f"look up the session of job {job_id}", lambda: job.session_id)
            if not session:
                return self._places.setdefault(job_id, {"mode": "job", "session_id": None})
            api = self._client._get_api_client(self._instance)
            told = self._ask(f"look up session {session}", lambda: api.session_details(session)["mode"])
            self._places[job_id] = {"mode": _MODES.get(told, str(told)), "session_id": str(session)}
        return dict(self._places[job_id])

    def stated(self, job_id: str) -> dict[str, Any]:
        """What came with the charge of a job; nobody is asked.

        Args:
            job_id: the service's id of the job.

        Returns:
            ``created``, ``started``, ``finished`` (UTC, as the service writes it) and ``executions``, as far as stated.
        """
        return dict(self._stated.get(job_id, {}))

    def cancel(self, job_id: str) -> None:
        """Ask for a job to be cancelled; one that has ended stays as it is.

        Args:
            job_id: the service's id of the job.

        Raises:
            UnknownJobError: the service does not know the job.
            ServiceError: no answer, or one without meaning.
        """
        job = self._job(job_id)

        def ask() -> None:
            try:
                job.cancel()
            except RuntimeInvalidStateError:  # it has finished, or was cancelled before
                return

        self._ask(f"cancel job {job_id}", ask)
        # The client's job object now says "cancelled", whatever the service did: look at a fresh one from here on.
        self._jobs.pop(job_id, None)

    def remaining_seconds(self) -> float | None:
        """Ask for what the account has left at this instance.

        Returns:
            QPU seconds ≥ 0; None where it has no limit.

        Raises:
            ServiceError: no answer, or one without meaning.
        """
        api = self._client._get_api_client(self._instance)  # the client's own `usage` is of its active instance
        usage = self._ask("read the account's usage", api.cloud_usage)
        if usage.get("usage_limit_reached"):
            return 0.0
        names = ("usage_limit_seconds", "usage_allocation_seconds")
        limit = next((seconds for name in names if (seconds := seconds_stated(usage.get(name)))), None)
        return None if limit is None else max(limit - (seconds_stated(usage.get("usage_consumed_seconds")) or 0.0), 0.0)

    def session_id(self) -> str | None:
        """Id of the batch or session that is open; None without one."""
        return None if self._context is None else self._context.session_id

    def session_seconds(self) -> dict[str, float]:
        """Ask for what the sessions of this object have used.

        Returns:
            {session id: wall-clock seconds charged so far}, ended sessions included.

        Raises:
            ServiceError: no answer, or one without meaning.
        """
        if self._context is None:
            return {}
        return self._ask("read the session's usage", self._context.seconds)

    def close(self) -> None:
        """Close the batch or session, if one is open; jobs in it go on."""
        if self._context is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._context.close()

    def _submit(self, pubs: Sequence[AnyPub], options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> str:
        if self._context is None or self._context.asked != (limits.mode, limits.max_session_seconds):
            self.close()
            self._context = Context(self._backend, limits.mode, limits.max_session_seconds)
        self._transport.posted = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                primitive = self._primitive(primitive_of(pubs), self._context.target(), options, tags, limits)
                job = primitive.run([pub.as_tuple() for pub in pubs])
        except Exception as error:
            raise self._what_happened(error) from None
        self._jobs[job.job_id()] = job
        self._places[job.job_id()] = {"mode": self._context.mode, "session_id": self._context.session_id}
        return job.job_id()

    def _what_happened(self, error: Exception) -> Exception:
        """Whether the job was refused, was never sent, or may have been accepted: from what the transport has seen."""
        posted, text = self._transport.posted, self._clean(error)
        if posted == 401 or (posted is None and isinstance(error, IBMNotAuthorizedError)):
            return IBMNotAuthorizedError(text)
        # a reply cut off on the way to the job is a ValueError too
        cut_off = isinstance(error, json.JSONDecodeError)
        if posted is None and isinstance(error, (ValueError, TypeError)) and not cut_off:
            return InvalidInputError(f"the client refuses the job: {text}")
        if posted in (None, "refused", 429):
            return NotSentError(f"the job could not be sent: {text}")
        if isinstance(posted, int) and 400 <= posted < 500 and posted not in (408, 425):
            if re.search(rf"\b{_SESSION_CLOSED}\b", text):
                return _SessionClosedError(text)
            if re.search("usage limit|limit_reached|time available", text):
                return BudgetError(f"the account has no time left for jobs on {self.device}: {text}")
            return AccountError(text) if posted == 403 else RefusedError(f"the service refused the job: {text}")
        return UncertainError(f"no usable reply to the job: {text}")

    def _primitive(self, kind: str, mode: Any, options: Mapping[str, Any], tags: Sequence[str], limits: Limits) -> Any:
        made: Any = self._class_of(kind)(mode=mode, options={**options, "environment": {"job_tags": list(tags)}})
        if limits.max_execution_seconds is not None:
            made.options.max_execution_time = limits.max_execution_seconds
        return made

    def _class_of(self, kind: str) -> Any:
        """The client's class for ``"estimator"`` or ``"sampler"``, of this object's program."""
        if self.program == "executor" and kind == "sampler":
            from qiskit_ibm_runtime.executor_sampler import Sampler

            return Sampler
        if self.program == "executor":
            from qiskit_ibm_runtime.executor_estimator import Estimator

            return Estimator
        from qiskit_ibm_runtime import EstimatorV2, SamplerV2

        return SamplerV2 if kind == "sampler" else EstimatorV2

    def _check_most_shots(self, shots: int) -> None:
        stated = self._ask(f"read the configuration of {self.device}", lambda: self._backend.configuration().max_shots)
        check_most_shots(stated, shots, self.device)

    def _mount(self) -> None:
        for api in (self._client._active_api_client, *self._client._api_clients.values()):
            for scheme in ("https://", "http://"):
                api._session.mount(scheme, self._transport)

    def _job(self, job_id: str) -> RuntimeJobV2:
        if job_id not in self._jobs:
            self._jobs[job_id] = self._ask(f"look up job {job_id}", lambda: self._client.job(job_id))
        return self._jobs[job_id]

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        """The answer to a question that may be repeated; ServiceError if there is none."""

        def asked() -> T:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return question()

        try:
            return self._authorized(asked)
        except QhwError:
            raise
        except RuntimeJobNotFound:
            raise UnknownJobError(
                f"{self.device} does not know the job, asked to {what}: another account or instance, or too long ago?"
            ) from None
        except Exception as error:  # the client's own, and whatever a garbled reply makes it raise
            raise ServiceError(f"the service did not answer, asked to {what}: {self._clean(error)}") from None

    def _authorized(self, request: Callable[[], T]) -> T:
        """The request, repeated while its credentials are not taken: a token that could not be fetched passes."""
        for attempt in range(3):
            try:
                return request()
            except IBMNotAuthorizedError as error:
                refusal = self._clean(error)
                if attempt < 2:
                    self._sleep(self.times.backoff * 2**attempt)
        raise AccountError(
            f"the service does not take the account's credentials: {refusal}. Save a valid key with "
            "QiskitRuntimeService.save_account(…, overwrite=True), or set QISKIT_IBM_TOKEN"
        )

    def _clean(self, error: object) -> str:
        """The text of an error without credentials, on one line."""
        return " ".join(without_tokens(str(error) or type(error).__name__).split())[:500]


def stated_in(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Times and executions in the metrics of a job, those of them that are such.

    Args:
        metrics: as `RuntimeJobV2.metrics` returns them.
    """
    times = metrics.get("timestamps")
    times = times if isinstance(times, Mapping) else {}
    names = {"created": "created", "started": "running", "finished": "finished"}
    found: dict[str, Any] = {
        name: times[theirs]
        for name, theirs in names.items()
        if isinstance(times.get(theirs), str) and len(times[theirs]) <= _LONGEST_TIME
    }
    executions = metrics.get("executions")
    if isinstance(executions, int) and not isinstance(executions, bool) and 0 < executions < 2**63:
        found["executions"] = executions
    return found


class UnknownJobError(JobError):
    """The service does not know a job that it was asked about."""


class _SessionClosedError(Exception):
    """The batch or session takes no more jobs; this one was not accepted."""


# -- answers, fetched as text and decoded at any later time without asking anybody -------------------------------------


class RawText(ResultDecoder):
    """Leaves the service's text as it is."""

    @classmethod
    def decode(cls, data: Any) -> Any:
        """Return `data` unchanged."""
        return data


def decode(raw: str) -> list[Measured] | list[Sampled]:
    """What the stored text of a job says; no service is asked.

    Raises:
        DamagedFileError: the text is no result of these programs.
    """
    try:
        # the service's own programs answer in one format
        program = "executor" if "schema_version" in json.loads(raw) else "estimator"
        result: Any = reduce(
            lambda value, decoder: decoder.decode(value) if decoder.is_applicable(value) else value,
            DEFAULT_DECODERS[program],
            raw,
        )
        if not isinstance(result, PrimitiveResult):
            raise TypeError(f"a {type(result).__name__}")
        measured: list[Any] = []
        for answer in result:
            if "evs" not in answer.data:
                measured.append({name: flat_bits(bits) for name, bits in answer.data.items()})
                continue
            shots = answer.metadata.get("shots", result.metadata.get("shots"))
            measured.append((np.asarray(answer.data.evs, float), np.asarray(answer.data.stds, float), int(shots or 0)))
        return measured
    except Exception as error:
        raise DamagedFileError(
            f"the answer is no result of the client's primitives ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error
