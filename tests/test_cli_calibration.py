"""`qhw calibration …` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from qiskit import QuantumCircuit

from qhw_diffusion.circuits import save_circuit
from qhw_diffusion.cli import main
from qhw_diffusion.devices import Device

SHIPPED = Path(__file__).parents[1] / "calibration"


def test_snapshot_show_and_diff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibration", "snapshot", "FakeManila"]) == 0
    file = capsys.readouterr().out.strip()
    assert file == "fake_manila-2024-05-27.json.gz"
    assert Device.load(file) == Device.load("fake_manila")
    assert main(["calibration", "snapshot", "fake_manila"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["calibration", "snapshot", "fake_manila", "--overwrite", "--out", "x/other.json"]) == 0
    assert Device.load("x/other.json") == Device.load("fake_manila")
    capsys.readouterr()

    assert main(["calibration", "show", file, "--qubits", "1-2", "--picture", "map.png"]) == 0
    told = capsys.readouterr().out
    assert "fake_manila (Falcon r5.11), 5 qubits" in told
    assert "1-2    cx  1.39e-02" in told
    assert "0-1" not in told
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")

    assert main(["calibration", "diff", file, "x/other.json"]) == 0
    assert "no qubit and no gate changed" in capsys.readouterr().out


def test_best_qubits_of_a_shipped_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = QuantumCircuit(3)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.cx(1, 2)
    qpy, _ = save_circuit(circuit, tmp_path, "ghz")
    device = next(SHIPPED.glob("fake_marrakesh-*.json.gz"))
    command = ["calibration", "best-qubits", str(device), "--circuit", str(qpy), "--top", "3", "--seeds", "2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].split() == ["rank", "qubits", "predicted", "error", "2q", "gates", "seed"]
    assert [line.split()[0] for line in told.splitlines()[1:4]] == ["1", "2", "3"]
    assert main(command) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["snapshot", "fake_manla"], "did you mean fake_manila"),
        (["snapshot", "ideal"], "ideal device has no calibration"),
        (["snapshot", "fake_manila", "--out", "a.txt"], ".json.gz"),
        (["show", "nothing.json.gz"], "does not exist"),
        (["show", "."], "unknown device"),
        (["show", "./"], "is a folder"),
        (["show", "bad.json"], "not a readable device snapshot"),
        (["show", "ideal"], "no calibration"),
        (["show", "fake_manila", "--qubits", "0-5"], "0 to 4"),
        (["show", "fake_manila", "--picture", "map.gif"], ".png"),
        (["diff", "fake_manila", "fake_torino"], "133"),
        (["diff", "fake_fez", "fake_marrakesh", "--top", "0"], "at least 1"),
        (["best-qubits", "fake_manila", "--circuit", "nothing.qpy"], "does not exist"),
        (["best-qubits", "fake_manila", "--circuit", "bad.json"], "not a QPY file"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("hello")
    assert main(["calibration", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("qhw: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
