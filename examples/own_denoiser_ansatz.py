"""An ansatz of your own for the quantum denoiser: a function that returns one layer as a Qiskit circuit.

From Python, give the function itself (below), or its name as "my_module:ladder" or "my_file.py:ladder". On the command
line:

    qhw train denoising --ansatz examples/own_denoiser_ansatz.py:ladder

All parameters of the circuit are trainable weights. The number of parameters, the classical baseline of the same size
and the saved files follow from it. The contract in full: the docstring of qhw_diffusion.circuits.ansatz.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qhw_diffusion.denoising import (
    EnsembleQDM,
    ReverseConfig,
    TrainConfig,
    fidelity,
    from_pretrained,
    haar_states,
    save_pretrained,
    train_qdm,
)


def ladder(n_qubits: int, layer: int) -> QuantumCircuit:
    """RY and RZ on every qubit, then trainable ZZ rotations up the ladder of neighbours, in odd layers down it."""
    turns, bonds = ParameterVector("turn", 2 * n_qubits), ParameterVector("bond", n_qubits - 1)
    circuit = QuantumCircuit(n_qubits)
    for qubit in range(n_qubits):
        circuit.ry(turns[2 * qubit], qubit)
        circuit.rz(turns[2 * qubit + 1], qubit)
    for qubit in range(n_qubits - 1) if layer % 2 == 0 else reversed(range(n_qubits - 1)):
        circuit.rzz(bonds[qubit], qubit, qubit + 1)
    return circuit


def main() -> None:
    """Train a one-qubit denoiser with this ansatz on states near one direction, save it and load it again."""
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[0.6, 0.8]], dtype=torch.complex64)
    data = target + 0.1 * haar_states(200, 2, generator)
    data = data / data.norm(dim=1, keepdim=True)

    config = ReverseConfig(n_qubits=1, n_steps=3, kind="measured", ancillas=1, depth=3, ansatz=ladder, init_scale=0.5)
    model = EnsembleQDM(config)
    step = model.reverse.circuit
    print(
        f"{len(step.weights)} weights a step, {model.reverse.n_parameters} in all, from the circuit {step.circuit.name}"
    )

    def mean_fidelity(each: EnsembleQDM) -> float:
        states = each.sample(500, torch.Generator().manual_seed(1)).states
        return float(fidelity(states, target).mean())

    before = mean_fidelity(model)
    train_qdm(model, data, TrainConfig("mmd", "greedy", iterations=40, learning_rate=0.2, buffer_size=200))
    print(
        f"mean fidelity of the samples to the data's direction: {before:.2f}, after training {mean_fidelity(model):.2f}"
    )

    with tempfile.TemporaryDirectory() as folder:
        again = from_pretrained(save_pretrained(model, Path(folder) / "model"))
    print(f"loaded with ansatz {again.reverse.config.ansatz}: {mean_fidelity(again):.2f}")


if __name__ == "__main__":
    main()
