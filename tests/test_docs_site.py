"""The menu of the documentation site (`make docs`) has every page of docs/ and every package with public names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MENU = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_page_is_in_the_menu_once() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(MENU) == len(set(MENU))
    assert pages == {page for page in MENU if "/" not in page} - {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    }
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {page for page in MENU if page.startswith("notebooks/")}


def test_every_public_package_has_a_page_of_reference() -> None:
    package = ROOT / "qhw_diffusion"
    public = {
        ".".join(path.parent.relative_to(package).parts)
        for path in package.glob("*/**/__init__.py")
        if re.search(r"^__all__ = \[", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(public) > 10
    pages = {page.removeprefix("reference/").removesuffix(".md") for page in MENU if page.startswith("reference/")}
    assert pages == public - {"cli"} | {"command-line", "README", "config", "errors"}
