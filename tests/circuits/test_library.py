"""Circuits as files: written and read back, and damaged ones refused."""

from __future__ import annotations

import hashlib
import io
import random
import re
from pathlib import Path

import pytest
from qiskit import qasm3, qpy, transpile
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Operator

from qhw_diffusion.circuits import load_circuit, policy_circuit, save_circuit
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError


def test_qpy_round_trip_keeps_circuit_and_parameters(tmp_path: Path) -> None:
    pc = policy_circuit()
    qpy_path, qasm_path = save_circuit(pc.circuit, tmp_path / "run")
    assert (qpy_path.name, qasm_path.name) == ("circuit.qpy", "circuit.qasm")
    assert sorted(p.name for p in qpy_path.parent.iterdir()) == ["circuit.qasm", "circuit.qpy"]
    again = load_circuit(qpy_path)
    assert again == pc.circuit
    assert again.name == pc.circuit.name
    # parameters of a fresh build bind the circuit that was read
    assert not again.assign_parameters(dict.fromkeys([*pc.inputs, *pc.weights], 0.1)).parameters
    assert load_circuit(tmp_path / "run") == again


def test_qiskit_alone_reads_the_qpy_file(tmp_path: Path) -> None:
    path, _ = save_circuit(policy_circuit().circuit, tmp_path)
    with open(path, "rb") as file:
        assert qpy.load(file)[0] == policy_circuit().circuit


def test_openqasm_round_trip_is_the_same_unitary(tmp_path: Path) -> None:
    pytest.importorskip(
        "qiskit_qasm3_import", reason="the reader of OpenQASM 3 comes with qiskit-ibm-runtime, not with Qiskit"
    )
    pc = policy_circuit(n_qubits=3, n_features=4)
    _, path = save_circuit(pc.circuit, tmp_path, name="policy")
    assert path.read_text().startswith("OPENQASM 3")
    again = qasm3.loads(path.read_text())
    values = {p.name: 0.1 + 0.2 * i for i, p in enumerate([*pc.inputs, *pc.weights])}
    assert {p.name for p in again.parameters} == set(values)
    theirs = again.assign_parameters({p: values[p.name] for p in again.parameters})
    ours = pc.circuit.assign_parameters({p: values[p.name] for p in pc.circuit.parameters})
    assert Operator(theirs).equiv(Operator(ours))


def test_an_isa_circuit_keeps_its_layout(tmp_path: Path) -> None:
    pc = policy_circuit(n_qubits=3, n_features=3)
    isa = transpile(pc.circuit, target=Device.load("fake_manila").target, seed_transpiler=0, optimization_level=3)
    path, qasm = save_circuit(isa, tmp_path)
    again = load_circuit(path)
    assert again.layout.final_index_layout() == isa.layout.final_index_layout()
    assert [o.apply_layout(again.layout) for o in pc.observables] == [
        o.apply_layout(isa.layout) for o in pc.observables
    ]
    assert re.search(r"cx \$\d, \$\d;", qasm.read_text())


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="QuantumCircuit"):
        save_circuit("OPENQASM 3.0;", tmp_path)  # type: ignore[arg-type]
    for name in ("", "a/b", ".."):
        with pytest.raises(InvalidInputError, match="file name"):
            save_circuit(QuantumCircuit(1), tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="does not exist"):
        load_circuit(tmp_path / "none.qpy")
    with pytest.raises(MissingDataError, match=r"circuit\.qpy"):
        load_circuit(tmp_path)


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    whole = save_circuit(policy_circuit().circuit, tmp_path)[0].read_bytes()
    rng = random.Random(0)
    damaged = [b"", b"QISKIT", whole[:-1], whole + b"\n", whole[:40], b"\x80\x04K\x01." + whole]
    for _ in range(50):
        position = rng.randrange(len(whole))
        damaged.append(whole[:position] + bytes([whole[position] ^ (1 << rng.randrange(8))]) + whole[position + 1 :])
    path = tmp_path / "damaged.qpy"
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(DamagedFileError):
            load_circuit(path)


def sealed(body: bytes) -> bytes:
    return body + b"\nsha256 " + hashlib.sha256(body).hexdigest().encode()


def test_old_new_and_foreign_qpy(tmp_path: Path) -> None:
    path = tmp_path / "x.qpy"
    body = save_circuit(policy_circuit().circuit, tmp_path)[0].read_bytes()[: -len("\nsha256 ") - 64]
    path.write_bytes(sealed(body))
    assert load_circuit(path) == policy_circuit().circuit
    for version in (10, 12, 250):  # up to 12: SymEngine archives
        path.write_bytes(sealed(body[:6] + bytes([version]) + body[7:]))
        with pytest.raises(DamagedFileError, match=f"QPY version {version}"):
            load_circuit(path)
    path.write_bytes(sealed(body[:200]))
    with pytest.raises(DamagedFileError, match="damaged QPY"):
        load_circuit(path)
    two = io.BytesIO()
    qpy.dump([QuantumCircuit(1), QuantumCircuit(2)], two)
    path.write_bytes(sealed(two.getvalue()))
    with pytest.raises(DamagedFileError, match="2 programs"):
        load_circuit(path)


@pytest.mark.parametrize("unit", ["ns", "s"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_delay_whose_unit_qpy_would_forget_is_refused(tmp_path: Path, unit: str, nested: bool) -> None:
    """Qiskit reads 1000 ns back as 1000 dt, and does not read a delay in seconds at all."""
    circuit = QuantumCircuit(1, 1)
    if nested:
        with circuit.if_test((0, 1)):
            circuit.delay(1000, 0, unit)
    else:
        circuit.delay(1000, 0, unit)
    with pytest.raises(InvalidInputError, match=f"delay in '{unit}'.*write it in dt"):
        save_circuit(circuit, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    whole = QuantumCircuit(1)
    whole.delay(1000, 0, "dt")
    assert load_circuit(save_circuit(whole, tmp_path)[0]) == whole


def test_what_qiskit_cannot_write_is_refused(tmp_path: Path) -> None:
    circuit = QuantumCircuit(1, metadata={"made by": object()})
    with pytest.raises(InvalidInputError, match="cannot be written as QPY"):
        save_circuit(circuit, tmp_path / "new")
    assert not (tmp_path / "new").exists()
