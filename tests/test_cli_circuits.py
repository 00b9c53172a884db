from __future__ import annotations

from pathlib import Path

import pytest

from qhw_diffusion.circuits import published_circuit
from qhw_diffusion.cli import main
from qhw_diffusion.studies import circuits_export


def test_export_then_check_then_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "policy_2q_2l_none"
    monkeypatch.setattr(circuits_export, "published_circuits", lambda: {name: published_circuit(name)})
    command = ["circuits", "export", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "5 files" in capsys.readouterr().out
    assert main([*command, "--check"]) == 0
    assert "agree" in capsys.readouterr().out
    file = tmp_path / "out" / f"{name}.qpy"
    file.write_bytes(file.read_bytes()[:100])
    assert main([*command, "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{name}.qpy: ")
    assert "1 difference;" in captured.err
    assert file.stat().st_size == 100  # nothing is repaired behind one's back


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["circuits", "export", "--check", "--out", str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("x")
    assert main(["circuits", "export", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["circuits", "export", "--format", "qasm2"])
    assert stop.value.code == 2
    assert "--format" in capsys.readouterr().err
