"""`python -m benchmarks`: run all contenders side by side on one core and print the table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONTENDERS = ("ours", "pennylane", "tensorcircuit", "flagquantum", "deepquantum")
PARTS = (
    "policy",
    "re-uploading",
    "small",
    "denoiser",
    "first",
    "cores",
    "wide",
    "trajectories",
    "others",
    "scaling",
    "pipelines",
)


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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
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
    from benchmarks import report, scaling
    from benchmarks.measure import measure

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        if "pipelines" in options.parts:
            import transformers  # noqa: F401 - the last part needs it, and would lose the parts before
        posed = list(problems(options))
        sections = [
            report.Section(group, title, text, measure(contenders, problem, options.rounds, options.slot, say))
            for group, title, text, problem, contenders in posed
        ]
        extra = extras(options, posed, sections, say)
    except ImportError as error:
        print(f"{error}\nThe peers are not installed: pip install -e '.[bench]'", file=sys.stderr)
        return 1
    data = report.as_dict(sections, options.rounds, extra)
    print("\n" + report.markdown(sections, data))
    print("\n" + "\n".join(report.goals(sections, data)))
    if options.write and "scaling" in extra:
        scaling.plot(extra["scaling"], ROOT / "docs/figures/scaling.svg")
    report.write(sections, data, options.json, ROOT / "docs/performance.md" if options.write else None)
    exact = [r for s in sections for r in s.results if r.deviation is not None and r.gradient_deviation is not None]
    if not exact:
        return 0
    values, gradients = max(r.deviation for r in exact), max(r.gradient_deviation for r in exact)
    print(f"largest deviation between contenders that compute the same: values {values:.1e}, gradients {gradients:.1e}")
    if values > 1e-4 or gradients > 1e-3:
        print("the contenders do not compute the same: the times above mean nothing", file=sys.stderr)
        return 1
    return 0


def problems(options: argparse.Namespace) -> Iterator[tuple[str, str, str, Any, list[Any]]]:
    """(group, title, text, problem, contenders) of every side-by-side measurement asked for."""
    from benchmarks import denoiser, ours
    from benchmarks.measure import Contender
    from benchmarks.problem import make_problem

    peers = {}
    if "pennylane" in options.only:
        from benchmarks import pennylane_peer

        peers["pennylane"] = pennylane_peer.contenders()
    if "flagquantum" in options.only:
        from benchmarks import flagquantum_peer

        peers["flagquantum"] = flagquantum_peer.contenders()
    if "deepquantum" in options.only:
        from benchmarks import deepquantum_peer

        peers["deepquantum"] = deepquantum_peer.contenders()
    if "tensorcircuit" in options.only:
        from benchmarks import tensorcircuit_merged, tensorcircuit_peer

        peers["tensorcircuit"] = tensorcircuit_peer.contenders() + tensorcircuit_merged.contenders()
    for part, reuploading in (("policy", False), ("re-uploading", True)):
        if part in options.parts or (part == "policy" and "others" in options.parts):
            problem = make_problem(options.batch, options.device, reuploading=reuploading)
            circuit = problem.noisy
            text = (
                f"4 qubits, depth 2, ring{', data re-uploading' * reuploading}; batch {options.batch}; "
                f"expectation values of 4 "
                f"observables and the gradients by all inputs and weights. Noisy: compiled for `{circuit.device.name}` "
                f"({circuit.two_qubit_gates} two-qubit gates, depth {circuit.depth}, {problem.isa.n_channels} noise "
                f"channels; "
                f"transpiling took {problem.transpile_seconds:.2f} s)."
            )
            contenders = ours.contenders()
            for name, theirs in peers.items():  # PennyLane's circuit is written out without re-uploading
                contenders += [] if reuploading and name == "pennylane" else theirs
            yield part, "Policy circuit" + " with data re-uploading" * reuploading, text, problem, contenders
    sizes = [("small", *size) for size in denoiser.SMALL] + [("denoiser", *s, denoiser.BATCH) for s in denoiser.SIZES]
    for part, n, depth, batch in sizes:
        if part not in options.parts:
            continue
        block = denoiser.make_block(n, depth, batch)
        contenders = [
            Contender("qhw_diffusion", "ideal", lambda p: ours.step_of(p.compiled, "ideal", p), note="torch, float32")
        ]
        if part == "small":
            note = "a function of the same shapes that does nothing"
            contenders.append(Contender("torch alone", "ideal", ours.nothing, exact=False, note=note))
        if "tensorcircuit" in options.only:
            note = "denoiser blocks: Circuit, vmap, layers in lax.scan"
            contenders.append(Contender("TensorCircuit-NG, JAX jit", "ideal", tensorcircuit_peer.denoiser, note=note))
            note = "denoiser blocks: Circuit.any on the rotations of each half, chain as a permutation, lax.scan"
            name = tensorcircuit_merged.NAME
            contenders.append(Contender(name, "ideal", tensorcircuit_merged.denoiser, note=note))
        text = f"Angle encoding and {depth} layers of RX, RZ, RY and a CNOT chain; batch {batch}, no noise."
        title = f"Denoiser block, {n} qubits, {3 * n * depth:,} weights" + f", batch {batch}" * (part == "small")
        yield part, title, text, block, contenders


def extras(
    options: argparse.Namespace, posed: list[Any], sections: list[Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """What is not timed side by side in rounds."""
    from benchmarks import cores, first_gradient, noise_trajectories, other_peers, pipelines, scaling, wide_noise

    found: dict[str, Any] = {}
    if "first" in options.parts:
        found["first_gradient"] = first_gradient.run()
    if "cores" in options.parts:
        found["cores"] = cores.run(say)
    if "wide" in options.parts:
        found["wide_noise"] = wide_noise.run(say)
    if "trajectories" in options.parts:
        found["noise_trajectories"] = noise_trajectories.run(say)
    if "others" in options.parts and posed:
        ours = {r.contender.kind: r for r in sections[0].results if r.contender.name == "qhw_diffusion"}
        rows = other_peers.run(posed[0][3], options.batch, say)
        found["other_peers"] = [
            {**vars(row), "times_ours": row.ms / (1e3 * ours[row.kind].median_cpu())} for row in rows
        ]
    if "scaling" in options.parts:
        found["scaling"] = scaling.run(say, peer="tensorcircuit" in options.only)
    if "pipelines" in options.parts:
        found["pipelines"] = pipelines.run(say)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
