"""Time to our first gradient in a process: with an empty cache of compiled kernels, and with a filled one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("ideal", "noisy")


def run() -> dict[str, dict[str, float]]:
    """{"ideal" | "noisy": {"empty", "filled"}} processor seconds, libraries imported and circuits compiled before."""
    result: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.first_gradient", kind]
            times = [
                json.loads(
                    subprocess.run(
                        command, check=True, capture_output=True, text=True, env=environment,
                        cwd=Path(__file__).parents[1],
                    ).stdout
                )
                for _ in range(2)
            ]  # fmt: skip
        result[kind] = {"empty": times[0], "filled": times[1]}
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
