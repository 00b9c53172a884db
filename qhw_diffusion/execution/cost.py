"""What evaluations take on a device, before anything is sent: the one estimate, from the plan of an engine.

An engine's plan (`Engine.plan`) says which circuits an evaluation sends, mitigation and its calibration included;
`Engine.cost` counts them. `qpu_cost` makes the PUBs of that plan, cuts them into the jobs that would be sent, and
estimates each of these as the runner does when it holds a job against the caps (`hardware.cost`). So `qhw cost`,
what a run announces, the runner's check before it sends, and the rows of the ledger count the same circuits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine
from qhw_diffusion.execution.primitive import planned_pub, sent_circuits
from qhw_diffusion.hardware.cost import Cost, DoneJob, expected_cost
from qhw_diffusion.hardware.split import JobLimits


def qpu_cost(
    engine: Engine,
    compiled: CompiledCircuit,
    rows: int,
    *,
    shots: int,
    calls: int = 1,
    resilience_level: int = 0,
    repetition_delay: float | None = None,
    limits: JobLimits | None = None,
    history: Iterable[DoneJob] = (),
) -> Cost:
    """What evaluations of a circuit on its device take in jobs, circuits, shots and QPU seconds.

    Args:
        engine: whose plan counts: its mitigation, not where it evaluates, so that ``engine_of("ideal+zne")`` stands for
            the same strategies on a device. Each evaluation calibrates anew.
        compiled: the circuit on its device, with the observables.
        rows: rows of parameters in each evaluation.
        shots: shots of each circuit.
        calls: number of evaluations.
        resilience_level: of the client's estimator.
        repetition_delay: seconds; None for the device's default.
        limits: of one job; None for the service's.
        history: rows of the ledger, to correct the estimate by what earlier jobs on this device took.

    Raises:
        InvalidInputError, UnsupportedCircuitError: the ideal device, counts below 1, observables that are all
            constants, circuits that the estimator or a strategy does not take; a row that does not fit into a job.
    """
    if compiled.device.target is None:
        raise InvalidInputError("the ideal device is simulated and costs nothing; name a real or a fake device")
    plan = engine.plan(compiled, rows)
    sent = (*plan.circuits, *plan.calibrations)
    if not sent:
        raise InvalidInputError("the observables are constants: nothing is sent, and nothing is paid")
    alone, total = sent_circuits(compiled, rows), sum(sent_circuits(*each) for each in sent)
    once = sum(sent_circuits(*each) for each in plan.calibrations)
    note = f"{alone:,} circuits a call alone, {total:,} with mitigation, {once:,} of these for calibration"
    cost = expected_cost(
        [planned_pub(circuit, number, shots) for circuit, number in sent],
        compiled.device,
        calls=calls,
        resilience_level=resilience_level,
        repetition_delay=repetition_delay,
        limits=limits,
        history=history,
    )
    notes = (note if engine.mitigated else "", cost.note)
    return replace(cost, note="; ".join(text for text in notes if text))
