"""What a denoising study says: its table, and a sentence with interval and corrected p for every question it asks."""

from __future__ import annotations

from dataclasses import dataclass

from qhw_diffusion.denoising.readout import shots_needed
from qhw_diffusion.experiment import p_text
from qhw_diffusion.experiment.statistics import Interval, PairedTest, paired_test, with_holm
from qhw_diffusion.studies.denoising_settings import ARMS, row_label
from qhw_diffusion.studies.denoising_study import DenoisingResults

CHANCE = "chance"
COLUMNS = {
    "fd": ("FD [95 %]", 1.0, 2),
    "accuracy": ("accuracy % [95 %]", 100.0, 1),
    "diversity": ("diversity [95 %]", 1.0, 2),
    "infidelity": ("infidelity [95 %]", 1.0, 3),
    "visible": ("visible infidelity [95 %]", 1.0, 3),
    "success": ("success % [95 %]", 100.0, 1),
}


@dataclass(frozen=True)
class Question:
    """A comparison that was planned before the numbers were seen.

    Attributes:
        text: what is asked.
        row, against: rows of the table; `against` may be "chance", for accuracy alone.
    """

    text: str
    row: str
    against: str


QUESTIONS = (
    Question("Is the trained circuit better than a random one?", "postselected", "frozen"),
    Question("Is it better than no circuit at all (noise straight into the decoder)?", "postselected", "bypass"),
    Question("Are its images recognised more often than by chance?", "postselected", CHANCE),
    Question("How does it compare with the linear map in closed form?", "postselected", "linear"),
    Question("And with the linear map of rank 1, which prints one image a label?", "postselected", "linear1"),
    Question("How far is it from a trained linear map, the ceiling of its kind?", "postselected", "contraction"),
    Question("How does it compare with a classical network of equal size?", "postselected", "classical"),
    Question("What changes when outcomes are kept instead of post-selected?", "measured", "postselected"),
    Question("Do kept outcomes pass the trained linear map?", "measured", "contraction"),
    Question("What does feeding outcomes forward add?", "feedforward", "measured"),
    Question("Does the model with feed-forward pass the linear map in closed form?", "feedforward", "linear"),
    Question("Does it pass the trained linear map?", "feedforward", "contraction"),
    Question("How does the reconstruction compare with the linear map in closed form?", "reconstruction", "linear"),
    Question("What does the device's noise cost?", "postselected@noisy", "postselected"),
    Question("What does it cost the model with feed-forward?", "feedforward@noisy", "feedforward"),
    Question("What do finite shots cost?", "postselected@shots", "postselected"),
    Question("What do they cost the model with feed-forward?", "feedforward@shots", "feedforward"),
    Question("What do noise and finite shots cost together?", "postselected@noisy-shots", "postselected"),
    Question("Does training under noise help on the noisy device?", "noise@noisy", "postselected@noisy"),
    Question("And with finite shots as well?", "noise@noisy-shots", "postselected@noisy-shots"),
)


def asked(results: DenoisingResults) -> list[Question]:
    """The questions this study has rows for."""
    return [q for q in QUESTIONS if q.row in results.rows and (q.against in results.rows or q.against == CHANCE)]


def question_tests(results: DenoisingResults, metric: str) -> dict[Question, PairedTest]:
    """Paired tests (row − against) over seeds, Holm-corrected over all questions; empty with fewer than two seeds."""
    if results.config.seeds < 2:
        return {}
    tests: dict[Question, PairedTest] = {}
    for question in asked(results):
        if question.against == CHANCE:
            if metric == "accuracy":
                chance = [1 / len(results.config.labels)] * results.config.seeds
                tests[question] = paired_test(results.values(question.row, metric), chance)
            continue
        tests[question] = paired_test(results.values(question.row, metric), results.values(question.against, metric))
    named = with_holm({question.text: test for question, test in tests.items()})
    return {question: named[question.text] for question in tests}


def verdict(results: DenoisingResults) -> tuple[list[str], str]:
    """(sentences, tone): the headline first, then an answer to every question."""
    config = results.config
    conditions = f"{config.seeds} seed{'s' * (config.seeds > 1)}, {config.eval_images} images each"
    if config.seeds < 2:
        return [f"One seed only ({conditions}): nothing can be said about what is better."], "caution"
    fd, accuracy = question_tests(results, "fd"), question_tests(results, "accuracy")
    sentences = [_headline(fd, accuracy, conditions)]
    for question in asked(results):
        parts = [p for p in (_answer(fd.get(question), "FD"), _answer(accuracy.get(question), "accuracy")) if p]
        sentences.append(f"**{question.text}** {'; '.join(parts)}.")
    if config.seeds <= 5:
        sentences.append(
            f"With {config.seeds} seeds the exact sign-flip test cannot go below p = {2 / 2**config.seeds:.3g}, and "
            "only large differences can show; ten seeds or more are needed for a claim about small ones."
        )
    return sentences, "good" if _adds(fd, accuracy) else "caution"


