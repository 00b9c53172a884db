from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qhw_diffusion.checkpoints import (
    load_checkpoint,
    load_module_state,
    pack_generator,
    pack_optimizer,
    read_tensors,
    restore_checkpoint,
    save_checkpoint,
    save_module,
    unpack_generator,
    unpack_optimizer,
    write_tensors,
)
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.runs import RunFolder, atomic_write_text, progress, progress_enabled


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", kind="guidance", config={"seed": 3})


class Trainer:
    """A toy training loop with everything a real one has: groups, scheduler, two generators."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.linspace(-0.5, 0.5, parameter.numel()).reshape(parameter.shape))
        groups = [
            {"params": self.model[0].parameters(), "lr": 1e-2},
            {"params": self.model[2].parameters(), "lr": 3e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.torch_rng = torch.Generator().manual_seed(1)
        self.numpy_rng = np.random.default_rng(2)

    def step(self) -> None:
        x = torch.randn(8, 3, generator=self.torch_rng) + float(self.numpy_rng.normal())
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()

    def save(self, run: RunFolder) -> None:
        save_checkpoint(run, self.parts, {"scheduler": self.scheduler.state_dict()})

    @property
    def parts(self) -> dict[str, Any]:
        generators = {"rng.torch": self.torch_rng, "rng.numpy": self.numpy_rng}
        return {"opt": self.optimizer, "model": self.model, **generators}

    def load(self, run: RunFolder) -> None:
        meta, _ = restore_checkpoint(run, self.parts)
        self.scheduler.load_state_dict(meta["scheduler"])


def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", kind="toy", config={})
    straight = Trainer()
    for _ in range(12):
        straight.step()
    first = Trainer()
    for _ in range(5):
        first.step()
    first.save(run)
    resumed = Trainer()
    resumed.load(run)
    assert isinstance(resumed.optimizer.param_groups[0]["betas"], tuple)
    for _ in range(7):
        resumed.step()
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_the_optimizer_state_the_resumed_training_differs(tmp_path: Path) -> None:
    """The test above can fail: the moments matter."""
    straight, other = Trainer(), Trainer()
    for _ in range(5):
        straight.step()
    other.model.load_state_dict(straight.model.state_dict())
    unpack_generator(other.torch_rng, pack_generator(straight.torch_rng))
    unpack_generator(other.numpy_rng, pack_generator(straight.numpy_rng))
    straight.step()
    other.step()
    assert not torch.equal(straight.model[0].weight, other.model[0].weight)


def test_an_optimizer_of_another_configuration_is_refused_and_left_alone() -> None:
    trainer = Trainer()
    trainer.step()
    tensors, meta = pack_optimizer(trainer.optimizer)
    with pytest.raises(DamagedFileError, match="SGD"):
        unpack_optimizer(torch.optim.SGD(trainer.model.parameters(), lr=0.1), tensors, meta)
    with pytest.raises(DamagedFileError, match="groups of sizes"):
        unpack_optimizer(torch.optim.AdamW(trainer.model.parameters()), tensors, meta)
    bad = tensors | {"optimizer.0.exp_avg": torch.zeros(2, 2)}
    before = trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with pytest.raises(DamagedFileError, match="shape"):
        unpack_optimizer(trainer.optimizer, bad, meta)
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], before)
    with pytest.raises(DamagedFileError, match="names no parameter"):
        unpack_optimizer(trainer.optimizer, {"optimizer.99.step": torch.tensor(1.0)}, meta)
    with pytest.raises(DamagedFileError, match="damaged"):
        unpack_optimizer(trainer.optimizer, tensors, {})


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_numpy_generators_round_trip(bits: type[np.random.BitGenerator]) -> None:
    source = np.random.Generator(bits(5))
    source.normal(size=7)
    state = pack_generator(source)
    expected = source.normal(size=4)
    target = np.random.Generator(bits(0))
    unpack_generator(target, state)
    assert np.array_equal(target.normal(size=4), expected)


def test_a_state_of_another_generator_is_told() -> None:
    with pytest.raises(DamagedFileError):
        unpack_generator(torch.Generator(), torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(DamagedFileError):
        unpack_generator(np.random.default_rng(0), torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(InvalidInputError):
        pack_generator("generator")  # type: ignore[arg-type]


def test_a_module_round_trips_with_its_config(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    save_module(tmp_path / "model", module, {"in": 3, "name": "é"})
    state, config = load_module_state(tmp_path / "model")
    assert config == {"in": 3, "name": "é"}
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == config
    assert torch.equal(state["weight"], module.weight)


def test_tied_weights_and_odd_dtypes_can_be_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module.register_buffer("rounded", torch.ones(2, dtype=torch.bfloat16))
    module.register_buffer("nothing", torch.zeros(0))
    save_module(tmp_path, module, {})
    state, _ = load_module_state(tmp_path)
    assert torch.equal(state["0.weight"], state["1.weight"])
    assert state["rounded"].dtype == torch.bfloat16


def test_something_else_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="missing"):
        load_module_state(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {}, {}, kind="checkpoint")
    with pytest.raises(DamagedFileError, match="not a model"):
        load_module_state(tmp_path)
    with pytest.raises(InvalidInputError, match="not a tensor"):
        write_tensors(tmp_path / "x", {"a": 3}, {}, kind="model")  # type: ignore[dict-item]


def test_atomic_write_makes_an_ordinary_readable_file(tmp_path: Path) -> None:
    file = atomic_write_text(tmp_path / "deep" / "file.txt", "ä")
    assert file.read_text(encoding="utf-8") == "ä"
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert file.stat().st_mode == plain.stat().st_mode


def test_progress_is_quiet_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("QHW_PROGRESS", raising=False)
    with progress(total=3, desc="training") as bar:
        bar.update(3)
        bar.set_postfix(reward=1.0)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("QHW_PROGRESS", "1")
    with progress(total=3, desc="training") as bar:
        bar.update(3)
    assert "training" in capsys.readouterr().err
    monkeypatch.setenv("QHW_PROGRESS", "0")
    assert not progress_enabled()


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.tensor([True]), "ü": torch.ones(2, dtype=torch.float16)}
    files = [write_tensors(tmp_path / str(i), tensors, {"x": "é", "y": 2}, kind="model") for i in range(6)]
    assert len({file.read_bytes() for file in files}) == 1
    read, meta = read_tensors(files[0], kind="model")
    assert meta == {"x": "é", "y": 2}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


# -- checkpoints of a run ----------------------------------------------------------------------------------------------


def test_checkpoint_round_trip_and_replacement(run: RunFolder) -> None:
    assert not run.has_checkpoint
    with pytest.raises(RunFolderError, match="no checkpoint"):
        load_checkpoint(run)
    save_checkpoint(run, {"w": torch.arange(3.0)}, {"update": 1})
    save_checkpoint(run, {"w": torch.arange(4.0), "scalar": torch.tensor(7)}, {"update": 2})
    tensors, meta = load_checkpoint(RunFolder.open(run.path, kind="guidance"))
    assert meta == {"update": 2}
    assert torch.equal(tensors["w"], torch.arange(4.0))
    assert tensors["scalar"].shape == ()


def test_a_crash_while_saving_keeps_the_previous_checkpoint(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(run, {"w": torch.zeros(3)}, {"update": 1})
    before = sorted(run.path.iterdir())

    def crash(source: object, target: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="the disk is full"):
            save_checkpoint(run, {"w": torch.ones(3)}, {"update": 2})
    assert sorted(run.path.iterdir()) == before
    tensors, meta = load_checkpoint(run)
    assert meta == {"update": 1}
    assert torch.equal(tensors["w"], torch.zeros(3))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_told(run: RunFolder, damage: str) -> None:
    file = save_checkpoint(run, {"w": torch.linspace(0, 1, 1000)}, {"update": 1})
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-100] ^= 0x10
    file.write_bytes(
        {"truncated": data[:-1], "flipped": data, "empty": b"", "text": b"not a checkpoint at all"}[damage]
    )
    with pytest.raises(DamagedFileError):
        load_checkpoint(run)


def test_a_full_disk_says_which_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(p.name for p in run.path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*checkpoint\.safetensors"):
        save_checkpoint(run, {"w": torch.zeros(2)}, {})
    assert sorted(p.name for p in run.path.iterdir()) == before


def test_a_checkpoint_begins_the_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError), RunFolder.create(tmp_path / "run", kind="toy", config={}) as run:  # noqa: PT012
        assert run.tentative
        save_checkpoint(run, {"w": torch.zeros(1)}, {})
        assert not run.tentative
        raise InvalidInputError("no")
    assert run.has_checkpoint


def test_every_kind_of_part_comes_back_under_its_name(run: RunFolder) -> None:
    class Own:
        def __init__(self, x: float) -> None:
            self.x = torch.tensor([x])

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"x": self.x}

        def load_state_dict(self, state: dict[str, torch.Tensor]) -> str:
            self.x = state["x"]
            return "answer"

    saved, again = Own(2.0), Own(0.0)
    numbers, rng = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, np.random.default_rng(4)
    save_checkpoint(run, {"own": saved, "map": numbers, "t": torch.tensor(7), "rng": rng}, {"updates": 3})
    tensors, _ = load_checkpoint(run)
    assert set(tensors) == {"own.x", "map.a", "map.b", "t", "rng"}
    targets = {name: torch.zeros_like(value) for name, value in numbers.items()}
    t, other = torch.tensor(0), np.random.default_rng(0)
    meta, returned = restore_checkpoint(run, {"own": again, "map": targets, "t": t, "rng": other})
    assert meta == {"updates": 3}
    assert returned == {"own": "answer", "map": None, "t": None, "rng": None}
    assert float(again.x) == 2.0
    assert int(t) == 7
    assert all(torch.equal(targets[name], value) for name, value in numbers.items())
    assert rng.integers(2**32) == other.integers(2**32)


def test_parts_that_do_not_fit_are_told(run: RunFolder) -> None:
    with pytest.raises(InvalidInputError, match="part 'x' of the checkpoint is a int; allowed: modules"):
        save_checkpoint(run, {"x": 3}, {})
    with pytest.raises(InvalidInputError, match=r"two parts .* named a\.b"):
        save_checkpoint(run, {"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, {})
    with pytest.raises(InvalidInputError, match="name the optimizer else"):
        save_checkpoint(run, {"step": torch.optim.SGD(nn.Linear(1, 1).parameters())}, {"step": 1})
    assert not run.has_checkpoint
    save_checkpoint(run, {"w": torch.zeros(2), "m": nn.Linear(1, 2)}, {})
    for parts in (
        {"w": torch.zeros(3)},
        {"v": torch.zeros(2)},
        {"m": nn.Linear(1, 3)},
        {"m": {"weight": torch.zeros(1)}},
    ):
        with pytest.raises(DamagedFileError):
            restore_checkpoint(run, parts)
