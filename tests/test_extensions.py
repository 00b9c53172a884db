"""Objects named as module:name or file.py:name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.extensions import is_extension, load_extension, raised_text


@pytest.mark.parametrize("text", ["math:pi", "os.path:join", "own.py:term", "a/b c/own.py:term"])
def test_module_or_file_and_name(text: str) -> None:
    assert is_extension(text)


@pytest.mark.parametrize("text", ["digits", "zne:linear:1,3", "math:", ":pi", "a b:c", "", None, "shots:4096"])
def test_other_texts_are_none(text: object) -> None:
    assert not is_extension(text)


def test_an_object_of_an_installed_module_or_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import math

    assert load_extension("math:pi", what="number") is math.pi
    (tmp_path / "own_file.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Own:\n    x: int = 3\n"
    )
    assert load_extension(f"{tmp_path / 'own_file.py'}:Own", what="class")().x == 3
    assert load_extension(f"{tmp_path / 'own_file.py'}:Own", what="class") is load_extension(
        f"{tmp_path}/./own_file.py:Own", what="class"
    )
    (tmp_path / "beside_here.py").write_text("value = 4\n")
    monkeypatch.chdir(tmp_path)
    assert load_extension("beside_here:value", what="number") == 4


def test_an_edit_of_the_same_size_in_the_same_second_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "edited.py"
    for value in (1, 2):
        file.write_text(f"value = {value}\n")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        for name in [name for name in sys.modules if name.startswith("qhw_extension_edited")]:
            del sys.modules[name]
        assert load_extension(f"{file}:value", what="number") == value
    assert [path.name for path in tmp_path.iterdir()] == ["edited.py"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no_such_module_here:x", "there is no module no_such_module_here"),
        ("math:tau2", "math has no 'tau2'"),
        ("absent.py:x", "there is no file absent.py"),
        ("digits", "neither module:name nor file.py:name"),
    ],
)
def test_what_cannot_be_found_is_told(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        load_extension(text, what="reward term")


@pytest.mark.parametrize("line", ["1 / 0", "import not_installed_anywhere", "x = = 3"])
def test_a_file_that_fails_is_named_with_its_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(f"{line}\n")
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=r"reward term .*importing .*broken\.py fails"):
            load_extension(f"{file}:x", what="reward term")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (mine.py, line 4)"),
        ("json.loads('[')", "line 4)"),  # raised in the standard library, called in line 4
        ("is_extension()", "line 4)"),  # raised at a call of this package
    ],
)
def test_an_error_of_ones_own_code_is_told_with_its_line(tmp_path: Path, body: str, told: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"import json\nfrom qhw_diffusion.extensions import is_extension\ndef f():\n    {body}\n")
    with pytest.raises(Exception) as caught:
        load_extension(f"{file}:f", what="function")()
    assert raised_text(caught.value).endswith(told)
    assert raised_text(ValueError("never raised")) == "ValueError: never raised"


def test_a_missing_file_is_told_with_the_folder_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=f"no file absent.py in {tmp_path}$"):
        load_extension("absent.py:x", what="reward term")
