"""The page of a shots study: what came out, tables and figures, rendered from its folder alone."""

from __future__ import annotations

import numpy as np

from qhw_diffusion.studies import shots_figures as figures
from qhw_diffusion.studies.analysis import p_text
from qhw_diffusion.studies.pages import Part, Plot, Table, settings_table, versions_text
from qhw_diffusion.studies.shots_settings import arm_label
from qhw_diffusion.studies.shots_study import REFERENCE, ShotsResults, fewest
from qhw_diffusion.studies.statistics import Interval, PairedTest, mean_interval

_METHOD = (
    "Shots are drawn from the exact outcome distribution of the ideal circuit: what is measured is shot noise alone. "
    "Noise of devices is the mitigation study's subject. The policy: 4 qubits, 2 layers, all ⟨Z⟩ from the same shots. "
    "FD is the Fréchet distance in the features of the judge, a classifier no training saw (not Inception FID). A seed "
    "is one training of everything and one evaluation; intervals are 95 % t-intervals over seeds, tests are paired."
)
_LEARNING = (
    "Each training is one PPO run from the same start, g₀ = {g0:g}. In the first rows the head stays random and only "
    "the circuit is trained, so that all that is learned goes through the circuit's gradient; with the head trained, "
    "the head alone can shift the scale, and learns it on a frozen random circuit as well. Gain: reward of the trained "
    "less that of the untrained policy, mean actions, exact values, the same evaluation starts; in standard deviations "
    "between controllers that act at random. Circuits and shots: of one training."
)


def subtitle(results: ShotsResults) -> str:
    """What the study is, in a sentence."""
    s = results.config.subjects
    return (
        "A trained quantum controller of guidance and a trained quantum denoiser on digits, from "
        f"{_n(results.config.shots[0])} to {_n(results.config.shots[-1])} shots per circuit; {s.seeds} seeds, "
        f"{s.eval_images} images an evaluation."
    )


def parts_of(results: ShotsResults, command: str) -> list[Part]:
    """The whole page."""
    return [
        Part("What came out", (_METHOD,), bullets=verdict(results)),
        _values(results),
        _images(results),
        _gradients(results),
        _learning(results),
        _denoiser(results),
        Part(
            "How to reproduce",
            (versions_text(results.manifest),),
            code=command,
            tables=[settings_table(results.config.subjects, results.config)],
        ),
    ]


def verdict(results: ShotsResults) -> list[str]:
    """The findings as sentences, each from the numbers."""
    c = results.config
    rows = [row for found in results.pieces["values"] for row in found["rows"]]
    worst = max(abs(row["se"] / row["se_closed"] - 1) for row in rows)
    bias, bias_g = (
        max(np.mean([r[key] / r[f"{key}_chance"] for r in rows if r["shots"] == n]) for n in c.shots)
        for key in ("bias", "bias_g")
    )
    lines = [
        f"The scatter of ⟨Z⟩ is √((1 − ⟨Z⟩²)/N): measured and closed form differ by {worst:.1%} at most. Its bias is "
        f"at most {bias:.2f} times, that of the guidance scale at most {bias_g:.2f} times what chance leaves."
    ]
    for piece, key, what in (("images", "fd", "the controller's images"), ("denoiser", "fd", "the denoiser's images")):
        tests = results.against_exact(piece, key)
        hurt = [n for n, test in tests.items() if test.significant() and test.difference.mean > 0]
        if not tests:
            continue
        told = (
            f"FD is worse beyond chance up to {_n(max(hurt))} shots"
            if hurt
            else f"no number of shots from {_n(c.shots[0])} on changes FD beyond chance"
        )
        first = tests[c.shots[0]].difference
        lines.append(
            f"For {what}, {told} ({_n(c.shots[0])} shots: {first.mean:+.2f} [{first.low:+.2f}, {first.high:+.2f}])."
        )
    found = results.pieces["gradients"]
    ratio = np.mean([r["rows"][0]["shift"] / r["rows"][0]["bound"] for r in found])
    alone = np.mean([r["spsa_exact"] for r in found])
    worse = [
        results.interval("gradients", n, "spsa_equal").mean / results.interval("gradients", n, "shift").mean
        for n in (c.shots[0], c.shots[-1])
    ]
    lines.append(
        f"The variance of parameter-shift gradients is {ratio:.2f} of its bound 1/(2N). SPSA with one direction has a "
        f"variance of {alone:.2f} on exact values already, as much as parameter-shift with {0.5 / alone:.1f} shots. At "
        f"equal cost its variance is {worse[0]:.1f} times that of parameter-shift at {_n(c.shots[0])} shots and "
        f"{worse[1]:.0f} times at {_n(c.shots[-1])}."
    )
    return [*lines, *_learning_verdict(results)]


