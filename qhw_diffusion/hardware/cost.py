"""What a job costs in QPU seconds, before it is sent, with the arithmetic shown.

IBM's own approximation of a job's usage (guide "Workload usage", quantum.cloud.ibm.com) is an overhead of about two
seconds a job plus, for every execution of a circuit, the repetition delay and the circuit's length; its rule of thumb
is 2 s + 0.35 ms an execution. The lengths and the delay are taken from the device's own data here. What the formula
leaves out is learned: the ratio of measured to estimated seconds over the jobs of that device in the ledger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.hardware.durations import duration_of
from qhw_diffusion.hardware.service import AnyPub, primitive_of
from qhw_diffusion.hardware.split import JobLimits, asked, bases, cut, split

# Seconds, from IBM's guide: the overhead of a job, and the rule of thumb for one execution at the usual delay.
JOB_OVERHEAD = 2.0
RULE_PER_EXECUTION = 0.35e-3
# Seconds between two executions on a device that states none of its own; almost all of IBM's devices have this.
USUAL_REPETITION_DELAY = 250e-6
# Of the client's estimators at each resilience level, unless an option says otherwise: whether readout is calibrated
# (and measurements twirled), whether gates are twirled, and whether circuits are folded
_LEVELS: dict[int, tuple[bool, bool, bool]] = {0: (False, False, False), 1: (True, False, False), 2: (True, True, True)}
# The client's own default, and its scales of folded circuits
DEFAULT_LEVEL = 1
_SCALES = (1.0, 3.0, 5.0)

# What is said before jobs of level 2 are sent (measured: up to one value in eight at 100 shots, a few at 4,096)
EXTRAPOLATED = (
    "the client's zero-noise extrapolation (resilience level 2) gives single values with an infinite standard error, "
    "the more of them the fewer shots; such values are kept as they come"
)


@dataclass(frozen=True)
class Added:
    """What the client's primitives execute besides what they are asked for (`added_by`).

    Attributes:
        level: the resilience level.
        scales: of the folded versions of each circuit that run; 1 alone for none.
        calibrated: whether a circuit that calibrates the readout is added to each job.
        twirled: whether shots are divided among randomised versions of each circuit.
        randomizations, shots_each: how many of these, and shots of each; None for the client's own choice.
        learning: randomised versions of the calibration circuit; None for as many as of the others.
    """

    level: int = 0
    scales: tuple[float, ...] = (1.0,)
    calibrated: bool = False
    twirled: bool = False
    randomizations: int | None = None
    shots_each: int | None = None
    learning: int | None = None

    def executed(self, circuits: int, shots: int) -> tuple[int, int]:
        """(circuits, shots of each) that a job executes, asked for so many: calibration and twirling included."""
        number, each = self._twirls(shots)
        extra = 0 if not self.calibrated else math.ceil((self.learning or number) / number)
        return circuits * len(self.scales) + extra, number * each

    def _twirls(self, shots: int) -> tuple[int, int]:
        """Randomised versions of a circuit, and shots of each, as the client divides them."""
        if not self.twirled:
            return 1, shots
        if self.randomizations is None:
            each = max(64, math.ceil(shots / 32)) if self.shots_each is None else self.shots_each
            return math.ceil(shots / each), each
        return self.randomizations, self.shots_each or math.ceil(shots / self.randomizations)


def added_by(options: Mapping[str, Any], primitive: str = "estimator", *, default_level: int = DEFAULT_LEVEL) -> Added:
    """What the client's primitives add with these options of theirs, by the rules of the client.

    Args:
        options: plain values, as the client's primitive takes them.
        primitive: ``"estimator"`` or ``"sampler"``, which has no resilience levels and can be twirled.
        default_level: resilience level without one in the options.

    Raises:
        InvalidInputError: a resilience level that there is not.
    """
    if primitive == "sampler":
        options, default_level = {"twirling": options.get("twirling")}, 0
    level = options.get("resilience_level", default_level)
    if level not in _LEVELS:
        raise InvalidInputError(f"resilience level {level!r}; allowed: 0, 1, 2")
    resilience, twirling = (dict(options.get(name) or {}) for name in ("resilience", "twirling"))

    def chosen(group: Mapping[str, Any], name: str, usual: bool) -> bool:
        return usual if group.get(name) is None else bool(group[name])

    def number(group: Mapping[str, Any] | None, name: str) -> int | None:
        stated = (group or {}).get(name)
        return None if stated in (None, "auto") else int(stated)

    calibrated = chosen(resilience, "measure_mitigation", _LEVELS[level][0])
    measured = calibrated or chosen(twirling, "enable_measure", _LEVELS[level][0])
    twirled = measured or chosen(twirling, "enable_gates", _LEVELS[level][1])
    factors = (resilience.get("zne") or {}).get("noise_factors")
    scales = _SCALES if factors in (None, "auto") else tuple(map(float, factors))
    return Added(
        level=level,
        scales=scales if chosen(resilience, "zne_mitigation", _LEVELS[level][2]) else (1.0,),
        calibrated=calibrated,
        twirled=twirled,
        randomizations=number(twirling, "num_randomizations"),
        shots_each=number(twirling, "shots_per_randomization"),
        learning=number(resilience.get("measure_noise_learning"), "num_randomizations"),
    )


class DoneJob(Protocol):
    """What a ledger's row must say to count as history."""

    @property
    def device(self) -> str:
        """Name of the device that the job ran on."""

    @property
    def state(self) -> str:
        """State of the row; only ``"done"`` rows count."""

    @property
    def estimate_seconds(self) -> float:
        """Estimated QPU seconds, noted before the job was sent."""

    @property
    def qpu_seconds(self) -> float | None:
        """Measured QPU seconds; None while the service has not stated them."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the runner noted; ``formula_seconds`` is the estimate without history, in QPU seconds."""


