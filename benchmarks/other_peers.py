"""Peers that are far from ours: one or two steps each, on as many samples as a few seconds allow, extrapolated to 256.

A step is as everywhere: values of the four observables and their gradients by all inputs and weights. A step that
returns them is compared with ours before it is timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.ours import step_of
from benchmarks.problem import Problem

Make = Callable[[Problem, int], Callable[[], object]]
# Too large, and for Linux alone: not among the peers that `.[bench]` installs
INSTALL_CUDAQ = "pip install 'cudaq>=0.16,<0.17' (Linux, 0.9 GB), in the same environment"


@dataclass(frozen=True)
class Row:
    """One peer: milliseconds for `batch` samples, extrapolated from `samples`; deviation of its numbers from ours."""

    name: str
    kind: str
    ms: float
    samples: int
    note: str
    deviation: float | None


def run(problem: Problem, batch: int, say: Callable[[str], None]) -> list[Row]:
    rows = []
    for name, kind, samples, make, note in PEERS:
        if make is None and find_spec("cudaq") is None:
            say(f"{kind:5s} {name}: skipped, not installed: {INSTALL_CUDAQ}")
            continue
        seconds, deviation = timed(problem, kind, samples, make) if make else _by_itself(problem, kind, samples)
        rows.append(Row(name, kind, 1e3 * seconds * batch / samples, samples, note, deviation))
        say(f"{kind:5s} {name}: {rows[-1].ms:,.0f} ms, from {samples} samples")
    return rows


def timed(problem: Problem, kind: str, samples: int, make: Make) -> tuple[float, float | None]:
    """Processor seconds of a step, and what it deviates from ours, which is looked at first."""
    step = make(problem, samples)
    deviation = _deviation(problem, kind, samples, step())  # compiles and warms up, too
    start = time.process_time()
    step()
    return time.process_time() - start, deviation


def _by_itself(problem: Problem, kind: str, samples: int) -> tuple[float, float]:
    """`timed` of CUDA-Q in a process of its own, started by its file: it looks at the frames of all callers in every
    evaluation, and takes 30 to 70 times as long below `python -m`.
    """
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "ignore", str(root / "benchmarks/cudaq_peer.py"), kind, str(samples)]
    command += [problem.noisy.device.name]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment)
    seconds, deviation = json.loads(done.stdout.splitlines()[-1])
    return seconds, deviation


def _deviation(problem: Problem, kind: str, samples: int, found: object) -> float | None:
    """Largest deviation from ours; of the weights' gradients relative to the largest. None if nothing was returned.

    Raises:
        ValueError: it is more than rounding.
    """
    if not (isinstance(found, tuple) and len(found) == 3):
        return None
    values, by_inputs, by_weights = found
    first = replace(problem, inputs=problem.inputs[:samples])
    _, our_inputs, our_weights = step_of(problem.ideal if kind == "ideal" else problem.noisy, kind, first)()
    gradients = max(
        float(np.abs(by_inputs - our_inputs).max()),
        float(np.abs(by_weights - our_weights).max() / np.abs(our_weights).max()),
    )
    deviation = float(np.abs(values - problem.expected[kind][:samples]).max())
    if deviation > 1e-4 or gradients > 1e-3:
        raise ValueError(f"the peer computes something else: values by {deviation:.1e}, gradients by {gradients:.1e}")
    return max(deviation, gradients)


def _tensorcircuit_torch(problem: Problem, samples: int) -> Callable[[], object]:
    import tensorcircuit as tc

    tc.set_backend("pytorch")
    tc.set_dtype("complex64")
    tc.set_contractor("greedy")
    signs = torch.tensor([[1.0 - 2 * (s >> (3 - q) & 1) for s in range(16)] for q in range(4)])

    def evaluate(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        circuit = tc.Circuit(4)
        for j in range(6):
            (circuit.ry if j < 4 else circuit.rz)(j % 4, theta=x[j])
        for layer in range(2):
            for q in range(4):
                first = 3 * (4 * layer + q)
                circuit.rx(q, theta=w[first])
                circuit.rz(q, theta=w[first + 1])
                circuit.ry(q, theta=w[first + 2])
            for q in range(4):
                circuit.cnot(q, (q + 1) % 4)
        return signs @ circuit.state().abs() ** 2

    values = torch.vmap(evaluate, in_dims=(0, None))
    x = torch.tensor(problem.inputs[:samples], requires_grad=True)
    w = torch.tensor(problem.weights, requires_grad=True)
    return lambda: torch.autograd.grad(values(x, w).sum(), (x, w))


def _lightning(problem: Problem, samples: int) -> Callable[[], object]:
    import pennylane as qml
    from pennylane import numpy as pnp

    from benchmarks.pennylane_peer import policy_gates

    @qml.qnode(qml.device("lightning.qubit", wires=4), diff_method="adjoint")
    def node(x: np.ndarray, w: np.ndarray) -> list:
        policy_gates(x, w)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    jacobian = qml.jacobian(lambda x, w: pnp.stack(node(x, w)))
    w = pnp.array(problem.weights, requires_grad=True)
    xs = [pnp.array(x, requires_grad=True) for x in problem.inputs[:samples]]
    return lambda: [jacobian(x, w) for x in xs]


def _qulacs(problem: Problem, samples: int) -> Callable[[], object]:
    from qulacs import Observable, ParametricQuantumCircuit

    circuit = ParametricQuantumCircuit(4)
    order: list[tuple[str, int]] = []

    def turn(gate: str, qubit: int, source: tuple[str, int]) -> None:
        getattr(circuit, f"add_parametric_{gate}_gate")(qubit, 0.0)
        order.append(source)

    for j in range(6):
        turn("RY" if j < 4 else "RZ", j % 4, ("x", j))
    for layer in range(2):
        for q in range(4):
            for k, gate in enumerate(("RX", "RZ", "RY")):
                turn(gate, q, ("w", 3 * (4 * layer + q) + k))
        for q in range(4):
            circuit.add_CNOT_gate(q, (q + 1) % 4)
    total = Observable(4)  # the gradient of the sum of the four, as for everybody
    for q in range(4):
        total.add_operator(1.0, f"Z {q}")

    def step() -> list:
        gradients = []
        for x in problem.inputs[:samples]:
            for i, (source, index) in enumerate(order):  # its rotations turn the other way
                circuit.set_parameter(i, -float(x[index] if source == "x" else problem.weights[index]))
            gradients.append(circuit.backprop(total))
        return gradients

    return step


def _aer_pub(problem: Problem, samples: int) -> Callable[[], object]:
    from qiskit_aer.primitives import EstimatorV2

    from qhw_diffusion.execution import ParameterShift, Primitive, QuantumLayer

    model = problem.noisy.device.noise_model(problem.noisy.physical_qubits)
    model._local_readout_errors.clear()  # Aer's estimator would leave them out without a word
    model._noise_instructions.discard("measure")
    options = {"backend_options": {"noise_model": model, "method": "density_matrix", "max_parallel_threads": 1}}
    engine = Primitive(EstimatorV2(options=options), precision=0.01, reduced=True)
    layer = QuantumLayer(problem.noisy, engine, gradient=ParameterShift())
    x = torch.tensor(problem.inputs[:samples], requires_grad=True)
    return lambda: layer(x).sum().backward()


def _estimator_qnn(problem: Problem, samples: int) -> Callable[[], object]:
    from qiskit.primitives import StatevectorEstimator
    from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    estimator = StatevectorEstimator()
    network = EstimatorQNN(
        circuit=problem.policy.circuit,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
        observables=list(problem.policy.observables),
        input_params=list(problem.policy.inputs),
        weight_params=list(problem.policy.weights),
        input_gradients=True,
    )

    def step() -> None:
        network.forward(problem.inputs[:samples], problem.weights)
        network.backward(problem.inputs[:samples], problem.weights)

    return step


def _flagquantum(problem: Problem, samples: int) -> Callable[[], object]:
    from benchmarks import flagquantum_peer

    return flagquantum_peer.noisy(problem, samples)


def _deepquantum(problem: Problem, samples: int) -> Callable[[], object]:
    from benchmarks import deepquantum_peer

    return deepquantum_peer.noisy(problem, samples)


PEERS: tuple[tuple[str, str, int, Make | None, str], ...] = (
    ("TensorCircuit-NG, torch", "ideal", 256, _tensorcircuit_torch, "Circuit, vmap"),
    ("PennyLane lightning.qubit", "ideal", 8, _lightning, "adjoint, full Jacobian, a loop over samples"),
    ("Qulacs", "ideal", 256, _qulacs, "backprop of the sum of the observables, a loop over samples"),
    ("EstimatorQNN", "ideal", 1, _estimator_qnn, "ParamShift, StatevectorEstimator"),
    (
        "CUDA-Q",
        "ideal",
        8,
        None,
        "qpp-cpu, ParameterShift of the sum of the observables, a loop over samples",
    ),
    ("DeepQuantum", "noisy", 64, _deepquantum, "density matrix, vmap, ISA circuit, device noise, backprop"),
    (
        "FlagQuantum",
        "noisy",
        16,
        _flagquantum,
        "density matrix, a batch of angles, ISA circuit, device noise, backprop",
    ),
    ("CUDA-Q", "noisy", 1, None, "density-matrix-cpu, ISA circuit, device noise, otherwise as above"),
    (
        "Aer, one broadcast PUB",
        "noisy",
        1,
        _aer_pub,
        "density matrix, parameter-shift, reduced noise model",
    ),
)
