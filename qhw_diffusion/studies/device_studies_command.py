"""`qhw study shots` and `qhw study mitigation`: a study from flags, or the report of a finished one again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qhw_diffusion.runs import RunFolder, check_writable
from qhw_diffusion.studies.flags import given_flags
from qhw_diffusion.studies.pages import write_markdown, write_report
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig
from qhw_diffusion.studies.single import check_out, one_thread


@dataclass(frozen=True)
class Study:
    """A study of trained subjects (`studies.reference_models`): kind of folder, settings, work, what its page has.

    The functions are those of its own files; `open` makes or opens its folder, `run` does what is left.
    """

    title: str
    kind: str
    settings: type
    quick: Any
    open: Callable[..., RunFolder]
    run: Callable[..., None]
    load: Callable[[RunFolder], Any]
    parts: Callable[[Any, str], Any]
    subtitle: Callable[[Any], str]
    verdict: Callable[[Any], Sequence[str]]


def mitigation_study() -> Study:
    """What mitigation does."""
    from qhw_diffusion.studies import (
        mitigation_report,
        mitigation_settings,
        mitigation_study,
        mitigation_verdict,
        mitigation_work,
    )

    return Study(
        title="What mitigation does",
        kind=mitigation_work.KIND,
        settings=mitigation_settings.MitigationStudyConfig,
        quick=mitigation_settings.QUICK,
        open=mitigation_study.open_mitigation_study,
        run=mitigation_study.run_mitigation_study,
        load=mitigation_study.load_mitigation_results,
        parts=mitigation_report.parts_of,
        subtitle=mitigation_report.subtitle,
        verdict=mitigation_verdict.verdict,
    )


def study_from_arguments(study: Study, arguments: argparse.Namespace) -> str:
    """Do what is left of the study, or only its report; returns the text to print."""
    one_thread()
    for place in (arguments.markdown, arguments.figures):
        if place is not None:
            check_writable(place)  # before hours of work
    if arguments.report_only:
        run = RunFolder.open(arguments.out, kind=study.kind)
    else:
        base = study.quick if arguments.quick else study.settings()
        if arguments.resume:
            base = study.settings.from_dict(RunFolder.open(arguments.out, kind=study.kind).config)  # type: ignore[attr-defined]
        config = base.replace(
            subjects=base.subjects.replace(**given_flags(arguments, ReferenceModelsConfig)),
            **given_flags(arguments, study.settings),
        )
        check_out(arguments, study.kind)
        how = {"resume": arguments.resume, "overwrite": arguments.overwrite}
        run = study.open(arguments.out, config, command=arguments.command_line, **how)
        study.run(run, workers=arguments.workers)
    results = study.load(run)
    parts = study.parts(results, run.manifest["command"] or arguments.command_line)
    told = {"title": study.title, "subtitle": study.subtitle(results)}
    page = write_report(parts, run.path / "report.html", **told)
    lines = ["", *(f"· {sentence.replace('**', '')}" for sentence in study.verdict(results)), "", f"report: {page}"]
    if arguments.markdown is not None:
        lines.append(f"page: {write_markdown(parts, arguments.markdown, **told, figures=arguments.figures)}")
    return "\n".join(lines)
