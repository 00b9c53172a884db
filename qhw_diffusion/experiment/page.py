"""Pages of results: sections of text, tables and figures, written as one HTML file or as Markdown with PNGs beside it.

    page = Page("Title", subtitle="…")
    section = page.section("Results")
    section.text("…").table(["a", "b"], [[1, 2]]).figure(figure, alt="…")
    page.save("report.html")
    page.save_markdown("report.md", figures="figures")

Nothing is loaded from outside: style and figures are inside the HTML file, and it has no scripts. Text is escaped; in
it, `backticks` become code and **stars** strong text.
"""

from __future__ import annotations

import base64
import datetime
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import qhw_diffusion
from qhw_diffusion.config import Config, field_docs
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.masking import without_tokens
from qhw_diffusion.runs import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tone = Literal["neutral", "good", "caution", "bad"]
TONES = ("neutral", "good", "caution", "bad")


@dataclass
class Block:
    """One block of a section: its kind, and what it holds as given."""

    kind: str
    content: dict[str, Any]


@dataclass
class Section:
    """One headed part of a page; blocks appear in the order they were added."""

    heading: str
    anchor: str
    blocks: list[Block] = field(default_factory=list)

    def text(self, *paragraphs: str) -> Section:
        """Paragraphs of plain text."""
        return self._add("text", paragraphs=paragraphs)

    def bullets(self, items: Sequence[str]) -> Section:
        """An unordered list."""
        return self._add("bullets", items=list(items)) if items else self

    def note(self, text: str, tone: Tone = "neutral") -> Section:
        """A set-off remark: a verdict, a warning."""
        if tone not in TONES:
            raise InvalidInputError(f"tone {tone!r} is none of {', '.join(TONES)}")
        return self._add("note", text=text, tone=tone)

    def numbers(self, items: Sequence[tuple[str, str]]) -> Section:
        """A row of cards, each a (value, what it is)."""
        return self._add("numbers", items=[(str(value), label) for value, label in items])

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        *,
        caption: str = "",
        emphasised: Sequence[int] = (),
    ) -> Section:
        """A table; rows with an index in `emphasised` stand out.

        Raises:
            InvalidInputError: a row of another width.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise InvalidInputError(f"table row {number} has {len(row)} cells for {len(columns)} columns")
        cells = [[str(cell) for cell in row] for row in rows]
        return self._add("table", columns=list(columns), rows=cells, caption=caption, emphasised=set(emphasised))

    def figure(self, figure: Figure, *, alt: str, name: str = "", caption: str = "", wide: bool = False) -> Section:
        """A matplotlib figure.

        Args:
            figure: the figure.
            alt: text that says what it shows to those who cannot see it.
            name: name of its file beside a Markdown page; without it from the heading.
            caption: text below it.
            wide: over the whole width of the HTML page.

        Raises:
            InvalidInputError: no `alt`.
        """
        if not alt.strip():
            raise InvalidInputError("a figure needs an alt text that says what it shows")
        count = sum(block.kind == "figure" for block in self.blocks)
        name = name or f"{self.anchor}{f'-{count + 1}' if count else ''}"
        return self._add("figure", figure=figure, alt=alt, name=name, caption=caption, wide=wide)

    def code(self, text: str, *, caption: str = "") -> Section:
        """Preformatted text: commands, configuration."""
        return self._add("code", text=without_tokens(text), caption=caption)

    def _add(self, kind: str, **content: Any) -> Section:
        self.blocks.append(Block(kind, content))
        return self


class Page:
    """A page under construction: add sections, then save it.

    Attributes:
        title: its heading.
        subtitle: one sentence below.
        findings: the results in sentences, which a command prints as well.
    """

    def __init__(
        self, title: str = "", *, subtitle: str = "", findings: Sequence[str] = (), language: str = "en"
    ) -> None:
        self.title = title
        self.subtitle = subtitle
        self.findings = list(findings)
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

    def add_reproduction(self, manifest: Mapping[str, Any], config: Config) -> Section:
        """Append the section that every result needs: versions, the command, every setting with its meaning."""
        section = self.section("How to reproduce").text(versions_text(manifest))
        if manifest.get("command"):
            section.code(str(manifest["command"]))
        return section.table(["setting", "value", "meaning"], settings_rows(config))

    def html(self) -> str:
        """The whole page as HTML."""
        environment = Environment(
            loader=PackageLoader("qhw_diffusion.experiment"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        sections = [
            {"heading": s.heading, "anchor": s.anchor, "blocks": [_html_block(block) for block in s.blocks]}
            for s in self.sections
        ]
        return environment.get_template("page.html.j2").render(
            title=self.title,
            subtitle=inline(self.subtitle),
            language=self.language,
            sections=sections,
            version=qhw_diffusion.__version__,
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def pictures(self) -> dict[str, Callable[[], bytes]]:
        """Its figures, by names such as ``evaluation/images``, as what `RunFolder.tell` draws PNGs with."""
        blocks = (block.content for section in self.sections for block in section.blocks if block.kind == "figure")
        return {f"evaluation/{c['name']}": partial(png, c["figure"]) for c in blocks}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as one HTML file, atomically; returns the path."""
        return atomic_write_text(path, self.html())

    def save_markdown(self, path: str | os.PathLike[str], *, figures: str | os.PathLike[str] | None = None) -> Path:
        """Write the page as Markdown; returns the path.

        Args:
            path: file.
            figures: folder for its figures as PNGs, which the page then shows; without it there are none.
        """
        file = Path(path)
        text = [f"# {self.title}\n", f"{self.subtitle}\n"]
        for section in self.sections:
            text.append(f"## {section.heading}\n")
            for block in section.blocks:
                text += _markdown_block(block, file.parent, None if figures is None else Path(figures))
        return atomic_write_text(file, without_tokens("\n".join(text)))


