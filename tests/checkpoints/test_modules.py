"""Modules on disk keep their dtypes and what is frozen; folders appear whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from qhw_diffusion.checkpoints import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.errors import DamagedFileError, DamagedRunError, InvalidInputError, RunFolderError
from qhw_diffusion.runs import RunFolder, atomic_folder


def fill(folder: Path, text: str, *, fail: bool = False) -> None:
    with atomic_folder(folder) as aside:
        (aside / "one").write_text(text)
        if fail:
            raise ZeroDivisionError


def module() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).double())
    made[0].weight.requires_grad_(False)
    return made


def test_a_state_keeps_dtypes_and_what_is_frozen(tmp_path: Path) -> None:
    saved = module()
    state, config = load_module_state(save_module(tmp_path, saved, {"frozen": frozen_parameters(saved)}))
    assert config == {"frozen": ["0.weight"]}
    again = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    put_state(again, state, config["frozen"])
    assert {k: (v.dtype, v.requires_grad) for k, v in again.named_parameters()} == {
        k: (v.dtype, v.requires_grad) for k, v in saved.named_parameters()
    }
    for name, tensor in saved.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    put_state(again.requires_grad_(False), state)
    assert len(frozen_parameters(again)) == 6, "left as it is"
    with pytest.raises(RuntimeError, match="size mismatch"):
        put_state(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(3), nn.Linear(3, 1)), state)


def test_a_format_that_is_not_known() -> None:
    check_format("folder", 2, 1, 2)
    for given in (3, None, "2"):
        with pytest.raises(DamagedFileError, match="reads 1 and 2; use the package version that wrote it"):
            check_format("folder", given, 1, 2)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "deep" / "new", "1", fail=True)
    assert not list((tmp_path / "deep").iterdir())
    fill(tmp_path / "deep" / "new", "1")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["new"]
    assert (tmp_path / "deep" / "new" / "one").read_text() == "1"
    (tmp_path / "plain").mkdir()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "deep/new")}
    assert len(modes) == 1, "as any other folder"


def test_in_a_folder_that_exists_the_rest_stays(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path, "new", fail=True)
    assert (tmp_path / "one").read_text() == "old"
    fill(tmp_path, "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"one": "new", "other": "old"}
    with pytest.raises(InvalidInputError, match="is a file; give a folder"):
        fill(tmp_path / "one", "new")


def test_a_damaged_file_makes_a_damaged_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", kind="test", config={})
    for kind in (RunFolderError, DamagedFileError, DamagedRunError):
        with pytest.raises(kind, match=r"run is a damaged run folder: .*no saved model"), run.whole():
            load_module_state(run.path / "model")
