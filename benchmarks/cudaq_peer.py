"""CUDA-Q on a CPU: one kernel, `observe` for values and `gradients.ParameterShift`, a loop over samples.

Targets: `qpp-cpu` without noise, `density-matrix-cpu` with it. Values of all observables come from one call. The
gradient is that of their sum, by a kernel whose arguments are inputs and weights (ideal), or the angles of the ISA
circuit's rotations (noisy); the chain rule from there is ours.
"""

from __future__ import annotations

from typing import Any

import cudaq
import numpy as np
from cudaq import spin

from benchmarks.measure import Step
from benchmarks.problem import AffineRZ, Problem

_KEPT: list[cudaq.NoiseModel] = []  # `set_noise` takes the model's address; a model that has gone ends the process


def ideal(problem: Problem, samples: int) -> Step:
    cudaq.unset_noise()
    cudaq.set_target("qpp-cpu")
    kernel, angles = cudaq.make_kernel(list)
    q = kernel.qalloc(4)
    for j in range(6):
        (kernel.ry if j < 4 else kernel.rz)(angles[j], q[j % 4])
    for layer in range(2):
        for k in range(4):
            for i, gate in enumerate((kernel.rx, kernel.rz, kernel.ry)):
                gate(angles[6 + 3 * (4 * layer + k) + i], q[k])
        for k in range(4):
            kernel.cx(q[k], q[(k + 1) % 4])
    rows = np.concatenate([problem.inputs[:samples], np.tile(problem.weights, (samples, 1))], axis=1).astype(float)
    identity = np.eye(rows.shape[1])
    return _step(kernel, range(4), rows, identity[:, :6], identity[:, 6:], np.ones(4), np.zeros(4))


def noisy(problem: Problem, samples: int) -> Step:
    isa = problem.isa
    cudaq.set_target("density-matrix-cpu")
    turns = [gate for gate in isa.gates if isinstance(gate, AffineRZ)]
    kernel, angles = cudaq.make_kernel(list)
    q, noise, turn = kernel.qalloc(isa.n_qubits), cudaq.NoiseModel(), 0
    for i, gate in enumerate(isa.gates):
        if isinstance(gate, AffineRZ):
            kernel.rz(angles[turn], q[gate.qubit])
            turn += 1
        else:
            name, wires = f"fixed{i}", list(gate.qubits[::-1])
            cudaq.register_operation(name, np.eye(2 ** len(wires), dtype=complex))
            getattr(kernel, name)(*(q[w] for w in wires))
            noise.add_channel(name, wires, cudaq.KrausChannel([np.ascontiguousarray(k) for k in gate.kraus]))
    _KEPT[:] = [noise]
    cudaq.set_noise(noise)
    by_inputs, by_weights = np.array([t.inputs for t in turns]), np.array([t.weights for t in turns])
    offsets = np.array([t.offset for t in turns])
    rows = problem.inputs[:samples] @ by_inputs.T + problem.weights @ by_weights.T + offsets
    scale = np.array([1 - p10 - p01 for p10, p01 in isa.readout])
    shift = np.array([p01 - p10 for p10, p01 in isa.readout])
    return _step(kernel, isa.measured, rows, by_inputs, by_weights, scale, shift)


def _step(
    kernel: Any, measured: Any, rows: np.ndarray, by_inputs: np.ndarray, by_weights: np.ndarray, scale: np.ndarray,
    shift: np.ndarray,
) -> Step:  # fmt: skip
    """Of `rows` [samples, angles] of the kernel's angles, affine in inputs and weights."""
    observables = [spin.z(m) for m in measured]
    total = sum((float(s) * o for s, o in zip(scale[1:], observables[1:], strict=True)), scale[0] * observables[0])
    rule = cudaq.gradients.ParameterShift()

    def of_sum(angles: list[float]) -> float:
        return float(cudaq.observe(kernel, total, angles).expectation())

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, slopes = [], []
        for row in rows.tolist():
            values.append([found.expectation() for found in cudaq.observe(kernel, observables, row)])
            slopes.append(rule.compute(row, of_sum, 0.0))
        by_angles = np.array(slopes)
        return np.array(values) * scale + shift, by_angles @ by_inputs, by_angles.sum(0) @ by_weights

    return step


if __name__ == "__main__":
    import json
    import sys

    from benchmarks.other_peers import timed
    from benchmarks.problem import make_problem

    kind, samples, device = sys.argv[1:]
    made = make_problem(int(samples), device)
    print(json.dumps(timed(made, kind, int(samples), ideal if kind == "ideal" else noisy)))
