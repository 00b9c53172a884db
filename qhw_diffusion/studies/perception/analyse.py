"""`qhw study perception analyse`: what people prefer, how sure that is, whether they agree, what metrics say of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import Interval, Page, p_text
from qhw_diffusion.experiment.statistics import sign_flip_p
from qhw_diffusion.runs import atomic_write_json, check_writable
from qhw_diffusion.studies.perception.answers import PASSES, Key, Rater, read_answers
from qhw_diffusion.studies.perception.preference import abilities, agreement, pooled, preference, rank_correlation

ANALYSIS, REPORT = "analysis.json", "report.html"


def analyse_answers(files: Sequence[Path], folder: Path) -> str:
    """Read what people answered, and write analysis.json and report.html into the study's folder.

    Args:
        files: the files they saved.
        folder: folder of `make_study`.

    Returns:
        The text to print.

    Raises:
        InvalidInputError: files that do not belong to the study, and no rater who passes the attention checks.
    """
    key = Key.load(folder)
    check_writable(folder)
    raters = read_answers(files, key)
    found = analysis(key, raters)
    shown = page(key, raters, found)
    atomic_write_json(folder / ANALYSIS, _plain(found))
    report = shown.save(folder / REPORT)
    return "\n".join([*(f"· {sentence.replace('**', '')}" for sentence in shown.findings), "", f"report: {report}"])


def analysis(key: Key, raters: Sequence[Rater]) -> dict[str, Any]:
    """All numbers of a study: by pair of runs, of all runs, of raters, and of metrics.

    Raises:
        InvalidInputError: no rater passes the attention checks.
    """
    kept = [rater for rater in raters if rater.passes]
    if not kept:
        raise InvalidInputError(
            f"none of {len(raters)} raters answered {PASSES:.0%} of the attention checks rightly: there is nothing to "
            "analyse"
        )
    choices = np.stack([rater.first for rater in kept])  # [R, P]
    trials = list(key.pairs.values())
    runs_of = np.array([trial["runs"] for trial in trials])
    pairs = []
    for i, j in itertools.combinations(range(len(key.runs)), 2):
        rows = (runs_of == (i, j)).all(1)
        if rows.any():
            pairs.append({"runs": [key.runs[i], key.runs[j]], **_of_two(choices[:, rows])})
    alpha, same = agreement(choices) if len(kept) > 1 else (None, None)
    checks = len(key.checks)
    least = math.ceil(PASSES * checks)
    return {
        "study": key.content["study"],
        "runs": list(key.runs),
        "raters": [{"name": r.name, "kept": r.passes, "checks_right": r.checks_right, "checks": r.checks,
                    "left": r.left, "median_seconds": r.seconds} for r in raters],
        "chance_to_pass_at_random": float(stats.binom.sf(least - 1, checks, 0.5)),
        "pairs": pairs,
        "abilities": _abilities(key, choices, runs_of) if len(key.runs) > 2 else None,
        "alpha": alpha,
        "same": same,
        "left": float(np.mean([rater.left for rater in kept])),
        "correlations": correlations(trials, choices.mean(0)),
    }  # fmt: skip


def _of_two(choices: NDArray[np.bool_]) -> dict[str, Any]:
    """Preference for the first of two runs from choices [R, P]."""
    raters, pairs = choices.shape
    return {
        "raters": raters,
        "pictures": pairs,
        "preference": preference(choices, pictures=True) if raters > 1 and pairs > 1 else None,
        "these_pictures": preference(choices, pictures=False) if raters > 1 else None,
        "pooled": pooled(choices),
        "p": sign_flip_p(choices.mean(1) - 0.5) if raters > 1 else None,
        "by_rater": choices.mean(1).tolist(),
    }


def _abilities(key: Key, choices: NDArray[np.bool_], runs_of: NDArray[np.int64]) -> list[dict[str, Any]]:
    wins = np.zeros((len(choices), len(key.runs), len(key.runs)))
    for p, (i, j) in enumerate(runs_of):
        wins[:, i, j] += choices[:, p]
        wins[:, j, i] += ~choices[:, p]
    return [{"run": run, "ability": one} for run, one in zip(key.runs, abilities(wins), strict=True)]


def correlations(trials: Sequence[dict[str, Any]], share: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Spearman's ρ over pairs of pictures, of what people prefer and what metrics say.

    A metric of single pictures: share [P] of raters who prefer the first picture, with the first's value minus the
    second's. A distance between the two: how united raters are, |share − 1/2|, with the distance.
    """
    found = []
    for name in trials[0].get("each", {}):
        values = [trial["each"][name][0] - trial["each"][name][1] for trial in trials]
        found.append(_correlation(f"{name}: difference", "share who prefer the first", values, share))
    for name in trials[0].get("distance", {}):
        values = [trial["distance"][name] for trial in trials]
        found.append(_correlation(f"{name}: distance of the two", "|share − 1/2|", values, np.abs(share - 0.5)))
    return found


def _correlation(metric: str, of: str, x: Sequence[float], y: NDArray[np.float64]) -> dict[str, Any]:
    rho, p = rank_correlation(x, y)
    return {"metric": metric, "with": of, "rho": rho, "p": p}


