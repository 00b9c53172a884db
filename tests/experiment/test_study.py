"""The runner of studies: cells, table, resume, workers of every backend, accidents; with a study in one file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from qhw_diffusion.errors import InvalidInputError, RunFolderError, StudyError, UnknownNameError, WorkerError
from qhw_diffusion.experiment import Cell, Results, Study, load_results, load_study, open_study, run_study, write_page
from qhw_diffusion.experiment.command import plan_text, study_command
from qhw_diffusion.experiment.study import cell_file
from qhw_diffusion.experiment.workers import _guarded, check_backend
from qhw_diffusion.runs import RunFolder

COIN = str(Path(__file__).with_name("coin.py"))
STUDY: Study = load_study(f"{COIN}:STUDY")
CONFIG = STUDY.config()


def run(path: Path, *, workers: int = 1, backend: str = "loky", resume: bool = False, **changes: object) -> Results:
    config = CONFIG.replace(**changes)
    return run_study(STUDY, open_study(STUDY, path, config, resume=resume), workers=workers, backend=backend)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tmp_path_factory.mktemp("coin") / "run")


def test_the_table_holds_every_number_once(results: Results) -> None:
    table = pd.read_csv(results.folder / "table.csv")
    assert list(table.columns) == ["cell", "part", "coin", "seed", "throws", "metric", "value"]
    assert len(table[table.metric == "share"]) == 2 * 4 * 2
    chosen = table[(table.coin == "bent") & (table.throws == 100) & (table.metric == "share")]
    assert results.values("share", coin="bent", throws=100) == pytest.approx(list(chosen.value))
    assert results.values("chance", coin="fair") == [0.5] * 4
    assert results.values("chance", coin="fair", throws=None) == [0.5] * 4  # belongs to no number of throws
    assert set(table.metric) == {"share", "chance", "pid"}  # words are kept beside, not in the table
    assert results.cells["fair-seed0"]["first"] in ("heads", "tails")


def test_variants_are_compared_seed_by_seed(results: Results) -> None:
    tests = results.tests("share", {"bent": {"coin": "bent", "throws": 100}}, {"coin": "fair", "throws": 100})
    bent, fair = (results.values("share", coin=coin, throws=100) for coin in ("bent", "fair"))
    mean = sum(b - f for b, f in zip(bent, fair, strict=True)) / 4
    assert tests["bent"].difference.mean == pytest.approx(mean)
    assert results.interval("share", coin="bent", throws=100).n == 4


def test_a_worker_that_keeps_what_it_loaded_is_not_taken_for_leaking() -> None:
    from joblib.externals.loky import process_executor

    before = process_executor._MAX_MEMORY_LEAK_SIZE  # what loky compares a worker's growth with
    try:
        assert _guarded("", int, (), "no such file") == ("done", None)
        assert before < 1e9 < process_executor._MAX_MEMORY_LEAK_SIZE
    finally:
        process_executor._MAX_MEMORY_LEAK_SIZE = before


def test_a_worker_computes_with_one_thread_whenever_torch_is_loaded() -> None:
    """And loads no torch where the work needs none."""
    torch.set_num_threads(2)
    assert _guarded("", int, (), "no such file") == ("done", None)
    assert torch.get_num_threads() == 1
    code = (
        "import sys; from qhw_diffusion.experiment.workers import _guarded\n"
        "def work():\n"
        "    assert 'torch' not in sys.modules\n"
        "    import torch\n"
        "    assert torch.get_num_threads() == 1, torch.get_num_threads()\n"
        "assert _guarded('', work, (), 'no such file') == ('done', None)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_stopped_study_does_only_what_is_left(tmp_path: Path, results: Results) -> None:
    first = run(tmp_path / "run")
    kept, again = (cell_file(first.folder, name) for name in ("bent-seed0", "bent-seed2"))
    untouched = kept.stat().st_mtime_ns
    again.unlink()
    with pytest.raises(RunFolderError, match="bent-seed2"):
        load_results(STUDY, RunFolder.open(first.folder, kind=STUDY.kind))
    second = run(tmp_path / "run", resume=True)
    assert second.values("share") == results.values("share")
    assert kept.stat().st_mtime_ns == untouched
    with pytest.raises(RunFolderError, match="flips"):
        run(tmp_path / "run", resume=True, flips=7)
    with pytest.raises(RunFolderError, match="resume"):
        run(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
@pytest.mark.filterwarnings("ignore")  # of the clusters' own start and end
def test_every_backend_gives_the_same_table(tmp_path: Path, results: Results, backend: str) -> None:
    if backend != "loky":
        pytest.importorskip("distributed" if backend == "dask" else "ray")
    found = run(tmp_path / "run", workers=2, backend=backend)
    numbers = ("share", "chance")
    same = [table[table.metric.isin(numbers)].reset_index(drop=True) for table in (found.table, results.table)]
    pd.testing.assert_frame_equal(*same)
    assert os.getpid() not in found.values("pid")
    assert not (found.folder / ".stop").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_error_in_another_process_comes_back_and_nothing_finished_is_lost(tmp_path: Path, results: Results) -> None:
    told = r"cell fair-seed1 raises ZeroDivisionError: .* rolled away \(coin.py, line \d+\); finished cells are kept"
    with pytest.raises(StudyError, match=told) as caught:
        run(tmp_path / "run", workers=2, accident="fail")
    assert any("seed1, in a worker" in note for note in caught.value.__notes__)
    with pytest.raises(InvalidInputError, match="one side"):
        run(tmp_path / "other", workers=2, accident="refuse")
    assert cell_file(tmp_path / "run", "mint").exists()
    again = run(tmp_path / "run", workers=2, resume=True, accident="fail")
    assert again.values("share") == results.values("share")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_one_sentence_and_the_study_goes_on(tmp_path: Path, results: Results) -> None:
    with pytest.raises(WorkerError, match=r"killed.*seed.*--resume"):
        run(tmp_path / "run", workers=2, accident="kill")
    again = run(tmp_path / "run", workers=2, resume=True, accident="kill")
    assert again.values("share") == results.values("share")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_dask_worker_is_replaced_and_its_cell_run_again(tmp_path: Path, results: Results) -> None:
    pytest.importorskip("distributed")
    found = run(tmp_path / "run", workers=2, backend="dask", accident="kill")
    assert found.values("share") == results.values("share")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("how", "workers"), [("signal", 2), ("file", 2), ("file", 1)])
def test_an_interrupt_lets_running_cells_save_and_starts_no_more(tmp_path: Path, how: str, workers: int) -> None:
    folder = tmp_path / "run"

    def interrupt() -> None:
        while not (folder / "waiting").exists():
            time.sleep(0.02)
        if how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            (folder / ".stop").touch()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(folder, workers=workers, accident="wait", seeds=2)
    thread.join()
    assert (folder / "saved").exists()
    found = run(folder, workers=workers, resume=True, accident="wait", seeds=2)
    assert len(found.values("share", throws=100)) == 4


def test_the_command_prints_findings_and_writes_both_pages(tmp_path: Path) -> None:
    told = study_command(STUDY, CONFIG, tmp_path / "run", command="qhw study coin", markdown=tmp_path / "p.md")
    assert "· Heads: 0." in told
    text = (tmp_path / "p.md").read_text()
    assert text.startswith("# Is the coin fair?\n")
    assert "| flips | 100 | Throws of a seed. |" in text
    assert "qhw study coin" in (tmp_path / "run" / "report.html").read_text()
    again = study_command(STUDY, CONFIG, tmp_path / "run", report_only=True)
    assert again.splitlines()[1] == told.splitlines()[1]
    plan = plan_text(STUDY, CONFIG, workers=2)
    assert "all" in plan
    assert f"{9:>8}" in plan.splitlines()[-2]


def test_a_study_carried_as_an_object_needs_no_source(tmp_path: Path, results: Results) -> None:
    own = replace(STUDY, source="", name="own")
    found = run_study(own, open_study(own, tmp_path / "run", CONFIG))
    assert found.values("share") == results.values("share")
    assert write_page(found)[1].is_file()


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([Cell("b"), Cell("a"), Cell("a")], "same name, 'a'"),
        ([("a", {"seed": 0})], r"gave a tuple; wanted: one Cell\(name"),
        ([], "gave none"),
        ([Cell("a", needs=("b",))], "needs"),
        ([Cell("a", needs=("b",)), Cell("b", needs=("a",))], "circle"),
        ([Cell("a/b")], "without /"),
    ],
)
def test_cells_that_cannot_be_run_are_told_before_there_is_a_folder(
    tmp_path: Path, cells: list[Cell], words: str
) -> None:
    wrong = replace(STUDY, cells=lambda config: cells)
    with pytest.raises(InvalidInputError, match=words):
        open_study(wrong, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_what_is_no_study_and_what_returns_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is a int, not a"):
        load_study(f"{COIN}:NOT_A_STUDY")
    with pytest.raises(UnknownNameError, match="shots"):
        load_study("shot")
    wrong = replace(STUDY, source="", run=lambda config, cell, folder: 3)
    with pytest.raises(StudyError, match=r"cell mint returned int; wanted: numbers by name$"):
        run_study(wrong, open_study(wrong, tmp_path / "run", CONFIG))
    for taken in ({"parameters": 3}, {"rows": [{"part": 1.0}]}):
        clash = replace(wrong, run=lambda config, cell, folder, found=taken: found)
        with pytest.raises(StudyError, match=r"cell mint returned .*, which name parameters of the cell"):
            run_study(clash, open_study(clash, tmp_path / next(iter(taken)), CONFIG))
    for text in ("loky:host", "slurm", ""):
        with pytest.raises(UnknownNameError, match="backend"):
            check_backend(text)
    with pytest.raises(InvalidInputError, match="workers"):
        run(tmp_path / "other", workers=0)


def test_a_folder_of_the_version_before_is_refused_by_name(tmp_path: Path) -> None:
    old = RunFolder.create(tmp_path / "old", kind="coin-study", config={})
    old.begin()
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    assert manifest["kind"] == "coin-study"
    with pytest.raises(RunFolderError, match="earlier version"):
        run(tmp_path / "old", resume=True)


@pytest.mark.slow
def test_studies_of_the_package_are_found_without_importing_them() -> None:
    code = (
        "import sys; from qhw_diffusion.experiment import studies; names = list(studies());"
        "assert 'shots' in names; assert not any(m.startswith('qhw_diffusion.studies.shots') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


OWN = """
from dataclasses import dataclass
from qhw_diffusion.config import Config
from qhw_diffusion.experiment import Cell, Page, Study

