"""`python -m benchmarks`: run all contenders side by side on one core and print the table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "pennylane", "tensorcircuit")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--batch", type=int, default=256, help="rows of inputs (default 256)")
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default 12)")
    parser.add_argument(
        "--slot", type=float, default=0.15, help="seconds a contender gets in each round (default 0.15)"
    )
    parser.add_argument("--device", default="fake_marrakesh", help="device of the noisy contenders")
    parser.add_argument("--core", type=int, default=None, help="processor core to run on (default: the last allowed)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders to run")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks/results/latest.json", help="where to put the data"
    )
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md")
    return parser.parse_args(argv)


def one_core(core: int | None) -> None:
    """One thread for everybody: pin the process before any library starts its threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(allowed) if core is None else core})


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    one_core(options.core)
    warnings.filterwarnings("ignore")  # the peers' own; ours are errors in the tests
    logging.getLogger("tensorcircuit").setLevel(logging.ERROR)  # it misses optax, which is not used here

    import torch

    torch.set_num_threads(1)
    from benchmarks import ours, report
    from benchmarks.measure import measure
    from benchmarks.problem import make_problem

    contenders = ours.contenders()
    try:
        if "pennylane" in options.only:
            from benchmarks import pennylane_peer

            contenders += pennylane_peer.contenders()
        if "tensorcircuit" in options.only:
            from benchmarks import tensorcircuit_peer

            contenders += tensorcircuit_peer.contenders()
    except ImportError as error:
        print(f"{error}\nThe peers are not installed: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    problem = make_problem(options.batch, options.device)
    results = measure(contenders, problem, options.rounds, options.slot, lambda line: print(line, flush=True))
    data = report.as_dict(results, problem, options.batch, options.rounds)
    print("\n" + report.markdown(results, data))
    print("\n" + "\n".join(report.goals(results)))
    exact = [r for r in results if r.deviation is not None and r.gradient_deviation is not None]
    values, gradients = max(r.deviation for r in exact), max(r.gradient_deviation for r in exact)
    print(f"largest deviation between contenders that compute the same: values {values:.1e}, gradients {gradients:.1e}")
    report.write(results, data, options.json, ROOT / "docs/performance.md" if options.write else None)
    if values > 1e-4 or gradients > 1e-3:
        print("the contenders do not compute the same: the times above mean nothing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
