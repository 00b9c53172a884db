"""A layer as qiskit-machine-learning's `NeuralNetwork`, so that its `TorchConnector` and trainers take it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError, MissingDependencyError
from qhw_diffusion.execution.engine import check_parameters, rows_of
from qhw_diffusion.execution.layer import QuantumLayer

if TYPE_CHECKING:
    from qiskit_machine_learning.neural_networks import NeuralNetwork


def as_neural_network(layer: QuantumLayer, *, input_gradients: bool = True) -> NeuralNetwork:
    """Wrap a layer: its circuit, engine and gradient method, with inputs and weights given in every call.

    `forward(x [B, inputs], w [weights])` gives [B, M]. `backward` gives the dense Jacobians [B, M, inputs] and
    [B, M, weights], by the gradient the layer has, in one backward pass for each observable. All in the layer's dtype;
    `TorchConnector` itself rounds to float32. The layer's `weight` is neither read nor changed; its `usage` grows.

    Args:
        layer: a layer with gradients: on an exact engine, or with a gradient method.
        input_gradients: whether `backward` gives the Jacobian by the inputs, which `TorchConnector` needs where
            something is trained ahead of the circuit; None otherwise.

    Raises:
        InvalidInputError: no `QuantumLayer`, or one without gradients. The network raises it for NaN, infinity, no
            rows, and inputs or weights left out; qiskit-machine-learning itself refuses other shapes.
        MissingDependencyError: qiskit-machine-learning is not installed.
    """
    if not isinstance(layer, QuantumLayer):
        raise InvalidInputError(f"layer is a {type(layer).__name__}; give a QuantumLayer")
    try:
        from qiskit_machine_learning.neural_networks import NeuralNetwork
    except ImportError as error:
        raise MissingDependencyError(
            "as_neural_network needs qiskit-machine-learning: pip install 'qhw-diffusion[qml]'"
        ) from error
    if layer.gradient is None and not layer.engine.differentiable:
        raise InvalidInputError(
            f"engine {layer.engine.name!r} gives no gradient, and a NeuralNetwork needs one; choose a gradient method, "
            "for example layer.with_engine(layer.engine, gradient=ParameterShift())"
        )
    compiled = layer.compiled
    # With the weights as further inputs each sample has weights of its own: a backward pass gives B rows, not their sum
    by_rows = replace(compiled, inputs=(*compiled.inputs, *compiled.weights), weights=())

    class LayerNetwork(NeuralNetwork):
        """A `QuantumLayer` behind qiskit-machine-learning's interface."""

        def __init__(self) -> None:
            super().__init__(
                num_inputs=compiled.n_inputs,
                num_weights=compiled.n_weights,
                sparse=False,
                output_shape=compiled.n_observables,
                input_gradients=input_gradients,
            )

        def _forward(self, input_data: np.ndarray | None, weights: np.ndarray | None) -> np.ndarray:
            with torch.no_grad():
                estimate = layer.engine.estimate(compiled, _rows(layer, input_data, weights))
            layer._record(estimate.usage)
            return estimate.values.numpy()

        def _backward(
            self, input_data: np.ndarray | None, weights: np.ndarray | None
        ) -> tuple[np.ndarray | None, np.ndarray | None]:
            rows = _rows(layer, input_data, weights).requires_grad_()
            none = rows.new_zeros(0)
            with torch.enable_grad():  # TorchConnector calls from within a backward pass
                if layer.gradient is None:
                    values = layer.engine.expectation(by_rows, rows, none, layer._record)
                else:
                    values = layer.gradient(layer.engine, by_rows, rows, none, layer._record)
                slopes = [torch.autograd.grad(column.sum(), rows, retain_graph=True)[0] for column in values.T]
            jacobian = torch.stack(slopes, dim=1).numpy()  # [B, M, inputs + weights]
            by_inputs = jacobian[:, :, : compiled.n_inputs] if self.input_gradients else None
            return by_inputs, jacobian[:, :, compiled.n_inputs :]

    return LayerNetwork()


def _rows(layer: QuantumLayer, input_data: np.ndarray | None, weights: np.ndarray | None) -> Tensor:
    """[B, inputs + weights] on the CPU in the layer's dtype, checked; None stands for no columns."""
    x = torch.zeros(1, 0) if input_data is None else torch.as_tensor(input_data)
    w = torch.zeros(0) if weights is None else torch.as_tensor(weights)
    rows = rows_of(x, w).to(device="cpu", dtype=layer.weight.dtype)
    check_parameters(layer.compiled, rows)  # here, since a backward pass would otherwise answer NaN with NaN
    return rows
