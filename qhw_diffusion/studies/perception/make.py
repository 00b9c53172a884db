"""`qhw study perception make`: the page that asks people, and beside it what the page does not tell them.

    page.html     the page: one file, nothing is loaded from elsewhere, works from a phone's storage without network
    study.json    which picture is from which run, which questions check attention, and metrics of the pictures

People see neither names nor metrics: pictures and questions are numbered in a random order.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import qhw_diffusion
from qhw_diffusion.diffusion import Lpips, paired_similarity
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.runs import atomic_folder, atomic_write_json, atomic_write_text, check_writable
from qhw_diffusion.studies.perception.pictures import Pictures, pictures_of, png

STUDY, PAGE = "study.json", "page.html"
STUDY_FORMAT = 1
Question = Literal["prompt", "real"]
TRAINING = 2
KEPT_SIGNAL = 0.1
"""ᾱ of the noised picture of an attention check, √ᾱ x + √(1 − ᾱ) ε: nothing can be recognised in it."""
MOST_MB = 60
CONSENT = (
    "[The text of your study goes here (--consent FILE): who asks, what for, how long it takes, what is recorded and "
    "for how long it is kept, that taking part is voluntary and can be ended at any time, and whom to write to. This "
    "page records the choices, the time each took, and the name or code that is typed in below. It sends nothing: what "
    "was recorded stays in this browser until it is handed over as a file.]"
)


@dataclass(frozen=True)
class Asked:
    """What a study of people's preference asks.

    Attributes:
        question: "prompt" (which picture looks more like its class or prompt) or "real" (which looks more real).
        images: pairs for every two runs.
        checks: attention checks, a picture beside the same one in noise.
        seed: of the initial noise, and of the order in which the page numbers pictures.
        classes: see `pictures_of`.
        consent: text that people agree to; without it a placeholder that says what to write.
        lpips: weights of LPIPS (see `Lpips`), for its correlation with the preference.
    """

    question: Question = "prompt"
    images: int = 40
    checks: int = 8
    seed: int = 0
    classes: tuple[str, ...] = ()
    consent: str = CONSENT
    lpips: Path | None = None

    def __post_init__(self) -> None:
        if self.images < 4:
            raise InvalidInputError(f"images must be at least 4, got {self.images}")
        if self.checks < 4:
            raise InvalidInputError(f"checks must be at least 4, got {self.checks}: less tell nothing of attention")
        if not 0 <= self.seed < 2**31:
            raise InvalidInputError(f"seed must lie in 0 … 2³¹ − 1, got {self.seed}")
        if not self.consent.strip():
            raise InvalidInputError("the consent text is empty")


def make_study(runs: Sequence[str], out: Path, asked: Asked) -> str:
    """Write page and key of a study into a new folder; returns the text to print.

    Args:
        runs: see `pictures_of`.
        out: folder to write; absent or empty.
        asked: what is asked.

    Raises:
        InvalidInputError: `out` holds something, runs that cannot be compared, pictures that are all the same.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is no empty folder; choose another one (--out)")
    check_writable(out)
    lpips = None if asked.lpips is None else Lpips(asked.lpips)
    known = asked.checks + TRAINING
    found = pictures_of(runs, asked.images, seed=asked.seed, known=known, classes=asked.classes)
    key, page = study_of(found, asked, lpips)
    text = html(page)
    size = len(text) / 1e6
    if size > MOST_MB:
        raise InvalidInputError(
            f"the page would have {size:.0f} MB, more than phones take ({MOST_MB} MB): ask for less pictures (--images)"
        )
    key = {**key, "given": list(runs), "created": datetime.now(UTC).replace(microsecond=0).isoformat()}
    with atomic_folder(out) as aside:
        atomic_write_json(aside / STUDY, key)
        atomic_write_text(aside / PAGE, text)
    pairs = sum(trial["kind"] == "pair" for trial in key["trials"].values())
    lines = [
        f"{out / PAGE}: {pairs} pairs of pictures and {asked.checks} attention checks, {size:.1f} MB; give people this "
        "file alone",
        f"{out / STUDY}: which picture is whose; the analysis needs it",
        *(f"note: {note}" for note in key["notes"]),
        f"then: qhw study perception analyse answers-*.json --study {out}",
    ]
    if asked.consent == CONSENT:
        lines.insert(2, "note: the page shows a placeholder where people agree to take part; give --consent FILE")
    return "\n".join(lines)


