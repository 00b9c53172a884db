"""A logger of a user's own in a file, and what it was told, for the tests of commands that take `--logger`."""

from __future__ import annotations

import json
from pathlib import Path

_TEXT = """
import json


class Told:
    def __init__(self, run):
        self.run, self.file = run, {file!r}

    def note(self, *told):
        with open(self.file, "a") as file:
            file.write(json.dumps(told) + "\\n")

    def log(self, step, values):
        self.note(step, dict(values), "numbers")

    def picture(self, step, name, png):
        assert png.startswith(b"\\x89PNG")
        self.note(step, {{name: len(png)}}, "picture")

    def close(self):
        self.note(self.run.outcome)
"""


def file_of(folder: Path) -> str:
    """``file.py:Told``, written into the folder; it keeps what it is told there."""
    (folder / "told_logger.py").write_text(_TEXT.format(file=str(folder / "told.jsonl")))
    return f"{folder / 'told_logger.py'}:Told"


def told(folder: Path) -> list[tuple[int, dict[str, float], str]]:
    """Every step, its numbers or its picture's name and size, and which of the two they are."""
    return [tuple(line) for line in _lines(folder) if len(line) == 3]


def outcomes(folder: Path) -> list[str]:
    """How its runs ended, each time it was closed."""
    return [line[0] for line in _lines(folder) if len(line) == 1]


def _lines(folder: Path) -> list[list[object]]:
    file = folder / "told.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
