"""QPU seconds of PUBs, job by job: for the runner's budget, and before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qhw_diffusion.devices import Device
from qhw_diffusion.hardware.cost import Cost, DoneJob, added_by, estimate_cost, history_of, in_all
from qhw_diffusion.hardware.service import Pub
from qhw_diffusion.hardware.split import JobLimits, asked, bases, cut, split

# (PUBs of one job, the service's options) → what it costs
Estimator = Callable[[Sequence[Pub], Mapping[str, Any]], Cost]


def job_estimator(
    device: Device, rows: Callable[[], Iterable[DoneJob]], *, repetition_delay: float | None = None
) -> Estimator:
    """An estimator for jobs on `device`, corrected by what the ledger's `rows` say of earlier ones."""
    durations: dict[int, tuple[Any, float]] = {}

    def duration(pub: Pub) -> float:
        if not device.has_durations:  # a device of the user's own, simulated here
            return 0.0
        if id(pub.circuit) not in durations:
            bound = pub.circuit.assign_parameters(dict.fromkeys(pub.circuit.parameters, 0.0))
            # the circuit is kept, so that its id stays its own
            durations[id(pub.circuit)] = (pub.circuit, float(bound.estimate_duration(device.target, unit="s")))
        return durations[id(pub.circuit)][1]

    def estimate(pubs: Sequence[Pub], options: Mapping[str, Any]) -> Cost:
        circuits, shots = asked(pubs)
        mean = sum(pub.rows * bases(pub) * duration(pub) for pub in pubs) / circuits
        cost = estimate_cost(
            mean,
            circuits,
            shots,
            device,
            repetition_delay=repetition_delay,
            added=added_by(options),
            history=history_of(rows(), device.name),
        )
        untold = "" if device.has_durations else f"{device.name} states no gate durations: they count as 0"
        return replace(cost, note="; ".join(text for text in (cost.note, untold) if text))

    return estimate


def expected_cost(
    pubs: Sequence[Pub],
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
        resilience_level: of the client's estimator.
        repetition_delay: seconds, if another than the device's default is asked for.
        limits: of one job.
        history: rows of the ledger.

    Raises:
        InvalidInputError: what `split.split` and `estimate_cost` refuse.
    """
    finished = list(history)
    estimate = job_estimator(device, lambda: finished, repetition_delay=repetition_delay)
    options = {"resilience_level": resilience_level}
    jobs = [cut(pubs, pieces) for pieces in split(pubs, limits, factor=len(added_by(options).scales))]
    return in_all([estimate(job, options) for job in jobs], times=calls)
