"""Time to our first gradient in a process: every process compiles the loops that it uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("ideal", "noisy")


def run() -> dict[str, float]:
    """{"ideal" | "noisy": processor seconds}, libraries imported and circuits compiled before; the best of three."""
    result: dict[str, float] = {}
    for kind in KINDS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.first_gradient", kind]
        result[kind] = min(
            json.loads(
                subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                    cwd=Path(__file__).parents[1],
                ).stdout
            )
            for _ in range(3)
        )  # fmt: skip
    return result


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    from dataclasses import replace

    from qhw_diffusion.circuits import policy_circuit
    from qhw_diffusion.devices import Device
    from qhw_diffusion.execution import QuantumLayer, compile_circuit

    policy, kind = policy_circuit(), sys.argv[1]
    compiled = compile_circuit(
        policy.circuit,
        Device.load("ideal" if kind == "ideal" else "fake_marrakesh"),
        inputs=policy.inputs,
        weights=policy.weights,
        observables=policy.observables,
    )
    x = torch.rand(256, 6)
    start = time.process_time()
    QuantumLayer(replace(compiled), kind)(x).sum().backward()
    print(time.process_time() - start)