def study_of(found: Pictures, asked: Asked, lpips: Lpips | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the key says and what the page gets, as JSON.

    Raises:
        InvalidInputError: nobody knows what the pictures are to show, or no two of them differ.
    """
    if asked.question == "prompt" and not found.texts:
        raise InvalidInputError(
            "nobody knows what these pictures are to show: name the classes (--classes), or ask which one looks more "
            "real (--question real)"
        )
    generator = torch.Generator().manual_seed(asked.seed)
    texts, known_texts = (found.texts, found.known_texts) if asked.question == "prompt" else ((), ())
    noise = torch.randn(found.known.shape, generator=generator)
    noised = math.sqrt(KEPT_SIGNAL) * found.known + math.sqrt(1 - KEPT_SIGNAL) * noise

    # name of a picture in this function → the picture; name of a question → what it asks
    pictures: dict[str, Tensor] = {}
    trials: list[dict[str, Any]] = []
    same = 0
    for (i, j), n in itertools.product(itertools.combinations(range(len(found.runs)), 2), range(asked.images)):
        one, other = f"{i}/{n}", f"{j}/{n}"
        if torch.equal(as_bytes(found.images[i, n]), as_bytes(found.images[j, n])):
            same += 1
            continue
        pictures |= {one: found.images[i, n], other: found.images[j, n]}
        text = texts[n] if texts else ""
        trials.append({"kind": "pair", "runs": [i, j], "index": n, "text": text, "pictures": [one, other]})
    if not trials:
        raise InvalidInputError(f"{' and '.join(found.runs)} make the same pictures: there is nothing to prefer")
    for k in range(asked.checks + TRAINING):
        pictures |= {f"known/{k}": found.known[k], f"noised/{k}": noised[k]}
        kind = "check" if k < asked.checks else "training"
        trials.append(
            {"kind": kind, "text": known_texts[k] if known_texts else "", "pictures": [f"known/{k}", f"noised/{k}"]}
        )
    pair_metrics(found, trials, lpips)

    order = torch.randperm(len(pictures), generator=generator).tolist()
    named = dict(zip((list(pictures)[k] for k in order), (f"p{k:04d}" for k in range(len(order))), strict=True))
    order = torch.randperm(len(trials), generator=generator).tolist()
    # which run of two the page names first says nothing, yet is the same in all their pairs: so it shows each of the
    # two on the left in half of them
    blocks = sorted({tuple(trial.get("runs", ())) for trial in trials})
    turned = torch.rand(len(blocks), generator=generator) < 0.5
    key_trials: dict[str, Any] = {}
    asks: dict[str, list[dict[str, Any]]] = {"training": [], "trials": []}
    for number, trial in enumerate(trials[k] for k in order):
        block = blocks.index(tuple(trial.get("runs", ())))
        shown = [named[name] for name in trial["pictures"]]
        name = f"t{number:04d}"
        ask = {"id": name, "text": trial["text"], "block": block,
               "pictures": shown[::-1] if turned[block] else shown}  # fmt: skip
        if trial["kind"] == "training":
            asks["training"].append({**ask, "right": shown[0]})
        else:
            asks["trials"].append(ask)
            key_trials[name] = {**trial, "pictures": shown}
    encoded = {named[name]: base64.b64encode(png(picture)).decode() for name, picture in pictures.items()}
    page: dict[str, Any] = {
        "question": asked.question,
        "consent": asked.consent,
        **asks,
        "pictures": dict(sorted(encoded.items())),  # not in the order of the runs
    }
    identity = hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()[:16]
    notes = list(found.notes)
    if same:
        notes.append(f"{same} pairs are left out: both runs make the same picture")
    key = {
        "format": STUDY_FORMAT,
        "study": identity,
        "qhw_diffusion": qhw_diffusion.__version__,
        "runs": list(found.runs),
        "question": asked.question,
        "images": asked.images,
        "seed": asked.seed,
        "checks_show": f"{found.known_are} beside the same ones in noise (ᾱ = {KEPT_SIGNAL})",
        "notes": notes,
        "trials": key_trials,
    }
    return key, {"study": identity, **page}


def as_bytes(picture: Tensor) -> Tensor:
    """A picture as it will be shown: uint8."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def pair_metrics(found: Pictures, trials: Sequence[dict[str, Any]], lpips: Lpips | None) -> None:
    """Adds to every pair of runs the metrics of its two pictures, and of their distance.

    "each": metric → [of the first, of the second]. "distance": 1 − SSIM (of pictures of 7 pixels or more), the root
    mean square of the pixels' difference and, given its weights, LPIPS.
    """
    for trial in trials:
        if trial["kind"] != "pair":
            continue
        (i, j), n = trial["runs"], trial["index"]
        one, other = found.images[i, n][None], found.images[j, n][None]
        distance = {"pixels": float((one - other).square().mean().sqrt())}
        if min(one.shape[2:]) >= 7:
            distance["1 − SSIM"] = 1 - paired_similarity(one, other)["ssim"]
        if lpips is not None:
            distance["LPIPS"] = float(lpips(one, other)[0])
        each = {name: [float(values[i, n]), float(values[j, n])] for name, values in found.metrics.items()}
        trial.update(each=each, distance=distance)


def html(page: dict[str, Any]) -> str:
    """The page with everything that it shows inside it."""
    # "<" would end the script element that holds the data, whatever a prompt says
    data = json.dumps(page, ensure_ascii=True).replace("<", "\\u003c")
    template = (files("qhw_diffusion.studies.perception") / PAGE).read_text(encoding="utf-8")
    before, mark, after = template.partition("{{ data }}")
    assert mark
    return before + data + after
