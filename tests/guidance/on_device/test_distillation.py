"""`qhw distill` with a table measured on a device: one job, paid once, as good as its shots."""

from __future__ import annotations

from pathlib import Path

import logs
import pytest
import torch

from qhw_diffusion import cli
from qhw_diffusion.errors import RunFolderError
from qhw_diffusion.guidance import LookupPolicy, QuantumPolicy, load_policy, tabulate
from qhw_diffusion.guidance.on_device.distillation import Distillation, distill_on_device
from qhw_diffusion.hardware.ledger import Ledger
from qhw_diffusion.on_device.access import AccessConfig
from qhw_diffusion.runs import logging_to, read_json

SHOTS = 64


@pytest.mark.slow
def test_a_table_measured_on_a_device(small_policy: Path, tmp_path: Path) -> None:
    out, ledger = tmp_path / "out", tmp_path / "ledger"
    asked = Distillation(small_policy, out, device="fake_manila", seeds=2, images=40)
    access = AccessConfig(device="fake_manila", shots=SHOTS, ledger=str(ledger))
    with logging_to([logs.file_of(tmp_path)]):
        text = distill_on_device(asked, access, resume=False)
    assert "729 circuits evaluated once on fake_manila (64 shots; local-" in text
    with Ledger.open(ledger) as opened:
        rows = opened.rows()
    assert [(row.purpose, row.circuits, row.state) for row in rows] == [("out table", 729, "done")]
    assert read_json(out / "distillation.json")["job_ids"] == [rows[0].job_id]
    ((_, told, _),) = logs.told(tmp_path)
    assert told["charts/jobs"] == 1
    assert {"charts/qpu_seconds", "evaluation/original/fd", "evaluation/distilled/fd"} <= set(told)
    measured, policy = load_policy(out).policy, load_policy(small_policy).policy
    assert isinstance(measured, LookupPolicy)
    assert isinstance(policy, QuantumPolicy)
    exact = tabulate(policy).table
    # binomial: the variance of a mean of ±1
    expected = ((1 - exact.square()) / SHOTS).mean().sqrt()
    assert float((measured.table - exact).square().mean().sqrt() / expected) == pytest.approx(1.0, abs=0.1)

    # again: the table is in the ledger
    distill_on_device(asked, access, resume=True)
    with Ledger.open(ledger) as opened:
        assert [row.job_id for row in opened.rows()] == [rows[0].job_id]
    again = load_policy(out).policy
    assert isinstance(again, LookupPolicy)
    assert torch.equal(again.table, measured.table)
    with pytest.raises(RunFolderError, match="other settings"):
        distill_on_device(asked, AccessConfig(device="fake_manila", shots=SHOTS + 1, ledger=str(ledger)), resume=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "10"], "give --device and --shots"),
        (["--device", "fake_manila", "--shots", "10", "--into", "network"], "leave --engine and --into network out"),
        (["--resume"], "a table measured on a device"),
        (["--images", "5"], "20 images"),
    ],
)
def test_bad_input(
    small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["distill", str(small_policy), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
