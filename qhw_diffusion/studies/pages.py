"""One page, two forms: parts of text, tables and figures as the HTML report and as Markdown with PNGs beside it."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qhw_diffusion.config import Config as Settings
from qhw_diffusion.config import field_docs
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.experiment.page import markdown_table
from qhw_diffusion.runs import atomic_write_bytes, atomic_write_text


@dataclass(frozen=True)
class Plot:
    """A figure: the name of its file without ending, what it shows to those who cannot see it, and its caption."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the rows with an index in `emphasised` stand out in the report."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    emphasised: Sequence[int] = ()


@dataclass(frozen=True)
class Part:
    """A headed part of a page: text, then bullets, tables and plots."""

    heading: str
    text: Sequence[str] = ()
    bullets: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    code: str = field(default="")


def write_report(parts: Sequence[Part], path: Path, *, title: str, subtitle: str) -> Path:
    """The page as one HTML file; returns its path."""
    report = Report(title, subtitle=subtitle)
    for part in parts:
        section = report.section(part.heading)
        section.text(*part.text)
        if part.bullets:
            section.bullets(part.bullets)
        if part.code:
            section.code(part.code)
        for table in part.tables:
            section.table(table.columns, table.rows, caption=table.caption, emphasised=table.emphasised)
        for plot in part.plots:
            section.figure(plot.figure, alt=plot.alt, caption=plot.caption)
    return report.save(path)


def write_markdown(parts: Sequence[Part], path: Path, *, title: str, subtitle: str, figures: Path | None) -> Path:
    """The page as Markdown; with `figures`, its plots as PNGs in that folder, and shown. Returns its path."""
    text = [f"# {title}\n", f"{subtitle}\n"]
    for part in parts:
        text.append(f"## {part.heading}\n")
        text += [f"{paragraph}\n" for paragraph in part.text]
        if part.bullets:
            text.append("\n".join(f"- {bullet}" for bullet in part.bullets) + "\n")
        if part.code:
            text.append(f"```\n{part.code}\n```\n")
        for table in part.tables:
            text += [f"{table.caption}\n"] if table.caption else []
            text.append(markdown_table(table.columns, table.rows))
        for plot in part.plots if figures is not None else ():
            assert figures is not None
            file = save_png(plot.figure, figures / f"{plot.name}.png")
            text.append(f"![{plot.alt}]({os.path.relpath(file, path.parent)})\n")
            text += [f"{plot.caption}\n"] if plot.caption else []
    return atomic_write_text(path, "\n".join(text))


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure atomically as a small PNG; returns the path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", facecolor="white")
    return atomic_write_bytes(path, buffer.getvalue())


def settings_table(*settings: Settings) -> Table:
    """Every setting with its value and meaning; nested settings are to be given themselves."""
    rows = []
    for part in settings:
        docs = field_docs(type(part))
        for name in docs:
            value = getattr(part, name)
            told = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            rows.append([name, "–" if told in (None, "") else str(told), docs[name]])
    return Table(["setting", "value", "meaning"], rows)


def versions_text(manifest: dict[str, Any]) -> str:
    """When and with what a study was started."""
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return (
        f"Started {manifest['created']} with qhw-diffusion {manifest['qhw_diffusion']} (commit "
        f"{manifest['commit'] or 'unknown'}), Python {manifest['python']}, {packages}; {manifest['platform']}, "
        f"{manifest['cpu_count']} CPUs."
    )
