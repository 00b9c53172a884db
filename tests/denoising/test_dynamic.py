"""A trained process as the circuit that a device would run."""

from __future__ import annotations

import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer import AerSimulator

from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.devices import Device


@pytest.mark.slow
def test_a_process_as_one_dynamic_circuit_is_accepted_by_a_heron_target_and_gives_its_distribution() -> None:
    """All outcomes enumerated in the package against the same circuit on Aer; total variation at 20,000 shots."""
    process = ReverseProcess(
        ReverseConfig(
            2, 2, "measured", 1, feed_forward=True, depth=2, conditioning="angles", n_labels=3, init_scale=1.0
        )
    )
    prior = QuantumCircuit(2)
    prior.ry(0.7, 0)
    prior.cx(0, 1)
    circuit = process.dynamic_circuit(2, prior)
    target = Device.load("fake_marrakesh").target
    isa = generate_preset_pass_manager(1, target=target, seed_transpiler=0).run(circuit)
    assert "if_else" in isa.count_ops()
    assert set(isa.count_ops()) <= set(target.operation_names) | {"barrier"}

    start = torch.from_numpy(Statevector(prior).data).to(torch.complex64)[None]
    exact: dict[str, float] = {}
    with torch.no_grad():
        first = process.step(start, 2, torch.tensor([2]))
        for a in range(2):
            second = process.step(first.states[a], 1, torch.tensor([2]), torch.tensor([a]))
            for b in range(2):
                weight = float(first.probabilities[a, 0] * second.probabilities[b, 0])
                for x, p in enumerate(second.states[b, 0].abs().square().tolist()):
                    exact[f"{x:02b} {b} {a}"] = weight * p
    shots = 20_000
    counts = AerSimulator(seed_simulator=1).run(circuit, shots=shots).result().get_counts()
    distance = sum(abs(counts.get(key, 0) / shots - p) for key, p in exact.items()) / 2
    assert distance < 0.02  # 16 outcomes: expected about 0.01; without feed-forward it is far larger
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
