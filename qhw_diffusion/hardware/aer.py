"""Aer in a device's place: the circuit on the qubits in use only, with their noise and asymmetric readout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qiskit import QuantumCircuit
from qiskit.circuit import Delay
from qiskit.primitives import BackendEstimatorV2
from qiskit.quantum_info import PauliList, SparsePauliOp

from qhw_diffusion.devices import Device
from qhw_diffusion.draws import Draws

if TYPE_CHECKING:
    from qiskit_aer import AerSimulator


def qubits_in_use(circuit: QuantumCircuit, observables: Sequence[SparsePauliOp]) -> tuple[int, ...]:
    """Qubits with a gate or in an observable, ascending; every other one stays in |0⟩, however long it waits."""
    used = {
        circuit.find_bit(q).index
        for instruction in circuit.data
        if instruction.operation.name not in ("delay", "barrier")
        for q in instruction.qubits
    }
    for observable in observables:
        used.update(int(q) for q in (observable.paulis.x | observable.paulis.z).any(axis=0).nonzero()[0])
    return tuple(sorted(used))


def on_qubits(
    circuit: QuantumCircuit, observables: Sequence[SparsePauliOp], qubits: Sequence[int]
) -> tuple[QuantumCircuit, tuple[SparsePauliOp, ...]]:
    """The circuit and its observables on `qubits` (all those in use), relabelled 0…k−1 in the order given."""
    where = {qubit: index for index, qubit in enumerate(qubits)}
    reduced = QuantumCircuit(len(qubits), circuit.num_clbits, global_phase=circuit.global_phase)
    for instruction in circuit.data:
        places = [circuit.find_bit(q).index for q in instruction.qubits]
        if instruction.operation.name != "barrier" and set(places) <= set(where):
            clbits = [circuit.find_bit(c).index for c in instruction.clbits]
            reduced.append(instruction.operation, [where[q] for q in places], clbits)
    kept = list(qubits)
    return reduced, tuple(
        SparsePauliOp(PauliList.from_symplectic(o.paulis.z[:, kept], o.paulis.x[:, kept]), o.coeffs)
        for o in observables
    )


def aer_simulator(device: Device, qubits: Sequence[int], *, scheduled: bool) -> AerSimulator:
    """Aer with the device's noise and asymmetric readout on `qubits`, for circuits from `on_qubits`.

    With the noise model of the whole device Aer would spend seconds a call.

    Args:
        device: whose calibration counts; the ideal device has no noise.
        qubits: physical qubits, in the order of their labels.
        scheduled: let waiting qubits relax (a circuit with delays).
    """
    from qiskit_aer import AerSimulator
    from qiskit_aer.noise import RelaxationNoisePass

    model = device.noise_model(qubits)
    if device.target is not None and scheduled:
        times = [device.relaxation_times(qubit) for qubit in qubits]
        t1s = [math.inf if t1 is None else t1 for t1, _ in times]
        t2s = [2 * t1 if t2 is None else min(t2, 2 * t1) for t1, (_, t2) in zip(t1s, times, strict=True)]
        # Where NoiseModel.from_backend puts it: a noise model has no public place for the errors of delays
        model._custom_noise_passes.append(RelaxationNoisePass(t1s, t2s, dt=device.target.dt, op_types=Delay))
    return AerSimulator(noise_model=model, max_parallel_threads=1)


class AerEstimator(BackendEstimatorV2):
    """`BackendEstimatorV2` on Aer that draws on from call to call; with a fixed seed it would repeat the outcomes."""

    def __init__(self, backend: Any, seed: int | None) -> None:
        super().__init__(backend=backend)
        self._draws = Draws(seed)

    def run(self, pubs: Iterable[Any], *, precision: float | None = None) -> Any:
        self.options.seed_simulator = int(self._draws.generator.integers(2**31))
        return super().run(pubs, precision=precision)
