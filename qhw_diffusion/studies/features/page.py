"""The page of the study of features, made from its results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qhw_diffusion.experiment import Page, Results, mean_interval, paired_test

if TYPE_CHECKING:
    from qhw_diffusion.studies.features.experiment import FeaturesStudyConfig

    FeaturesResults = Results[FeaturesStudyConfig]


def values(results: FeaturesResults, features: str, metric: str) -> list[float]:
    """One number of a candidate's trainings, per seed."""
    return results.values(metric, part="training", features=features)


def chosen(results: FeaturesResults) -> str:
    """The candidate with the lowest mean validation distance: chosen on the training side alone."""
    return min(results.config.candidates, key=lambda text: float(np.mean(values(results, text, "validation"))))


def best_constant(results: FeaturesResults) -> dict[str, float]:
    """The swept constant with the lowest validation distance: its row."""
    rows = [row for row in results.rows if row.get("part") == "constant"]
    return min(rows, key=lambda row: row["validation"])


def page(results: FeaturesResults) -> Page:
    """The choice, the table, what the evaluation would have said."""
    c = results.config
    best, constant = chosen(results), best_constant(results)
    others = [text for text in c.candidates if text != best]
    sentences = [
        f"Chosen by validation: **{best}** (--reward-distribution-features {best}), energy distance "
        f"{mean_interval(values(results, best, 'validation')).format(3)} in the validation classifier's features, "
        f"{constant['validation']:.3f} at the best constant, g = {constant['g']:g}."
    ]
    if c.seeds > 1:
        for text in others:
            test = paired_test(values(results, text, "validation"), values(results, best, "validation"))
            sentences.append(f"{text}: {test.difference.format(3, sign=True)} above it.")
    by_evaluation = min(c.candidates, key=lambda text: float(np.mean(values(results, text, "heldout_energy"))))
    sentences.append(
        f"The evaluation, which chose nothing, has {by_evaluation} first: "
        + ("the same." if by_evaluation == best else "another one.")
    )
    shown = Page(
        subtitle=f"{c.models.data}, {c.n_steps} sampling steps: a policy ({c.policy.kind}) trained pathwise on the "
        f"distance in each candidate's features. {c.seeds} seeds, {c.images} images each.",
        findings=sentences,
    )
    section = shown.section("The choice")
    section.text(
        "Validation: the energy distance within each class to training images that neither the reward classifier nor "
        "the validation classifier was trained on, in the features of the latter, which no reward looks through. The "
        "evaluation's columns are for the reader alone."
    )
    section.bullets(sentences)
    columns = ["features", "base scale", "validation ↓", "energy, evaluation ↓", "FD, evaluation ↓", "accuracy (%)"]
    rows = []
    for text in c.candidates:
        found = [mean_interval(values(results, text, key)).format(d)
                 for key, d in (("validation", 3), ("heldout_energy", 3), ("heldout_fd", 2))]  # fmt: skip
        accuracy = mean_interval([100 * v for v in values(results, text, "heldout_accuracy")]).format(1)
        rows.append([text, f"{values(results, text, 'g0')[0]:g}", *found, accuracy])
    rows.append(
        [
            "best constant by validation",
            f"{constant['g']:g}",
            f"{constant['validation']:.3f}",
            f"{constant['heldout_energy']:.3f}",
            f"{constant['heldout_fd']:.2f}",
            f"{100 * constant['heldout_accuracy']:.1f}",
        ]
    )
    section.table(columns, rows, emphasised=[c.candidates.index(best)])
    return shown
