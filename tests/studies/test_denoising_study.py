"""A whole denoising study: autoencoder, trainings, evaluations, results, resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit.quantum_info import hellinger_fidelity
from scipy import stats

from qhw_diffusion.denoising import ReverseProcess
from qhw_diffusion.diffusion import evaluate_samples
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies import denoising_work as work
from qhw_diffusion.studies.denoising_settings import CONTROLS, DenoisingStudyConfig
from qhw_diffusion.studies.denoising_study import (
    DenoisingResults,
    load_denoising_results,
    open_denoising_study,
    run_denoising_study,
    write_denoising_summary,
)


@pytest.fixture(scope="module")
def config(tiny_denoising: RunFolder) -> DenoisingStudyConfig:
    return DenoisingStudyConfig.from_dict(tiny_denoising.config)


@pytest.fixture(scope="module")
def results(tiny_denoising: RunFolder) -> DenoisingResults:
    return load_denoising_results(tiny_denoising)


@pytest.mark.slow
def test_every_row_has_every_seed(results: DenoisingResults) -> None:
    assert set(CONTROLS) < set(results.rows)
    assert {"noise@noisy", "feedforward@noisy", "postselected@noisy-shots"} < set(results.rows)
    assert not any(row.startswith("measured") for row in results.rows)
    for row, entries in results.rows.items():
        assert [entry["seed"] for entry in entries] == [0, 1]
        for metric in ("fd", "accuracy", "diversity", "infidelity", "visible"):
            assert np.all(np.isfinite(results.values(row, metric))), (row, metric)
        selected = row.startswith(("postselected", "noise", "frozen", "linear", "contraction"))
        assert bool(results.values(row, "success")) == selected
    assert len(results.floor["real"]) == len(results.floor["encoded"]) == 2


@pytest.mark.slow
def test_the_kept_images_are_those_that_were_measured(tiny_denoising: RunFolder, results: DenoisingResults) -> None:
    here = work.Context(tiny_denoising.path)
    for row in ("postselected@noisy-shots", "feedforward", "linear"):
        kept = work.read_samples(tiny_denoising.path, row, 1)
        assert kept["images"].shape == (40, 1, 8, 8)
        assert kept["labels"].tolist() == [k % 3 for k in range(40)]
        asked = torch.tensor([1, 0, 7])[kept["labels"]]
        again = evaluate_samples(kept["images"], asked, here.judge, work._original(here))
        assert again["fd"] == pytest.approx(results.rows[row][1]["fd"], rel=0.05)  # kept in 8 bits
        assert again["accuracy"] == pytest.approx(results.rows[row][1]["accuracy"], abs=0.051)
    path = work.read_samples(tiny_denoising.path, "postselected", 0)["path"]
    assert path.shape == (3, 3, 1, 8, 8)  # t = 2, 1, 0 for three labels
    first = results.rows["postselected"][0]
    for name, metric in (("infidelity_by_step", "infidelity"), ("visible_by_step", "visible")):
        assert len(first[name]) == 3
        assert first[name][-1] == pytest.approx(first[metric], rel=1e-4)  # at t = 0 it is that of the table


@pytest.mark.slow
def test_visible_infidelity_is_that_of_the_average_probabilities(tiny_denoising: RunFolder) -> None:
    here = work.Context(tiny_denoising.path)
    model, labels = here.model("postselected", 0), here.train.labels
    exact = model.encode(here.train.images).abs().square()
    assert work._visible_infidelity(here, model, exact, labels) == pytest.approx(0, abs=1e-6)
    p = torch.rand(len(labels), 8, generator=torch.Generator().manual_seed(0))
    p /= p.sum(1, keepdim=True)
    found = work._visible_infidelity(here, model, p, labels)
    wanted = [
        1 - hellinger_fidelity(*(dict(enumerate(x[labels == y].double().mean(0).tolist())) for x in (p, exact)))
        for y in range(3)
    ]
    assert found == pytest.approx(sum(wanted) / 3, abs=1e-6)


@pytest.mark.slow
def test_controls_are_what_closed_forms_say(results: DenoisingResults) -> None:
    d = 2**results.config.latent_qubits
    # rank 1 is the projector on one state per label: success 1/d from Haar-random starts, and no diversity
    assert results.values("linear1", "success") == pytest.approx([1 / d, 1 / d])
    assert results.values("linear1", "diversity") == pytest.approx([0, 0], abs=1e-4)
    assert min(results.values("bypass", "diversity")) > 0.1
    shots = results.config.shots
    for entry in results.rows["postselected@shots"]:
        assert entry["kept_shots"] == pytest.approx(shots * entry["success"], rel=0.05)
    for entry in results.rows["feedforward@shots"]:
        assert 0 < entry["record"] < 1
        assert entry["success"] is None
        assert entry["kept_shots"] == pytest.approx(shots * entry["record"], rel=0.05)
    parameters = {row: entries[0].get("parameters") for row, entries in results.rows.items()}
    assert parameters["contraction"] == 2 * 3 * d * d
    assert parameters["classical"] <= parameters["postselected"] == parameters["frozen"]
    # without noise, readout changes nothing: the exact and the counted rows share their states
    for exact, counted in zip(results.rows["postselected"], results.rows["postselected@shots"], strict=True):
        assert exact["infidelity"] == pytest.approx(counted["infidelity"], rel=1e-5)
        assert exact["success"] == pytest.approx(counted["success"], rel=1e-5)


@pytest.mark.slow
def test_paired_tests_are_those_of_scipy(results: DenoisingResults) -> None:
    tests = results.tests("fd", "linear")
    assert set(tests) == set(results.rows) - {"linear"}
    expected = stats.ttest_rel(results.values("bypass", "fd"), results.values("linear", "fd")).pvalue
    assert tests["bypass"].t_p == pytest.approx(expected)
    assert all(test.p_holm >= test.t_p for test in tests.values())
    saved = json.loads(write_denoising_summary(results).read_text())
    assert saved["rows"]["bypass"]["fd"]["mean"] == pytest.approx(np.mean(results.values("bypass", "fd")))
    assert set(saved["rows"]) == set(results.rows)


@pytest.mark.slow
def test_nothing_is_done_twice_and_a_missing_piece_alone_is_redone(
    tiny_denoising: RunFolder, config: DenoisingStudyConfig, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tiny_denoising.path, root)
    lost = work.evaluation_file(root, "feedforward", 1)
    content = lost.read_text()
    model = work.training_folder(root, "postselected", 0) / "model"
    weights = (model / "model.safetensors").read_bytes()
    shutil.rmtree(model)
    lost.unlink()
    with pytest.raises(RunFolderError, match="start the study again"):
        load_denoising_results(RunFolder.open(root, kind=work.KIND))
    before = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}
    run_denoising_study(open_denoising_study(root, config, resume=True), workers=1)
    assert lost.read_text() == content
    assert (model / "model.safetensors").read_bytes() == weights
    changed = {f for f, when in before.items() if f.stat().st_mtime_ns != when}
    assert all(f == lost.with_suffix(".safetensors") or "postselected-seed0" in str(f) for f in changed)
    again = {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}
    run_denoising_study(open_denoising_study(root, config, resume=True), workers=1)
    assert {f: f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()} == again


@pytest.mark.slow
def test_other_settings_are_refused(tiny_denoising: RunFolder, config: DenoisingStudyConfig) -> None:
    with pytest.raises(RunFolderError, match="depth"):
        open_denoising_study(tiny_denoising.path, replace(config, depth=3), resume=True)
    with pytest.raises(RunFolderError, match="not an empty folder"):
        open_denoising_study(tiny_denoising.path, config)
    with pytest.raises(InvalidInputError, match="workers"):
        run_denoising_study(tiny_denoising, workers=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("measured",)}, "postselected"),
        ({"arms": ("postselected", "noize")}, "allowed"),
        ({"classes": (3,)}, "two or more"),
        ({"classes": (3, 3)}, "different labels"),
        ({"classes": (3, 10)}, "0 to 9"),
        ({"eval_images": 5}, "20 or more"),
        ({"arms": ("postselected", "reconstruction"), "latent_qubits": 4}, "three qubits"),
        ({"arms": ("postselected", "reconstruction"), "classes": (0, 1)}, "ten classes"),
    ],
)
def test_settings_that_make_no_study(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DenoisingStudyConfig(**change)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    config = DenoisingStudyConfig(classes=(1, 2), kernels=(0.5,))
    assert DenoisingStudyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InvalidInputError, match="allowed entries"):
        DenoisingStudyConfig.from_dict({"epochs": 3})


def test_the_reconstruction_has_the_published_number_of_circuit_parameters() -> None:
    config = DenoisingStudyConfig(arms=("postselected", "reconstruction"))
    process = ReverseProcess(config.reverse("reconstruction", 3, 3))
    assert (process.n_circuit_parameters, process.config.seed) == (1110, 3)
    assert "reconstruction" in config.rows()
