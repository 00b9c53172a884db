"""What the results of the guidance study say: numbers by policy and seed, paired tests, headroom, sentences.

All of it is read from the cells' results; nothing is sampled again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors
from qhw_diffusion.experiment import PairedTest, Results, p_text, paired_test, with_holm
from qhw_diffusion.guidance.headroom import share_of_headroom
from qhw_diffusion.studies.guidance.words import PRIMARY, SECOND, kind_of, label_of, schedule_text

if TYPE_CHECKING:
    from qhw_diffusion.studies.guidance.experiment import GuidanceStudyConfig

    GuidanceResults = Results[GuidanceStudyConfig]

ORACLE_ROWS = ("constant", "schedule", "feedback")


def names(results: GuidanceResults) -> dict[str, str]:
    """Name in tables of all that is evaluated; schedules with their tuned parameters."""
    schedules = results.cells["choice"]["schedules"]
    return {
        name: schedule_text(schedules[name]) if name in schedules else label_of(name)
        for name in results.config.evaluated()
    }


def values(results: GuidanceResults, policy: str, metric: str) -> list[float]:
    """One number of a policy's evaluations, per seed."""
    return results.values(metric, part="evaluation", policy=policy)


def oracle(results: GuidanceResults, what: str, metric: str) -> list[float]:
    """One number of the oracle's constant, schedule or feedback, per seed."""
    return results.values(metric, part="headroom", oracle=what)


def floor(results: GuidanceResults, metric: str) -> list[float]:
    """The same of real training images."""
    return results.values(metric, part="floor")


def best_constant(results: GuidanceResults) -> float:
    """The best swept constant."""
    return float(results.cells["choice"]["schedules"]["constant"]["mean"])


def captions(results: GuidanceResults) -> list[str]:
    """What each label is called: its prompt, or its number."""
    return list(results.cells["calibration"].get("captions", ()))  # studies of earlier versions have none


def base_scale(results: GuidanceResults) -> float:
    """g0 of every policy."""
    return float(results.cells["calibration"]["guidance"]["g0"])


def sweep_rows(results: GuidanceResults) -> list[dict[str, Any]]:
    """One row a constant."""
    return [row for row in results.rows if row.get("part") == "sweep"]


def curves(results: GuidanceResults, policy: str, key: str) -> list[list[float]]:
    """A metric over the updates of each training."""
    return [results.cells[f"training-{policy}-seed{k}"]["curves"][key] for k in range(results.config.seeds)]


def mean_scales(results: GuidanceResults, policy: str) -> list[float]:
    """Mean guidance scale of every step, over seeds."""
    seeds = range(results.config.seeds)
    return [float(g) for g in np.mean([results.cells[f"evaluation-{policy}-seed{k}"]["g_mean"] for k in seeds], axis=0)]


def compared(results: GuidanceResults, reference: str, policies: Sequence[str], metric: str = PRIMARY,
                  *, swapped: bool = False) -> dict[str, PairedTest]:  # fmt: skip
    """Paired tests of policies against one, seed by seed, one Holm family; swapped: of the one against each."""
    base = values(results, reference, metric)
    if len(base) < 2:
        return {}
    pairs = {name: (values(results, name, metric), base) for name in policies}
    return with_holm({n: paired_test(b, a) if swapped else paired_test(a, b) for n, (a, b) in pairs.items()})


def compared_with_all(results: GuidanceResults, reference: str, metric: str = PRIMARY) -> dict[str, PairedTest]:
    """A metric of all others against one. The untrained policy is left out: it is where training starts."""
    others = [n for n in results.config.evaluated() if n != reference and not n.endswith("@untrained")]
    return compared(results, reference, others, metric)


def control_tests(results: GuidanceResults) -> dict[str, PairedTest]:
    """What the circuit contributes: the quantum policy's distance against each control."""
    main = results.config.main
    if main is None:
        return {}
    controls = [name for name in (*results.config.policies, f"{main}@ideal") if name != main]
    return compared(results, main, controls, swapped=True)


def learning_tests(results: GuidanceResults) -> dict[str, PairedTest]:
    """Did training raise the reward: each policy's return against the untrained quantum policy's."""
    main = results.config.main
    return compared(results, f"{main}@untrained", results.config.policies, "return") if main else {}


def samples_file(folder: Path, policy: str, seed: int) -> Path:
    """File of what an evaluation kept."""
    return folder / "samples" / f"{policy}-seed{seed}.safetensors"


def read_samples(folder: Path, policy: str, seed: int) -> dict[str, Tensor]:
    """What an evaluation kept: "images" float [≤ 40, C, H, W] in [−1, 1], "labels", "g" [T, ≤ 128], "g_labels"."""
    tensors, _ = read_tensors(samples_file(folder, policy, seed), kind="samples")
    return {**tensors, "images": tensors["images"].float() / 127.5 - 1}