@dataclass(frozen=True)
class Cost:
    """What some jobs on one device are expected to take. Times in seconds.

    Attributes:
        device: its name.
        jobs: how many.
        circuits: executed in each job, one for every row of parameters and every basis measured in, with those of the
            client's mitigation; where jobs differ the mean, rounded up.
        shots: of each circuit.
        duration: of a circuit, first to last gate, averaged over the circuits of a job.
        readout: of the measurement at its end; None where the device does not say (counted as 0).
        repetition_delay: between two executions.
        delay_stated: whether the delay is the device's own or given, and not the usual one.
        ratio: measured over estimated seconds in the history; 1 without any.
        history_jobs: how many jobs the ratio is from.
        note: why the circuits or the shots are more than asked for; empty if they are not.
        unlike: circuits of all jobs together where they differ; None where they are all alike.
        rounding: seconds that a cap must leave beyond `seconds`: the jobs of the last call are held against it in whole
            seconds, as the service takes limits.
    """

    device: str
    jobs: int
    circuits: int
    shots: int
    duration: float
    readout: float | None
    repetition_delay: float
    delay_stated: bool = True
    ratio: float = 1.0
    history_jobs: int = 0
    note: str = ""
    unlike: int | None = None
    rounding: float = 0.0

    @property
    def all_circuits(self) -> int:
        """Circuits of all jobs together."""
        return self.jobs * self.circuits if self.unlike is None else self.unlike

    @property
    def executions(self) -> int:
        """Runs of a circuit on the device: circuits of all jobs × shots."""
        return self.all_circuits * self.shots

    @property
    def execution_seconds(self) -> float:
        """One run of a circuit: gates, readout, delay."""
        return self.duration + (self.readout or 0.0) + self.repetition_delay

    @property
    def formula_seconds(self) -> float:
        """The estimate without history. Rows of the ledger keep it, so that later ratios are not ratios of ratios."""
        return self.jobs * JOB_OVERHEAD + self.executions * self.execution_seconds

    @property
    def seconds(self) -> float:
        """The estimate: the formula times the ratio of the history."""
        return self.formula_seconds * self.ratio

    @property
    def least_cap(self) -> float:
        """The least cap under which all jobs are sent, if they take what is estimated."""
        return self.seconds + self.rounding

    @property
    def rule_of_thumb(self) -> float:
        """IBM's own: 2 s a job and 0.35 ms an execution, whatever the circuit and the delay."""
        return self.jobs * JOB_OVERHEAD + self.executions * RULE_PER_EXECUTION

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for a ledger's row or `--json`."""
        names = ("device", "jobs", "circuits", "all_circuits", "shots", "executions", "duration", "readout",
                 "repetition_delay",
                 "formula_seconds", "ratio", "history_jobs", "seconds", "rule_of_thumb")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> str:
        """The arithmetic, a line for each step."""
        readout = "0 (readout length not stated)" if self.readout is None else f"{_short(self.readout)} readout"
        delay = "repetition delay" + ("" if self.delay_stated else " (IBM's usual; the device states none)")
        jobs = f"{self.jobs:,} job{'s' if self.jobs > 1 else ''}"
        circuits = f"{jobs} × {self.circuits:,} circuit{'s' if self.circuits > 1 else ''}"
        if self.unlike is not None:
            circuits = f"{self.unlike:,} circuits in {jobs}"
        lines = [
            f"executions      {circuits} × {self.shots:,} shots = {self.executions:,}",
            f"one execution   {_short(self.duration)} gates + {readout} + {_short(self.repetition_delay)} {delay} "
            f"= {_short(self.execution_seconds)}",
            f"overhead        {jobs} × {JOB_OVERHEAD:g} s = {self.jobs * JOB_OVERHEAD:g} s",
            f"formula         {self.executions:,} × {_short(self.execution_seconds)} + overhead "
            f"= {self.formula_seconds:,.1f} s",
        ]
        if self.note:
            lines.insert(0, f"counted         {self.note}")
        if self.history_jobs:
            n = f"{self.history_jobs} job{'s' if self.history_jobs > 1 else ''}"
            lines.append(f"history         × {self.ratio:.3g}: measured / estimated over {n} of {self.device} "
                         "in the ledger")  # fmt: skip
        else:
            lines.append(
                f"history         none: no finished job of {self.device} in the ledger, so nothing to correct by"
            )
        lines.append(f"QPU seconds     {self.seconds:,.1f}")
        if math.isclose(self.repetition_delay, USUAL_REPETITION_DELAY, rel_tol=1e-3):  # it takes this delay for granted
            lines.append(f"rule of thumb   {self.rule_of_thumb:,.1f} s by IBM's 2 s a job + 0.35 ms an execution")
        return "\n".join(lines)


