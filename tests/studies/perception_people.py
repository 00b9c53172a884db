"""Synthetic people: answer files as the page writes them, from known probabilities. They exist in tests alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qhw_diffusion.studies.perception.make import Asked, html, study_of
from qhw_diffusion.studies.perception.pictures import Pictures


def pictures(runs: int = 2, n: int = 12, known: int = 10, size: int = 8) -> Pictures:
    """Random pictures of runs, with a metric that is the number of the picture times ± that of the run."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(runs, n, 1, size, size, generator=generator) * 2 - 1
    real = torch.rand(known, 1, size, size, generator=generator) * 2 - 1
    metric = torch.stack([(-1.0) ** k * torch.arange(n) / n for k in range(runs)])
    names = tuple(f"run-{'abcdef'[k]}" for k in range(runs))
    texts = tuple(f"thing {k % 3}" for k in range(n))
    return Pictures(names, images, texts, real, tuple(f"thing {k}" for k in range(known)), "real pictures",
                    {"confidence": metric})  # fmt: skip


def written(folder: Path, found: Pictures, **asked: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A study's folder from pictures; its key and what its page holds."""
    key, page = study_of(found, Asked(**{"images": found.images.shape[1], **asked}))
    key = {**key, "given": list(found.runs), "created": "2026-01-01T00:00:00+00:00"}
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(key))
    (folder / "page.html").write_text(html(page))
    return key, page


def answers(
    key: dict[str, Any],
    rater: str,
    first: Callable[[dict[str, Any]], float],
    rng: np.random.Generator,
    *,
    attentive: float = 1.0,
) -> dict[str, Any]:
    """One person's answers.

    Args:
        key: the study's.
        rater: name.
        first: a pair of the key → probability that its first run is preferred.
        rng: draws.
        attentive: probability of a right answer to an attention check.
    """
    given = []
    for name, trial in key["trials"].items():
        p = attentive if trial["kind"] == "check" else first(trial)
        chosen = trial["pictures"][0 if rng.random() < p else 1]
        left, right = trial["pictures"] if rng.random() < 0.5 else trial["pictures"][::-1]
        given.append({"trial": name, "left": left, "right": right, "chosen": chosen, "ms": 900})
    when = "2026-01-01T00:00:00Z"
    return {"format": 1, "study": key["study"], "session": f"s-{rater}", "rater": rater, "consented": when,
            "begun": when, "finished": when, "pauses": 0, "answers": given}  # fmt: skip
