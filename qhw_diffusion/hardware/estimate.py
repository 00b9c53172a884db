"""QPU seconds of one job's PUBs, for the runner's budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qhw_diffusion.devices import Device
from qhw_diffusion.hardware.cost import Cost, DoneJob, estimate_cost, history_of
from qhw_diffusion.hardware.service import Pub
from qhw_diffusion.hardware.split import bases

# (PUBs of one job, the service's options) → what it costs
Estimator = Callable[[Sequence[Pub], Mapping[str, Any]], Cost]


def job_estimator(device: Device, rows: Callable[[], Iterable[DoneJob]]) -> Estimator:
    """An estimator for jobs on `device`, corrected by what the ledger's `rows` say of earlier ones."""
    durations: dict[int, tuple[Any, float]] = {}

    def duration(pub: Pub) -> float:
        if id(pub.circuit) not in durations:
            bound = pub.circuit.assign_parameters(dict.fromkeys(pub.circuit.parameters, 0.0))
            # the circuit is kept, so that its id stays its own
            durations[id(pub.circuit)] = (pub.circuit, float(bound.estimate_duration(device.target, unit="s")))
        return durations[id(pub.circuit)][1]

    def estimate(pubs: Sequence[Pub], options: Mapping[str, Any]) -> Cost:
        counts = [pub.rows * bases(pub) for pub in pubs]
        mean = sum(n * duration(pub) for n, pub in zip(counts, pubs, strict=True)) / sum(counts)
        return estimate_cost(
            mean,
            sum(counts),
            max(pub.shots for pub in pubs),
            device,
            resilience_level=int(options.get("resilience_level", 1)),  # the client's own default
            history=history_of(rows(), device.name),
        )

    return estimate
