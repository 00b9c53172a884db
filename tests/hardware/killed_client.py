"""A client process for test_kill.py: runs jobs through the ledger and kills itself (SIGKILL) where it is told to.

Started as a program, it imports what a client needs, once, and then forks processes for each line of its input:
`{"ledger": folder, "stop": name of a moment or null, "signal": which, "after": how often to let it pass, "processes":
how many at once, "jobs": n, …}`. The answer is a line with a list, one entry a process:
`{"signal": 9 or 0, "answer": … or null, "error": … or null}`. The stops are patches in this file; the package knows
nothing of them.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scripted import expectations, pub, sampler_pub

from qhw_diffusion.hardware import ibm, ledger, modes, transport
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.hardware.runner import open_runner
from qhw_diffusion.hardware.split import JobLimits
from qhw_diffusion.hardware.wait import Times

SHOTS = 64
TIMES = Times(connect=5, read=5, attempts=4, backoff=0.01, backoff_most=0.05, poll=0.02, poll_most=0.05, patience=10,
              grace=0.1, lookups=3, submissions=3, settle=0.5)  # fmt: skip

# moment → (owner of the function, its name, whether to die before it runs or after it returned)
MOMENTS: dict[str, tuple[Any, str, str]] = {
    "before planned": (Ledger, "plan", "before"),
    "planned": (Ledger, "plan", "after"),
    "about to be sent": (ibm.IBMService, "submit", "before"),
    "batch opened": (modes.Context, "target", "after"),
    "accepted, reply not read": (transport.Transport, "send", "after"),
    "accepted, id not noted": (Ledger, "submitted", "before"),
    "submitted": (Ledger, "submitted", "after"),
    "answer fetched": (ibm.IBMService, "raw", "after"),
    "answer on the disk, row not done": (ledger, "write_result", "after"),
    "done": (Ledger, "done", "after"),
}


def die_at(moment: str, after: int, number: int) -> None:
    """Patch one function so that this process gets a signal when it is called for the (after + 1)-th time."""
    owner, name, when = MOMENTS[moment]
    original: Callable[..., Any] = getattr(owner, name)
    left = [after]

    def patched(*arguments: Any, **named: Any) -> Any:
        counts = owner is not transport.Transport or _posts_a_job(arguments[1])
        if counts:
            left[0] -= 1
        if counts and left[0] == -1 and when == "before":
            os.kill(os.getpid(), number)
        result = original(*arguments, **named)
        if counts and left[0] == -1 and when == "after":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, patched)


def _posts_a_job(request: Any) -> bool:
    return bool(request.method == "POST" and request.url.endswith("/jobs"))


def work(
    ledger: str,
    jobs: int = 1,
    run: str = "killed",
    program: str = "executor",
    sampler: bool = False,
    by: str = "measure",
    **settings: Any,
) -> dict[str, Any]:
    """One call of a runner: `jobs` jobs of one row each, of an Estimator or of a Sampler with a dynamic circuit.

    `by`: the dynamic circuit's measurement in mid-circuit.
    """
    rows = np.linspace(0.1, 1.5, jobs)
    executions = SHOTS if sampler else 2 * SHOTS
    with Ledger.open(ledger) as opened:
        runner = open_runner("ibm_standin", ledger=opened, run=run, program=program, max_qpu_seconds=100.0,
                             times=TIMES, limits=JobLimits(executions=executions), **settings)  # fmt: skip
        with runner:
            answer = runner.run([sampler_pub(rows, SHOTS, dynamic=True, by=by) if sampler else pub(rows, SHOTS)])
        values = [array.tolist() for array in ([expectations(answer)] if sampler else answer.values)]
        return {"values": values, "jobs": answer.job_ids, "reused": answer.reused, "seconds": answer.qpu_seconds}


def main() -> None:
    """Serve lines until the input ends."""
    # What a client imports when it first shows its progress, sends a job of an Estimator, or asks at all
    for name in ("qhw_diffusion.runs", "qiskit_ibm_runtime.executor_estimator.estimator", "netrc"):
        importlib.import_module(name)
    gc.freeze()  # no process looks through it again, and copies its pages
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        stop = (order.pop("stop"), order.pop("after", 0), order.pop("signal", signal.SIGKILL))
        told = [Path(f"{order['ledger']}.{number}.told") for number in range(order.pop("processes", 1))]
        children = [_fork(order, stop, path) for path in told]
        answers = []
        for child, path in zip(children, told, strict=True):
            _, status = os.waitpid(child, 0)
            said = json.loads(path.read_text()) if path.exists() else {"answer": None, "error": None}
            path.unlink(missing_ok=True)
            answers.append({"signal": os.waitstatus_to_exitcode(status) * -1, **said})
        print(json.dumps(answers), flush=True)


def _fork(order: dict[str, Any], stop: tuple[str | None, int, int], told: Path) -> int:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
        warnings.simplefilter("ignore")  # the client warns of its own deprecations
        moment, after, number = stop
        if moment is not None:
            die_at(moment, after, number)
        try:
            told.write_text(json.dumps({"answer": work(**order), "error": None}))
        except BaseException as error:
            told.write_text(json.dumps({"answer": None, "error": f"{type(error).__name__}: {error}"}))
        os._exit(0)
    return child


if __name__ == "__main__":
    main()
