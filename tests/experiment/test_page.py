from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment.page import Page as Report
from qhw_diffusion.experiment.page import markdown_table

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every tag that opens closes in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def page(tmp_path: Path) -> tuple[Page, str]:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0])
    report = Report("Guidance <study>", subtitle="A & B")
    section = report.section("Results & more")
    section.text("It is `qhw demo` and **nobody won** <script>alert(1)</script>").bullets(["one", "two"])
    section.note("careful", "caution").numbers([("0.68", "FD")])
    section.table(["who", "FD"], [["quantum", "0.68 [0.61, 0.75]"], ["x", "1.2"]], caption="c", emphasised=[0])
    section.figure(figure, alt='a "falling" line', caption="Falling").code("qhw demo --out <dir>")
    report.section("Results & more").text("second of the same name")
    file = report.save(tmp_path / "deep" / "report.html")
    html = file.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(html)
    assert parsed.stack == []
    return parsed, html


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page: tuple[Page, str]) -> None:
    parsed, html = page
    assert not any(tag in ("script", "link", "iframe") for tag, _ in parsed.tags)
    for tag, attributes in parsed.tags:
        for name in ("src", "href"):
            if name in attributes:
                assert str(attributes[name]).startswith(("data:image/png;base64,iVBOR", "#")), tag
    assert "http" not in html
    assert "url(" not in html


def test_text_is_escaped_and_marked_up(page: tuple[Page, str]) -> None:
    parsed, html = page
    assert "<code>qhw demo</code> and <strong>nobody won</strong> &lt;script&gt;" in html
    assert "qhw demo --out &lt;dir&gt;" in html
    assert "Guidance &lt;study&gt;" in html
    assert "alert(1)" in parsed.words


def test_every_image_has_an_alt_text_and_every_link_a_target(page: tuple[Page, str]) -> None:
    parsed, _ = page
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["alt"] for image in images] == ['a "falling" line']
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert ids == ["results-more", "results-more-2"]
    assert [attributes["href"] for tag, attributes in parsed.tags if tag == "a"] == [f"#{name}" for name in ids]


def test_numeric_columns_are_aligned_and_rows_emphasised(page: tuple[Page, str]) -> None:
    _, html = page
    assert '<th scope="col" class="n">FD</th>' in html
    assert '<th scope="col">who</th>' in html
    assert html.count('<tr class="strong">') == 1


def test_dark_and_light_are_both_styled(page: tuple[Page, str]) -> None:
    assert "prefers-color-scheme: dark" in page[1]


def test_bad_blocks_are_refused() -> None:
    section = Report("t").section("s")
    with pytest.raises(InvalidInputError, match="alt text"):
        section.figure(Figure(), alt=" ")
    with pytest.raises(InvalidInputError, match="row 0 has 1 cells for 2"):
        section.table(["a", "b"], [["x"]])
    with pytest.raises(InvalidInputError, match="tone"):
        section.note("x", "purple")  # type: ignore[arg-type]


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [[1, "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"
