"""Pages of the documentation site that are not files of docs/, and links between all of them; a hook of mkdocs.

A page's place in the site is its place in the repository, that of docs/ being the top: README.md is the front page,
`notebooks/NAME.ipynb` the page `notebooks/NAME.md` with the outputs that are saved in it, `examples/NAME.py` the page
`examples/NAME.md`. The reference is made from the sources (mkdocstrings) and from the commands themselves, at every
build. Links are written for readers of the repository; here they are turned to the pages of the site.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import logging
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qhw_diffusion"
OF_THE_REPOSITORY = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
MODULES = ("config", "errors")
"""Modules that users meet outside the packages with a list of public names."""

log = logging.getLogger("mkdocs.plugins.docs_pages")

# code, which stays as it is, or a link or picture: text, target
_CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]+`|\[((?:[^][]|\[[^][]*\])*)\]\(([^()\s]+)\)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/ (called by mkdocs)."""
    pages: dict[str, str | bytes] = {name: (ROOT / name).read_bytes() for name in OF_THE_REPOSITORY}
    for folder in ("circuits", "calibration"):  # their READMEs and what these link to
        pages |= {f"{folder}/{file.name}": file.read_bytes() for file in sorted((ROOT / folder).iterdir())}
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages |= _notebook(file)
    pages |= _examples() | _reference()
    pages["reference/command-line.md"] = _command_line()
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository to pages of the site (called by mkdocs)."""
    here = page.file.src_uri
    of_docs = (Path(config.docs_dir) / here).is_file()
    folder = posixpath.dirname(f"docs/{here}" if of_docs else here)

    def turned(found: re.Match[str]) -> str:
        text, link = found[1], found[2]
        if link is None or re.match(r"[a-z]+:|#", link):
            return found[0]
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(folder, path))
        uri = _uri(target)
        if files.get_file_from_path(uri) is None:
            if not (ROOT / target).exists():
                log.warning("%s links to %s, which is not in the repository", here, link)
            return text if target in text else f"{text} (`{target}`)"  # nothing of the site: say where it is
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here))}{'#' * bool(anchor)}{anchor})"

    return _CODE_OR_LINK.sub(turned, markdown)


def _uri(target: str) -> str:
    """The place in the site of a file or folder of the repository."""
    if (ROOT / target).is_dir():
        return f"{target}/README.md"
    if target.startswith(("examples/", "notebooks/")):
        return re.sub(r"\.(py|ipynb)$", ".md", target)
    return target.removeprefix("docs/")


# -- notebooks and examples --------------------------------------------------------------------------------------------


def _notebook(file: Path) -> dict[str, str | bytes]:
    """A notebook with its saved outputs as a page, and its pictures."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = base64.b64decode("".join(data["image/png"]))
                if picture in pictures.values():  # a figure that is returned and shown
                    continue
                name = f"{file.stem}-{len(pictures) + 1}.png"
                pictures[f"notebooks/{name}"] = picture
                parts.append(f"![What the code above draws]({name})")
            else:
                parts.append(f"```text\n{''.join(output.get('text') or data['text/plain']).rstrip()}\n```")
    where = f"\n\nThis page is `notebooks/{file.name}`, with its outputs; Jupyter runs it.\n"
    title, _, rest = parts[0].partition("\n")
    return {f"notebooks/{file.stem}.md": "\n\n".join([title + where + rest, *parts[1:]]), **pictures}


def _examples() -> dict[str, str]:
    pages, lines = {}, ["# Examples", "", "Whole scripts, each of some seconds.", "", "| file | |", "| --- | --- |"]
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        pages[f"examples/{file.stem}.md"] = f"# `{file.name}`\n\n```python\n{source}```\n"
        lines.append(f"| [`{file.name}`]({file.name}) | {_first_line(ast.parse(source))} |")
    return {**pages, "examples/README.md": "\n".join(lines)}


# -- reference ---------------------------------------------------------------------------------------------------------


