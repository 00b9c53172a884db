"""A study: a configuration, its cells, a function that runs one cell, and a page; the runner does the rest.

    def cells(config): return [Cell(f"coin-seed{k}", {"seed": k}) for k in range(config.seeds)]
    def run_cell(config, cell, folder): return {"heads": flip(config.flips, seed=cell["seed"])}
    def page(results): ...

    STUDY = Study("coin", "Is the coin fair?", CoinConfig, cells, run_cell, page)

`run_study` keeps a folder, runs the cells that have no result yet in one process or many, shows the time left, and goes
on where it was when it is started again. `Results` has one tidy table of all that was measured.
"""

from __future__ import annotations

import graphlib
import inspect
import math
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qhw_diffusion.config import Config
from qhw_diffusion.errors import (
    InvalidInputError,
    MemoryBudgetError,
    MissingDataError,
    MissingDependencyError,
    QhwError,
    RunFolderError,
    StudyError,
    UnknownNameError,
    UnsupportedCircuitError,
)
from qhw_diffusion.experiment.page import Page
from qhw_diffusion.experiment.statistics import Interval, PairedTest, mean_interval, paired_test, with_holm
from qhw_diffusion.experiment.workers import Work, open_workers
from qhw_diffusion.extensions import is_extension, load_extension, raised_text
from qhw_diffusion.runs import RunFolder, atomic_write_json, atomic_write_text, check_place, read_json
from qhw_diffusion.runs.folder import CONFIG, MANIFEST

if TYPE_CHECKING:
    import pandas as pd

C = TypeVar("C", bound=Config)
K = TypeVar("K", bound=Hashable)
CELLS, TABLE, PAGE = "cells", "table.csv", "report.html"

# What the functions of a study are called with
CALLED_WITH = {
    "cells": ("config",),
    "run": ("config", "cell", "folder"),
    "page": ("results",),
    "check": ("config",),
    "share_done": ("config", "cell", "folder"),
}

# What says that the settings cannot work, as opposed to an accident on the way.
REFUSALS = (InvalidInputError, UnknownNameError, UnsupportedCircuitError, MemoryBudgetError, MissingDataError,
            MissingDependencyError)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One piece of a study that is run as a whole, saved as one file, and never run again once that file is there.

    Attributes:
        name: unique in the study; the name of its file.
        parameters: what tells it from other cells (part, seed, device, …): columns of the table.
        needs: names of cells that must be finished before it.
        seconds: about how long it takes on one core, for the time left.
        label: name shown in progress messages; without it `name`.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    seconds: float = 1.0
    label: str = ""

    def __getitem__(self, parameter: str) -> Any:
        return self.parameters[parameter]


