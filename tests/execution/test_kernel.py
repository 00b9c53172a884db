"""The compiled loops on disk: a full disk or a damaged file costs a compilation, and at most one warning."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core import config
from numba.core.caching import IndexDataCacheFile

from qhw_diffusion.execution import kernel
from qhw_diffusion.execution.kernel import KernelCacheWarning, keep_on_disk


def double(x: np.ndarray) -> None:
    for i in range(len(x)):
        x[i] *= 2


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel, "_told", False)
    return tmp_path


def compiled() -> Any:
    """As in a new process: nothing compiled yet."""
    return keep_on_disk(njit(double))


def works(function: Any, kind: str = "f8") -> Any:
    x = np.arange(3, dtype=kind)
    function(x)
    assert x.tolist() == [0, 2, 4]
    return function


def loaded(function: Any) -> bool:
    return sum(function.stats.cache_hits.values()) > 0


def test_it_is_compiled_once_and_then_loaded(folder: Path) -> None:
    assert not loaded(works(compiled()))
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".nbi", ".nbc"}
    assert loaded(works(compiled()))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "text", "folder"])
def test_damaged_files_are_made_again(folder: Path, ending: str, damage: str) -> None:
    works(compiled())
    (file,) = folder.rglob(f"*{ending}")
    data = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        content = {"empty": b"", "cut": data[: len(data) // 2], "zeros": bytes(len(data)), "text": b"hello"}
        file.write_bytes(content[damage])
    with warnings.catch_warnings():
        # a folder in a file's place cannot be replaced: no cache then, and the warning
        warnings.simplefilter("ignore" if damage == "folder" else "error", KernelCacheWarning)
        assert not loaded(works(compiled()))
    if damage != "folder":
        assert loaded(works(compiled()))


def test_a_full_disk_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", full)
    with pytest.warns(KernelCacheWarning, match=r"No space left on device.*NUMBA_CACHE_DIR") as told:  # noqa: PT031
        function = works(compiled())
        works(function, "f4")
        works(compiled())
    assert len(told) == 1


def test_nowhere_to_write_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)  # which is how Numba tries a folder
    assert not loaded(works(compiled()))
    assert not loaded(works(compiled()))


def test_a_user_without_a_home_gets_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    works(compiled())
    assert not (tmp_path / "~").exists()


def test_a_function_that_is_not_compiled_stays_as_it_is() -> None:
    assert keep_on_disk(double) is double  # what njit gives with NUMBA_DISABLE_JIT=1
