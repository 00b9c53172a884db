"""An own ansatz for the guidance policy: any function that returns a circuit with inputs x and weights w.

It is called with those of n_features, n_qubits, depth, entanglement and reuploading that it has parameters for.
Parameter counts, the classical policy with as many parameters, saving and loading follow from the circuit.

Python:        train_guidance(..., ansatz=brickwork)
Command line:  qhw train guidance --ansatz examples/own_policy_ansatz.py:brickwork --depth 3
"""

from __future__ import annotations

from qiskit.circuit import ParameterVector, QuantumCircuit

from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig, build_policy, train_guidance


def brickwork(n_features: int, n_qubits: int, depth: int) -> QuantumCircuit:
    """RY encodings (one input after the other, qubit by qubit), then layers of RY and of controlled-Z in brickwork."""
    x, w = ParameterVector("x", n_features), ParameterVector("w", depth * n_qubits)
    circuit = QuantumCircuit(n_qubits, name="brickwork")
    for j in range(n_features):
        circuit.h(j % n_qubits)
        circuit.rz(x[j], j % n_qubits)
    for layer in range(depth):
        for qubit in range(n_qubits):
            circuit.ry(w[layer * n_qubits + qubit], qubit)
        for qubit in range(layer % 2, n_qubits - 1, 2):
            circuit.cz(qubit, qubit + 1)
    return circuit


def main() -> None:
    """One update of the own circuit under the noise of a snapshot, and the matched classical policy."""
    settings = PolicyConfig(ansatz=f"{__file__}:brickwork", depth=3, device="fake_manila")
    trained = train_guidance(
        GuidanceConfig(n_steps=4, noise_pool=40),
        PPOConfig.short(num_iterations=1, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(distribution=1.0),
        settings,
    )
    matched = build_policy(settings.replace(kind="matched"))
    print(f"own ansatz: {trained.policy.parameter_counts()} parameters, matched: {matched.parameter_counts()['total']}")
    print(f"return {trained.history[-1]['charts/episodic_return']:.3f}")


if __name__ == "__main__":
    main()
