"""The one problem every contender solves: the policy circuit's expectation values and their gradients."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from qiskit.circuit import ParameterExpression
from qiskit.quantum_info import Kraus, Operator, SuperOp

from qhw_diffusion.circuits import PolicyCircuit, policy_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.execution import CompiledCircuit, QuantumLayer, compile_circuit


@dataclass(frozen=True)
class AffineRZ:
    """RZ(inputs·x + weights·w + offset) on qubit `qubit`."""

    qubit: int
    inputs: np.ndarray
    weights: np.ndarray
    offset: float

    @property
    def fixed(self) -> bool:
        return not (self.inputs.any() or self.weights.any())


@dataclass(frozen=True)
class FixedGate:
    """A gate and the device noise after it, as one channel on `qubits` (little-endian, stacked by columns)."""

    qubits: tuple[int, ...]
    superop: np.ndarray
    noisy: bool

    @property
    def kraus(self) -> list[np.ndarray]:
        return [np.asarray(k) for k in Kraus(SuperOp(self.superop)).data]


class Posed(Protocol):
    """What is timed: seeded inputs [B, I] and weights [W], and the exact values {kind: [B, M]}."""

    @property
    def inputs(self) -> np.ndarray: ...

    @property
    def weights(self) -> np.ndarray: ...

    @property
    def expected(self) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class DeviceCircuit:
    """The ISA circuit on the qubits in use (relabelled 0…n−1) with the device's noise, read from Qiskit's circuit.

    Attributes:
        measured: qubit (0…n−1) that each observable ⟨Z⟩ was laid out on.
        readout: (p10, p01) of these qubits.
    """

    n_qubits: int
    gates: tuple[AffineRZ | FixedGate, ...]
    measured: tuple[int, ...]
    readout: tuple[tuple[float, float], ...]

    @property
    def n_channels(self) -> int:
        return sum(isinstance(gate, FixedGate) and gate.noisy for gate in self.gates)


@dataclass(frozen=True)
class Problem:
    """Batch of inputs and one set of weights, the circuit in all forms the contenders need, and the exact answer.

    Attributes:
        inputs: [B, 6] float32; weights: [24] float32.
        isa: the circuit as the device runs it, for peers that cannot read Qiskit's.
        expected: {"ideal", "noisy"} → [B, 4], float64, from our engines (which the tests check against Aer).
        transpile_seconds: time Qiskit took to compile the circuit for the device; the same for all noisy contenders.
    """

    policy: PolicyCircuit
    ideal: CompiledCircuit
    noisy: CompiledCircuit
    inputs: np.ndarray
    weights: np.ndarray
    isa: DeviceCircuit
    expected: dict[str, np.ndarray]
    transpile_seconds: float


def make_problem(batch: int, device_name: str, *, reuploading: bool = False) -> Problem:
    """The 4-qubit, depth-2 ring policy circuit on `device_name`, seeded inputs and weights."""
    policy = policy_circuit(n_qubits=4, depth=2, n_features=6, entanglement="ring", reuploading=reuploading)
    parameters = {"inputs": policy.inputs, "weights": policy.weights, "observables": policy.observables}
    ideal = compile_circuit(policy.circuit, Device.load("ideal"), **parameters)
    device = Device.load(device_name)
    _ = device.target  # reading the device is not transpilation
    start = time.perf_counter()
    noisy = compile_circuit(policy.circuit, device, **parameters)
    seconds = time.perf_counter() - start

    rng = np.random.default_rng(0)
    inputs = rng.uniform(-np.pi / 2, np.pi / 2, (batch, 6)).astype(np.float32)
    weights = rng.uniform(-np.pi, np.pi, 24).astype(np.float32)
    expected = {}
    for engine, compiled in (("ideal", ideal), ("noisy", noisy)):
        layer = QuantumLayer(compiled, engine, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(weights))
            expected[engine] = layer(torch.as_tensor(inputs).double()).numpy()
    return Problem(policy, ideal, noisy, inputs, weights, device_circuit(noisy), expected, seconds)


def device_circuit(compiled: CompiledCircuit) -> DeviceCircuit:
    """For a circuit whose parametrised gates are all RZ and whose observables are all Z on one qubit."""
    qubits = list(compiled.physical_qubits)
    measured = tuple(qubits.index(int(np.flatnonzero(o.paulis.z.any(0))[0])) for o in compiled.observables)
    readout = tuple(compiled.device.readout_error(qubits[q]) for q in measured)
    return DeviceCircuit(len(qubits), _gates(compiled), measured, readout)


def _gates(compiled: CompiledCircuit) -> tuple[AffineRZ | FixedGate, ...]:
    qubits = list(compiled.physical_qubits)
    gates: list[AffineRZ | FixedGate] = []
    for instruction in compiled.isa.data:
        gate = instruction.operation
        physical = [compiled.isa.find_bit(q).index for q in instruction.qubits]
        local = tuple(qubits.index(q) for q in physical)
        if gate.name == "rz":
            gates.append(_affine(gate.params[0], local[0], compiled))
        else:
            error = compiled.device.gate_error(gate.name, physical)
            channel = SuperOp(Operator(gate))
            if error is not None:
                channel = channel.compose(error)
            gates.append(FixedGate(local, np.asarray(channel.data), error is not None))
    return tuple(gates)


def _affine(angle: ParameterExpression | float, qubit: int, compiled: CompiledCircuit) -> AffineRZ:
    if not isinstance(angle, ParameterExpression) or not angle.parameters:
        return AffineRZ(qubit, np.zeros(compiled.n_inputs), np.zeros(compiled.n_weights), float(angle))
    zero = dict.fromkeys(angle.parameters, 0.0)
    offset = float(angle.bind(zero))

    def slope(parameter: object) -> float:
        return float(angle.bind({**zero, parameter: 1.0})) - offset if parameter in zero else 0.0

    return AffineRZ(
        qubit,
        np.array([slope(p) for p in compiled.inputs]),
        np.array([slope(p) for p in compiled.weights]),
        offset,
    )
