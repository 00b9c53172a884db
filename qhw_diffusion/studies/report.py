"""The one report module: a self-contained HTML page from sections of text, tables, figures and image grids.

    report = Report("Title", subtitle="…")
    section = report.section("Results")
    section.text("…"); section.table(["a", "b"], [[1, 2]]); section.figure(figure, alt="…")
    report.save("report.html")

Nothing is loaded from outside: style and figures are inside the file, and it has no scripts. Text is escaped; in it,
`backticks` become code and **stars** strong text.
"""

from __future__ import annotations

import base64
import datetime
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import qhw_diffusion
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.masking import without_tokens
from qhw_diffusion.runs import atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tone = Literal["neutral", "good", "caution", "bad"]
TONES = ("neutral", "good", "caution", "bad")


@dataclass
class Section:
    """One headed part of a report; blocks appear in the order they were added."""

    heading: str
    anchor: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def text(self, *paragraphs: str) -> Section:
        """Paragraphs of plain text."""
        for paragraph in paragraphs:
            self.blocks.append({"kind": "text", "html": inline(paragraph)})
        return self

    def bullets(self, items: Sequence[str]) -> Section:
        """An unordered list."""
        self.blocks.append({"kind": "bullets", "items": [inline(item) for item in items]})
        return self

    def note(self, text: str, tone: Tone = "neutral") -> Section:
        """A set-off remark: a verdict, a warning."""
        self.blocks.append({"kind": "note", "html": inline(text), "tone": _tone(tone)})
        return self

    def numbers(self, items: Sequence[tuple[str, str]]) -> Section:
        """A row of cards, each a (value, what it is)."""
        self.blocks.append({"kind": "numbers", "items": [(str(value), label) for value, label in items]})
        return self

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        caption: str = "",
        emphasised: Sequence[int] = (),
    ) -> Section:
        """A table; rows with an index in `emphasised` stand out. Raises InvalidInputError for rows of another width."""
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise InvalidInputError(f"table row {number} has {len(row)} cells for {len(columns)} columns")
        cells = [[_cell(str(cell)) for cell in row] for row in rows]
        numeric = [bool(rows) and all(_is_numeric(str(row[index])) for row in rows) for index in range(len(columns))]
        self.blocks.append(
            {
                "kind": "table",
                "columns": [inline(column) for column in columns],
                "rows": cells,
                "numeric": numeric,
                "caption": inline(caption),
                "emphasised": set(emphasised),
            }
        )
        return self

    def figure(self, figure: Figure, *, alt: str, caption: str = "", wide: bool = False) -> Section:
        """A matplotlib figure as an embedded PNG. `alt` says what it shows to those who cannot see it (required)."""
        if not alt.strip():
            raise InvalidInputError("a figure needs an alt text that says what it shows")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight", facecolor="white")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        self.blocks.append({"kind": "figure", "data": data, "alt": alt, "caption": inline(caption), "wide": wide})
        return self

    def code(self, text: str, *, caption: str = "") -> Section:
        """Preformatted text: commands, configuration."""
        self.blocks.append({"kind": "code", "text": without_tokens(text), "caption": inline(caption)})
        return self


class Report:
    """A page under construction: add sections, then `save`."""

    def __init__(self, title: str, *, subtitle: str = "", language: str = "en") -> None:
        self.title = title
        self.subtitle = subtitle
        self.language = language
        self.sections: list[Section] = []

    def section(self, heading: str) -> Section:
        """Append an empty section and return it."""
        anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        taken = {section.anchor for section in self.sections}
        unique, number = anchor, 2
        while unique in taken:
            unique, number = f"{anchor}-{number}", number + 1
        section = Section(heading, unique)
        self.sections.append(section)
        return section

    def html(self) -> str:
        """The whole page."""
        environment = Environment(
            loader=PackageLoader("qhw_diffusion.studies"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html.j2").render(
            title=self.title,
            subtitle=inline(self.subtitle),
            language=self.language,
            sections=self.sections,
            version=qhw_diffusion.__version__,
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page atomically; returns the path."""
        return atomic_write_text(path, self.html())


def inline(text: str) -> Markup:
    """Escaped HTML in which `code` and **strong** are marked up."""
    html = str(escape(without_tokens(str(text))))
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
    html = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html)
    return Markup(html)  # escaped two lines above


def _cell(text: str) -> Markup:
    """`inline`, with an interval behind a number on a line of its own: wide tables stay on the page."""
    value, bracket, interval = text.partition(" [")
    if not bracket or not _is_numeric(text):
        return inline(text)
    return inline(value) + Markup('<span class="interval">[') + inline(interval) + Markup("</span>")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same table as Markdown, for the documentation pages."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(" --- " for _ in columns) + "|"]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _tone(tone: str) -> str:
    if tone not in TONES:
        raise InvalidInputError(f"tone {tone!r} is none of {', '.join(TONES)}")
    return tone


def _is_numeric(cell: str) -> bool:
    return bool(re.fullmatch(r"[−+<>≤≥~≈±-]?\s*\d[\d,. ]*(e[-+]?\d+)?\s*(%|[\[(±].*)?|[–—-]|", cell.strip()))