def _learning_verdict(results: ShotsResults) -> list[str]:
    exact = mean_interval(results.gains(REFERENCE))
    lines = [f"PPO on exact values raises the reward by {_i(exact)} through the circuit alone."]
    gains = {n: mean_interval(results.gains(f"shift:{n}")) for n in results.config.learn_shots}
    learns = fewest(gains, lambda i: i.low > 0)
    whole = fewest(gains, lambda i: i.mean >= 0.9 * exact.mean)
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
    if exact.n > 1 and min(results.gains(REFERENCE)) > 0:
        base = np.array(results.gains(REFERENCE))
        told = ", ".join(
            f"{_n(n)}: {np.mean(np.array(results.gains(f'shift:{n}')) / base):.0%}" for n in results.config.learn_shots
        )
        lines.append(f"Share of the gain on exact values, by shots per circuit, mean over seeds: {told}.")
    head = mean_interval(results.gains("exact+head"))
    frozen = mean_interval(results.gains("frozen+head"))
    lines.append(f"With the head trained, the trained circuit gains {_i(head)}, a frozen random circuit {_i(frozen)}.")
    return lines


def _values(results: ShotsResults) -> Part:
    columns = ["shots", "standard error of ⟨Z⟩", "closed form", "as told by the estimate", "bias (rms)", "by chance",
               "standard error of g", "bias of g (rms)", "by chance"]  # fmt: skip
    keys = ["se", "se_closed", "se_told", "bias", "bias_chance", "se_g", "bias_g", "bias_g_chance"]
    rows = [[_n(n), *(f"{results.interval('values', n, key).mean:.4f}" for key in keys)] for n in results.config.shots]
    x = results.config.shots
    label, g = "standard error of ⟨Z⟩", "scatter and bias of g"
    closed = [results.interval("values", n, "se_closed").mean for n in x]
    plot = figures.against_shots(
        {
            label: {"measured": (x, [results.values("values", n, "se") for n in x])},
            g: {
                "standard error of g": (x, [results.values("values", n, "se_g") for n in x]),
                "bias of g (rms)": (x, [results.values("values", n, "bias_g") for n in x]),
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
    return Part("Expectation values and the guidance scale", (text,), tables=[Table(columns, rows)],
                plots=[Plot("shots-values", plot, alt)])  # fmt: skip


def _images(results: ShotsResults) -> Part:
    tests = results.against_exact("images", "fd")
    exact = results.interval("images", None, "fd")
    rows = [["exact", "0", "0", exact.format(), "–", "–", _share(results.interval("images", None, "accuracy"))]]
    for n in results.config.shots:
        rows.append(
            [
                _n(n),
                f"{results.interval('images', n, 'rms_g').mean:.3f}",
                f"{results.interval('images', n, 'rms_pixel').mean:.4f}",
                results.interval("images", n, "fd").format(),
                *told_test(tests.get(n)),
                _share(results.interval("images", n, "accuracy")),
            ]
        )
    columns = ["shots", "rms change of g", "rms change of a pixel", "FD", "FD − exact", "p (Holm)", "accuracy"]
    x = results.config.shots
    fd, move = "FD, judge's features", "rms change of g along the path"
    plot = figures.against_shots(
        {
            move: {"measured": (x, [results.values("images", n, "rms_g") for n in x])},
            fd: {"finite shots": (x, [results.values("images", n, "fd") for n in x])},
        },
        marks={fd: (exact.mean, "exact")},
        log=(move,),
    )
    text = (
        f"The trained policy steers {results.config.subjects.eval_images} images a seed, "
        f"{results.config.subjects.n_steps} circuits an image; the same starts with exact values and with N shots."
    )
    alt = "Change of the guidance scale and Fréchet distance of the images against shots per circuit."
    return Part(
        "The controller's images", (text,), tables=[Table(columns, rows)], plots=[Plot("shots-images", plot, alt)]
    )


def _gradients(results: ShotsResults) -> Part:
    first = results.pieces["gradients"][0]
    columns = ["shots", "parameter-shift", "closed form", "bound 1/(2N)", "gradient / scatter", "SPSA, one direction",
               "its closed form", f"SPSA, {first['angles']} directions"]  # fmt: skip
    size = np.mean([r["rms_gradient"] for r in results.pieces["gradients"]])
    rows = []
    for n in results.config.shots:
        mean = {key: results.interval("gradients", n, key).mean
                for key in ("shift", "shift_closed", "bound", "spsa", "spsa_closed", "spsa_equal")}  # fmt: skip
        rows.append([_n(n), _e(mean["shift"]), _e(mean["shift_closed"]), _e(mean["bound"]),
                     f"{size / mean['shift'] ** 0.5:.2f}", _e(mean["spsa"]), _e(mean["spsa_closed"]),
                     _e(mean["spsa_equal"])])  # fmt: skip
    x = results.config.shots
    label = "variance of a gradient"
    names = {"shift": "parameter-shift", "spsa": "SPSA, one direction", "spsa_equal": "SPSA at equal cost"}
    plot = figures.against_shots(
        {label: {name: (x, [results.values("gradients", n, key) for n in x]) for key, name in names.items()}},
        closed={label: {"bound 1/(2N)": (x, [1 / (2 * n) for n in x])}},
        log=(label,),
    )
    bias = np.mean([r["rows"][-1]["spsa_bias"] for r in results.pieces["gradients"]])
    text = (
        f"Variance of the derivative of one ⟨Z⟩ by one angle, mean over {first['angles']} angles and four qubits, "
        f"{results.config.gradient_repeats} repetitions. One gradient costs {2 * first['angles']} circuits by "
        "parameter-shift, 2 by SPSA with one direction; the last column costs the same as parameter-shift. The root "
        f"mean square of the exact gradient is {size:.3f}. SPSA's perturbation is {results.config.spsa_size:g} rad, "
        f"which biases it by {bias:.3f} (rms); what is left of its variance at many shots is the scatter of its "
        "directions."
    )
    alt = "Variance of gradients against shots: parameter-shift falls as 1/N below its bound, SPSA flattens."
    return Part("Gradients", (text,), tables=[Table(columns, rows)], plots=[Plot("shots-gradients", plot, alt)])


def _learning(results: ShotsResults) -> Part:
    tests = results.learning_tests()
    columns = ["training", "gain", "gain − exact", "p (Holm)", "gain, run on its shots", "FD before", "FD after",
               "circuits", "shots"]  # fmt: skip
    rows = []
    for arm in results.config.arms():
        found = results.pieces[f"learning-{arm}"]
        own = mean_interval(results.learned(arm, lambda r: r["after_shots"] - r["before"]))
        rows.append(
            [
                arm_label(arm),
                mean_interval(results.gains(arm)).format(3),
                *told_test(tests.get(arm), 3),
                f"{own.mean:.3f}",
                f"{mean_interval([r['fd_before'] for r in found]).mean:.2f}",
                mean_interval([r["fd_after"] for r in found]).format(),
                _n(found[0]["circuits"]),
                _n(found[0]["shots"]),
            ]
        )
    shown = {arm_label(arm): results.gains(arm) for arm in results.config.arms()}
    references = {
        "exact, circuit alone": mean_interval(results.gains(REFERENCE)).mean,
        "exact, head trained": mean_interval(results.gains("exact+head")).mean,
    }
    plot = figures.gains(shown, xlabel="gain of reward by training", references=references)
    s = results.config.subjects
    text = (
        _LEARNING.format(g0=s.g0),
        f"A training has {s.updates} updates of {s.num_envs} images, {s.epochs} passes in {s.minibatches} minibatches. "
        "On a device its images cost one circuit a step each, and each pass costs the values again and two circuits an "
        "angle and state by parameter-shift.",
    )
    alt = "Gain of reward of every training: a dot a seed, mean and 95 % interval; dashed lines for exact values."
    return Part("From how many shots on does PPO learn?", text, tables=[Table(columns, rows)],
                plots=[Plot("shots-learning", plot, alt)])  # fmt: skip


def _denoiser(results: ShotsResults) -> Part:
    tests = results.against_exact("denoiser", "fd")
    exact = results.interval("denoiser", None, "fd")
    rows = [
        ["exact", "–", "–", "0", "0", exact.format(), "–", "–", _share(results.interval("denoiser", None, "accuracy"))]
    ]
    for n in results.config.shots:
        mean = {
            key: results.interval("denoiser", n, key) for key in ("kept", "lost", "infidelity", "infidelity_closed")
        }
        rows.append(
            [
                _n(n),
                f"{mean['kept'].mean:.1f}",
                f"{mean['lost'].mean:.1f}",
                f"{mean['infidelity'].mean:.4f}",
                f"{mean['infidelity_closed'].mean:.4f}",
                results.interval("denoiser", n, "fd").format(),
                *told_test(tests.get(n)),
                _share(results.interval("denoiser", n, "accuracy")),
            ]
        )
    columns = ["shots an image", "kept", "images without a shot", "infidelity of the read-out", "(d − 1)/(4·kept)",
               "FD", "FD − exact", "p (Holm)", "accuracy"]  # fmt: skip
    x = results.config.shots
    label, fd = "infidelity of the read-out", "FD, judge's features"
    plot = figures.against_shots(
        {
            label: {"measured": (x, [results.values("denoiser", n, "infidelity") for n in x])},
            fd: {"finite shots": (x, [results.values("denoiser", n, "fd") for n in x])},
        },
        xlabel="shots an image",
        closed={
            label: {"(d − 1)/(4·kept)": (x, [results.interval("denoiser", n, "infidelity_closed").mean for n in x])}
        },
        marks={fd: (exact.mean, "exact")},
        log=(label,),
    )
    success = np.mean([r["success"] for r in results.pieces["denoiser"]])
    text = (
        f"A latent denoiser of 3 + 1 qubits and four post-selected steps, of whose shots {success:.1%} pass. "
        "Infidelity: 1 − (Σ √(p p̂))² between the exact probabilities and the kept counts' shares, mean over images; "
        "its closed form is the lowest order in 1/kept and fails where only a few are kept. An image without a kept "
        "shot counts as one of a single shot."
    )
    alt = "Infidelity of the denoiser's read-out and Fréchet distance of its images against shots an image."
    return Part("The denoiser", (text,), tables=[Table(columns, rows)], plots=[Plot("shots-denoiser", plot, alt)])


def told_test(test: PairedTest | None, digits: int = 2) -> tuple[str, str]:
    """Difference with its interval, and p after Holm's correction."""
    if test is None:
        return "–", "–"
    d = test.difference
    return f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]", p_text(test.p_holm).removeprefix(
        "p = "
    ).removeprefix("p ")


def _share(interval: Interval) -> str:
    return f"{interval.mean:.1%}"


def _i(interval: Interval) -> str:
    text = f"{interval.mean:+.2f}"
    return text if interval.n == 1 else f"{text} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _n(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _e(number: float) -> str:
    return f"{number:.2e}"
