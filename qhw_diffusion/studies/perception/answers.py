"""The files that people hand over, read and checked against the study they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError
from qhw_diffusion.runs import read_json
from qhw_diffusion.studies.perception.make import STUDY, STUDY_FORMAT

ANSWERS_FORMAT = 1
PASSES = 0.85
"""Least share of right answers to the attention checks: with eight of them one may be wrong."""


@dataclass(frozen=True)
class Key:
    """What the page does not tell: `study.json`.

    Attributes:
        content: the file.
        folder: where it is.
    """

    content: dict[str, Any]
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Key:
        """The key of a study.

        Raises:
            MissingDataError: there is none in this folder.
            DamagedFileError: it is damaged, or of another version.
        """
        file = folder / STUDY
        if not file.is_file():
            raise MissingDataError(f"there is no {file}: name the folder of qhw study perception make (--study FOLDER)")
        content = read_json(file)
        if content.get("format") != STUDY_FORMAT:
            raise DamagedFileError(f"{file} is of format {content.get('format')!r}; this version reads {STUDY_FORMAT}")
        try:
            key = cls(content, folder)
            if len(key.runs) < 2 or not key.pairs or not key.checks or not isinstance(content["study"], str):
                raise KeyError("runs, pairs of pictures or attention checks")
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(f"{file} is damaged: it lacks {error}") from error
        return key

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs."""
        return tuple(self.content["runs"])

    @cached_property
    def pairs(self) -> dict[str, dict[str, Any]]:
        """The questions about two runs, by name, those of the same two runs next to each other."""
        found = {name: trial for name, trial in self.content["trials"].items() if trial["kind"] == "pair"}
        return dict(sorted(found.items(), key=lambda item: (item[1]["runs"], item[1]["index"])))

    @cached_property
    def checks(self) -> dict[str, dict[str, Any]]:
        """The attention checks, by name."""
        return {name: trial for name, trial in self.content["trials"].items() if trial["kind"] == "check"}


@dataclass(frozen=True, eq=False)
class Rater:
    """What one person answered.

    Attributes:
        name: name or code.
        file: where it was read from.
        first: whether the first of the two runs was preferred, bool [P], in the order of `Key.pairs`.
        left: share of all answers that were the left picture.
        checks_right: attention checks answered rightly.
        checks: attention checks.
        seconds: median time of an answer.
        finished: when, ISO 8601.
    """

    name: str
    file: Path
    first: NDArray[np.bool_]
    left: float
    checks_right: int
    checks: int
    seconds: float
    finished: str

    @property
    def passes(self) -> bool:
        """Whether enough attention checks were answered rightly."""
        return self.checks_right >= PASSES * self.checks


def read_answers(files: Sequence[Path], key: Key) -> list[Rater]:
    """The answers of several people, sorted by name.

    Raises:
        MissingDataError: a file is not there.
        DamagedFileError: one that is no JSON object.
        InvalidInputError: one that does not hold whole answers to this study; two of the same person or sitting.
    """
    if not files:
        raise InvalidInputError("there are no answers: name the files that people saved (answers-*.json)")
    found: dict[str, Rater] = {}
    sittings: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise MissingDataError(f"there is no file {file}")
        content = read_json(file)
        rater = _checked(content, file, key)
        if content["session"] in sittings:
            other = sittings[content["session"]]
            raise InvalidInputError(f"{other} and {file} are of the same sitting: give one of them")
        if rater.name in found:
            raise InvalidInputError(
                f"{found[rater.name].file} and {file} are both by {rater.name}: a person counts once; give one of them"
            )
        sittings[content["session"]] = file
        found[rater.name] = rater
    return [found[name] for name in sorted(found)]


def _checked(content: dict[str, Any], file: Path, key: Key) -> Rater:
    """One person's answers.

    Raises:
        InvalidInputError: they are not those that the page of this study writes.
    """

    def need(right: bool, what: str) -> None:
        if not right:
            raise InvalidInputError(f"{file}: {what}")

    need(content.get("format") == ANSWERS_FORMAT, f"no answers of format {ANSWERS_FORMAT}")
    study = key.content["study"]
    need(
        content.get("study") == study,
        f"answers to study {content.get('study')}, and {key.folder} is study {study}: name its folder (--study FOLDER)",
    )
    for name in ("session", "rater", "consented", "begun"):
        need(
            isinstance(content.get(name), str) and bool(content[name]), f"{name} is {content.get(name)!r}, need a text"
        )
    answers = content.get("answers")
    need(isinstance(answers, list) and all(isinstance(one, dict) for one in answers), "answers are no list of objects")
    trials = {**key.pairs, **key.checks}
    given: dict[str, dict[str, Any]] = {}
    for one in answers or ():
        name, sides = one.get("trial"), [one.get("left"), one.get("right")]
        need(isinstance(name, str) and name in trials, f"question {name!r} is none of this study")
        need(name not in given, f"question {name} is answered twice")
        need(
            all(isinstance(side, str) for side in sides) and sorted(sides) == sorted(trials[name]["pictures"]),
            f"question {name} shows {sides}, not its two pictures",
        )
        need(one.get("chosen") in sides, f"question {name}: {one.get('chosen')!r} was chosen, which was not shown")
        ms = one.get("ms")
        need(
            isinstance(ms, int | float) and not isinstance(ms, bool) and 0 <= ms < 1e9, f"question {name}: ms is {ms!r}"
        )
        given[name] = one
    missing = len(trials) - len(given)
    need(missing == 0, f"{missing} of {len(trials)} questions are not answered: it was saved before the end")
    need(isinstance(content.get("finished"), str), "it was saved before the end")
    # pictures[0] of a pair is of the first run, of a check the one without noise
    first = {name: given[name]["chosen"] == trials[name]["pictures"][0] for name in trials}
    return Rater(
        name=content["rater"],
        file=file,
        first=np.array([first[name] for name in key.pairs]),
        left=float(np.mean([one["chosen"] == one["left"] for one in given.values()])),
        checks_right=sum(first[name] for name in key.checks),
        checks=len(key.checks),
        seconds=float(np.median([given[name]["ms"] for name in key.pairs])) / 1000,
        finished=content["finished"],
    )
