"""An engine of your own: anything that turns a compiled circuit and rows of parameters into expectation values.

This one asks Qiskit's `Statevector` for every row and damps the values, as a device with one error rate would.

Python:        QuantumLayer(compiled, Damped(0.02), gradient=ParameterShift())
Command line:  qhw ... --engine examples/own_engine.py:damped, also with mitigation: examples/own_engine.py:damped+zne

It has no gradient of its own, so a layer needs a gradient method. Its answers are checked: a wrong shape or a NaN is
an error that names the engine, before a training starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from qiskit.quantum_info import Statevector
from torch import Tensor

from qhw_diffusion import Device, ParameterShift, QuantumLayer, compile_circuit
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.execution import CompiledCircuit, Engine, Estimate
from qhw_diffusion.execution.primitive import on_used_qubits


@dataclass(frozen=True)
class Damped(Engine):
    """Exact values, damped by (1 − error) for every two-qubit gate."""

    error: float = 0.02
    name = "damped"

    def estimate(self, compiled: CompiledCircuit, parameters: Tensor) -> Estimate:
        """Values [B, M] of B rows of parameters: the inputs in their order, then the weights in theirs."""
        names = (*compiled.inputs, *compiled.weights)
        circuit, observables = on_used_qubits(compiled)  # a few qubits, also where the device has 156
        left = (1 - self.error) ** compiled.two_qubit_gates
        values = []
        for row in parameters.detach().double():
            state = Statevector(circuit.assign_parameters(dict(zip(names, row.tolist(), strict=True))))
            values.append([left * state.expectation_value(o).real for o in observables])
        found = torch.tensor(values).to(parameters)
        return Estimate(found, torch.zeros_like(found))


damped = Damped()


def main() -> None:
    """Values and a gradient of the policy's circuit on this engine."""
    policy = policy_circuit(n_qubits=3, depth=1)
    compiled = compile_circuit(
        policy.circuit, Device.load("ideal"), inputs=policy.inputs, weights=policy.weights,
        observables=policy.observables,
    )  # fmt: skip
    layer = QuantumLayer(compiled, damped, gradient=ParameterShift())
    x = torch.linspace(-1, 1, 2 * len(policy.inputs)).reshape(2, -1)
    layer(x).sum().backward()
    exact = layer.with_engine("ideal")(x)
    print(f"damped {layer.estimate(x).values[0]}, exact {exact.detach()[0]}")
    print(f"gradient of {len(policy.weights)} weights by parameter-shift: norm {layer.weight.grad.norm():.4f}")


if __name__ == "__main__":
    main()
