"""Our engines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.measure import Contender, Step
from benchmarks.problem import Posed, Problem
from qhw_diffusion.execution import CompiledCircuit, QuantumLayer


def contenders() -> list[Contender]:
    return [
        Contender("qhw_diffusion", "ideal", lambda problem: _step(problem, "ideal"), note="torch, float32"),
        Contender(
            "qhw_diffusion", "noisy", lambda problem: _step(problem, "noisy"), note="torch, float32, device noise"
        ),
    ]


def _step(problem: Problem, engine: str) -> Step:
    return step_of(problem.ideal if engine == "ideal" else problem.noisy, engine, problem)


def step_of(compiled: CompiledCircuit, engine: str, problem: Posed) -> Step:
    # A copy without what the reference values left cached: lowering the circuit is part of the first gradient.
    layer = QuantumLayer(replace(compiled), engine)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(problem.weights))
    inputs = torch.as_tensor(problem.inputs).requires_grad_()

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = layer.weight.grad = None
        values = layer(inputs)
        values.sum().backward()
        assert inputs.grad is not None
        assert layer.weight.grad is not None
        return values.detach().numpy(), inputs.grad.numpy(), layer.weight.grad.numpy()

    return step


def nothing(problem: Posed) -> Step:
    """What torch takes for a function of the same shapes that does nothing, forwards and backwards."""
    inputs = torch.as_tensor(problem.inputs).requires_grad_()
    weights = torch.as_tensor(problem.weights).requires_grad_()
    shape = problem.expected["ideal"].shape

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return inputs.new_empty(shape)

        @staticmethod
        def backward(ctx: object, cotangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.empty_like(inputs), torch.empty_like(weights)

    def step() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs.grad = weights.grad = None
        values = Nothing.apply(inputs, weights)
        values.sum().backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        return values.detach().numpy(), inputs.grad.numpy(), weights.grad.numpy()

    return step
