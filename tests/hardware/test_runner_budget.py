"""No job without a cap, none that would pass one, and limits that hold even if every job uses its own up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import FAST, Job, ScriptedService, estimate, pub

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import BudgetError, ServiceError
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import Runner
from qhw_diffusion.hardware.split import JobLimits

ONE_ROW = JobLimits(executions=200)


def runner(service: ScriptedService, ledger: Ledger, **settings: Any) -> Runner:
    given = {"run": "test", "times": FAST, "estimate": estimate}
    return Runner(service, ledger, **{**given, **settings})


def test_without_a_cap_nothing_is_sent_to_a_paid_device(ledger: Ledger) -> None:
    service = ScriptedService()
    with pytest.raises(BudgetError, match=r"no cap: give --max-qpu-seconds.*Nothing was sent"):
        runner(service, ledger).run([pub()])
    assert (service.jobs, ledger.rows()) == ({}, [])
    ledger.set_cap(10)
    runner(service, ledger).run([pub()])
    assert len(service.jobs) == 1, "the ledger's own cap is one"
    free = ScriptedService(prefix="free", paid=False, device="fake_scripted")
    ledger.set_cap(None)
    runner(free, ledger).run([pub()])
    assert len(free.jobs) == 1


def test_the_runs_cap_counts_what_was_measured(ledger: Ledger) -> None:
    service = ScriptedService(new_job=lambda job: setattr(job, "charged", 7.5))
    mine = runner(service, ledger, max_qpu_seconds=10)
    mine.run([pub()])
    with pytest.raises(
        BudgetError, match=r"2.0 s \(2 s in whole seconds\), and 1.5 s are left: the run.s cap is 9 s, 7.5 s"
    ):
        runner(service, ledger, max_qpu_seconds=9).run([pub()], purpose="second")
    mine.run([pub()], purpose="second")
    assert len(service.jobs) == 2
    runner(service, ledger, run="other", max_qpu_seconds=3).run([pub()], purpose="third")
    assert len(service.jobs) == 3, "another run has a cap of its own"


def test_the_ledgers_cap_counts_every_run(ledger: Ledger) -> None:
    service = ScriptedService()
    ledger.set_cap(5)
    runner(service, ledger, run="a", max_qpu_seconds=100).run([pub()])
    runner(service, ledger, run="b", max_qpu_seconds=100).run([pub()], purpose="b")
    with pytest.raises(BudgetError, match=r"1.0 s are left: the ledger's cap is 5 s, 4.0 s"):
        runner(service, ledger, run="c", max_qpu_seconds=100).run([pub()], purpose="c")


def test_what_the_account_has_left_counts(ledger: Ledger) -> None:
    service = ScriptedService(remaining=1.5)
    with pytest.raises(BudgetError, match=r"1.5 s are left: the account has 2 s, 0.0 s of it in flight"):
        runner(service, ledger, max_qpu_seconds=100).run([pub()])
    service.remaining = 3.9
    service.on_status = [ServiceError("gone")] * 10**4
    with pytest.raises(ServiceError):
        runner(service, ledger, max_qpu_seconds=100).run([pub()])
    with pytest.raises(BudgetError, match=r"0.9 s are left: the account has 4 s, 3.0 s of it in flight"):
        runner(service, ledger, max_qpu_seconds=100).run([pub()], purpose="second")


def test_all_jobs_of_a_call_fit_or_none_is_sent(ledger: Ledger) -> None:
    service = ScriptedService()
    with pytest.raises(BudgetError, match=r"3 jobs on ibm_scripted would take about 6.0 s"):
        runner(service, ledger, max_qpu_seconds=5, limits=ONE_ROW).run([pub((0.1, 0.2, 0.3))])
    assert (service.jobs, ledger.spent()) == ({}, 0.0)


def test_limits_of_jobs_fit_the_cap_even_if_all_are_used_up(ledger: Ledger) -> None:
    def use_it_up(job: Job) -> None:
        assert job.limits.max_execution_seconds is not None
        job.charged = float(job.limits.max_execution_seconds)

    service = ScriptedService(new_job=use_it_up)
    runner(service, ledger, max_qpu_seconds=11.9, limits=ONE_ROW).run([pub((0.1, 0.2, 0.3))])
    assert [job.limits.max_execution_seconds for job in service.jobs.values()] == [3, 3, 3]
    assert ledger.spent() <= 11.9
    runner(service, ledger, max_qpu_seconds=11.9).run([pub()], purpose="rest")
    assert list(service.jobs.values())[-1].limits.max_execution_seconds == 2
    with pytest.raises(BudgetError):
        runner(service, ledger, max_qpu_seconds=11.9).run([pub()], purpose="more")


def test_a_job_never_gets_more_than_the_service_allows(ledger: Ledger) -> None:
    service = ScriptedService()
    runner(service, ledger, max_qpu_seconds=1e6).run([pub()])
    assert service.jobs["job-1"].limits.max_execution_seconds == 3 * 3600


def test_an_interrupted_plan_is_not_counted_twice(ledger: Ledger) -> None:
    service = ScriptedService(on_submit=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        runner(service, ledger, max_qpu_seconds=2.5).run([pub()])
    assert ledger.spent() == 2.0
    runner(service, ledger, max_qpu_seconds=2.5).run([pub()])
    assert ledger.spent() == 2.0


def test_a_session_has_a_maximum_time_within_the_cap_and_counts_by_the_clock(ledger: Ledger) -> None:
    service = ScriptedService()
    mine = runner(service, ledger, mode="session", max_qpu_seconds=20)
    mine.run([pub()])
    assert service.jobs["job-1"].limits.max_session_seconds == 20
    other = ScriptedService(prefix="short")
    runner(other, ledger, mode="session", max_qpu_seconds=20, max_session_seconds=5).run([pub()], purpose="short")
    assert other.jobs["short-1"].limits.max_session_seconds == 5
    service.session = 17.0  # by the clock: 15 s more than the job took
    with pytest.raises(BudgetError, match=r"1.0 s are left: the run's cap is 20 s, 19.0 s"):
        mine.run([pub()], purpose="later")
    mine.close()
    assert ledger.spent() == 19.0, "what the session took after its job counts with that job"


def test_estimates_come_from_the_device_unless_given(ledger: Ledger) -> None:
    service = ScriptedService()
    with pytest.raises(BudgetError, match=r"in whole seconds\), and 2.0 s are left"):
        runner(service, ledger, max_qpu_seconds=2, estimate=None).run([pub(shots=1000)])
    runner(service, ledger, max_qpu_seconds=20, estimate=None).run([pub(shots=1000)], options={"resilience_level": 0})
    (row,) = ledger.rows()
    device = Device.load("fake_manila")
    readout = max(device.target["measure"][(q,)].duration for q in range(5))
    gates = 2 * device.target["sx"][(0,)].duration
    delay = json.loads(device.snapshot.configuration).get("default_rep_delay", 250) * 1e-6
    # IBM's formula: 2 s a job, and 4 circuits of 1000 shots
    assert row.estimate_seconds == pytest.approx(2 + 4 * 1000 * (gates + readout + delay))
    assert row.summary["formula_seconds"] == row.estimate_seconds
