"""What the pages say holds: links lead somewhere, commands are taken by the command line, Python blocks run."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest

import qhw_diffusion
from qhw_diffusion.cli.app import COMMANDS, call_of
from qhw_diffusion.cli.flags import UsageError, flags_of
from qhw_diffusion.errors import MissingDataError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("c*/README.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
CODE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    line: int
    language: str
    text: str


@cache
def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [Block(text[: found.start()].count("\n") + 2, found[2], found[3]) for found in CODE.finditer(text)]


# -- links -------------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    heads = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower() for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"`[^`\n]+`", "", CODE.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(name: str) -> Iterator[str]:
    """The lines `qhw …` of a page's blocks; [ ] around what may be left out go."""
    for block in blocks(name):
        if block.language not in ("", "bash"):
            continue
        known = dict(re.findall(r'^(\w+)="(.*)"$', block.text, re.MULTILINE))
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip().removeprefix("$ ").startswith("qhw "):
                line = Template(line.strip().removeprefix("$ ")).safe_substitute(known)
                line = re.sub(r"(?<= )\[(--[^]]*)\]", r"\1", line)
                yield line


@cache
def flags(path: tuple[str, ...]) -> set[str]:
    """The flags of a command, and their forms with no- in front."""
    module, _, name = str(COMMANDS[path][1]).partition(":")
    found = getattr(importlib.import_module(module), name)
    names = {flag.name for flag in flags_of(getattr(found, "function", lambda: found)())}
    return names | {name.replace("--", "--no-", 1) for name in names} | {"--help"}


def flags_in(words: list[str]) -> set[str]:
    return {re.split(r"[]=,.|]", word)[0] for word in words if word.startswith("--")}


def command_of(words: list[str]) -> tuple[str, ...]:
    return next((tuple(words[:n]) for n in (3, 2, 1) if tuple(words[:n]) in COMMANDS), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_in_blocks_are_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real parser; files that they name need not be there."""
    monkeypatch.chdir(tmp_path)
    own = [block.text for block in blocks(name) if block.language == "python"]
    (tmp_path / "mine.py").write_text("\n".join(own) if name == "docs/extending.md" else "", encoding="utf-8")
    for line in commands(name):
        words = shlex.split(line, comments=True)[1:]
        path = command_of(words) or ("study", words[1])
        if any("…" in word for word in words):  # settings left out: not to be checked as a whole
            assert flags_in(words) <= flags(path), line
            continue
        try:
            call_of(path, words[len(path) :], line)
        except UsageError as error:
            pytest.fail(f"{line}: {error}")
        except MissingDataError:  # a folder that an earlier line writes
            pass


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_have_their_flags(name: str) -> None:
    text = CODE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    if name == "CHANGELOG.md":
        text = text.split("\n## ")[1]  # older entries tell of older flags
    for span in re.findall(r"`qhw ([^`]+)`", text):
        words = span.split()
        path = command_of(words)
        assert not path or flags_in(words) <= flags(path), f"`qhw {span}`"


# -- Python ------------------------------------------------------------------------------------------------------------

# What is in a statement that is not run, and why; what it imports and takes from the package is there all the same
NOT_RUN = {
    "ibm_marrakesh": "an account",
    "save_account": "an account",
    "samples": "an account",
    "runs/": "a run folder",
    "results": "a run folder",
    "sd15": "a Stable Diffusion pipeline",
    "prompt=": "a modular pipeline",
    "guider": "a modular pipeline",
    "sampled": "a pipeline",
    "my-policy": "the Hub",
    "DepthConfig": "a sketch",
    "circuit(..., ": "a sketch",
    "backend_or_target": "a sketch",
    "with_fractional_gates": "a sketch",
    "sample(circuit": "a sketch",
    "ParameterShift())(x)": "a minute",
    "train_qdm(model": "seconds",
    "found": "seconds",
    "layer(start": "seconds",
    "measure(": "seconds",
}
RUNNING = [name for name in NAMES if any(block.language == "python" for block in blocks(name))]


def not_run(statement: ast.stmt) -> bool:
    always = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return not isinstance(statement, always) and any(text in ast.unparse(statement) for text in NOT_RUN)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as one program, in a folder where circuits/ and calibration/ are."""
    for folder in ("circuits", "calibration"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    program = types.ModuleType("a_page")
    monkeypatch.setitem(sys.modules, "a_page", program)  # dataclasses look there for the module of a class
    for block in blocks(name):
        if block.language != "python":
            continue
        for statement in ast.parse(block.text).body:
            if not_run(statement):
                for node in ast.walk(statement):
                    if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "qhw":
                        getattr(qhw_diffusion, node.attr)
                continue
            code = compile(ast.Module([statement], []), f"{name}, block at line {block.line}", "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, program.__dict__)


def test_every_exception_is_of_use() -> None:
    statements = [
        statement
        for name in RUNNING
        for block in blocks(name)
        if block.language == "python"
        for statement in ast.parse(block.text).body
    ]
    left_out = "\n".join(map(ast.unparse, filter(not_run, statements)))
    assert [text for text in NOT_RUN if text not in left_out] == []
    assert sum(map(not_run, statements)) < len(statements) / 3