def results_table(results: DenoisingResults) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): every row of the study, then real images as they are and through encoder and decoder."""
    columns = ["model", *(label for label, _, _ in COLUMNS.values()), "parameters"]
    rows = []
    for row, seeds in results.rows.items():
        cells = [row_label(row), *(_cell(results.interval(row, metric), metric) for metric in COLUMNS)]
        count = seeds[0].get("parameters", 0 if row == "bypass" else None)
        rows.append([*cells, "–" if count is None else f"{count:,}"])
    for kind, name in (("real", "real training images (floor)"), ("encoded", "real images, encoded and decoded")):
        known = results.floor[kind][0]
        cells = [_cell(results.floor_interval(kind, m) if m in known else None, m) for m in COLUMNS]
        rows.append([name, *cells, "–"])
    return columns, rows


def tests_table(results: DenoisingResults, metric: str) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the planned comparisons in one metric."""
    label, scale, digits = COLUMNS[metric]
    columns = ["compared", f"difference in {label.removesuffix(' [95 %]')} [95 %]", "p (Holm)", "p (t)",
               "p (Wilcoxon)", "p (sign flip)"]  # fmt: skip
    rows = []
    for question, test in question_tests(results, metric).items():
        ps = (test.p_holm, test.t_p, test.wilcoxon_p, test.sign_flip_p)
        difference = _signed(test, scale, digits + 1)
        against = "chance" if question.against == CHANCE else row_label(question.against)
        asks = f"{row_label(question.row)} − {against}"
        rows.append([asks, difference, *("< 0.001" if p < 0.001 else f"{p:.3f}" for p in ps)])
    return columns, rows


def success_table(results: DenoisingResults) -> tuple[list[str], list[list[str]]]:
    """(columns, rows): the share of the shots that counts, the shots it means, and what was left of those sent."""
    shots, images = results.config.shots, results.config.eval_images * results.config.seeds
    columns = ["model", "share that counts % [95 %]", "shots to keep 1,000", f"kept of {shots:,} shots",
               "images without a shot"]  # fmt: skip
    rows = []
    for row, entries in results.rows.items():
        success = results.interval(row, "success") or results.interval(row, "record")
        if success is None:
            continue
        kept = results.interval(row, "kept_shots")
        lost = "–" if kept is None else f"{sum(entry['lost_images'] for entry in entries)} of {images:,}"
        sent = f"{shots_needed(success.mean, 1000):,}"
        rows.append(
            [row_label(row), _cell(success, "success"), sent, "–" if kept is None else f"{kept.mean:,.0f}", lost]
        )
    return columns, rows


def _adds(fd: dict[Question, PairedTest], accuracy: dict[Question, PairedTest]) -> bool:
    """Whether the circuit beats the random circuit and the bypass in both metrics, and chance in accuracy."""
    fewer = all(fd[q].significant() and fd[q].difference.mean < 0 for q in QUESTIONS[:2])
    return fewer and all(accuracy[q].significant() and accuracy[q].difference.mean > 0 for q in QUESTIONS[:3])


def _headline(fd: dict[Question, PairedTest], accuracy: dict[Question, PairedTest], conditions: str) -> str:
    if _adds(fd, accuracy):
        start = (
            "The trained circuit does the work: it beats the random circuit and the bypassed one in Fréchet distance "
        )
        start += "and in accuracy, and its images are recognised above chance."
    else:
        start = "It is **not** shown that the trained circuit beats the random circuit, the bypassed one and chance in "
        start += "both Fréchet distance and accuracy; the answers below say in which it does."
    clauses = []
    for row, name in (("postselected", "The post-selected chain"), ("feedforward", "The model with feed-forward")):
        found = {q.against: test for q, test in fd.items() if q.row == row and q.against in ("linear", "contraction")}
        if found:
            maps = {"linear": "the linear map in closed form", "contraction": "the trained one"}
            told = [f"{_how(test)} {maps[against]}" for against, test in found.items()]
            clauses.append(f" {name} {' and '.join(told)} in Fréchet distance.")
    return f"{start}{''.join(clauses)} ({conditions}; paired tests over seeds, Holm-corrected.)"


def _how(test: PairedTest) -> str:
    if not test.significant():
        return "is not told apart from"
    return "beats" if test.difference.mean < 0 else "is behind"


def _answer(test: PairedTest | None, metric: str) -> str:
    if test is None:
        return ""
    scale, unit, digits = (1.0, "", 2) if metric == "FD" else (100.0, " points", 1)
    shown = f"{metric} {_signed(test, scale, digits)}{unit}, {p_text(test.p_holm)}"
    if not test.significant():
        return f"{shown}: no difference beyond chance"
    lower = test.difference.mean < 0
    return f"{shown}: {'better' if lower == (metric == 'FD') else 'worse'}"


def _signed(test: PairedTest, scale: float, digits: int) -> str:
    d = test.difference
    return f"{scale * d.mean:+.{digits}f} [{scale * d.low:+.{digits}f}, {scale * d.high:+.{digits}f}]"


def _cell(interval: Interval | None, metric: str) -> str:
    if interval is None:
        return "–"
    _, scale, digits = COLUMNS[metric]
    low, high = scale * interval.low, scale * interval.high
    if metric in ("accuracy", "infidelity", "visible", "success"):  # shares: the t-interval may leave their range
        low, high = max(low, 0.0) if low == low else low, min(high, scale) if high == high else high
    return Interval(scale * interval.mean, low, high, interval.n).format(digits)


def parameters_of(results: DenoisingResults) -> dict[str, int]:
    """Trained numbers of every arm."""
    found = {}
    for arm in results.config.arms:
        row = "noise@noisy" if arm == "noise" else arm
        found[ARMS[arm]] = int(results.rows[row][0]["parameters"])
    return found
