"""Evaluate on a device: one broadcast PUB a circuit, all circuits of a call in one job, through the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.constants import evaluate_varying
from qhw_diffusion.execution.engine import Engine, Estimate, Experiment, check_parameters
from qhw_diffusion.execution.pubs import check_no_measurements, estimate_of, pub_of, sent_circuits
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.service import precision_of


@dataclass(frozen=True, eq=False)
class Hardware(Engine):
    """Expectation values from a device, or from a fake one in this process, by way of a `Runner`.

    What the ledger has already is not run again: a call with the same circuit, rows, options and purpose takes the
    stored result. No gradients of its own: give the layer `ParameterShift`, `SPSA` or `Surrogate`. A very large call
    is split into several jobs below the service's limits.

    Args:
        runner: `open_runner(…)`.
        shots: of each circuit, ≥ 1.
        options: of the runtime client's estimator, for example ``{"resilience_level": 1}``; 0 unless given, since the
            client's own default is 1.
        purpose: what the evaluations are for, part of the ledger's key: ``"step 3"``. The same work for another
            purpose is run again.

    Raises:
        InvalidInputError: no `Runner`, shots below 1.
    """

    runner: Runner
    shots: int = 4096
    options: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = "evaluate"
    name: ClassVar[str] = "hardware"

    def __post_init__(self) -> None:
        if not isinstance(self.runner, Runner):
            raise InvalidInputError(f"runner is a {type(self.runner).__name__}; make one with open_runner(device, …)")
        precision_of(self.shots)

    def check(self, compiled: CompiledCircuit) -> None:
        check_no_measurements(compiled)
        device = self.runner.service.device
        if compiled.device.name != device:
            raise InvalidInputError(
                f"the circuit is compiled for {compiled.device.name}, the runner's device is {device}: use "
                f"compiled.compile_for(Device.load({device!r}))"
            )

    def circuits_of(self, compiled: CompiledCircuit, rows: int) -> int:
        return sent_circuits(compiled, rows)

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        return self.estimate_many([(compiled, parameters)])[0]

    def estimate_many(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        """Evaluate several circuits in one job; observables that are constants are not sent.

        Raises:
            InvalidInputError, UnsupportedCircuitError: a circuit of another device, or that it does not take.
            BudgetError, JobError, ServiceError, AccountError, LedgerError: see `Runner.run`.
            EngineError: the answer is no result.
        """
        for compiled, _ in experiments:
            self.check(compiled)
        experiments = [(compiled, check_parameters(compiled, parameters)) for compiled, parameters in experiments]
        return evaluate_varying(experiments, self._estimate)

    def _estimate(self, experiments: Sequence[Experiment]) -> list[Estimate]:
        precision = precision_of(self.shots)
        pubs = [pub_of(compiled, parameters, precision) for compiled, parameters in experiments]
        answer = self.runner.run(pubs, options={"resilience_level": 0, **self.options}, purpose=self.purpose)
        measured = zip(answer.values, answer.std_errors, answer.shots, strict=True)
        who = f"{self.runner.service.device} (job {', '.join(answer.job_ids)})"
        return [estimate_of(*e, pub, m, who) for e, pub, m in zip(experiments, pubs, measured, strict=True)]