def _reference() -> dict[str, str]:
    """A page for every package that lists its public names, and an overview."""
    pages, rows = {}, []
    for name, tree in _public_modules():
        module = f"qhw_diffusion.{name}"
        files = {file.stem for file in (PACKAGE / name.replace(".", "/")).glob("*.py")}
        members = [member for member in _listed(tree) if member not in files]
        parts = [f"# `{module}`", f"::: {module}" + _options(members=members) * bool(members)]
        for member in sorted(files.intersection(_listed(tree))):  # a module, or what a module of its name holds
            path = f"{module}.{member}"
            if (path, member) in _imported(tree):
                path = f"{path}.{member}"
            parts.append(f"::: {path}" + _options(show_root_heading=True, show_root_toc_entry=True))
        pages[f"reference/{name}.md"] = "\n\n".join(parts)
        rows.append(f"| [`{name}`]({name}.md) | {_first_line(tree)} |")
    top = _assigned(PACKAGE / "__init__.py", "_PUBLIC")
    names = [f"[`{name}`][{module}.{attribute}]" for name, (module, attribute) in top.items() if attribute]
    modules = [f"`{name}`" for name, (_, attribute) in top.items() if attribute is None]
    overview = [
        "# Python",
        "",
        f"`import qhw_diffusion as qhw` gives {', '.join(names)} and the packages {', '.join(modules)}.",
        "",
        "| of `qhw_diffusion` | |",
        "| --- | --- |",
        *rows,
    ]
    return {**pages, "reference/README.md": "\n".join(overview)}


def _options(**options: Any) -> str:
    """Options of mkdocstrings below a `:::`."""
    return "\n    options:" + "".join(f"\n      {key}: {json.dumps(value)}" for key, value in options.items())


def _public_modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.glob("*/**/__init__.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        name = ".".join(file.parent.relative_to(PACKAGE).parts)
        if name != "cli" and _listed(tree):
            yield name, tree
    for name in MODULES:
        yield name, ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def _listed(tree: ast.Module) -> list[str]:
    """The names in `__all__`; empty where there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)  # type: ignore[no-any-return]
    return []


def _imported(tree: ast.Module) -> set[tuple[str | None, str]]:
    """(module, name) of every name that is imported from a module."""
    return {(n.module, name.name) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for name in n.names}


def _assigned(file: Path, name: str) -> Any:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name and node.value is not None:
            return ast.literal_eval(node.value)
    raise LookupError(f"{file}: no {name}")


def _first_line(tree: ast.Module) -> str:
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _command_line() -> str:
    """Every command with its description and flags, asked of the commands themselves."""
    sys.path.insert(0, str(ROOT))
    from docstring_parser import parse

    from qhw_diffusion.cli.app import COMMANDS
    from qhw_diffusion.cli.flags import flags_of

    parts = [
        "# Command line",
        "`qhw COMMAND --help` prints the same. A flag whose default is yes or no has a second form that says the "
        "opposite: `--resume`, `--no-resume`. In capital letters: an argument.",
    ]
    for path, (summary, target) in COMMANDS.items():
        module, _, name = str(target).partition(":")
        function = getattr(importlib.import_module(module), name)
        function = getattr(function, "function", lambda found=function: found)()  # of a study: the one it makes
        told = parse(function.__doc__ or "")
        parts.append(f"## qhw {' '.join(path)}")
        parts.append(summary[:1].upper() + summary[1:] + "." if summary else f"{told.short_description}")
        if told.long_description:
            parts.append(told.long_description)
        rows = [
            f"| `{flag.name}` | {_cell(flag.help)} | {_cell(f'`{flag.default}`' if flag.default else '')} |"
            for flag in flags_of(function)
        ]
        parts.append("\n".join(["| flag | | default |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    """A text in a table: a line; signs of Markdown and HTML in it are themselves, but for code."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"`[^`]*`|[<*_[]", lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", text)
