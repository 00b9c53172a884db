"""What `qhw study NAME` does once its configuration is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config
from qhw_diffusion.experiment.study import (
    Study,
    load_results,
    open_study,
    reopen_study,
    run_study,
    write_page,
    write_table,
)
from qhw_diffusion.runs import check_writable


def study_command(
    study: Study[Any],
    config: Config,
    out: Path,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    backend: str = "loky",
    dry_run: bool = False,
    report_only: bool = False,
    markdown: Path | None = None,
    figures: Path | None = None,
) -> str:
    """Run what is left of a study and write its page; returns the text to print.

    Args:
        study: the study.
        config: its configuration.
        out: its folder.
        command: what the user typed, for the page.
        resume: go on with the study in the folder.
        overwrite: replace an earlier study of this kind.
        workers: processes side by side.
        backend: see `qhw_diffusion.experiment.workers`.
        dry_run: only tell the cells and about how long they take.
        report_only: only write table and page again, of a finished study; with `Study.partial` of a part of one too.
        markdown: file for the page as Markdown too.
        figures: with `markdown`, folder for its figures.
    """
    if dry_run:
        return plan_text(study, config, workers)
    for place in (markdown, figures):
        if place is not None:
            check_writable(place)  # before hours of work
    if report_only:
        results = load_results(study, reopen_study(study, out))
        write_table(results)
    else:
        run = open_study(study, out, config, command=command, resume=resume, overwrite=overwrite)
        results = run_study(study, run, workers=workers, backend=backend)
    page, file = write_page(results)
    lines = ["", *(f"· {sentence.replace('**', '')}" for sentence in page.findings), "", f"report: {file}"]
    if markdown is not None:
        lines.append(f"page: {page.save_markdown(markdown, figures=figures)}")
    return "\n".join(lines)


def plan_text(study: Study[Any], config: Config, workers: int) -> str:
    """The cells of a study by part, and about how many minutes they take with so many workers."""
    parts: dict[str, list[float]] = {}
    for cell in study.cells_of(config).values():
        parts.setdefault(str(cell.parameters.get("part", "cells")), []).append(cell.seconds)
    lines = [f"{'part':<24}{'cells':>8}{'minutes':>10}"]
    for part, seconds in parts.items():
        lines.append(f"{part:<24}{len(seconds):>8}{sum(seconds) / 60 / workers:>10.1f}")
    total = sum(sum(seconds) for seconds in parts.values())
    lines.append(f"{'all':<24}{sum(map(len, parts.values())):>8}{total / 60 / workers:>10.1f}")
    lines.append(f"minutes as on the machine the study was written on, {workers} side by side")
    return "\n".join(lines)
