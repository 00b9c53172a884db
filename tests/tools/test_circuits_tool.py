"""The published circuits: files and code agree, and a file that does not is found."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qiskit import qasm3, qpy
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Operator

from qhw_diffusion.circuits import load_circuit, published_circuit, published_circuits
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, UnknownNameError
from tools import circuits as tool
from tools.circuits import (
    DEVICES,
    best_cost,
    check_circuits,
    check_files,
    check_row,
    compile_published,
    cost_of,
    export_circuits,
    main,
    readme,
    reference_devices,
    same_compiler,
    versions,
)

FOLDER = Path(__file__).parents[2] / "circuits"
NAMES = list(published_circuits())
TABLE: dict[str, Any] = json.loads((FOLDER / "table.json").read_text())


@pytest.fixture(scope="module")
def devices() -> dict[str, Device]:
    return reference_devices()


def bound(circuit: QuantumCircuit) -> QuantumCircuit:
    """Every parameter bound by its name, to an angle of its own."""
    names = sorted(p.name for p in circuit.parameters)
    angles = dict(zip(names, np.random.default_rng(4).uniform(-3, 3, len(names)), strict=True))
    return circuit.assign_parameters({p: angles[p.name] for p in circuit.parameters})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_is_the_identical_unitary(name: str) -> None:
    ours = published_circuit(name).circuit
    from_qpy = load_circuit(FOLDER / f"{name}.qpy")
    assert from_qpy == ours
    assert from_qpy.name == name
    with open(FOLDER / f"{name}.qpy", "rb") as file:  # as Qiskit alone reads it, the checksum at its end ignored
        assert file.read(7)[6] == 13
        file.seek(0)
        assert qpy.load(file)[0] == ours
    from_qasm = qasm3.loads((FOLDER / f"{name}.qasm").read_text())
    assert {p.name for p in from_qasm.parameters} == {p.name for p in ours.parameters}
    if ours.num_qubits <= 8:
        unitary = Operator(bound(ours)).data
        np.testing.assert_array_equal(Operator(bound(from_qpy)).data, unitary)
        np.testing.assert_allclose(Operator(bound(from_qasm)).data, unitary, atol=1e-12)
    else:
        assert tool._gates(from_qasm) == tool._gates(ours)


def test_the_runtime_client_takes_the_published_version() -> None:
    from qiskit_ibm_runtime.json import SERVICE_MAX_SUPPORTED_QPY_VERSION

    assert SERVICE_MAX_SUPPORTED_QPY_VERSION >= 13


@pytest.mark.slow
def test_the_folder_holds_what_the_list_says_and_the_readme_is_the_tables() -> None:
    files = {f"{name}.{ending}" for name in NAMES for ending in ("qasm", "qpy", "svg")}
    assert {path.name for path in FOLDER.iterdir()} == files | {"README.md", "table.json"}
    assert list(TABLE["circuits"]) == NAMES
    assert (FOLDER / "README.md").read_text() == readme(TABLE)
    for published, row in zip(published_circuits().values(), TABLE["circuits"].values(), strict=True):
        assert (row["qubits"], row["inputs"], row["weights"]) == (
            published.circuit.num_qubits, len(published.inputs), len(published.weights))  # fmt: skip
        assert set(published.circuit.parameters) == {*published.inputs, *published.weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gates"),
    # measured apart from this package too: the ring needs a cycle, which heavy-hex has of twelve qubits only
    [("policy_4q_2l_ring", (8, 17, 17, 8)), ("policy_4q_2l_chain", (6, 6, 6, 6)), ("policy_4q_2l_none", (0, 0, 0, 0))],
)
def test_two_qubit_gates_of_the_policy(name: str, gates: tuple[int, ...], devices: dict[str, Device]) -> None:
    stated = TABLE["circuits"][name]["devices"]
    assert tuple(stated[device]["two_qubit_gates"] for device in DEVICES) == gates
    if same_compiler(TABLE["made_with"]):  # compiled anew, with the seeds of the table
        assert check_row(published_circuit(name), TABLE["circuits"][name], TABLE["made_with"], devices) == []
    else:  # another compiler may do better or somewhat worse
        for device, count in zip(DEVICES, gates, strict=True):
            cost = best_cost(published_circuit(name), devices[device], range(5))
            assert gates[0] <= cost.two_qubit_gates <= 1.5 * count


@pytest.mark.slow
def test_every_row_is_what_compiling_gives(devices: dict[str, Device]) -> None:
    if not same_compiler(TABLE["made_with"]):
        pytest.skip("the table was made with another Qiskit or runtime client: run `python -m tools.circuits export`")
    for published, row in zip(published_circuits().values(), TABLE["circuits"].values(), strict=True):
        for device, stated in row["devices"].items():
            fresh = cost_of(compile_published(published, devices[device], stated["seed"]))
            assert asdict(fresh) == stated, (published.name, device)


def test_the_best_seed_is_kept(devices: dict[str, Device]) -> None:
    published, heron = published_circuit("policy_4q_2l_ring"), devices["fake_marrakesh"]
    best = best_cost(published, heron, range(4))
    all_four = [cost_of(compile_published(published, heron, seed)) for seed in range(4)]
    assert best in all_four
    assert best.two_qubit_gates == min(c.two_qubit_gates for c in all_four)
    if same_compiler(TABLE["made_with"]):
        assert len({c.two_qubit_gates for c in all_four}) > 1, "the seeds agree: this test can tell nothing"


def test_costs_of_a_circuit_counted_by_hand(devices: dict[str, Device]) -> None:
    cost = cost_of(compile_published(published_circuit("policy_2q_2l_chain"), devices["fake_marrakesh"], 0))
    target = devices["fake_marrakesh"].target
    assert target is not None
    assert (cost.width, cost.two_qubit_gates, cost.two_qubit_depth) == (2, 2, 2)
    cz = min(p.duration for p in target["cz"].values() if p is not None) * 1e6
    sx = min(p.duration for p in target["sx"].values() if p is not None) * 1e6
    # between and around the two CZ, a block of rotations on one qubit takes at most four SX
    assert cost.duration_us is not None
    assert 2 * cz + 4 * sx <= cost.duration_us <= 2 * cz + 20 * sx
    assert cost_of(compile_published(published_circuit("policy_2q_2l_chain"), devices["ideal"], 0)).duration_us is None


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="policy_4q_2l_ring"):
        published_circuit("policy_4q_2l_rings")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two circuits published instead of all."""
    names = ["policy_2q_2l_chain", "policy_2q_2l_none"]
    few = {name: published_circuit(name) for name in names}
    monkeypatch.setattr(tool, "published_circuits", lambda: few)
    return names


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python -m tools.circuits export` of two circuits, once for all tests."""
    out = tmp_path_factory.mktemp("export") / "new"
    few = {name: published_circuit(name) for name in ("policy_2q_2l_chain", "policy_2q_2l_none")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "published_circuits", lambda: few)
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main(["export", "--out", str(out)]) == 0
    assert len(list(out.iterdir())) == 8
    assert "8 files" in told.getvalue()
    return out


@pytest.mark.slow
def test_an_export_is_the_published_one(exported: Path) -> None:
    """The same code and versions give the same files, byte for byte (QPY names the Qiskit version, hence `if`)."""
    if TABLE["made_with"] != versions():
        pytest.skip("the published files were made with other versions")
    fresh = json.loads((exported / "table.json").read_text())
    for name, row in fresh["circuits"].items():
        assert row["devices"] == TABLE["circuits"][name]["devices"]
        for what in ("expressibility", "entangling_capability"):
            assert row[what] == pytest.approx(TABLE["circuits"][name][what], abs=1e-6)
    for path in exported.iterdir():
        if path.suffix in (".qasm", ".qpy", ".svg"):
            assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


def copy(exported: Path, folder: Path) -> Path:
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.slow
def test_every_damage_is_found(exported: Path, tmp_path: Path, small: list[str]) -> None:
    out = copy(exported, tmp_path)
    first, second = small
    qpy_file = out / f"{first}.qpy"
    qpy_file.write_bytes(qpy_file.read_bytes()[:-9] + b"x" + qpy_file.read_bytes()[-8:])
    (out / f"{second}.qpy").write_bytes((out / f"{first}.qasm").read_bytes())
    (out / f"{first}.qasm").write_text((out / f"{first}.qasm").read_text().replace("cx q[0]", "cz q[0]", 1))
    (out / f"{first}.svg").unlink()
    (out / f"{second}.svg").write_text("<svg></svg>")
    (out / "policy_99q.qpy").write_bytes(b"")
    table = json.loads((out / "table.json").read_text())
    table["circuits"][first]["devices"]["fake_brisbane"]["two_qubit_gates"] = 3
    table["circuits"][second]["expressibility"]["value"] += 1e-3
    (out / "table.json").write_text(json.dumps(table))
    found = "\n".join(check_circuits(out))
    for expected in (
        f"{first}.qpy: ",
        f"{second}.qpy: ",
        "is not a QPY file",
        f"{first}.qasm: another",
        f"{first}.svg: missing",
        f"{second}.svg: another drawing",
        "policy_99q.qpy: no published circuit",
        "README.md: not what table.json gives",
        f"{first}, devices, fake_brisbane, two_qubit_gates: 3 stated, 2 now",
        f"{second}, expressibility, value: ",
    ):
        assert expected in found
    assert len(found.splitlines()) == 9


def test_another_circuit_is_found_gate_for_gate(exported: Path, tmp_path: Path) -> None:
    """With other versions the text may differ, the gates may not."""
    out, name = copy(exported, tmp_path), "policy_2q_2l_chain"
    published = published_circuit(name)
    qasm = out / f"{name}.qasm"
    text = qasm.read_text()
    qasm.write_text(text + "// a comment\n")
    assert check_files(out, published, same_versions=False) == []
    assert check_files(out, published, same_versions=True) == [f"{name}.qasm: another text than the code's"]
    qasm.write_text(text.replace("rx(w00)", "rx(w01)"))
    different = [f"{name}.qasm: another circuit than the code's, or not OpenQASM 3"]
    assert check_files(out, published, same_versions=False) == different
    qasm.write_text(text[:-20])
    assert check_files(out, published, same_versions=False) == different


def test_a_table_of_other_versions_is_held_to_bounds(devices: dict[str, Device]) -> None:
    name = "policy_2q_2l_chain"
    row = json.loads(json.dumps(TABLE["circuits"][name]))
    other = {**TABLE["made_with"], "qiskit": "2.5.0"}
    assert not same_compiler(other)
    row["devices"]["fake_brisbane"]["depth"] = 1
    row["devices"]["fake_brisbane"]["two_qubit_gates"] = 2
    assert check_row(published_circuit(name), row, other, devices) == []
    row["devices"]["fake_brisbane"]["two_qubit_gates"] = 1
    assert "fake_brisbane: 1 stated, 2 now" in "\n".join(check_row(published_circuit(name), row, other, devices))
    del row["devices"]["ideal"]
    assert "not a row of the table" in check_row(published_circuit(name), row, other, devices)[0]


def test_what_is_not_a_folder_of_circuits(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"python -m tools\.circuits export"):
        check_circuits(tmp_path)
    for text in ("{", "[]", "{}", '{"format": "qhw-published-circuits", "version": 2}',
                 '{"format": "qhw-published-circuits", "version": 1, "made_with": {}}'):  # fmt: skip
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(DamagedFileError, match=r"table\.json"):
            check_circuits(tmp_path)


def test_where_nothing_can_be_written_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(tool, "best_cost", lambda *_: pytest.fail("computed before the folder was tried"))
    with pytest.raises(InvalidInputError, match=r"cannot write to .*: Not a directory.*--out"):
        export_circuits(tmp_path / "file" / "below")


@pytest.mark.slow
def test_check_then_damage(
    exported: Path, tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy(exported, tmp_path)
    assert main(["--check", "--out", str(out)]) == 0
    assert "agree" in capsys.readouterr().out
    file = out / f"{small[1]}.qpy"
    file.write_bytes(file.read_bytes()[:100])
    assert main(["--check", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{small[1]}.qpy: ")
    assert "1 difference;" in captured.err
    assert file.stat().st_size == 100  # nothing is repaired behind one's back


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--out", str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("x")
    assert main(["export", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["export", "--format", "qasm2"])
    assert stop.value.code == 2
    assert "--format" in capsys.readouterr().err
    for neither_or_both in ([], ["export", "--check"]):
        with pytest.raises(SystemExit) as stop:
            main(neither_or_both)
        assert stop.value.code == 2
        assert "either export or --check" in capsys.readouterr().err
