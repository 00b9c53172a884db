"""`qhw study shots`: a study from flags, or its report again."""

from __future__ import annotations

import argparse

from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.pages import write_markdown, write_report
from qhw_diffusion.studies.shots_report import parts_of, subtitle, verdict
from qhw_diffusion.studies.shots_settings import QUICK, ShotsStudyConfig
from qhw_diffusion.studies.shots_study import load_shots_results, open_shots_study, run_shots_study
from qhw_diffusion.studies.shots_work import KIND
from qhw_diffusion.studies.single import clear_out, one_thread
from qhw_diffusion.studies.subjects import SubjectsConfig

TITLE = "What finite shots do"


def study_from_arguments(arguments: argparse.Namespace) -> str:
    """Do what is left of the study, or only its report; returns the text to print."""
    one_thread()
    if arguments.report_only:
        run = RunFolder.open(arguments.out, kind=KIND)
    else:
        base = QUICK if arguments.quick else ShotsStudyConfig()
        if arguments.resume:
            base = ShotsStudyConfig.from_dict(RunFolder.open(arguments.out, kind=KIND).config)
        config = base.replace(
            subjects=base.subjects.replace(**given_flags(arguments, SubjectsConfig)),
            **given_flags(arguments, ShotsStudyConfig),
        )
        clear_out(arguments, KIND)
        run = open_shots_study(arguments.out, config, command=arguments.command_line, resume=arguments.resume)
        run_shots_study(run, workers=arguments.workers)
    results = load_shots_results(run)
    command = run.manifest["command"] or arguments.command_line
    told = {"title": TITLE, "subtitle": subtitle(results)}
    page = write_report(parts_of(results, command), run.path / "report.html", **told)
    lines = ["", *(f"· {sentence.replace('**', '')}" for sentence in verdict(results)), "", f"report: {page}"]
    if arguments.markdown is not None:
        written = write_markdown(parts_of(results, command), arguments.markdown, **told, figures=arguments.figures)
        lines.append(f"page: {written}")
    return "\n".join(lines)
