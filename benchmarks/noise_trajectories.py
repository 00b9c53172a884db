"""Trajectories of noise: ours against as many of Aer's, forwards; a denoiser trained on them; maps on states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from qhw_diffusion.execution import CompiledCircuit

DEVICE = "fake_marrakesh"
# (qubits, layers of RX, RZ, RY and a CNOT chain, trajectories)
SIZES = ((4, 8, 1000), (8, 8, 1000), (12, 4, 100), (16, 2, 20), (20, 1, 5))
IMAGES, PATHS = 32, 16


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of one image at every size, ours and Aer's; milliseconds an image of a training step of a denoiser."""
    rows = []
    for n, depth, paths in SIZES:
        row = {"qubits": n, "weights": 3 * n * depth, "trajectories": paths}
        row |= _child("ours", n, depth, paths) | _child("aer", n, depth, paths)
        row["ratio"] = row["forward_s"] / row["aer_s"]
        rows.append(row)
        say(
            f"{n} noisy qubits, {paths} trajectories: {row['forward_s']:.3f} s forwards, {row['both_s']:.3f} s and "
            f"back, Aer {row['aer_s']:.2f} s forwards"
        )
    training = _child("training", 7, 8, PATHS)
    say(f"denoiser of 7 + 1 noisy qubits, {PATHS} trajectories: {training['ms']:.1f} ms an image")
    maps = _child("maps", 8, 8, 0)
    say(f"8 noisy qubits, a layer {maps['layer_ms']:.1f} ms an image, a map on states {maps['map_ms']:.1f} ms")
    return {"sizes": rows, "training": training, "maps": maps}


def _child(what: str, n: int, depth: int, paths: int) -> dict[str, float]:
    """A process of its own."""
    numbers = [str(number) for number in (n, depth, paths)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.noise_trajectories", what, *numbers]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def block(n: int, depth: int, *, encoded: bool = False) -> CompiledCircuit:
    """Layers of RX, RZ, RY and a CNOT chain on a device, with Z on every qubit: as the denoiser blocks, for any n.

    encoded: an input turns every qubit at the end, so that every sample goes through all gates.
    """
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector
    from qiskit.quantum_info import SparsePauliOp

    from qhw_diffusion.devices import Device
    from qhw_diffusion.execution import compile_circuit

    circuit, weights, inputs = QuantumCircuit(n), ParameterVector("w", 3 * n * depth), ParameterVector("x", n * encoded)
    left = iter(weights)
    for _ in range(depth):
        for gate in (circuit.rx, circuit.rz, circuit.ry):
            for q in range(n):
                gate(next(left), q)
        for q in range(n - 1):
            circuit.cx(q, q + 1)
    for q, x in enumerate(inputs):
        circuit.ry(x, q)
    observables = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in range(n)]
    return compile_circuit(
        circuit, Device.load(DEVICE), inputs=list(inputs), weights=list(weights), observables=observables
    )


def ours(n: int, depth: int, paths: int) -> dict[str, float]:
    import torch

    from qhw_diffusion.execution import QuantumLayer

    layer = QuantumLayer(block(n, depth), f"trajectories:{paths}")
    inputs = torch.zeros(1, 0)

    def forward() -> None:
        layer.estimate(inputs)

    def both() -> None:
        layer(inputs).sum().backward()

    return {"forward_s": _seconds(forward), "both_s": _seconds(both)}


def aer(n: int, depth: int, paths: int) -> dict[str, float]:
    """Aer's state vectors, single precision, noise model of the qubits in use, all observables saved in one run."""
    from qiskit_aer import AerSimulator

    from qhw_diffusion.execution.primitive import on_used_qubits

    compiled = block(n, depth)
    circuit, observables = on_used_qubits(compiled)
    for m, observable in enumerate(observables):
        circuit.save_expectation_value(observable, range(circuit.num_qubits), label=str(m))
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, compiled.n_weights)
    bound = circuit.assign_parameters(dict(zip(compiled.weights, angles, strict=True)))
    simulator = AerSimulator(
        method="statevector",
        noise_model=compiled.device.noise_model(compiled.physical_qubits),
        max_parallel_threads=1,
        precision="single",
    )

    def forward() -> None:
        if not simulator.run(bound, shots=paths).result().success:
            raise RuntimeError("Aer fails")

    return {"aer_s": _seconds(forward)}


def training(n: int, depth: int, paths: int) -> dict[str, float]:
    """A step of the reconstruction loss of a post-selected denoiser of four steps, n data qubits and an ancilla."""
    import torch

    from qhw_diffusion.denoising.config import ReverseConfig
    from qhw_diffusion.denoising.reverse import ReverseProcess

    config = ReverseConfig(
        n_qubits=n, n_steps=4, depth=depth, ancillas=1, device=DEVICE, engine=f"trajectories:{paths}"
    )
    process = ReverseProcess(config)
    states = torch.randn(IMAGES, 2**n, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    states = states / states.norm(dim=1, keepdim=True)

    def step() -> None:
        found = process.run(states)
        populations = torch.diagonal(found.states, dim1=1, dim2=2).real
        (populations.square().sum() - found.log_probability.sum()).backward()

    return {"ms": 1000 * _seconds(step) / IMAGES}


def maps(n: int, depth: int, _: int) -> dict[str, float]:
    """The same gates as a layer and as a map on states, density matrices, forwards and backwards: ms an image."""
    import torch

    from qhw_diffusion.execution import QuantumLayer
    from qhw_diffusion.execution.evolution import Evolution

    layer = QuantumLayer(block(n, depth, encoded=True), "noisy")
    evolution = Evolution(block(n, depth), data=range(n - 1), measured=[n - 1], engine="noisy")
    draws = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(IMAGES, n, generator=draws), torch.randn(3 * n * depth, generator=draws)
    weights.requires_grad_()
    states = torch.randn(IMAGES, 2 ** (n - 1), dtype=torch.complex64, generator=draws)
    states = states / states.norm(dim=1, keepdim=True)

    def as_layer() -> None:
        layer(inputs).square().sum().backward()

    def as_map() -> None:
        branches = evolution(states, weights)
        (branches.states[0].abs().square().sum() + branches.probabilities[0].square().sum()).backward()

    return {"layer_ms": 1000 * _seconds(as_layer) / IMAGES, "map_ms": 1000 * _seconds(as_map) / IMAGES}


def _seconds(step: Callable[[], None]) -> float:
    """Median seconds of processor time of three steps after a first one."""
    step()
    times = []
    for _ in range(3):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return float(np.median(times))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    what, *numbers = sys.argv[1:]
    print(json.dumps({"ours": ours, "aer": aer, "training": training, "maps": maps}[what](*map(int, numbers))))
