"""The shots study, as small as it can be: closed forms, costs, resume, bad settings, report."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SparsePauliOp, Statevector

from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies import shots_work as work
from qhw_diffusion.studies import subjects
from qhw_diffusion.studies.device_studies_cli import COMMANDS
from qhw_diffusion.studies.pages import Part, Plot, Table, write_markdown, write_report
from qhw_diffusion.studies.shots_report import parts_of, subtitle, verdict
from qhw_diffusion.studies.shots_settings import ShotsStudyConfig, arm_label
from qhw_diffusion.studies.shots_study import (
    ShotsResults,
    fewest,
    load_shots_results,
    open_shots_study,
    pieces_of,
    run_shots_study,
)
from qhw_diffusion.studies.statistics import Interval
from qhw_diffusion.studies.subjects import SubjectsConfig

SUBJECTS = SubjectsConfig(
    device="fake_manila",
    n_steps=2,
    spacing="trailing",
    updates=1,
    num_envs=20,
    epochs=1,
    minibatches=2,
    starts=40,
    denoiser_iterations=2,
    autoencoder_steps=30,
    eval_images=40,
    seeds=2,
)
TINY = ShotsStudyConfig(
    subjects=SUBJECTS, shots=(64, 4096), states=8, repeats=60, gradient_repeats=40, learn_shots=(4,), other_shots=(4,)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = open_shots_study(tmp_path_factory.mktemp("shots") / "run", TINY, command="qhw study shots …")
    run_shots_study(folder)
    return folder


@pytest.fixture(scope="module")
def results(run: RunFolder) -> ShotsResults:
    return load_shots_results(run)


@pytest.mark.slow
def test_scatter_of_values_is_the_closed_form(results: ShotsResults) -> None:
    for found in results.pieces["values"]:
        for row in found["rows"]:
            # 32 values, 60 repeats each: the root mean square of their deviations is known to 2 %
            assert row["se"] == pytest.approx(row["se_closed"], rel=0.08)
            assert row["se_told"] == pytest.approx(row["se_closed"], rel=0.08)
            assert row["bias"] < 2 * row["bias_chance"]
            assert row["se_closed"] <= 1 / math.sqrt(row["shots"])


@pytest.mark.slow
def test_variance_of_gradients_is_the_closed_form_below_its_bound(results: ShotsResults) -> None:
    for found in results.pieces["gradients"]:
        assert found["angles"] == 30
        for row in found["rows"]:
            assert row["shift"] == pytest.approx(row["shift_closed"], rel=0.1)
            assert row["shift_closed"] <= row["shift_closed_largest"] <= row["bound"] == 1 / (2 * row["shots"])
            assert row["shift_bias"] < 2 * row["bias_chance"]
            assert row["spsa"] == pytest.approx(row["spsa_closed"], rel=0.5)
            assert row["spsa_equal"] < row["spsa"]


@pytest.mark.slow
def test_the_closed_form_of_gradients_against_qiskit(run: RunFolder, results: ShotsResults) -> None:
    actor = subjects.policy(run.path, SUBJECTS, 1)
    states = work.some_states(str(run.path), 1)[:1]
    with torch.no_grad():
        point = [*actor.angles(states)[0].tolist(), *actor.layer.weight.tolist()]
    circuit, order = actor.circuit.circuit, [*actor.circuit.inputs, *actor.circuit.weights]
    total = 0.0
    for index in range(len(order)):
        for shift in (np.pi / 2, -np.pi / 2):
            moved = [value + shift * (i == index) for i, value in enumerate(point)]
            state = Statevector(circuit.assign_parameters(dict(zip(order, moved, strict=True))))
            z = [state.expectation_value(SparsePauliOp(o)).real for o in actor.circuit.observables]
            total += float(np.sum(1 - np.square(z)))
    row = results.pieces["gradients"][1]["rows"][0]
    assert row["shift_closed"] * row["shots"] == pytest.approx(total / 4 / (len(order) * 4), abs=1e-5)


@pytest.mark.slow
def test_read_out_of_the_denoiser_loses_what_the_closed_form_says(results: ShotsResults) -> None:
    for found in results.pieces["denoiser"]:
        many = found["rows"][-1]
        assert many["shots"] == 4096
        assert many["lost"] == 0
        assert many["kept"] == pytest.approx(4096 * found["success"], rel=0.05)
        assert many["infidelity"] == pytest.approx(many["infidelity_closed"], rel=0.4)
        assert found["rows"][1]["infidelity"] > 4 * many["infidelity"]


@pytest.mark.slow
def test_more_shots_move_the_guidance_scale_less(results: ShotsResults) -> None:
    for found in results.pieces["images"]:
        exact, few, many = found["rows"]
        assert exact["rms_g"] == 0 < many["rms_g"] < few["rms_g"]
        assert many["circuits"] == SUBJECTS.eval_images * SUBJECTS.n_steps


@pytest.mark.slow
def test_a_training_costs_the_circuits_it_runs(results: ShotsResults) -> None:
    steps = SUBJECTS.n_steps * SUBJECTS.num_envs * SUBJECTS.updates
    for arm, each_pass in (("exact", None), ("surrogate:4", 1), ("spsa:4", 1 + 2), ("shift:4", 1 + 2 * 30)):
        for found in results.pieces[f"learning-{arm}"]:
            wanted = 0 if each_pass is None else steps * (1 + SUBJECTS.epochs * each_pass)
            assert (found["circuits"], found["shots"]) == (wanted, 4 * wanted), arm
            assert math.isfinite(found["after"])
            assert len(found["curve"]) == SUBJECTS.updates


@pytest.mark.slow
def test_a_frozen_circuit_and_a_random_head_stay_as_they_are(tmp_path: Path, run: RunFolder) -> None:
    (tmp_path / "calibration.json").write_bytes((run.path / "calibration.json").read_bytes())
    before, after, _ = subjects.train_policy(tmp_path, SUBJECTS, 0, kind="frozen")
    assert torch.equal(before.layer.weight, after.layer.weight)
    assert not torch.equal(before.head.layers[0].weight, after.head.layers[0].weight)
    before, after, _ = subjects.train_policy(tmp_path, SUBJECTS, 0, head=False)
    assert not torch.equal(before.layer.weight, after.layer.weight)
    assert torch.equal(before.head.layers[0].weight, after.head.layers[0].weight)


@pytest.mark.slow
def test_a_stopped_study_does_only_what_is_left(run: RunFolder) -> None:
    again = work.piece_file(run.path, "learning-shift:4", 1)
    kept = work.piece_file(run.path, "values", 0)
    wanted, untouched = json.loads(again.read_text()), kept.stat().st_mtime_ns
    again.unlink()
    with pytest.raises(RunFolderError, match="learning-shift-4-seed1"):
        load_shots_results(run)
    run_shots_study(open_shots_study(run.path, TINY, resume=True))
    found = json.loads(again.read_text())
    assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in wanted.items() if k != "seconds"}
    assert kept.stat().st_mtime_ns == untouched
    with pytest.raises(RunFolderError, match="states"):
        open_shots_study(run.path, TINY.replace(states=9), resume=True)


@pytest.mark.slow
def test_the_page_shows_every_training_and_number_of_shots(tmp_path: Path, results: ShotsResults) -> None:
    sentences = verdict(results)
    assert any("PPO on exact values" in sentence for sentence in sentences)
    page = write_markdown(
        parts_of(results, "qhw study shots"), tmp_path / "page.md", title="T", subtitle=subtitle(results),
        figures=tmp_path / "figures",
    )  # fmt: skip
    text = page.read_text()
    for arm in TINY.arms():
        assert f"| {arm_label(arm)} |" in text
    assert text.count("| 4,096 |") == 4
    for name in ("shots-values", "shots-images", "shots-gradients", "shots-learning", "shots-denoiser"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size < 200_000
        assert f"(figures/{name}.png)" in text
    told = {"title": "T", "subtitle": "S"}
    assert "parameter-shift" in write_report(parts_of(results, "c"), tmp_path / "r.html", **told).read_text()


def test_from_how_many_shots_on() -> None:
    def interval(low: float) -> Interval:
        return Interval(low + 1, low, low + 2, 3)

    above = {4: interval(0.1), 16: interval(-0.1), 64: interval(0.2), 256: interval(0.3)}
    assert fewest(above, lambda i: i.low > 0) == 64  # a lucky 4 does not count: 16 fails
    assert fewest({4: interval(0.1)}, lambda i: i.low > 0) == 4
    assert fewest({4: interval(0.1), 16: interval(-1)}, lambda i: i.low > 0) is None


def test_settings_read_back_and_bad_ones_are_refused() -> None:
    assert ShotsStudyConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY
    assert len(set(pieces_of(ShotsStudyConfig()))) == 4 + len(ShotsStudyConfig().arms())
    for changes in ({"shots": ()}, {"shots": (4, 4)}, {"learn_shots": (0,)}, {"repeats": 1}, {"spsa_size": 0.0}):
        with pytest.raises(InvalidInputError):
            TINY.replace(**changes)
    for changes in ({"seeds": 0}, {"eval_images": 5}, {"num_envs": 3}, {"updates": 0}):
        with pytest.raises(InvalidInputError):
            SUBJECTS.replace(**changes)
    with pytest.raises(UnknownNameError, match="fake_manila"):
        open_shots_study("nowhere", TINY.replace(subjects=SUBJECTS.replace(device="fake_manilla")))


def test_every_setting_is_a_flag() -> None:
    parser = argparse.ArgumentParser()
    flags = COMMANDS["study", "shots"][1]
    assert flags is not None
    flags(parser)
    given = vars(parser.parse_args(["--shots", "8,16", "--seeds", "3", "--g0", "1.5", "--quick"]))
    assert given["ShotsStudyConfig.shots"] == (8, 16)
    assert given["SubjectsConfig.seeds"] == 3
    assert given["quick"]
    for field in [*SUBJECTS.to_dict(), *(name for name in TINY.to_dict() if name != "subjects")]:
        parser.parse_args([f"--{field.replace('_', '-')}", "3"])


def test_a_page_in_both_forms(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    part = Part("Head", ("Words.",), ["one"], [Table(["a"], [["1"]], "caption")], [Plot("p", figure, "a line")], "cmd")
    page = write_markdown([part], tmp_path / "p.md", title="T", subtitle="S", figures=tmp_path / "f").read_text()
    assert page.startswith("# T\n\nS\n\n## Head\n\nWords.\n\n- one\n")
    assert "![a line](f/p.png)" in page
    bare = write_markdown([part], tmp_path / "q.md", title="T", subtitle="S", figures=None).read_text()
    assert "png" not in bare
    assert "| a |" in bare
    assert "a line" in write_report([part], tmp_path / "p.html", title="T", subtitle="S").read_text()
