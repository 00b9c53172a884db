"""PennyLane: backprop through default.qubit and default.mixed, torch interface, inputs broadcast over the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

from benchmarks.measure import Contender, Step
from benchmarks.problem import AffineRZ, Problem


def contenders() -> list[Contender]:
    return [
        Contender("PennyLane default.qubit", "ideal", _ideal, note="backprop, torch"),
        Contender(
            "PennyLane default.mixed, depolarizing",
            "noisy",
            _simple,
            exact=False,
            note="backprop, torch; circuit as written, as many one-qubit depolarizing channels as the ISA circuit has",
        ),
        Contender(
            "PennyLane default.mixed, device noise",
            "noisy",
            _exact,
            note="backprop, torch; ISA circuit, each gate with its noise as one QubitChannel",
        ),
    ]


def _step(problem: Problem, node: Callable, after: Callable[[torch.Tensor], torch.Tensor]) -> Step:
    inputs = torch.tensor(problem.inputs, requires_grad=True)
    weights = torch.tensor(problem.weights, requires_grad=True)

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = weights.grad = None
        values = after(torch.stack(node(inputs, weights), dim=1))
        values.sum().backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        return values.detach().numpy(), inputs.grad.numpy(), weights.grad.numpy()

    return step


def _policy(x: torch.Tensor, w: torch.Tensor, after_gate: Callable[[list[int]], None]) -> None:
    """The circuit of `policy_circuit(4, 2, 6, "ring")`, gate by gate."""

    def gate(operation: Any, angle: torch.Tensor | None, wires: list[int]) -> None:
        operation(*([] if angle is None else [angle]), wires=wires)
        after_gate(wires)

    for j in range(6):
        gate(qml.RY if j < 4 else qml.RZ, x[:, j], [j % 4])
    for layer in range(2):
        for q in range(4):
            first = 3 * (4 * layer + q)
            gate(qml.RX, w[first], [q])
            gate(qml.RZ, w[first + 1], [q])
            gate(qml.RY, w[first + 2], [q])
        for q in range(4):
            gate(qml.CNOT, None, [q, (q + 1) % 4])


def policy_gates(x: Any, w: Any) -> None:
    """The policy circuit of one sample, x [6], w [24]."""
    for j in range(6):
        (qml.RY if j < 4 else qml.RZ)(x[j], wires=j % 4)
    for layer in range(2):
        for q in range(4):
            first = 3 * (4 * layer + q)
            qml.RX(w[first], wires=q)
            qml.RZ(w[first + 1], wires=q)
            qml.RY(w[first + 2], wires=q)
        for q in range(4):
            qml.CNOT(wires=[q, (q + 1) % 4])


def _ideal(problem: Problem) -> Step:
    @qml.qnode(qml.device("default.qubit", wires=4), interface="torch", diff_method="backprop")
    def node(x: torch.Tensor, w: torch.Tensor) -> list:
        _policy(x, w, lambda wires: None)
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    return _step(problem, node, lambda values: values)


def _simple(problem: Problem) -> Step:
    @qml.qnode(qml.device("default.mixed", wires=4), interface="torch", diff_method="backprop")
    def node(x: torch.Tensor, w: torch.Tensor) -> list:
        gates, placed = 0, 0

        def noise(wires: list[int]) -> None:
            nonlocal gates, placed
            gates += 1
            for k in range(problem.isa.n_channels * gates // 38 - placed):  # spread evenly over the 38 gates
                qml.DepolarizingChannel(1e-3, wires=wires[k % len(wires)])
                placed += 1

        _policy(x, w, noise)
        assert placed == problem.isa.n_channels
        return [qml.expval(qml.PauliZ(q)) for q in range(4)]

    return _step(problem, node, lambda values: values)


def _exact(problem: Problem) -> Step:
    channels = {i: gate.kraus for i, gate in enumerate(problem.isa.gates) if not isinstance(gate, AffineRZ)}
    rows = {
        i: (torch.tensor(gate.inputs, dtype=torch.float32), torch.tensor(gate.weights, dtype=torch.float32))
        for i, gate in enumerate(problem.isa.gates)
        if isinstance(gate, AffineRZ)
    }

    @qml.qnode(qml.device("default.mixed", wires=4), interface="torch", diff_method="backprop")
    def node(x: torch.Tensor, w: torch.Tensor) -> list:
        for i, gate in enumerate(problem.isa.gates):
            if isinstance(gate, AffineRZ):
                angle = w @ rows[i][1] + gate.offset  # batched only where an input enters
                qml.RZ(x @ rows[i][0] + angle if gate.inputs.any() else angle, wires=gate.qubit)
            else:
                qml.QubitChannel(channels[i], wires=gate.qubits[::-1])
        return [qml.expval(qml.PauliZ(q)) for q in problem.isa.measured]

    scale = torch.tensor([1 - p10 - p01 for p10, p01 in problem.isa.readout])
    shift = torch.tensor([p01 - p10 for p10, p01 in problem.isa.readout])
    return _step(problem, node, lambda values: values * scale + shift)