def shares_of_headroom(results: GuidanceResults) -> dict[str, float]:
    """Share of the headroom of each policy and schedule, of means over seeds: 0 best constant, 1 better oracle."""
    best = min(float(np.mean(oracle(results, what, PRIMARY))) for what in ("schedule", "feedback"))
    constant = float(np.mean(oracle(results, "constant", PRIMARY)))
    return {
        name: share_of_headroom(float(np.mean(values(results, name, PRIMARY))), constant, best)
        for name in results.config.evaluated()
    }


def headroom_sentence(results: GuidanceResults) -> str:
    """What there is to win, in a sentence."""
    means = [float(np.mean(oracle(results, what, PRIMARY))) for what in ORACLE_ROWS]
    told = (
        f"Headroom (oracle): energy distance {means[0]:.3f} at the best constant, {means[1]:.3f} with the best free "
        f"schedule, {means[2]:.3f} with the best state feedback"
    )
    if min(means) >= means[0]:
        return f"{told}: nothing to win that this oracle finds."
    shares = shares_of_headroom(results)
    played = [name for name in shares if not name.endswith("@untrained")]
    best = max(played, key=lambda name: shares[name])
    return f"{told}; the largest share of it is that of {names(results)[best]}, {shares[best]:.0%}."


def findings(results: GuidanceResults) -> tuple[list[str], str]:
    """(sentences, tone): who beat the best constant, or that nobody did."""
    seeds = results.config.seeds
    labels = names(results)
    conditions = f"{results.config.n_steps} sampling steps, {seeds} seeds, {results.config.eval_images} images each"
    if seeds < 2:
        return [f"One seed only ({conditions}): nothing can be said about who is better."], "caution"
    tests = compared_with_all(results, "constant")
    winners = [n for n, t in tests.items() if t.significant() and t.difference.mean < 0]
    losers = [n for n, t in tests.items() if t.significant() and t.difference.mean > 0]
    sentences = []
    base = labels["constant"]
    if winners:
        listed = "; ".join(
            f"**{labels[n]}** by {-tests[n].difference.mean:.3f} ({p_text(tests[n].p_holm)})" for n in winners
        )
        sentences.append(f"The {base} was beaten in energy distance by: {listed} ({conditions}).")
    else:
        sentences.append(f"**Nobody beat the {base}** in energy distance ({conditions}; paired, Holm-corrected).")
    lowest = min(tests, key=lambda n: tests[n].difference.mean)
    if lowest not in winners:
        t = tests[lowest]
        where = "lower" if t.difference.mean < 0 else "higher"
        sentences.append(
            f"The nearest other one on average is {labels[lowest]}: {abs(t.difference.mean):.3f} {where} than the "
            f"constant [{t.difference.low:+.3f}, {t.difference.high:+.3f}], {p_text(t.p_holm)}."
        )
    if losers:
        sentences.append(f"Worse than the constant beyond chance: {'; '.join(labels[n] for n in losers)}.")
    second = compared_with_all(results, "constant", SECOND)
    better = [labels[n] for n, t in second.items() if t.significant() and t.difference.mean < 0]
    sentences.append(f"In Fréchet distance the constant was beaten by: {'; '.join(better) if better else 'nobody'}.")
    sentences.append(headroom_sentence(results))
    sentences += _quantum_sentences(results, tests, labels)
    if seeds <= 5:
        sentences.append(
            f"With {seeds} seeds the exact sign-flip test cannot go below p = {2 / 2**seeds:.3g}, and only large "
            "differences can show; ten seeds or more are needed for a claim."
        )
    return sentences, "good" if any(n in results.config.policies for n in winners) else "neutral"


def _quantum_sentences(results: GuidanceResults, tests: dict[str, PairedTest], labels: dict[str, str]) -> list[str]:
    sentences = []
    main = results.config.main
    if main in tests:
        t = tests[main]
        sentences.append(
            f"The quantum policy trained under noise differs from the best constant by "
            f"{t.difference.format(3, sign=True)} in energy distance (negative is better; {p_text(t.p_holm)})."
        )
    learned = learning_tests(results).get(main or "")
    if learned is not None:
        how = "raised" if learned.difference.mean > 0 else "lowered"
        sure = "" if learned.significant() else ", within chance"
        sentences.append(
            f"Training {how} its reward by {learned.difference.format(sign=True)} against the untrained policy (in "
            f"standard deviations between random policies; {p_text(learned.p_holm)}{sure})."
        )
    for name, test in control_tests(results).items():
        if name.endswith("@ideal"):
            what = "The same weights run without noise change the energy distance by"
            shown = f"{-test.difference.mean:+.3f} [{-test.difference.high:+.3f}, {-test.difference.low:+.3f}]"
            sentences.append(f"{what} {shown}.")
        elif kind_of(name) in ("frozen", "matched", "unentangled", "mlp"):
            shown = test.difference.format(3, sign=True)
            if not test.significant():
                sentences.append(f"No difference beyond chance to the control: {labels[name]} ({shown}).")
            else:
                better = "better" if test.difference.mean < 0 else "worse"
                sentences.append(f"It is {better} than the control: {labels[name]} ({shown}).")
    return sentences
