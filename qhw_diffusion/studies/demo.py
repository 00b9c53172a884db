"""The demo: the guidance study on the embedded digits, small enough for a few minutes on two cores."""

from __future__ import annotations

from qhw_diffusion.guidance import PPOConfig
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies import analysis
from qhw_diffusion.studies.guidance_report import render_report
from qhw_diffusion.studies.guidance_study import run_study
from qhw_diffusion.studies.settings import StudyConfig

TITLE = "A quantum controller of classifier-free guidance"


def demo_config(*, quick: bool = False) -> StudyConfig:
    """Settings of the demo: five seeds, six sampling steps; `quick`: two seeds and less of everything.

    The actors start from the middle of the sensible constants, not from the best one: finding the right scale is then
    part of what is learned, and the best constant is a rival like the others.
    """
    if quick:
        return StudyConfig(
            seeds=2,
            constants=(0.8, 1.0, 1.2, 1.5, 2.0, 3.0),
            sweep_images=240,
            tune_images=120,
            tune_means=(1.0,),
            eval_images=240,
            starts=300,
            base="middle",
            ppo=PPOConfig.short(updates=12, num_envs=96),
        )
    return StudyConfig(eval_images=800, base="middle", ppo=PPOConfig.short())


def run_demo(run: RunFolder, *, workers: int, command: str) -> str:
    """Do what is left of the demo in its folder, write results.json and report.html; returns a summary to print."""
    run_study(run, workers=workers)
    return finish(run, title=TITLE, command=command)


def finish(run: RunFolder, *, title: str, command: str) -> str:
    """Results and report of a finished study; returns the summary to print."""
    results = analysis.load_results(run)
    analysis.write_summary(results)
    page = render_report(results, title=title, command=command)
    labels = results.labels()
    lines = ["", f"{'controller':<52} {'FD [95 %]':>22} {'accuracy':>9}"]
    for name, metrics in results.values.items():
        fd = analysis.format_metric("fd", metrics["fd"])
        accuracy = sum(metrics["accuracy"]) / len(metrics["accuracy"])
        lines.append(f"{labels[name]:<52} {fd:>22} {accuracy:>9.1%}")
    lines.append(f"{'real training images (floor)':<52} {analysis.format_metric('fd', results.floor['fd']):>22}")
    lines += ["", *(f"· {sentence.replace('**', '')}" for sentence in analysis.verdict(results)[0])]
    lines += ["", f"report: {page}"]
    return "\n".join(lines)