def estimate_cost(
    duration_seconds: float | None,
    circuits: int,
    shots: int,
    device: Device,
    *,
    jobs: int = 1,
    repetition_delay: float | None = None,
    qubits: Sequence[int] | None = None,
    added: Added | None = None,
    history: Iterable[tuple[float, float]] = (),
) -> Cost:
    """What jobs take on a device's QPU. Pure: nothing is asked of any service.

    Args:
        duration_seconds: of the ISA circuit without its measurement (`CompiledCircuit.duration`), ≥ 0; the mean where
            the circuits of a job differ.
        circuits: executed in one job: rows of parameters × bases measured in, ≥ 1, of all circuits that mitigation of
            our own makes (`expected_cost` counts them).
        shots: of each, ≥ 1.
        device: whose readout length and repetition delay count.
        jobs: how many such jobs.
        repetition_delay: seconds, if another than the device's default is asked for.
        qubits: physical qubits measured; None: the slowest readout of the device counts.
        added: by the client's own mitigation, to each job (`added_by`); None for nothing.
        history: (estimated, measured) seconds of earlier jobs on this device (`history_of`).

    Raises:
        InvalidInputError: the ideal device; a device without gate durations (duration None); numbers out of range.
    """
    if device.target is None:
        raise InvalidInputError("the ideal device is simulated and costs nothing; name a real or a fake device")
    if duration_seconds is None or not (math.isfinite(duration_seconds) and duration_seconds >= 0):
        raise InvalidInputError(
            f"the circuit's duration on {device.name} must be a number of seconds ≥ 0, not {duration_seconds!r}"
        )
    for name, count in (("circuits", circuits), ("shots", shots), ("jobs", jobs)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidInputError(f"{name} must be a whole number ≥ 1, not {count!r}")
    stated = default_repetition_delay(device)
    delay = _checked_delay(device, repetition_delay)
    added = added or Added()
    run, each = added.executed(circuits, shots)
    notes = [f"{circuits:,} circuits a job"]
    if added != Added():
        scales = ", ".join(f"{scale:g}" for scale in added.scales)
        folded = f" × {len(added.scales)} scales ({scales})" if len(added.scales) > 1 else ""
        extra = run - circuits * len(added.scales)
        if added.level or folded or extra:
            notes.append(f"resilience level {added.level}{folded}" + (f" + {extra} of calibration" if extra else ""))
        if each != shots:
            notes.append(f"{shots:,} shots made {each:,} by twirling")
    ratio, n_history = _ratio(history)
    return Cost(
        device=device.name,
        jobs=jobs,
        circuits=run,
        shots=each,
        duration=duration_seconds * sum(added.scales) / len(added.scales),
        readout=readout_seconds(device, qubits),
        repetition_delay=delay,
        delay_stated=repetition_delay is not None or stated is not None,
        ratio=ratio,
        history_jobs=n_history,
        note=", ".join(notes) if len(notes) > 1 else "",
    )


def in_all(costs: Sequence[Cost], *, times: int = 1) -> Cost:
    """Jobs on one device, each of these so many times, as one cost.

    Raises:
        InvalidInputError: no costs, or `times` below 1.
    """
    if not costs or times < 1:
        raise InvalidInputError(f"there must be at least one job, not {times} times {len(costs)}")
    jobs, circuits = sum(cost.jobs for cost in costs), sum(cost.all_circuits for cost in costs)
    alike = len({(cost.circuits, cost.unlike) for cost in costs}) == 1 and costs[0].unlike is None
    mean = sum(cost.duration * cost.executions for cost in costs) / sum(cost.executions for cost in costs)
    return replace(
        costs[0],
        jobs=jobs * times,
        circuits=math.ceil(circuits / jobs),
        duration=costs[0].duration if len(costs) == 1 else mean,
        note=costs[0].note if alike else "",
        unlike=None if alike else circuits * times,
        rounding=sum(cost.jobs * math.ceil(cost.seconds / cost.jobs) - cost.seconds for cost in costs),
    )


def history_of(rows: Iterable[DoneJob], device: str) -> list[tuple[float, float]]:
    """(estimated, measured) seconds of the done rows of `device` that know what they took.

    The estimate is the formula's, where the row keeps it (``summary["formula_seconds"]``).
    """
    pairs = []
    for row in rows:
        if row.device == device and row.state == "done" and row.qpu_seconds:
            estimated = float(row.summary.get("formula_seconds") or row.estimate_seconds or 0.0)
            if estimated > 0:
                pairs.append((estimated, float(row.qpu_seconds)))
    return pairs


def default_repetition_delay(device: Device) -> float | None:
    """Seconds the device waits between two executions unless told otherwise; None where it does not say."""
    configuration = json.loads(device.snapshot.configuration) or {}
    stated = configuration.get("default_rep_delay")
    return None if stated is None else float(stated) * 1e-6  # the documents give microseconds


def readout_seconds(device: Device, qubits: Sequence[int] | None = None) -> float | None:
    """The longest readout among `qubits` (None: all) in seconds; None where the device states none.

    Raises:
        InvalidInputError: the device has no such qubit.
    """
    target = device.target
    if target is None or "measure" not in target.operation_names:
        return None
    places = range(device.n_qubits or 0) if qubits is None else qubits
    if unknown := [q for q in places if not 0 <= q < (device.n_qubits or 0)]:
        raise InvalidInputError(f"{device.name} has qubits 0 to {(device.n_qubits or 0) - 1}, not {unknown}")
    entries = [target["measure"].get((q,)) for q in places]
    lengths = [float(entry.duration) for entry in entries if entry is not None and entry.duration is not None]
    return max(lengths, default=None)


def _checked_delay(device: Device, given: float | None) -> float:
    if given is None:
        stated = default_repetition_delay(device)
        return USUAL_REPETITION_DELAY if stated is None else stated
    configuration = json.loads(device.snapshot.configuration)
    limits = configuration.get("rep_delay_range")
    if not limits:
        raise InvalidInputError(f"{device.name} takes no repetition delay of your own, so not {given * 1e6:g} µs")
    low, high = (float(limit) * 1e-6 for limit in limits)
    if not low - 1e-12 <= given <= high + 1e-12:
        raise InvalidInputError(
            f"{device.name} takes repetition delays of {low * 1e6:g} to {high * 1e6:g} µs, not {given * 1e6:g} µs"
        )
    return given


def _ratio(history: Iterable[tuple[float, float]]) -> tuple[float, int]:
    pairs = list(history)
    if any(not (math.isfinite(e) and e > 0 and math.isfinite(m) and m > 0) for e, m in pairs):
        raise InvalidInputError(f"history must be pairs of positive (estimated, measured) seconds, not {pairs!r}")
    if not pairs:
        return 1.0, 0
    return sum(measured for _, measured in pairs) / sum(estimated for estimated, _ in pairs), len(pairs)


def _short(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"


# -- of PUBs, job by job -----------------------------------------------------------------------------------------------


# (PUBs of one job, the service's options) → what it costs
Estimator = Callable[[Sequence[AnyPub], Mapping[str, Any]], Cost]


def job_estimator(
    device: Device, rows: Callable[[], Iterable[DoneJob]], *, repetition_delay: float | None = None
) -> Estimator:
    """An estimator for jobs on `device`, corrected by what the ledger's `rows` say of earlier ones.

    A repetition delay (seconds) in a job's own options goes before `repetition_delay`.
    """
    durations: dict[int, tuple[Any, float]] = {}

    def duration(pub: AnyPub) -> float:
        if id(pub.circuit) not in durations:  # the circuit is kept, so that its id stays its own
            durations[id(pub.circuit)] = (pub.circuit, duration_of(pub.circuit, device))
        return durations[id(pub.circuit)][1]

    def estimate(pubs: Sequence[AnyPub], options: Mapping[str, Any]) -> Cost:
        circuits, shots = asked(pubs)
        wanted = (options.get("execution") or {}).get("rep_delay")
        mean = sum(pub.rows * bases(pub) * duration(pub) for pub in pubs) / circuits
        cost = estimate_cost(
            mean,
            circuits,
            shots,
            device,
            repetition_delay=repetition_delay if wanted is None else float(wanted),
            added=added_by(options, primitive_of(pubs)),
            history=history_of(rows(), device.name),
        )
        untold = "" if device.has_durations else f"{device.name} states no gate durations: they count as 0"
        return replace(cost, note="; ".join(text for text in (cost.note, untold) if text))

    return estimate


def expected_cost(
    pubs: Sequence[AnyPub],
    device: Device,
    *,
    calls: int = 1,
    resilience_level: int = 0,
    repetition_delay: float | None = None,
    limits: JobLimits | None = None,
    history: Iterable[DoneJob] = (),
) -> Cost:
    """What calls of `Runner.run` with such PUBs take: cut into the same jobs, each estimated as the runner does.

    Args:
        pubs: of one call; their values do not count, only how many rows there are.
        device: that they run on.
        calls: how many such calls.
        resilience_level: of the client's estimator; of a Sampler there is none.
        repetition_delay: seconds, if another than the device's default is asked for.
        limits: of one job.
        history: rows of the ledger.

    Raises:
        InvalidInputError: what `split.split` and `estimate_cost` refuse.
    """
    finished = list(history)
    estimate = job_estimator(device, lambda: finished, repetition_delay=repetition_delay)
    options = {"resilience_level": resilience_level}
    added = added_by(options, primitive_of(pubs))
    jobs = [cut(pubs, pieces) for pieces in split(pubs, limits, factor=len(added.scales))]
    return in_all([estimate(job, options) for job in jobs], times=calls)