@dataclass(frozen=True)
class OwnConfig(Config):
    \"\"\"Own.\"\"\"

    seeds: int = 3
    \"\"\"Seeds.\"\"\"

def cells(config):
    return [Cell(f"s{k}", {"seed": k}) for k in range(config.seeds)]

def run(config, cell, folder):
    return {"height": 1.0 * cell["seed"]}

def page(results):
    return Page(findings=[results.interval("height").format()])

STUDY = Study("own", "Own", OwnConfig, cells, run, page)
"""


@pytest.mark.parametrize(
    ("right", "wrong", "words", "finished"),
    [
        ("range(config.seeds)", "range(config.sed)", r"cells raises AttributeError: .*'sed' \(own.py, line 14\)$", 0),
        ("1.0 *", '1 / (cell["seed"] != 1) *',
         r"cell s1 raises ZeroDivisionError: .*\(own.py, line 17\); finished cells are kept: .*--resume", 1),
        ('1.0 * cell["seed"]', 'cell["sead"]', r"cell s0 raises KeyError: 'sead' \(own.py, line 17\)$", 0),
        ('1.0 * cell["seed"]', "{1}", r"cell s0 returned what no file can hold; wanted: numbers by name", 0),
        ('results.interval("height")', "results.hight", r"page raises AttributeError: .*\(own.py, line 20\); fin", 3),
        ("return Page(", "return dict(", "page returned a dict; wanted: a Page; finished cells are kept", 3),
        ('"height")', '"hight", seed=1)', "no cell has a 'hight' where seed is 1; measured are height, by seed", 3),
        ('"height")', '"height", seed=7)', "no cell has a 'height' where seed is 7; measured", 3),
        ("(config, cell, folder)", "(config, cell)", r"run is 'run', which cannot be called with \(config, cell, f", 0),
        ("def cells(config)", "def cells()", r"cells is 'cells', which cannot be called with \(config\)", 0),
        ("OwnConfig(Config)", "OwnConfig", "config is 'OwnConfig'; wanted: a frozen dataclass on qhw_diffusion", 0),
        ("run, page)", "run, page, quick=3)", "quick is a int; wanted: a OwnConfig", 0),
    ],
)  # fmt: skip
def test_a_mistake_in_a_study_of_ones_own_is_a_sentence_and_mended_it_goes_on(
    tmp_path: Path, right: str, wrong: str, words: str, finished: int
) -> None:
    def command(text: str, name: str, *, resume: bool = False) -> str:
        (tmp_path / name).write_text(text)
        own = load_study(f"{tmp_path / name}:STUDY")
        return study_command(own, own.config(), tmp_path / "run", resume=resume)

    assert OWN.count(right) == 1
    with pytest.raises((InvalidInputError, StudyError), match=words):
        command(OWN.replace(right, wrong), "own.py")
    assert len(list((tmp_path / "run").glob("cells/*.json"))) == finished
    assert (tmp_path / "run").exists() == bool(finished)
    assert "1.00 [" in command(OWN, "mended.py", resume=bool(finished))


def test_an_interval_of_what_is_no_number_names_it(tmp_path: Path) -> None:
    wrong = replace(STUDY, source="", run=lambda config, cell, folder: {"height": float("nan")})
    found = run_study(wrong, open_study(wrong, tmp_path / "run", CONFIG))
    with pytest.raises(InvalidInputError, match=r"'height' where seed is 1 is \[nan, nan\] in its cells; wanted"):
        found.interval("height", seed=1)


def test_an_error_of_a_study_in_python_is_the_error_itself(tmp_path: Path) -> None:
    def fails(config: object, cell: Cell, folder: Path) -> dict[str, float]:
        raise ZeroDivisionError("in the script that runs")

    wrong = replace(STUDY, source="", run=fails)
    with pytest.raises(ZeroDivisionError, match="in the script"):
        run_study(wrong, open_study(wrong, tmp_path / "run", CONFIG))
