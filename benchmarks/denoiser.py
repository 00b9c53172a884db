"""Denoiser blocks: many layers of rotations and CNOT chains, without noise, batch 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qhw_diffusion.circuits import DenoiserCircuit, denoiser_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, QuantumLayer, compile_circuit

# (qubits, layers): about 200 and about 1,000 weights
SIZES = ((6, 11), (6, 56), (8, 8), (8, 42), (10, 7), (10, 33))
BATCH = 32
# (qubits, layers, batch): the smallest, where what a step costs in Python counts
SMALL = ((2, 2, 1), (4, 2, 1), (2, 2, 32))


@dataclass(frozen=True)
class DenoiserProblem:
    """A block with an angle encoding in front, its seeded inputs and weights, and the exact values."""

    block: DenoiserCircuit
    compiled: CompiledCircuit
    inputs: np.ndarray
    weights: np.ndarray
    expected: dict[str, np.ndarray]


def make_block(n_qubits: int, depth: int, batch: int = BATCH, device: str = "ideal") -> DenoiserProblem:
    block = denoiser_circuit(n_qubits, depth, n_features=n_qubits)
    compiled = compile_circuit(
        block.circuit,
        Device.load(device),
        inputs=block.inputs,
        weights=block.weights,
        observables=block.observables,
    )
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-np.pi / 2, np.pi / 2, (batch, n_qubits)).astype(np.float32)
    weights = rng.uniform(-np.pi, np.pi, len(block.weights)).astype(np.float32)
    expected = {}
    if device == "ideal":
        layer = QuantumLayer(compiled, "ideal", dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(weights))
            expected["ideal"] = layer(torch.as_tensor(inputs).double()).numpy()
    return DenoiserProblem(block, compiled, inputs, weights, expected)
