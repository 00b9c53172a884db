"""`qhw study mitigation`: a study from flags, or its report again."""

from __future__ import annotations

import argparse

from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.mitigation_report import parts_of, subtitle
from qhw_diffusion.studies.mitigation_settings import QUICK, MitigationStudyConfig
from qhw_diffusion.studies.mitigation_study import (
    load_mitigation_results,
    open_mitigation_study,
    run_mitigation_study,
)
from qhw_diffusion.studies.mitigation_verdict import verdict
from qhw_diffusion.studies.mitigation_work import KIND
from qhw_diffusion.studies.pages import write_markdown, write_report
from qhw_diffusion.studies.single import clear_out, one_thread
from qhw_diffusion.studies.subjects import SubjectsConfig

TITLE = "What mitigation does"


def study_from_arguments(arguments: argparse.Namespace) -> str:
    """Do what is left of the study, or only its report; returns the text to print."""
    one_thread()
    if arguments.report_only:
        run = RunFolder.open(arguments.out, kind=KIND)
    else:
        base = QUICK if arguments.quick else MitigationStudyConfig()
        if arguments.resume:
            base = MitigationStudyConfig.from_dict(RunFolder.open(arguments.out, kind=KIND).config)
        config = base.replace(
            subjects=base.subjects.replace(**given_flags(arguments, SubjectsConfig)),
            **given_flags(arguments, MitigationStudyConfig),
        )
        clear_out(arguments, KIND)
        run = open_mitigation_study(arguments.out, config, command=arguments.command_line, resume=arguments.resume)
        run_mitigation_study(run, workers=arguments.workers)
    results = load_mitigation_results(run)
    command = run.manifest["command"] or arguments.command_line
    told = {"title": TITLE, "subtitle": subtitle(results)}
    page = write_report(parts_of(results, command), run.path / "report.html", **told)
    lines = ["", *(f"· {sentence.replace('**', '')}" for sentence in verdict(results)), "", f"report: {page}"]
    if arguments.markdown is not None:
        parts = parts_of(results, command)
        lines.append(f"page: {write_markdown(parts, arguments.markdown, **told, figures=arguments.figures)}")
    return "\n".join(lines)
