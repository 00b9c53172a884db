"""Content keys: the same in every process and whatever does not reach the device, different for all that does."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qpy, transpile
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.classical import expr
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import SparsePauliOp

from qhw_diffusion.errors import InvalidInputError, UnsupportedCircuitError
from qhw_diffusion.hardware import content_key, job_key, tag_of
from qhw_diffusion.hardware.service import Pub

ROOT = Path(__file__).parents[2]
VALUES = np.array([[0.1, 0.2, 0.3], [1e-17, -0.5, math.pi]])
OPTIONS: dict[str, Any] = {"shots": 4096, "resilience": {"level": 1, "zne": [1, 3, 5]}, "twirl": True, "seed": None}


def circuit(scale: float = 0.5, shift: float = 0.25, *, second: int = 1) -> tuple[QuantumCircuit, list[Parameter]]:
    """New `Parameter` objects (and UUIDs) and a new automatic name at every call."""
    x, w = ParameterVector("x", 2), Parameter("w")
    made = QuantumCircuit(3)
    made.sx(0)
    made.rz(scale * x[0] + shift, 0)
    made.rz(x[1] - 2 * w, second)
    made.cz(0, 1)
    made.rz(1.2345678901234567, 2)
    made.delay(100, 2)
    made.barrier()
    return made, [x[0], x[1], w]


def observables() -> list[SparsePauliOp]:
    return [SparsePauliOp(["IIZ", "ZZI"], [1.0, 0.5]), SparsePauliOp("XXX")]


def key(
    made: tuple[QuantumCircuit, list[Parameter]] | None = None,
    *,
    shown: list[SparsePauliOp] | None = None,
    values: np.ndarray = VALUES,
    options: Any = OPTIONS,
    device: str = "ibm_standin",
    purpose: str = "step 3",
) -> str:
    drawn, order = made or circuit()
    return content_key(drawn, shown or observables(), values, order, options, device, purpose)


BASE = key()


def bound(*gates: tuple[str, tuple[Any, ...]]) -> str:
    made = QuantumCircuit(2)
    for name, arguments in gates:
        getattr(made, name)(*arguments)
    return content_key(made, [SparsePauliOp("ZZ")], np.zeros((1, 0)), [], {}, "d", "p")


# -- the same ----------------------------------------------------------------------------------------------------------


def test_names_uuids_metadata_layout_and_registers_do_not_count() -> None:
    made, order = circuit()
    assert made.name != circuit()[0].name
    made.name, made.metadata, made.global_phase = "other", {"run": 7, "when": "today"}, 1.0
    assert key((made, order)) == BASE
    renamed = QuantumCircuit(QuantumRegister(2, "a"), QuantumRegister(1, "b"))
    y = [Parameter("first"), Parameter("a second"), Parameter("θ")]
    renamed.sx(0)
    renamed.rz(0.25 + y[0] * 0.5, 0)
    renamed.rz(-2 * y[2] + y[1], 1)
    renamed.cz(0, 1)
    renamed.rz(1.2345678901234567, 2)
    renamed.delay(100, 2)
    renamed.barrier()
    assert key((renamed, y)) == BASE


def test_a_circuit_read_from_a_file_has_the_key_of_the_one_written() -> None:
    for version in (13, 15, qpy.common.QPY_VERSION):
        made, order = circuit()
        buffer = io.BytesIO()
        qpy.dump(made, buffer, version=version)
        (read,) = qpy.load(io.BytesIO(buffer.getvalue()))
        columns = [next(p for p in read.parameters if p.name == q.name) for q in order]
        assert key((read, columns)) == BASE


def test_number_types_and_order_of_dictionaries_do_not_count() -> None:
    other = {"seed": None, "twirl": np.True_, "resilience": {"zne": (1.0, 3, np.int64(5)), "level": np.uint8(1)},
             "shots": np.float64(4096.0)}  # fmt: skip
    assert key(options=other) == BASE
    assert key(values=np.asfortranarray(VALUES)) == BASE
    assert key(values=VALUES.astype(">f8")) == BASE
    single = VALUES.astype(np.float32)
    assert key(values=single) == key(values=single.astype(np.float64)) != BASE
    assert key(shown=[SparsePauliOp(["ZZI", "IIZ"], [0.5, 1.0]), SparsePauliOp("XXX")]) == BASE
    assert bound(("rz", (0.0, 0))) == bound(("rz", (-0.0, 0))) == bound(("rz", (0, 0)))

    @dataclass(frozen=True)
    class Resilience:
        level: int = 1
        zne: tuple[int, ...] = (1, 3, 5)

    assert key(options={**OPTIONS, "resilience": Resilience()}) == BASE


@pytest.mark.slow
def test_other_processes_make_the_same_key() -> None:
    script = "from tests.hardware.test_keys import BASE, transpiled_key; print(BASE, transpiled_key())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == [BASE, transpiled_key()]


def transpiled_key() -> str:
    made, order = circuit()
    basis = ["rz", "sx", "x", "cx"]
    isa = transpile(made, basis_gates=basis, coupling_map=[[0, 1], [1, 2]], optimization_level=3, seed_transpiler=7)
    return key((isa, order))


# -- different ---------------------------------------------------------------------------------------------------------


def test_the_last_bit_of_every_number_counts() -> None:
    up = math.nextafter
    keys = {BASE, key(circuit(scale=up(0.5, 1))), key(circuit(shift=up(0.25, 1)))}
    for index in np.ndindex(VALUES.shape):
        values = VALUES.copy()
        values[index] = up(values[index], 9)
        keys.add(key(values=values))
    keys.add(key(shown=[SparsePauliOp(["IIZ", "ZZI"], [1.0, up(0.5, 1)]), SparsePauliOp("XXX")]))
    keys.add(key(options={**OPTIONS, "shots": up(4096.0, 9999)}))
    keys.add(key(options={**OPTIONS, "resilience": {"level": 1, "zne": [1, up(3.0, 9), 5]}}))
    assert len(keys) == 6 + VALUES.size
    assert bound(("rz", (0.1, 0))) != bound(("rz", (up(0.1, 1), 0)))


def test_everything_else_that_reaches_the_device_counts() -> None:
    made, order = circuit()
    longer = made.copy()
    longer.x(2)
    others = [
        key((longer, order)),
        key(circuit(second=2)),
        key((made, [order[1], order[0], order[2]])),
        key(shown=observables()[::-1]),
        key(shown=observables()[:1]),
        key(shown=[observables()[0], SparsePauliOp("XXY")]),
        key(values=VALUES[::-1]),
        key(values=VALUES[:1]),
        key(options={**OPTIONS, "shots": 4097}),
        key(options={**OPTIONS, "twirl": False}),
        key(options={**OPTIONS, "twirl": 1}),
        key(options={**OPTIONS, "seed": "None"}),
        key(options={**OPTIONS, "extra": None}),
        key(device="ibm_other"),
        key(purpose="step 4"),
    ]
    assert len({BASE, *others}) == len(others) + 1


def test_gates_that_look_alike() -> None:
    keys = [
        bound(("cx", (0, 1))),
        bound(("cx", (1, 0))),
        bound(("cx", (0, 1, None, 0))),  # on the control being 0
        bound(("cz", (0, 1))),
        bound(("delay", (1, 0, "us"))),
        bound(("delay", (1, 0, "ns"))),
        bound(("append", (UnitaryGate(np.eye(2)), [0]))),
        bound(("append", (UnitaryGate(np.diag([1, 1j])), [0]))),
        bound(("barrier", ())),
        bound(),
    ]
    assert len(set(keys)) == len(keys)


def test_a_gate_made_of_a_circuit_is_what_it_consists_of() -> None:
    def wrapped(angle: float, name: str) -> str:
        inner = QuantumCircuit(1, name=name, global_phase=0.5)
        inner.rz(angle, 0)
        return bound(("append", (inner.to_gate(), [0])))

    assert wrapped(0.1, "circuit-12") == wrapped(0.1, "circuit-13") != wrapped(0.2, "circuit-12")


def test_angles_that_are_not_affine() -> None:
    def made(scale: float) -> str:
        x, y = Parameter("x"), Parameter("y")
        drawn = QuantumCircuit(1)
        drawn.rz(scale * (x * y).sin() + x**2, 0)
        return content_key(drawn, [SparsePauliOp("Z")], np.ones((1, 2)), [x, y], {}, "d", "p")

    assert made(1.5) == made(1.5) != made(math.nextafter(1.5, 2))


def key_of(drawn: QuantumCircuit) -> str:
    return content_key(drawn, [SparsePauliOp("Z" * drawn.num_qubits)], np.zeros((1, 0)), [], {}, "d", "p")


def test_what_a_dynamic_circuit_decides_by_and_does_counts() -> None:
    """`if_else` on measured bits is what a sampler sends."""

    def drawn(value: int = 1, bit: int = 0, *, whole: bool = False, angle: float = 0.1, name: str = "c") -> str:
        circuit = QuantumCircuit(QuantumRegister(2), ClassicalRegister(2, name))
        circuit.measure([0, 1], [0, 1])
        with circuit.if_test((circuit.cregs[0] if whole else circuit.clbits[bit], value)) as otherwise:
            circuit.rz(angle, 1)
        with otherwise:
            circuit.x(0)
        return key_of(circuit)

    assert drawn() == drawn(name="another")
    different = [drawn(), drawn(value=0), drawn(bit=1), drawn(whole=True), drawn(value=2, whole=True), drawn(angle=0.2)]
    assert len(set(different)) == len(different)
    # the key of earlier versions: rows of a ledger go on being found
    assert drawn()[:16] == "ccb26268eb8e8d1d"


def test_other_control_flow_is_refused() -> None:
    drawn = QuantumCircuit(2, 2)
    with drawn.if_test(expr.bit_and(drawn.clbits[0], drawn.clbits[1])):
        drawn.x(1)
    with pytest.raises(UnsupportedCircuitError, match="expression"):
        key_of(drawn)
    for begin in (lambda c: c.for_loop(range(2)), lambda c: c.while_loop((c.clbits[0], 1)), lambda c: c.box()):
        drawn = QuantumCircuit(1, 1)
        with begin(drawn):
            drawn.x(0)
        with pytest.raises(UnsupportedCircuitError, match=r"only if_else has a key; unroll"):
            key_of(drawn)


# -- jobs of several PUBs, tags, bad input -----------------------------------------------------------------------------


def test_jobs_of_several_pubs() -> None:
    made, order = circuit()

    def pub(precision: float = 0.01) -> Pub:
        return Pub(made, tuple(observables()), tuple(order), VALUES, precision)

    base = job_key([pub(), pub()], OPTIONS, "d", "p")
    assert base == job_key([pub(), pub()], OPTIONS, "d", "p")
    others = [job_key([pub()], OPTIONS, "d", "p"), job_key([pub(), pub(0.02)], OPTIONS, "d", "p"),
              job_key([pub(0.02), pub()], OPTIONS, "d", "p"), job_key([pub(), pub()], OPTIONS, "d", "q")]  # fmt: skip
    assert len({base, *others}) == 5
    with pytest.raises(InvalidInputError, match="at least one PUB"):
        job_key([], OPTIONS, "d", "p")


def test_tags() -> None:
    assert tag_of("runs/my study (α=1)", BASE) == ["qhw", "run-runs-my-study-1", f"qhw-{BASE[:32]}"]
    assert tag_of("…", BASE)[1] == "run-unnamed"
    assert all(len(tag) <= 40 for tag in tag_of("x" * 500, BASE))
    with pytest.raises(InvalidInputError, match="64 hexadecimal digits"):
        tag_of("r", "../x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": VALUES[:, :2]}, "values have shape"),
        ({"values": np.array([[math.nan, 0, 0]])}, "NaN"),
        ({"values": np.array([["a", "b", "c"]])}, "allowed: numbers"),
        ({"shown": [SparsePauliOp("Z")]}, "circuit's 3 qubits"),
        ({"options": {"f": lambda: 0}}, "options.f is a function"),
        ({"options": {"shots": math.inf}}, "no key"),
        ({"options": {1: 2}}, "no text"),
        ({"options": [1]}, "must be a dictionary"),
        ({"device": ""}, "device is ''"),
        ({"made": (circuit()[0], circuit()[1][:2])}, "the circuit's parameters are"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        key(**change)


def test_every_bit_of_a_value_counts() -> None:
    keys = {BASE}
    for position in range(64):
        packed = bytearray(struct.pack("<d", VALUES[0, 2]))
        packed[position // 8] ^= 1 << position % 8
        values = VALUES.copy()
        values[0, 2] = struct.unpack("<d", packed)[0]
        keys.add(key(values=values))
    assert len(keys) == 65
