"""Trainings on a device: the engine of one update, what the work is and costs, and what it took.

Every job is filed in the ledger under its update and its number in it, so an update that is repeated after an
interruption asks for the jobs that were paid for, and takes their results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate, Usage
from qhw_diffusion.execution.engine import check_parameters
from qhw_diffusion.execution.gradients import unrolled
from qhw_diffusion.on_device.access import DeviceAccess
from qhw_diffusion.on_device.receipt import Access


def moved_rows(gradient: str, compiled: CompiledCircuit) -> int:
    """Circuits that the gradient of one row takes beside its values.

    Args:
        gradient: one of `settings.GRADIENTS`.
        compiled: the circuit, all inputs and weights of which a gradient is asked of.
    """
    if gradient != "parameter-shift":
        return {"surrogate": 0, "spsa": 2}[gradient]
    free = unrolled(compiled)
    return 2 * int(((free.input_coefficients != 0).any(axis=1) | (free.weight_coefficients != 0).any(axis=1)).sum())


def work_text(access: DeviceAccess, compiled: CompiledCircuit, work: Mapping[str, tuple[int, int]]) -> str:
    """What a training will take, part by part, and what that means under the cap.

    Args:
        access: to the device.
        compiled: the circuit.
        work: part → (circuits of a job, how many such jobs), before mitigation; parts without jobs are left out.
    """
    parts, costs = [], []
    for what, (rows, calls) in work.items():
        if calls:
            costs.append(access.cost(compiled, rows, calls=calls))
            parts.append(f"{what}: {costs[-1].jobs} jobs × {costs[-1].circuits} circuits × {costs[-1].shots} shots, "
                         f"{costs[-1].seconds:,.1f} s")  # fmt: skip
    seconds = sum(cost.seconds for cost in costs)
    where = (
        "on the device" if access.paid else f"{access.config.device} is simulated here and costs nothing; on a device"
    )
    lines = [*parts, f"{where} about {seconds:,.1f} QPU seconds ({sum(cost.jobs for cost in costs)} jobs)"]
    if access.paid:
        lines.append(access.cap_text(seconds + max(cost.rounding for cost in costs)))
    return "\n".join(line for line in lines if line)


def spent_by(access: DeviceAccess) -> dict[str, Any]:
    """Jobs, circuits, charges and calibrations of a run, as its record holds them."""
    rows, receipt = access.ledger.rows(run=access.run, state="done"), access.all_receipts()
    return {
        "jobs": len(rows),
        "circuits": sum(row.circuits for row in rows),
        "qpu_seconds": receipt.qpu_seconds,
        "unused_jobs": list(receipt.unused_jobs),
        "reused_jobs": list(receipt.reused_jobs),
        "calibrations": list(receipt.calibrations),
    }


def spent_so_far(access: DeviceAccess) -> dict[str, float]:
    """Jobs of a run and the QPU seconds charged for them, as metrics; NaN while those of one job are not stated."""
    access.runner.read_charges()
    receipt = access.all_receipts()
    seconds = math.nan if receipt.qpu_seconds is None else receipt.qpu_seconds
    return {"charts/jobs": float(len(receipt.job_ids) + len(receipt.unused_jobs)), "charts/qpu_seconds": seconds}


def spent_text(asked: Any, record: Mapping[str, Any]) -> str:
    """One line: updates, gradients, jobs, circuits and QPU seconds (`asked`: a `TuningConfig`)."""
    used = record["qpu_seconds"]
    reused = f" ({len(record['reused_jobs'])} of them from the ledger)" if record["reused_jobs"] else ""
    return (
        f"{asked.updates} updates on {asked.device}, {asked.gradient} gradients: {record['jobs']} jobs{reused}, "
        f"{record['circuits']:,} circuits, {'not yet stated' if used is None else f'{used:.1f}'} QPU seconds"
    )


class FiledEngine(Engine):
    """The engine of one update: calls are numbered, and numbered the same way when the update is repeated.

    Rows of parameters that were measured in this update are not measured again. PPO's first gradient step looks at the
    states of its rollout with the weights of its rollout, so it costs nothing where it takes all of them at once; its
    probability ratios are then exactly 1, as they should be.

    Args:
        access: engines by purpose.
        purpose: of the update; call k is filed under it with " call k".
    """

    name: ClassVar[str] = "device"

    def __init__(self, access: Access, purpose: str) -> None:
        self.access, self.purpose, self.calls = access, purpose, 0
        self._known: dict[int, tuple[CompiledCircuit, dict[bytes, tuple[Tensor, Tensor]]]] = {}

    def check(self, compiled: CompiledCircuit) -> None:
        """Raise what the device's engine raises for a circuit that it cannot run."""
        self.access.engine(self.purpose).check(compiled)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Values and standard errors [B, M] of rows [B, P]; only rows that this update has not measured are sent."""
        parameters = check_parameters(compiled, parameters)
        # the circuit is kept, so that its id stays its own
        _, known = self._known.setdefault(id(compiled), (compiled, {}))
        keys = [row.tobytes() for row in parameters.detach().cpu().double().numpy()]
        new = {key: index for index, key in reversed(list(enumerate(keys))) if key not in known}
        usage = Usage()
        if new:
            order = sorted(new.values())
            self.calls += 1
            engine = self.access.engine(f"{self.purpose} call {self.calls}")
            answer = engine.estimate(compiled, parameters.detach()[torch.tensor(order)])
            usage = answer.usage
            for place, index in enumerate(order):
                known[keys[index]] = answer.values[place], answer.std_errors[place]
        return Estimate(
            torch.stack([known[key][0] for key in keys]), torch.stack([known[key][1] for key in keys]), usage
        )