def _plain(value: Any) -> Any:
    """JSON of results: intervals as objects, NaN as null."""
    if isinstance(value, Interval):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the report --------------------------------------------------------------------------------------------------------


def page(key: Key, raters: Sequence[Rater], found: dict[str, Any]) -> Page:
    """The report."""
    excluded = [rater for rater in raters if not rater.passes]
    kept = len(raters) - len(excluded)
    sentences = [_sentence(pair) for pair in found["pairs"]]
    if found["alpha"] is not None:
        sentences.append(
            f"Agreement between raters: Krippendorff's α = {_text(found['alpha'])} (1: all agree, 0: as by chance); "
            f"two raters answer a question alike in {found['same']:.0%}."
        )
    if excluded:
        told = ", ".join(f"{r.name} ({r.checks_right} of {r.checks})" for r in excluded)
        sentences.append(f"Excluded for attention checks answered wrongly: {told}.")
    asked = "looks more real" if key.content["question"] == "real" else "looks more like its class or prompt"
    shown = Page(
        "Which pictures people prefer",
        subtitle=f"Which of two pictures {asked}: {kept} raters, {len(key.pairs)} pairs, study {key.content['study']}.",
        findings=sentences,
    )
    section = shown.section("Preference").bullets(sentences)
    rows = [
        [
            " against ".join(pair["runs"]),
            *(_percent(pair[name]) for name in ("preference", "these_pictures", "pooled")),
            "–" if pair["p"] is None else p_text(pair["p"]).removeprefix("p = ").removeprefix("p "),
        ]
        for pair in found["pairs"]
    ]
    columns = ["runs", "first preferred, other raters and pictures (%)", "other raters, these pictures (%)",
               "answers as if independent (%)", "p"]  # fmt: skip
    section.table(columns, rows, caption="Share with 95 % interval")
    section.text(
        "The first interval is the one to quote: raters differ and pictures differ, and both are counted (variance of "
        "the table of raters by pictures; Wilson's interval at the effective number of answers, t-quantile). The last "
        "one takes every answer for a draw of its own and is too narrow. p: permutation test of the raters' shares "
        "against one half, for these pictures, two-sided."
    )
    if found["abilities"]:
        section.table(
            ["run", "Bradley–Terry ability [95 %]"],
            [[one["run"], _text(one["ability"], sign=True)] for one in found["abilities"]],
            caption="P(i preferred to j) = 1/(1 + exp(βj − βi)), Σβ = 0; intervals by bootstrap over raters",
        )
    section = shown.section("Raters")
    section.text(
        f"A rater counts with {PASSES:.0%} of the attention checks right ({key.content['checks_show']}); who answers "
        f"at random passes with probability {found['chance_to_pass_at_random']:.1%}. The left picture was chosen in "
        f"{found['left']:.0%}; each run was on the left in half of every rater's pairs."
    )
    section.table(
        ["rater", "checks right", "counts", "left (%)", "median time (s)"],
        [[r.name, f"{r.checks_right} of {r.checks}", "yes" if r.passes else "no", f"{100 * r.left:.0f}",
          f"{r.seconds:.1f}"] for r in raters],
    )  # fmt: skip
    section = shown.section("Metrics")
    section.text(
        "Spearman's ρ over pairs of pictures, all runs together, 95 % interval by bootstrap over pairs. Confidence is "
        "the evaluation classifier's probability of the class; feature distance is to the nearest held-out picture of "
        "the class in its features (lower is nearer). A Fréchet distance is one of sets and has no value for a pair. A "
        "distance between the two pictures has no sign: it can only go with how united raters are."
    )
    if found["correlations"]:
        section.table(
            ["metric", "with", "ρ [95 %]", "p"],
            [[c["metric"], c["with"], _text(c["rho"], sign=True), "–" if math.isnan(c["p"]) else p_text(c["p"])[2:]]
             for c in found["correlations"]],
        )  # fmt: skip
    section = shown.section("How it was made")
    c = key.content
    section.bullets(
        [
            *(f"run {name}: {given}" for name, given in zip(key.runs, c["given"], strict=True)),
            f"question: {c['question']}; {c['images']} pictures of each run, seed {c['seed']}; made {c['created']} "
            f"with qhw-diffusion {c['qhw_diffusion']}",
            *c["notes"],
        ]
    )
    return shown


def _sentence(pair: dict[str, Any]) -> str:
    one, other = pair["runs"]
    told = pair["preference"]
    if told is None:
        return (
            f"**{one}** was preferred to {other} in {_percent(pair['pooled'])} % by one rater, which says nothing of "
            "other people."
        )
    verdict = "no preference is shown" if told.low <= 0.5 <= told.high else "a preference"
    return f"**{one}** is preferred to {other} in {_percent(told)} % ({p_text(pair['p'])}): {verdict}."


def _percent(one: Interval | None) -> str:
    return "–" if one is None else Interval(100 * one.mean, 100 * one.low, 100 * one.high, one.n).format(1)


def _text(one: Interval, *, sign: bool = False) -> str:
    return "–" if math.isnan(one.mean) else one.format(2, sign=sign)
