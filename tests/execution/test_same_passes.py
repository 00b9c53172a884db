"""Circuits compiled one after another, by the same passes: each as if it were the only one."""

from __future__ import annotations

import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector

from qhw_diffusion.devices import Device
from qhw_diffusion.errors import UnsupportedCircuitError
from qhw_diffusion.execution import transpile


def circuit(n_qubits: int, first: int) -> QuantumCircuit:
    angles, made = ParameterVector("a", n_qubits), QuantumCircuit(n_qubits)
    for qubit in range(n_qubits):
        made.ry(angles[qubit], (qubit + first) % n_qubits)
        made.rzz(0.3 * (first + 1), qubit, (qubit + 1) % n_qubits)
    return made


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_circuit_compiled_after_others_is_as_it_is_alone(level: int, scheduled: bool) -> None:
    device = Device.load("fake_manila")
    circuits = [circuit(n, first) for n in (2, 3) for first in range(2)]

    def compiled(one: QuantumCircuit) -> QuantumCircuit:
        return transpile.transpiled(one, device, optimization_level=level, seed=5, scheduled=scheduled)

    alone = []
    for each in circuits:
        transpile._manager.cache_clear()
        alone.append(compiled(each))
    impossible = QuantumCircuit(2)
    impossible.delay(1, 0, unit="dt")
    if not scheduled:
        with pytest.raises(UnsupportedCircuitError):  # a failure leaves nothing behind
            compiled(impossible)
    for each, wanted in zip(circuits, alone, strict=True):
        again = compiled(each)
        assert again == wanted
        for where in ("initial_index_layout", "final_index_layout"):  # the order of unused qubits is left to chance
            found = getattr(again.layout, where)(filter_ancillas=True)
            assert found == getattr(wanted.layout, where)(filter_ancillas=True)
    assert transpile._manager.cache_info().hits >= len(circuits) - 1