def settings_rows(config: Config, prefix: str = "") -> list[list[str]]:
    """Every setting of a configuration, nested ones included: [name, value, meaning]."""
    rows = []
    for name, text in field_docs(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, Config):
            rows += settings_rows(value, f"{prefix}{name}.")
        else:
            told = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            rows.append([f"{prefix}{name}", "–" if told in (None, "") else str(told), text])
    return rows


def versions_text(manifest: Mapping[str, Any]) -> str:
    """When and with what versions a run was started."""
    packages = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return (
        f"Started {manifest['created'][:19]} UTC with qhw-diffusion {manifest['qhw_diffusion']} (commit "
        f"{manifest['commit'] or 'unknown'}), Python {manifest['python']}, {packages}; {manifest['platform']}, "
        f"{manifest['cpu_count']} CPUs."
    )


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure atomically as a small PNG; returns the path."""
    return atomic_write_bytes(path, png(figure))


def png(figure: Figure, dpi: int = 100) -> bytes:
    """A figure as the content of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _html_block(block: Block) -> dict[str, Any]:
    """What the template shows of a block."""
    c = block.content
    shown: dict[str, Any] = {"kind": block.kind, **c}
    if "caption" in c:
        shown["caption"] = inline(c["caption"])
    if block.kind == "text":
        shown["paragraphs"] = [inline(paragraph) for paragraph in c["paragraphs"]]
    elif block.kind == "bullets":
        shown["items"] = [inline(item) for item in c["items"]]
    elif block.kind == "note":
        shown["html"] = inline(c["text"])
    elif block.kind == "table":
        shown["columns"] = [inline(column) for column in c["columns"]]
        columns = range(len(c["columns"]))
        shown["numeric"] = [bool(c["rows"]) and all(_is_numeric(row[i]) for row in c["rows"]) for i in columns]
        shown["rows"] = [[_cell(cell) for cell in row] for row in c["rows"]]
    elif block.kind == "figure":
        shown["data"] = base64.b64encode(png(c["figure"], 144)).decode("ascii")
    return shown


def _markdown_block(block: Block, beside: Path, figures: Path | None) -> list[str]:
    """The paragraphs of a block in Markdown."""
    c = block.content
    caption = [f"{c['caption']}\n"] if c.get("caption") else []
    if block.kind == "text":
        return [f"{paragraph}\n" for paragraph in c["paragraphs"]]
    if block.kind == "bullets":
        return ["\n".join(f"- {item}" for item in c["items"]) + "\n"]
    if block.kind == "note":
        return [f"> {c['text']}\n"]
    if block.kind == "numbers":
        return ["\n".join(f"- **{value}** {label}" for value, label in c["items"]) + "\n"]
    if block.kind == "code":
        return [*caption, f"```\n{c['text']}\n```\n"]
    if block.kind == "table":
        return [*caption, markdown_table(c["columns"], c["rows"])]
    if figures is None:
        return []
    file = save_png(c["figure"], figures / f"{c['name']}.png")
    return [f"![{c['alt']}]({os.path.relpath(file, beside)})\n", *caption]


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


def _is_numeric(cell: str) -> bool:
    return bool(re.fullmatch(r"[−+<>≤≥~≈±-]?\s*\d[\d,. ]*(e[-+]?\d+)?\s*(%|[\[(±].*)?|[–—-]|", cell.strip()))