@dataclass(frozen=True)
class Study(Generic[C]):
    """What a study is made of. Everything in it is a function of the configuration or of results.

    Attributes:
        name: short name, as on the command line.
        title: heading of the page.
        config: class of the configuration.
        cells: configuration → all cells.
        run: (configuration, cell, folder of the study) → results of the cell: numbers by name, or under "rows" a list
            of these with further parameters (`row_parameters`) in each. Other JSON values are kept beside, out of the
            table. Files of its own (trained models, images) go into the folder.
        page: results → the page.
        summary: one line for the list of studies.
        row_parameters: names of entries in rows that are parameters.
        quick: a configuration that shows the whole study in a minute or so.
        demo: a configuration for some minutes, for `qhw demo`.
        demo_quick: one that shows the same in a minute, for `qhw demo --quick`; without it `quick`.
        check: raises what a cell would for settings that cannot work; called before there is a folder.
        share_done: (configuration, cell, folder) → share of a running cell that is done, 0 to 1, for the time left.
        no_flags: settings without a flag on the command line, as dotted names: those the study decides itself.
        flag_prefixes: nested configuration, as a dotted name → prefix of its flags.
        partial: whether the page can be made of a study that is not finished, and says what is missing: then
            `--report-only` takes one.
    """

    name: str
    title: str
    config: type[C]
    cells: Callable[[C], Sequence[Cell]]
    run: Callable[[C, Cell, Path], Mapping[str, Any]]
    page: Callable[[Results[C]], Page]
    summary: str = ""
    row_parameters: tuple[str, ...] = ()
    quick: C | None = None
    demo: C | None = None
    demo_quick: C | None = None
    check: Callable[[C], None] | None = None
    share_done: Callable[[C, Cell, Path], float] | None = None
    no_flags: tuple[str, ...] = ()
    flag_prefixes: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    source: str = field(default="", compare=False)
    """Where it was loaded from (``module:name`` or ``file.py:name``), so that other processes find it too."""

    def __post_init__(self) -> None:
        """Refuse what no runner could use.

        Raises:
            InvalidInputError: a configuration that is none, or a function that does not take what it will be given.
        """
        if not (inspect.isclass(self.config) and issubclass(self.config, Config)):
            raise InvalidInputError(
                f"study {self.name}: config is {getattr(self.config, '__name__', self.config)!r}; wanted: a frozen "
                "dataclass on qhw_diffusion.config.Config"
            )
        for name in ("quick", "demo", "demo_quick"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, self.config):
                raise InvalidInputError(
                    f"study {self.name}: {name} is a {type(given).__name__}; wanted: a {self.config.__name__}"
                )
        for name, arguments in CALLED_WITH.items():
            function = getattr(self, name)
            if function is not None and not _takes(function, len(arguments)):
                raise InvalidInputError(
                    f"study {self.name}: {name} is {getattr(function, '__name__', function)!r}, which cannot be called "
                    f"with ({', '.join(arguments)})"
                )

    @property
    def kind(self) -> str:
        """Kind of its run folder."""
        return f"study:{self.name}"

    def cells_of(self, config: C) -> dict[str, Cell]:
        """All cells by name.

        Raises:
            InvalidInputError: no cells, two of one name, a need that is no cell, or needs in a circle.
            StudyError: `cells` of a study of one's own fails.
        """
        with _told(self, "cells"):
            listed = list(self.cells(config))
        others = sorted({type(cell).__name__ for cell in listed if not isinstance(cell, Cell)})
        if others or not listed:
            given = f"a {others[0]}" if others else "none"
            raise InvalidInputError(f"study {self.name}: cells gave {given}; wanted: one Cell(name, …) or more")
        cells = {cell.name: cell for cell in listed}
        if len(cells) < len(listed):
            twice = next(cell.name for cell in listed if [other.name for other in listed].count(cell.name) > 1)
            raise InvalidInputError(f"study {self.name}: two cells have the same name, {twice!r}")
        for cell in cells.values():
            unknown = [name for name in cell.needs if name not in cells]
            if unknown or not cell.name or {"/", "\\"} & set(cell.name):
                raise InvalidInputError(f"study {self.name}: cell {cell.name!r} needs {unknown or 'a name without /'}")
        try:
            graphlib.TopologicalSorter({cell.name: cell.needs for cell in cells.values()}).prepare()
        except graphlib.CycleError as error:
            raise InvalidInputError(f"study {self.name}: cells need each other in a circle: {error.args[1]}") from error
        return cells


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as its signature tells."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # of C, without a signature to look at
        pass
    return True


@contextmanager
def _told(study: Study[Any], what: str, folder: Path | None = None) -> Iterator[None]:
    """Around a function of a study: an error of a user's own is told in a sentence, with its line; ours are defects."""
    try:
        yield
    except (QhwError, OSError, MemoryError):
        raise
    except Exception as error:
        if not is_extension(study.source):
            raise
        raise StudyError(f"study {study.name}: {what} raises {raised_text(error)}{_kept(folder)}") from error


def _kept(folder: Path | None) -> str:
    """What a message says of the cells that are finished; nothing where there are none."""
    if folder is None or not any((folder / CELLS).glob("*.json")):
        return ""
    return "; finished cells are kept: mend it, and the same command with --resume goes on"


