"""What comes along in the wheel and in the sdist, as hatchling lists it; `make dist` builds and tries them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("hatchling")
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


def listed(builder: SdistBuilder | WheelBuilder) -> set[str]:
    return {file.distribution_path for file in builder.recurse_included_files()}


def test_the_wheel_is_the_package_and_nothing_else() -> None:
    package = ROOT / "qhw_diffusion"
    there = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert listed(WheelBuilder(str(ROOT))) == there


def test_the_wheel_has_what_is_read_at_run_time() -> None:
    names = listed(WheelBuilder(str(ROOT)))
    assert "qhw_diffusion/py.typed" in names
    assert "qhw_diffusion/experiment/templates/page.html.j2" in names
    weights = {name.split("/")[3] for name in names if name.endswith(".safetensors")}
    assert weights == {path.name for path in (ROOT / "qhw_diffusion/diffusion/checkpoints").iterdir()}
    builder = WheelBuilder(str(ROOT))
    assert builder.metadata.core.license_files == ["LICENSE"]
    assert set(builder.metadata.core.scripts) == {"qhw"}


def test_the_sdist_has_what_tests_need_and_no_runs() -> None:
    names = listed(SdistBuilder(str(ROOT)))
    for name in ("LICENSE", "Makefile", "tests/conftest.py", "circuits/table.json", "docs/engines.md", "tools/dist.sh"):
        assert name in names
    assert not {name.split("/")[0] for name in names} & {"runs", "dist", "site", ".venv", ".venv-lowest", ".hypothesis"}
