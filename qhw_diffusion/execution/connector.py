"""A circuit as qiskit-machine-learning's `NeuralNetwork`, so that its `TorchConnector` and trainers take it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, MissingDependencyError
from qhw_diffusion.execution.adaptive import combined
from qhw_diffusion.execution.compile import CompiledCircuit
from qhw_diffusion.execution.engine import Engine, Record, check_parameters, rows_of
from qhw_diffusion.execution.gradients import GradientMethod

if TYPE_CHECKING:
    from qiskit_machine_learning.neural_networks import NeuralNetwork


def neural_network(
    compiled: CompiledCircuit,
    engine: Engine,
    gradient: GradientMethod | None,
    *,
    dtype: torch.dtype,
    record: Record,
    input_gradients: bool = True,
) -> NeuralNetwork:
    """A circuit on an engine, with inputs and weights given in every call (`QuantumLayer.as_neural_network`).

    `forward(x [B, inputs], w [weights])` gives [B, M]. `backward` gives the dense Jacobians [B, M, inputs] and
    [B, M, weights], in one backward pass for each observable. `TorchConnector` itself rounds to float32. Where the
    observables are adaptive, their coefficients follow the circuit's weights in `w`.

    Args:
        compiled: the circuit with its M observables.
        engine: evaluates it.
        gradient: None for the engine's own gradient, or a method.
        dtype: torch.float32 or torch.float64.
        record: is told what each evaluation cost.
        input_gradients: whether `backward` gives the Jacobian by the inputs; None otherwise.

    Raises:
        InvalidInputError: there is no gradient. The network raises it for NaN, infinity, no rows, and inputs or weights
            left out; qiskit-machine-learning itself refuses other shapes.
        MissingDependencyError: qiskit-machine-learning is not installed.
    """
    try:
        from qiskit_machine_learning.neural_networks import NeuralNetwork
    except ImportError as error:
        raise MissingDependencyError(
            "as_neural_network needs qiskit-machine-learning: pip install 'qhw-diffusion[qml]'"
        ) from error
    if gradient is None and not engine.differentiable:
        raise InvalidInputError(
            f"engine {engine.name!r} gives no gradient, and a NeuralNetwork needs one; choose a gradient method, "
            "for example layer.with_engine(layer.engine, gradient=ParameterShift())"
        )
    # With the weights as further inputs each sample has weights of its own: a backward pass gives B rows, not their sum
    by_rows = replace(compiled, inputs=(*compiled.inputs, *compiled.weights), weights=())
    adaptive, n_angles = compiled.adaptive, compiled.n_inputs + compiled.n_weights
    n_coefficients = 0 if adaptive is None else adaptive.n_coefficients

    class CircuitNetwork(NeuralNetwork):
        """The circuit behind qiskit-machine-learning's interface."""

        def __init__(self) -> None:
            super().__init__(
                num_inputs=compiled.n_inputs,
                num_weights=compiled.n_weights + n_coefficients,
                sparse=False,
                output_shape=compiled.n_values,
                input_gradients=input_gradients,
            )

        def _forward(self, input_data: np.ndarray | None, weights: np.ndarray | None) -> np.ndarray:
            rows = _rows(compiled, dtype, input_data, weights)
            with torch.no_grad():
                estimate = engine.estimate(compiled, rows[:, :n_angles])
            record(estimate.usage)
            values = estimate.values
            return (values if adaptive is None else combined(adaptive, values, rows[:, n_angles:])).numpy()

        def _backward(
            self, input_data: np.ndarray | None, weights: np.ndarray | None
        ) -> tuple[np.ndarray | None, np.ndarray | None]:
            rows = _rows(compiled, dtype, input_data, weights).requires_grad_()
            none = rows.new_zeros(0)
            with torch.enable_grad():  # TorchConnector calls from within a backward pass
                angles = rows[:, :n_angles]
                if gradient is None:
                    values = engine.expectation(by_rows, angles, none, record)
                else:
                    values = gradient(engine, by_rows, angles, none, record)
                if adaptive is not None:
                    values = combined(adaptive, values, rows[:, n_angles:])
                slopes = [torch.autograd.grad(column.sum(), rows, retain_graph=True)[0] for column in values.T]
            jacobian = torch.stack(slopes, dim=1).numpy()  # [B, M, inputs + weights]
            by_inputs = jacobian[:, :, : compiled.n_inputs] if self.input_gradients else None
            return by_inputs, jacobian[:, :, compiled.n_inputs :]

    return CircuitNetwork()


def _rows(
    compiled: CompiledCircuit, dtype: torch.dtype, input_data: np.ndarray | None, weights: np.ndarray | None
) -> Tensor:
    """[B, inputs + weights] on the CPU, checked; None stands for no columns."""
    x = torch.zeros(1, 0) if input_data is None else torch.as_tensor(input_data)
    w = torch.zeros(0) if weights is None else torch.as_tensor(weights)
    rows = rows_of(x, w).to(device="cpu", dtype=dtype)
    # here, since a backward pass would otherwise answer NaN with NaN
    check_parameters(compiled, rows[:, : compiled.n_inputs + compiled.n_weights])
    if not bool(rows.isfinite().all()):
        raise InvalidInputError("coefficients contain NaN or infinity; check what produced them")
    return rows