def studies() -> dict[str, str]:
    """The studies of the package: name → where it is, one folder each in `qhw_diffusion.studies`."""
    here = Path(str(import_module("qhw_diffusion.studies").__file__)).parent
    folders = sorted(file.parent.name for file in here.glob("*/experiment.py"))
    return {name: f"qhw_diffusion.studies.{name}.experiment:STUDY" for name in folders}


def load_study(name: str) -> Study[Any]:
    """A study of the package by its name, or a study of one's own as ``module:name`` or ``file.py:name``.

    Raises:
        UnknownNameError: no such study in the package.
        InvalidInputError: what the text names is not there or is no `Study`.
    """
    own = is_extension(name)
    if not own and name not in studies():
        raise UnknownNameError.of("study", name, [*studies(), "module:name of a study of your own"])
    found = load_extension(name if own else studies()[name], what="study")
    if not isinstance(found, Study):
        raise InvalidInputError(f"study {name!r} is a {type(found).__name__}, not a qhw_diffusion.experiment.Study")
    return Study(**{**found.__dict__, "source": name})


def open_study(
    study: Study[C],
    path: str | os.PathLike[str],
    config: C,
    *,
    command: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """A new study folder, or with `resume` the one that is there, whose settings must be the ones given.

    Args:
        study: the study.
        path: folder; absent or empty unless `resume` or `overwrite`.
        config: its configuration.
        command: what the user typed, for the page.
        resume: go on with the study in the folder.
        overwrite: an earlier study of this kind gives way, once work has begun.

    Raises:
        RunFolderError: the folder is in use, missing, damaged, or holds a study with other settings.
        InvalidInputError: and other errors of `study.check`: settings that cannot work.
    """
    if not resume:
        check_place(path, kind=study.kind, overwrite=overwrite)  # first: the checks take some seconds
        _check(study, config)
        return RunFolder.create(path, kind=study.kind, config=config.to_dict(), command=command, overwrite=overwrite)
    run = reopen_study(study, path)
    run.require_settings(config.to_dict(), lambda stored: study.config.from_dict(stored).to_dict())
    return run


def reopen_study(study: Study[Any], path: str | os.PathLike[str]) -> RunFolder:
    """The folder of a study that was started before.

    Raises:
        RunFolderError: it is missing, damaged, holds something else, or was written before version 0.2.
    """
    manifest = Path(path) / MANIFEST
    if manifest.is_file() and read_json(manifest).get("kind") == f"{study.name}-study":
        raise RunFolderError(
            f"{path} holds a study of an earlier version, whose report stays as it is; this version cannot go on with "
            "it: give another folder, or use the version that wrote it"
        )
    return RunFolder.open(path, kind=study.kind)


def run_study(study: Study[C], run: RunFolder, *, workers: int = 1, backend: str = "loky") -> Results[C]:
    """Run all cells that have no result yet, and return all results.

    A study that was stopped goes on with what is missing. Ctrl-C lets running cells save what they can.

    Args:
        study: the study.
        run: its folder, from `open_study`.
        workers: processes side by side, one thread each; 1 runs everything in this process.
        backend: "loky" (processes of this machine), "ray[:address]" or "dask[:address]" (a cluster that sees the
            same folder); see `qhw_diffusion.experiment.workers`.

    Raises:
        WorkerError: a worker process was killed.
        KeyboardInterrupt: Ctrl-C; what is finished stays.
    """
    config = study.config.from_dict(run.config)
    cells = study.cells_of(config)
    folder = run.path.resolve()
    carried: Study[C] | str = study.source or study
    with _at_work(run), open_workers(workers, backend, folder=folder, title=study.name) as run_works:
        order = graphlib.TopologicalSorter({cell.name: cell.needs for cell in cells.values()})
        order.prepare()
        while order.is_active():
            level = [cells[name] for name in order.get_ready()]
            works = [
                Work(
                    cell.label or cell.name,
                    _do_cell,
                    (carried, str(folder), cell.name),
                    cell_file(folder, cell.name),
                    cell.seconds,
                    _share_done(study, config, cell, folder),
                )
                for cell in level
                if not cell_file(folder, cell.name).exists()
            ]
            run_works(works)
            order.done(*(cell.name for cell in level))
    results = load_results(study, run)
    write_table(results)
    return results


def write_table(results: Results[Any]) -> Path:
    """The tidy table of all that was measured, as CSV in the study's folder; returns the file."""
    return atomic_write_text(results.folder / TABLE, results.table.to_csv(index=False))


def cell_file(folder: Path, name: str) -> Path:
    """File of a cell's results."""
    return folder / CELLS / f"{name.replace(':', '-')}.json"


def cell_result(folder: Path, name: str) -> dict[str, Any]:
    """What a finished cell measured, for cells that need it."""
    return read_json(cell_file(folder, name))


class Results(Generic[C]):
    """All that a finished study measured.

    Attributes:
        study: the study.
        folder: its folder.
        config: its configuration.
        manifest: when, with what command and what versions it was started.
        cells: per cell, in order, what its function returned; "parameters" and "seconds" beside.
    """

    def __init__(
        self, study: Study[C], folder: Path, config: C, manifest: dict[str, Any], cells: dict[str, dict[str, Any]]
    ) -> None:
        self.study = study
        self.folder = folder
        self.config = config
        self.manifest = manifest
        self.cells = cells

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a row of results: the cell's name and parameters, the row's own, and its entries."""
        found = []
        for name, cell in self.cells.items():
            common = {"cell": name, **cell["parameters"]}
            alone = {key: value for key, value in cell.items() if key not in ("parameters", "rows", "cell")}
            if any(isinstance(value, int | float) for key, value in alone.items() if key != "seconds"):
                found.append({**common, **alone})
            found += [{**common, **row} for row in cell.get("rows", ())]
        return found

    @cached_property
    def table(self) -> pd.DataFrame:
        """The tidy table: one number a line, with columns for the cell, every parameter, "metric" and "value"."""
        import pandas as pd

        names = dict.fromkeys(key for cell in self.cells.values() for key in cell["parameters"])
        parameters = ["cell", *names, *(name for name in self.study.row_parameters if name not in names)]
        lines = [
            [*(row.get(name) for name in parameters), metric, float(value)]
            for row in self.rows
            for metric, value in row.items()
            if metric not in parameters and isinstance(value, int | float) and metric != "seconds"
        ]
        table = pd.DataFrame(lines, columns=[*parameters, "metric", "value"], dtype=object)
        return table.astype({"value": float})

    def values(self, metric: str, **where: Any) -> list[float]:
        """One number of each row that has these parameters (None: that lack it), in the order of the cells."""
        return [
            float(row[metric])
            for row in self.rows
            if metric in row and all(row.get(name) == wanted for name, wanted in where.items())
        ]

    def mean(self, metric: str, **where: Any) -> float:
        """Mean of `values`."""
        return self.interval(metric, **where).mean

    def interval(self, metric: str, **where: Any) -> Interval:
        """Mean and 95 % interval of `values`.

        Raises:
            InvalidInputError: there are none, or one is not finite.
        """
        values = self.values(metric, **where)
        if not values or not all(map(math.isfinite, values)):
            asked = f"{metric!r}{' where ' * bool(where)}{', '.join(f'{n} is {v!r}' for n, v in where.items())}"
            known = ", ".join(sorted(map(str, set(self.table.metric))))
            raise InvalidInputError(
                f"study {self.study.name}: {asked} is {values} in its cells; wanted: one finite number or more"
                if values
                else f"study {self.study.name}: no cell has a {asked}; measured are {known or 'no numbers'}, by "
                f"{', '.join(self.table.columns[1:-2])}"
            )
        return mean_interval(values)

    def tests(
        self, metric: str, variants: Mapping[K, Mapping[str, Any]], base: Mapping[str, Any]
    ) -> dict[K, PairedTest]:
        """Paired tests over seeds of variants against one base, corrected by Holm as one family.

        Args:
            metric: the number that is compared.
            variants: parameters of each variant's rows, by any name.
            base: parameters of the rows they are compared with.

        Returns:
            A test by name; nothing where there are less than two seeds.
        """
        reference = self.values(metric, **base)
        if len(reference) < 2:
            return {}
        return with_holm({name: paired_test(self.values(metric, **v), reference) for name, v in variants.items()})


def load_results(study: Study[C], run: RunFolder) -> Results[C]:
    """Results of a finished study; of one with `Study.partial` those that are there.

    Raises:
        RunFolderError: a cell that is needed has no result yet: start the study again to go on.
    """
    config = study.config.from_dict(run.config)
    names: Sequence[str] = list(study.cells_of(config))
    if study.partial:
        names = [name for name in names if cell_file(run.path, name).exists()]
    try:
        found = {name: read_json(cell_file(run.path, name)) for name in names}
    except FileNotFoundError as error:
        raise RunFolderError(f"{error.filename} is missing: start the study again to go on") from error
    return Results(study, run.path, config, run.manifest, found)


def write_page(results: Results[Any]) -> tuple[Page, Path]:
    """The study's page, with how to reproduce it, written into its folder as HTML; returns page and file.

    Raises:
        StudyError: `page` of a study of one's own fails, or returns something else.
    """
    with _told(results.study, "page", results.folder):
        page = results.study.page(results)
    if not isinstance(page, Page):
        raise StudyError(
            f"study {results.study.name}: page returned a {type(page).__name__}; wanted: a Page{_kept(results.folder)}"
        )
    page.title = page.title or results.study.title
    page.add_reproduction(results.manifest, results.config)
    return page, page.save(results.folder / PAGE)


def _do_cell(carried: Study[Any] | str, folder: str, name: str) -> float:
    """Run one cell, in whatever process, and write its file; returns the seconds it took."""
    import time

    study = load_study(carried) if isinstance(carried, str) else carried
    root = Path(folder)
    config = study.config.from_dict(read_json(root / CONFIG))
    cell = study.cells_of(config)[name]
    started = time.perf_counter()
    with _told(study, f"cell {name}", root):
        found = study.run(config, cell, root)
    seconds = time.perf_counter() - started
    if not isinstance(found, Mapping):
        raise StudyError(
            f"study {study.name}: cell {name} returned {type(found).__name__}; wanted: numbers by name{_kept(root)}"
        )
    if taken := {"parameters", *cell.parameters} & {*found, *(key for row in found.get("rows", ()) for key in row)}:
        raise StudyError(
            f"study {study.name}: cell {name} returned {', '.join(sorted(taken))}, which name parameters of the cell: "
            f"give the numbers other names{_kept(root)}"
        )
    result = {"parameters": dict(cell.parameters), **found, "seconds": found.get("seconds", seconds)}
    try:
        atomic_write_json(cell_file(root, name), result)
    except InvalidInputError as error:
        raise StudyError(
            f"study {study.name}: cell {name} returned what no file can hold; wanted: numbers by name, as Python's own "
            f"(float(x) of a tensor). {error}{_kept(root)}"
        ) from error
    return seconds


def _share_done(study: Study[C], config: C, cell: Cell, folder: Path) -> Callable[[], float] | None:
    share = study.share_done
    return None if share is None else lambda: share(config, cell, folder)


def _check(study: Study[C], config: C) -> None:
    study.cells_of(config)
    if study.check is not None:
        with _told(study, "check"):
            study.check(config)


@contextmanager
def _at_work(run: RunFolder) -> Iterator[None]:
    """Around all work of a study. A folder with a finished cell, or a checkpoint, stays when it is cut short.

    Where settings turn out not to work, it stays only if something has been trained: with the settings corrected, the
    rest is of no use and would be in the way.
    """
    with run:
        try:
            yield
        except BaseException as error:
            pattern = "**/model.safetensors" if isinstance(error, REFUSALS) else "**/*"
            if any(file.is_file() and file.name not in (CONFIG, MANIFEST) for file in run.path.glob(pattern)):
                run.begin()
            raise
