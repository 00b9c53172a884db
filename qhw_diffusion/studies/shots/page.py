"""The page of the shots study, made from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qhw_diffusion.experiment import (
    Interval,
    Page,
    PairedTest,
    Results,
    difference_cells,
    interval_cell,
    mean_interval,
    paired_test,
    plots,
    with_holm,
)

if TYPE_CHECKING:
    from qhw_diffusion.studies.shots.experiment import ShotsConfig

REFERENCE = "exact"
TITLES = {"energy": ("energy distance", 3), "fd": ("FD", 2)}
"""Distances of images to held-out ones, the one that the policy is trained on first: name and decimals."""
_DISTANCES = ("energy", "energy − exact", "p (Holm)", "FD", "FD − exact", "p (Holm)")
_METHOD = (
    "Shots are drawn from the exact outcome distribution of the ideal circuit: what is measured is shot noise alone. "
    "Noise of devices is the mitigation study's subject. The policy: 4 qubits, 2 layers, all ⟨Z⟩ from the same shots. "
    "Energy: energy distance within each class, FD: Fréchet distance (not Inception FID), both to held-out images in "
    "the features of the evaluation classifier, which no training saw. A seed is one training of everything and one "
    "evaluation; intervals are 95 % t-intervals over seeds, tests are paired."
)
_LEARNING = (
    "Each training is one PPO run from the same start, g₀ = {g0:g}. In the first rows the head stays random and only "
    "the circuit is trained, so that all that is learned goes through the circuit's gradient; with the head trained, "
    "the head alone can shift the scale, and learns it on a frozen random circuit as well. Gain: reward of the trained "
    "less that of the untrained policy, mean actions, exact values, the same initial noise; in standard deviations "
    "between policies that act at random. Circuits and shots: of one training."
)


def page(results: Results[ShotsConfig]) -> Page:
    """What came out, then values, images, gradients, learning and the denoiser."""
    config = results.config
    shown = Page(
        subtitle=(
            "A trained quantum policy of guidance and a trained quantum denoiser on digits, from "
            f"{_n(config.shots[0])} to {_n(config.shots[-1])} shots per circuit; {config.models.seeds} seeds, "
            f"{config.models.eval_images} images an evaluation."
        ),
        findings=findings(results),
    )
    shown.section("What came out").text(_METHOD).bullets(shown.findings)
    _values(shown, results)
    _images(shown, results)
    _gradients(shown, results)
    _learning(shown, results)
    _denoiser(shown, results)
    return shown


def findings(results: Results[ShotsConfig]) -> list[str]:
    """The findings as sentences, each from the numbers."""
    c = results.config
    rows = [row for row in results.rows if row["part"] == "values" and "shots" in row]
    worst = max(abs(row["se"] / row["se_closed"] - 1) for row in rows)
    bias, bias_g = (
        max(np.mean([r[key] / r[f"{key}_chance"] for r in rows if r["shots"] == n]) for n in c.shots)
        for key in ("bias", "bias_g")
    )
    lines = [
        f"The scatter of ⟨Z⟩ is √((1 − ⟨Z⟩²)/N): measured and closed form differ by {worst:.1%} at most. Its bias is "
        f"at most {bias:.2f} times, that of the guidance scale at most {bias_g:.2f} times what chance leaves."
    ]
    for part, what in (("images", "the policy's images"), ("denoiser", "the denoiser's images")):
        key = distance_of(results)
        title, digits = TITLES[key]
        tests = against_exact(results, part, key)
        hurt = [n for n, test in tests.items() if test.significant() and test.difference.mean > 0]
        if not tests:
            continue
        told = (
            f"{title} is worse beyond chance up to {_n(max(hurt))} shots"
            if hurt
            else f"no number of shots from {_n(c.shots[0])} on changes {title} beyond chance"
        )
        first = tests[c.shots[0]].difference
        lines.append(f"For {what}, {told} ({_n(c.shots[0])} shots: {first.format(digits, sign=True)}).")
    ratio = np.mean(results.values("shift", part="gradients", shots=c.shots[0])) * 2 * c.shots[0]
    alone = results.mean("spsa_exact", part="gradients")
    worse = [
        results.mean("spsa_equal", part="gradients", shots=n) / results.mean("shift", part="gradients", shots=n)
        for n in (c.shots[0], c.shots[-1])
    ]
    lines.append(
        f"The variance of parameter-shift gradients is {ratio:.2f} of its bound 1/(2N). SPSA with one direction has a "
        f"variance of {alone:.2f} on exact values already, as much as parameter-shift with {0.5 / alone:.1f} shots. At "
        f"equal cost its variance is {worse[0]:.1f} times that of parameter-shift at {_n(c.shots[0])} shots and "
        f"{worse[1]:.0f} times at {_n(c.shots[-1])}."
    )
    return [*lines, *_learning_findings(results)]


def _learning_findings(results: Results[ShotsConfig]) -> list[str]:
    exact = mean_interval(gains(results, REFERENCE))
    lines = [f"PPO on exact values raises the reward by {exact.format(sign=True)} through the circuit alone."]
    learned = {n: mean_interval(gains(results, f"shift:{n}")) for n in results.config.learn_shots}
    learns = fewest(learned, lambda i: i.low > 0)
    whole = fewest(learned, lambda i: i.mean >= 0.9 * exact.mean)
    if exact.n > 1:
        lines.append(
            f"**From {_n(learns)} shot{'s' * (learns > 1)} per circuit on PPO learns beyond chance by parameter-shift**"
            if learns
            else "No number of shots tried makes PPO learn beyond chance by parameter-shift"
        )
        lines[-1] += (
            f"; from {_n(whole)} on it gains at least nine tenths of what exact values give."
            if whole
            else "; at none it gains nine tenths of what exact values give."
        )
    if exact.n > 1 and min(gains(results, REFERENCE)) > 0:
        base = np.array(gains(results, REFERENCE))
        told = ", ".join(
            f"{_n(n)}: {np.mean(np.array(gains(results, f'shift:{n}')) / base):.0%}" for n in results.config.learn_shots
        )
        lines.append(f"Share of the gain on exact values, by shots per circuit, mean over seeds: {told}.")
    head = mean_interval(gains(results, "exact+head"))
    frozen = mean_interval(gains(results, "frozen+head"))
    lines.append(
        f"With the head trained, the trained circuit gains {head.format(sign=True)}, a frozen random circuit "
        f"{frozen.format(sign=True)}."
    )
    return lines


def _values(page: Page, results: Results[ShotsConfig]) -> None:
    columns = ["shots", "standard error of ⟨Z⟩", "closed form", "as told by the estimate", "bias (rms)", "by chance",
               "standard error of g", "bias of g (rms)", "by chance"]  # fmt: skip
    keys = ["se", "se_closed", "se_told", "bias", "bias_chance", "se_g", "bias_g", "bias_g_chance"]
    rows = [
        [_n(n), *(f"{results.mean(key, part='values', shots=n):.4f}" for key in keys)] for n in results.config.shots
    ]
    x = results.config.shots
    label, g = "standard error of ⟨Z⟩", "scatter and bias of g"
    closed = [results.mean("se_closed", part="values", shots=n) for n in x]
    plot = plots.against(
        {
            label: {"measured": (x, [results.values("se", part="values", shots=n) for n in x])},
            g: {
                "standard error of g": (x, [results.values("se_g", part="values", shots=n) for n in x]),
                "bias of g (rms)": (x, [results.values("bias_g", part="values", shots=n) for n in x]),
            },
        },
        closed={label: {"√((1 − ⟨Z⟩²)/N)": (x, closed)}},
        log=(label, g),
    )
    text = (
        f"At {results.config.states} states the trained policy meets, each value repeated {results.config.repeats} "
        "times; root mean squares over states and qubits, means over seeds. By chance: the bias that the scatter over "
        "so many repeats leaves. g is a function of ⟨Z⟩ through a network with bends, so it could be biased where ⟨Z⟩ "
        "is not."
    )
    alt = (
        "Standard error of the expectation values and of the guidance scale falling with the square root of the shots."
    )
    section = page.section("Expectation values and the guidance scale").text(text).table(columns, rows)
    section.figure(plot, alt=alt, name="shots-values")


def _images(page: Page, results: Results[ShotsConfig]) -> None:
    tests = {key: against_exact(results, "images", key) for key in TITLES}
    accuracy = _share(results.interval("accuracy", part="images", shots=None))
    rows = [["exact", "0", "0", *_distances(results, tests, "images", None), accuracy]]
    for n in results.config.shots:
        rows.append(
            [
                _n(n),
                f"{results.mean('rms_g', part='images', shots=n):.3f}",
                f"{results.mean('rms_pixel', part='images', shots=n):.4f}",
                *_distances(results, tests, "images", n),
                _share(results.interval("accuracy", part="images", shots=n)),
            ]
        )
    columns = ["shots", "rms change of g", "rms change of a pixel", *_DISTANCES, "accuracy"]
    x, key = results.config.shots, distance_of(results)
    distance, move = f"{TITLES[key][0]}, evaluation classifier's features", "rms change of g along the path"
    plot = plots.against(
        {
            move: {"measured": (x, [results.values("rms_g", part="images", shots=n) for n in x])},
            distance: {"finite shots": (x, [results.values(key, part="images", shots=n) for n in x])},
        },
        marks={distance: (results.mean(key, part="images", shots=None), "exact")},
        log=(move,),
    )
    text = (
        f"The trained policy steers {results.config.models.eval_images} images a seed, "
        f"{results.config.models.guidance.n_steps} circuits an image; the same initial noise with exact values "
        "and with N shots."
    )
    alt = "Change of the guidance scale and distance of the images to real ones against shots per circuit."
    section = page.section("The policy's images").text(text).table(columns, rows)
    section.figure(plot, alt=alt, name="shots-images")


def _gradients(page: Page, results: Results[ShotsConfig]) -> None:
    angles = int(results.values("angles", part="gradients")[0])
    columns = ["shots", "parameter-shift", "closed form", "bound 1/(2N)", "gradient / scatter", "SPSA, one direction",
               "its closed form", f"SPSA, {angles} directions"]  # fmt: skip
    size = results.mean("rms_gradient", part="gradients")
    rows = []
    for n in results.config.shots:
        mean = {key: results.mean(key, part="gradients", shots=n)
                for key in ("shift", "shift_closed", "bound", "spsa", "spsa_closed", "spsa_equal")}  # fmt: skip
        rows.append([_n(n), _e(mean["shift"]), _e(mean["shift_closed"]), _e(mean["bound"]),
                     f"{size / mean['shift'] ** 0.5:.2f}", _e(mean["spsa"]), _e(mean["spsa_closed"]),
                     _e(mean["spsa_equal"])])  # fmt: skip
    x = results.config.shots
    label = "variance of a gradient"
    names = {"shift": "parameter-shift", "spsa": "SPSA, one direction", "spsa_equal": "SPSA at equal cost"}
    plot = plots.against(
        {
            label: {
                name: (x, [results.values(key, part="gradients", shots=n) for n in x]) for key, name in names.items()
            }
        },
        closed={label: {"bound 1/(2N)": (x, [1 / (2 * n) for n in x])}},
        log=(label,),
    )
    bias = results.mean("spsa_bias", part="gradients", shots=x[-1])
    text = (
        f"Variance of the derivative of one ⟨Z⟩ by one angle, mean over {angles} angles and four qubits, "
        f"{results.config.gradient_repeats} repetitions. One gradient costs {2 * angles} circuits by "
        "parameter-shift, 2 by SPSA with one direction; the last column costs the same as parameter-shift. The root "
        f"mean square of the exact gradient is {size:.3f}. SPSA's perturbation is {results.config.spsa_size:g} rad, "
        f"which biases it by {bias:.3f} (rms); what is left of its variance at many shots is the scatter of its "
        "directions."
    )
    alt = "Variance of gradients against shots: parameter-shift falls as 1/N below its bound, SPSA flattens."
    section = page.section("Gradients").text(text).table(columns, rows)
    section.figure(plot, alt=alt, name="shots-gradients")


def _learning(page: Page, results: Results[ShotsConfig]) -> None:
    tests = learning_tests(results)
    columns = ["training", "gain", "gain − exact", "p (Holm)", "gain, run on its shots", "energy before",
               "energy after", "FD before", "FD after", "circuits", "shots"]  # fmt: skip
    rows = []
    for name in results.config.trainings():
        own = results.interval("gain_on_shots", training=name)
        rows.append(
            [
                training_label(name),
                results.interval("gain", training=name).format(3),
                *difference_cells(tests.get(name), 3),
                f"{own.mean:.3f}",
                *(
                    interval_cell(results.values(f"{key}_{when}", training=name), digits)
                    for key, (_, digits) in TITLES.items()
                    for when in ("before", "after")
                ),
                _n(int(results.values("circuits", training=name)[0])),
                _n(int(results.values("shots_run", training=name)[0])),
            ]
        )
    shown = {training_label(name): gains(results, name) for name in results.config.trainings()}
    references = {
        "exact, circuit alone": mean_interval(gains(results, REFERENCE)).mean,
        "exact, head trained": mean_interval(gains(results, "exact+head")).mean,
    }
    plot = plots.comparison(shown, xlabel="gain of reward by training", references=references)
    s = results.config.models
    text = (
        _LEARNING.format(g0=s.guidance.g0),
        f"A training has {s.ppo.num_iterations} updates of {s.ppo.num_envs} images, {s.ppo.update_epochs} passes in "
        f"{s.ppo.num_minibatches} minibatches. "
        "On a device its images cost one circuit a step each, and each pass costs the values again and two circuits an "
        "angle and state by parameter-shift.",
    )
    alt = "Gain of reward of every training: a dot a seed, mean and 95 % interval; dashed lines for exact values."
    section = page.section("From how many shots on does PPO learn?").text(*text).table(columns, rows)
    section.figure(plot, alt=alt, name="shots-learning")


def _denoiser(page: Page, results: Results[ShotsConfig]) -> None:
    tests = {key: against_exact(results, "denoiser", key) for key in TITLES}
    accuracy = _share(results.interval("accuracy", part="denoiser", shots=None))
    rows = [["exact", "–", "–", "0", "0", *_distances(results, tests, "denoiser", None), accuracy]]
    for n in results.config.shots:
        mean = {
            key: results.interval(key, part="denoiser", shots=n)
            for key in ("kept", "lost", "infidelity", "infidelity_closed")
        }
        rows.append(
            [
                _n(n),
                f"{mean['kept'].mean:.1f}",
                f"{mean['lost'].mean:.1f}",
                f"{mean['infidelity'].mean:.4f}",
                f"{mean['infidelity_closed'].mean:.4f}",
                *_distances(results, tests, "denoiser", n),
                _share(results.interval("accuracy", part="denoiser", shots=n)),
            ]
        )
    columns = ["shots an image", "kept", "images without a shot", "infidelity of the read-out", "(d − 1)/(4·kept)",
               *_DISTANCES, "accuracy"]  # fmt: skip
    x, key = results.config.shots, distance_of(results)
    label, distance = "infidelity of the read-out", f"{TITLES[key][0]}, evaluation classifier's features"
    plot = plots.against(
        {
            label: {"measured": (x, [results.values("infidelity", part="denoiser", shots=n) for n in x])},
            distance: {"finite shots": (x, [results.values(key, part="denoiser", shots=n) for n in x])},
        },
        xlabel="shots an image",
        closed={
            label: {
                "(d − 1)/(4·kept)": (
                    x,
                    [results.mean("infidelity_closed", part="denoiser", shots=n) for n in x],
                )
            }
        },
        marks={distance: (results.mean(key, part="denoiser", shots=None), "exact")},
        log=(label,),
    )
    success = results.mean("success", part="denoiser")
    text = (
        f"A latent denoiser of 3 + 1 qubits and four post-selected steps, of whose shots {success:.1%} pass. "
        "Infidelity: 1 − (Σ √(p p̂))² between the exact probabilities and the kept counts' shares, mean over images; "
        "its closed form is the lowest order in 1/kept and fails where only a few are kept. An image without a kept "
        "shot counts as one of a single shot."
    )
    alt = "Infidelity of the denoiser's read-out and distance of its images to real ones against shots an image."
    section = page.section("The denoiser").text(text).table(columns, rows)
    section.figure(plot, alt=alt, name="shots-denoiser")


def gains(results: Results[ShotsConfig], training: str) -> list[float]:
    """Reward after less reward before a training, on exact values, per seed."""
    return results.values("gain", training=training)


def against_exact(results: Results[ShotsConfig], part: str, metric: str) -> dict[int, PairedTest]:
    """Paired tests of each number of shots against exact values, Holm-corrected."""
    variants = {n: {"part": part, "shots": n} for n in results.config.shots}
    return results.tests(metric, variants, {"part": part, "shots": None})


def distance_of(results: Results[ShotsConfig]) -> str:
    """The distance that findings and plots show: energy; FD where an earlier version kept no other."""
    return "energy" if results.values("energy", part="images") else "fd"


def _distances(
    results: Results[ShotsConfig], tests: Mapping[str, Mapping[int, PairedTest]], part: str, shots: int | None
) -> list[str]:
    """The cells of `_DISTANCES`; dashes for what an earlier version did not measure."""
    cells: list[str] = []
    for key, (_, digits) in TITLES.items():
        test = None if shots is None else tests[key].get(shots)
        difference, p = difference_cells(test, digits)
        cells += [interval_cell(results.values(key, part=part, shots=shots), digits), difference, p]
    return cells


def learning_tests(results: Results[ShotsConfig]) -> dict[str, PairedTest]:
    """Gains of trainings with shots against those on exact values, Holm-corrected; needs two seeds."""
    tests = {}
    for name in results.config.trainings():
        reference = REFERENCE + "+head" * name.endswith("+head")
        if name != reference and results.config.models.seeds > 1:
            tests[name] = paired_test(gains(results, name), gains(results, reference))
    return with_holm(tests)


def fewest(intervals: Mapping[int, Interval], holds: Callable[[Interval], bool]) -> int | None:
    """The fewest shots from which on `holds` is true for every larger number tried; None where there are none."""
    found = None
    for n in sorted(intervals, reverse=True):
        if not holds(intervals[n]):
            break
        found = n
    return found


# A training: what the circuit's values and gradients come from, and what is trained.
TRAININGS = {
    "exact": "exact values and gradients",
    "shift": "parameter-shift",
    "spsa": "SPSA",
    "surrogate": "sampled values, simulated gradients",
    "frozen": "frozen random circuit",
}


def training_label(training: str) -> str:
    """Name of a training in tables."""
    name, _, shots = training.removesuffix("+head").partition(":")
    text = TRAININGS[name] + (f", {int(shots):,} shot{'s' * (int(shots) > 1)}" if shots else "")
    return text + (", head trained" if training.endswith("+head") else "")


def _share(interval: Interval) -> str:
    return f"{interval.mean:.1%}"


def _n(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _e(number: float) -> str:
    return f"{number:.2e}"
