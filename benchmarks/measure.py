"""Timing: interleaved rounds on one pinned core, processor time next to wall-clock time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.problem import Posed

# One step, forward and backward: values [B, M] and the gradients of their sum by inputs [B, 6] and weights [24].
Step = Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Contender:
    """Something that solves the problem.

    Attributes:
        name: for the table.
        kind: "ideal" or "noisy".
        build: makes the step from the problem; its time and the first step's are the time to the first gradient.
        exact: computes `Problem.expected`; False for a peer that is given other (simpler) noise.
        note: what was done for it.
    """

    name: str
    kind: str
    build: Callable[[Any], Step]
    exact: bool = True
    note: str = ""


@dataclass
class Result:
    """Times in seconds; deviations of values and gradients from the reference (None if not `exact`)."""

    contender: Contender
    first: float = 0.0
    first_wall: float = 0.0
    deviation: float | None = None
    gradient_deviation: float | None = None
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def median_cpu(self) -> float:
        return float(np.median(self.cpu))

    def min_cpu(self) -> float:
        return float(np.min(self.cpu))

    def median_wall(self) -> float:
        return float(np.median(self.wall))


def measure(
    contenders: list[Contender], problem: Posed, rounds: int, slot: float, say: Callable[[str], None]
) -> list[Result]:
    """Build and warm up all contenders, then time them in turn, `rounds` times about `slot` seconds each.

    In turn, so that whatever else the machine does hits all of them alike; by processor time, so that a step longer
    than the scheduler's time slice is not charged for other people's work (on an idle machine both times are equal).
    """
    results, steps = [], []
    gradients: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for contender in contenders:
        wall, cpu = time.perf_counter(), time.process_time()
        step = contender.build(problem)
        values, by_inputs, by_weights = step()
        result = Result(contender, first=time.process_time() - cpu, first_wall=time.perf_counter() - wall)
        if contender.exact:
            result.deviation = float(np.abs(values - problem.expected[contender.kind]).max())
            reference = gradients.setdefault(contender.kind, (by_inputs, by_weights))
            result.gradient_deviation = max(
                float(np.abs(by_inputs - reference[0]).max()),
                float(np.abs(by_weights - reference[1]).max() / np.abs(reference[1]).max()),
            )
        results.append(result)
        steps.append(step)
        say(f"{contender.kind:5s} {contender.name}: first gradient after {result.first:.2f} s")
    for step in steps:  # warm-up
        for _ in range(3):
            step()
    calls = [max(1, int(slot / _once(step))) for step in steps]
    gc.collect()
    for _ in range(rounds):
        for result, step, count in zip(results, steps, calls, strict=True):
            for _ in range(count):
                wall, cpu = time.perf_counter(), time.process_time()
                step()
                result.cpu.append(time.process_time() - cpu)
                result.wall.append(time.perf_counter() - wall)
    return results


def _once(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
