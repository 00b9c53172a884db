"""Run folders whose files Hypothesis damages: read as they are, or refused in a sentence; no other error comes out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhw_diffusion.checkpoints import load_checkpoint, read_tensors, save_checkpoint
from qhw_diffusion.config import Config
from qhw_diffusion.denoising import ReverseConfig
from qhw_diffusion.denoising.command import DenoiserTraining
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import QhwError
from qhw_diffusion.experiment import load_study
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig, RewardConfig
from qhw_diffusion.hardware import Ledger
from qhw_diffusion.runs import RunFolder

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
SIMPLE = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**70, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "a", "\0", [], {},
     [1, 2], ["a"], [[0.5, None]], {"a": 1}]
)  # fmt: skip
CONFIGS: list[Config] = [
    GuidanceConfig(), PolicyConfig(), PPOConfig(), RewardConfig(), ReverseConfig(n_qubits=2), DenoiserTraining(),
    *(load_study(name).config() for name in ("shots", "mitigation", "guidance", "denoising")),
]  # fmt: skip


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What happens to the bytes of a file."""
    how = draw(st.sampled_from(("cut", "flip", "insert", "replace", "deep", "digits")))
    place, bits, more = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255)), draw(st.binary(max_size=9))

    def damage(data: bytes) -> bytes:
        at = int(place * len(data))
        if how == "flip" and data:
            return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]
        return {
            "insert": data[:at] + more + data[at:],
            "replace": more,
            "deep": b'{"a":' * 20_000,
            "digits": b'{"step": ' + b"9" * 5_000 + b"}\n",
        }.get(how, data[:at])

    return damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with RunFolder.create(folder, kind="guidance", config={"seed": 3, "g0": 1.2}) as run:
        for step in range(3):
            run.log(step, {"loss": 1.0 / (step + 1)})
        save_checkpoint(run, {"w": torch.arange(6.0)}, {"step": 2})
    with Ledger.open(folder / "ledger") as ledger:
        ledger.plan("a" * 64, run="r", purpose="p", device="d", circuits=1, shots=1, estimate_seconds=2.0, paid=False,
                    summary={})  # fmt: skip
        ledger.submitted("a" * 64, "job")
        ledger.done("a" * 64, '{"answer": 1}', 3.0)
    return folder


def read_all(folder: Path) -> None:
    run = RunFolder.open(folder, kind="guidance")
    for read in (run.metrics, lambda: load_checkpoint(run), lambda: run.require_settings({"seed": 3, "g0": 1.2})):
        with contextlib.suppress(QhwError):
            read()
    with contextlib.suppress(QhwError), Ledger.open(folder / "ledger", create=False) as ledger:
        for row in ledger.rows():
            with contextlib.suppress(QhwError):
                ledger.result(row.key)


FILES = ("config.json", "manifest.json", "metrics.jsonl", "checkpoint.safetensors", "ledger/ledger.sqlite")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused(whole: Path, name: str) -> None:
    read_all(whole)
    file = whole / name
    before = file.read_bytes()

    @FEW
    @given(damages())
    def try_one(damage: Callable[[bytes], bytes]) -> None:
        for other in file.parent.glob(f"{file.name}-*"):  # SQLite's own, of another damage
            other.unlink()
        file.write_bytes(damage(before))
        with contextlib.suppress(QhwError):
            read_all(whole)

    try:
        try_one()
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "metrics.jsonl"])
def test_another_value_is_read_or_refused(whole: Path, name: str) -> None:
    file = whole / name
    before = file.read_text()
    content = json.loads(before.splitlines()[0] if name == "metrics.jsonl" else before)

    @FEW
    @given(st.sampled_from(sorted(content)), SIMPLE)
    def try_one(key: str, value: Any) -> None:
        with contextlib.suppress(QhwError):
            file.write_text(json.dumps({**content, key: value}) + "\n")
            read_all(whole)

    try:
        try_one()
    finally:
        file.write_text(before)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_settings_of_any_kind_are_taken_or_refused(config: Config) -> None:
    """A configuration as it is saved, with one value, at any depth, in place of another."""
    saved = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(saved) == config

    def places(values: dict[str, Any], so_far: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        inner = [place for k, v in values.items() if isinstance(v, dict) for place in places(v, (*so_far, k))]
        return [*((*so_far, k) for k in values), *inner]

    @settings(FEW, max_examples=100)
    @given(st.sampled_from(places(saved)), SIMPLE)
    def try_one(place: tuple[str, ...], value: Any) -> None:
        changed = json.loads(json.dumps(saved))
        inner = changed
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        with contextlib.suppress(QhwError):
            type(config).from_dict(changed)

    try_one()


def test_a_damaged_snapshot_of_a_device_is_refused(tmp_path: Path) -> None:
    file = Device.load("fake_manila").save(tmp_path / "device.json")
    before = file.read_bytes()

    @FEW
    @given(damages())
    def try_one(damage: Callable[[bytes], bytes]) -> None:
        file.write_bytes(damage(before))
        if file.read_bytes() != before:
            with contextlib.suppress(QhwError):
                assert Device.load(file) == Device.load("fake_manila"), "white space at most"

    try_one()


def test_tensors_of_another_kind_or_none_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"

    @FEW
    @given(st.binary(max_size=60))
    def try_one(data: bytes) -> None:
        file.write_bytes(data)
        with pytest.raises(QhwError):
            read_tensors(file, kind="checkpoint")

    try_one()
