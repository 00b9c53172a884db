"""A device of your own: a Qiskit target with the noise of an Aer noise model, loaded by its name.

`device` may be a `Device`, any Qiskit `Target` or `BackendV2` (`GenericBackendV2(5)` is one), or, as here, a function
without arguments that makes one of these. Two ways to use it:

    Python:        qhw.compile_circuit(circuit, qhw.Device.load("examples/own_device.py:device"), …)
    command line:  qhw train guidance --device examples/own_device.py:device

What is trained on it is saved with its snapshot and its name; the name finds the noise model again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error

import qhw_diffusion as qhw
from qhw_diffusion.circuits import policy_circuit
from qhw_diffusion.execution import load_layer, save_layer


def device() -> qhw.Device:
    """A line of five qubits with 1 % errors of its CX gates and asymmetric readout errors."""
    line = GenericBackendV2(5, coupling_map=[(q, q + 1) for q in range(4)], noise_info=False)
    model = NoiseModel()
    model.add_all_qubit_quantum_error(depolarizing_error(0.01, 2), ["cx"])
    model.add_all_qubit_readout_error(ReadoutError([[0.98, 0.02], [0.05, 0.95]]))
    return qhw.Device.of(line.target, noise_model=model, name="line of five")


def main() -> None:
    """Run the policy's circuit on it, save the layer and load it again."""
    policy = policy_circuit(entanglement="chain")
    compiled = qhw.compile_circuit(
        policy.circuit, qhw.Device.load(f"{__file__}:device"),
        inputs=policy.inputs, weights=policy.weights, observables=policy.observables,
    )  # fmt: skip
    layer = qhw.QuantumLayer(compiled, "noisy+readout")
    x = torch.linspace(-1, 1, 2 * compiled.n_inputs).reshape(2, -1)
    with tempfile.TemporaryDirectory() as folder:
        again = load_layer(save_layer(layer, Path(folder) / "layer"))
    print(f"{compiled}")
    print(f"saved, loaded by its name and equal: {bool(torch.equal(layer(x), again(x)))}")


if __name__ == "__main__":
    main()
