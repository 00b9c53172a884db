from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from undrawn import figures_undrawn

from qhw_diffusion.denoising.ensembles import mmd
from qhw_diffusion.denoising.states import check_density, check_pure
from qhw_diffusion.errors import InvalidInputError, QhwError, RunFolderError, UnknownNameError
from qhw_diffusion.experiment import load_study, open_study
from qhw_diffusion.experiment.command import study_command
from qhw_diffusion.experiment.study import cell_file, load_results, reopen_study
from qhw_diffusion.studies.reproductions.experiment import (
    EXPERIMENTS,
    Experiment,
    ReproductionsConfig,
    circle_states,
    cluster_states,
    evaluate,
    measure,
    slightly_mixed,
    train,
)
from qhw_diffusion.studies.reproductions.page import METRICS, PUBLISHED, ROWS, Number, verdict

STUDY = load_study("reproductions")
TINY = ReproductionsConfig(experiments=("quddpm-1",), n_test=40, updates=0.01, seeds=2)


def run_seed(experiment: Experiment, seed: int, n_test: int, path: Path) -> dict[str, dict[str, Any]]:
    train(experiment, experiment.train.replace(seed=seed), seed, path, {})
    return {row["states"]: row for row in evaluate(experiment, seed, n_test, path)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n_qubits", "scale", "published"), [(1, 0.08, 0.9876), (2, 0.06, 0.979)])
def test_the_cluster_has_the_published_mean_fidelity(n_qubits: int, scale: float, published: float) -> None:
    states = cluster_states(20_000, n_qubits, scale, generator())
    check_pure(states)
    fidelity = states[:, 0].abs().square()
    # spread .012 over 20,000 states: a standard error of 1e-4
    assert float(fidelity.mean()) == pytest.approx(published, abs=5e-4)
    # real and imaginary parts each have variance scale²
    ratio = states[:, 1] / states[:, 0]
    assert float(ratio.real.std()) == pytest.approx(scale, rel=0.03)
    assert float(ratio.imag.std()) == pytest.approx(scale, rel=0.03)
    assert float(ratio.mean().abs()) < 5 * scale / math.sqrt(20_000)


def test_the_mixed_cluster_has_the_mean_fidelity_that_msquddpm_gives_for_its_data() -> None:
    draws = EXPERIMENTS["msquddpm-cluster"].draw(20_000, generator(1))
    check_density(draws)
    assert float(draws[:, 0, 0].real.mean()) == pytest.approx(0.9853, abs=5e-4)


def test_the_circle_is_uniform_in_the_x_z_plane() -> None:
    states = circle_states(20_000, generator(2))
    check_pure(states)
    x, z = 2 * (states[:, 0].conj() * states[:, 1]).real, states[:, 0].abs().square() - states[:, 1].abs().square()
    y = 2 * (states[:, 0].conj() * states[:, 1]).imag
    assert float(y.abs().max()) == 0
    assert max(abs(float(x.mean())), abs(float(z.mean()))) < 0.025
    assert float(x.square().mean()) == pytest.approx(0.5, abs=0.015)
    assert abs(float((x * z).mean())) < 0.015


def test_the_noise_of_a_datum_is_uniform_below_its_bound() -> None:
    mixed = slightly_mixed(circle_states(5_000, generator()), 0.04, generator(3))
    purity = mixed.abs().square().sum((1, 2))
    share = 1 - (2 * purity - 1).sqrt()
    assert -1e-5 < float(share.min()) < 1e-3
    assert 0.039 < float(share.max()) < 0.04
    assert float(share.mean()) == pytest.approx(0.02, abs=7e-4)


def test_two_draws_of_the_circle_are_as_far_apart_as_published() -> None:
    # 0.0063 in the paper at N = 200; a single pair of sets spreads by about .003
    experiment = EXPERIMENTS["msquddpm-circle"]
    draws = [experiment.draw(1000, generator(seed)) for seed in range(4)]
    values = [measure(experiment, draws[i], draws[i + 1])["wasserstein"] for i in (0, 2)]
    assert sum(values) / 2 == pytest.approx(0.0063, abs=0.002)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: cluster_states(0, 1, 0.1, generator()),
        lambda: cluster_states(1, 0, 0.1, generator()),
        lambda: cluster_states(1, 1, -0.1, generator()),
        lambda: circle_states(0, generator()),
        lambda: slightly_mixed(circle_states(1, generator()), 1.5, generator()),
    ],
)
def test_data_that_cannot_be(draw) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidInputError):
        draw()


def test_metrics_are_those_of_the_definitions() -> None:
    experiment = EXPERIMENTS["quddpm-1"]
    up, down = torch.tensor([[1, 0]]).repeat(8, 1) + 0j, torch.tensor([[0, 1]]).repeat(8, 1) + 0j
    same, far = measure(experiment, up, up), measure(experiment, down, up)
    assert same == {"fidelity": 1, "mmd": 0, "wasserstein": 0}
    assert far == pytest.approx({"fidelity": 0, "mmd": 2, "wasserstein": 1})
    half = torch.cat([up[:4], down[:4]])
    assert measure(experiment, half, up) == pytest.approx(
        {"fidelity": 0.5, "mmd": float(mmd(half, up)), "wasserstein": 0.5}
    )


@pytest.mark.slow
def test_training_beats_the_untrained_and_the_bypassed_circuit(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["quddpm-1"]
    short = replace(
        experiment,
        reverse=experiment.reverse.replace(n_steps=4),
        train=experiment.train.replace(iterations=50, buffer_size=200, batch_size=50, targets=50),
    )
    rows = run_seed(short, 0, 200, tmp_path / "run")
    assert rows["bypassed"]["fidelity"] == pytest.approx(0.5, abs=0.08)  # Haar states
    assert rows["trained"]["fidelity"] > 0.9
    for metric in ("mmd", "wasserstein"):
        assert rows["trained"][metric] < 0.2 * min(rows["untrained"][metric], rows["bypassed"][metric])
        assert rows["floor"][metric] < rows["trained"][metric]


def test_a_seed_gives_the_same_numbers_again(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["quddpm-1"]
    short = replace(
        experiment,
        reverse=experiment.reverse.replace(n_steps=2),
        train=experiment.train.replace(iterations=5),
    )
    rows = run_seed(short, 0, 40, tmp_path / "a")
    assert run_seed(short, 0, 40, tmp_path / "b") == rows
    assert run_seed(short, 1, 40, tmp_path / "c") != rows


# Of the same experiments, settings and seeds 0 and 1 as version 0.1 ran them (trained, by metric).
BEFORE: dict[str, dict[str, list[float]]] = {
    "msquddpm-cluster": {
        "fidelity": [0.7681247408501803, 0.7343321450054646],
        "mmd": [0.1488123918566826, 0.15418629062843414],
        "wasserstein": [0.17726662871342583, 0.20363684548002367],
    },
    "msquddpm-circle": {
        "fidelity": [0.5083979270886629, 0.4944021223112941],
        "mmd": [0.011680765385940983, 0.0110232685967393],
        "wasserstein": [0.06370122017505007, 0.08336176823809753],
    },
    "quddpm-1": {
        "fidelity": [0.9066175754262062, 0.7925918913535677],
        "mmd": [0.04255638364853165, 0.08534649332171251],
        "wasserstein": [0.06493241442636116, 0.15269111769871563],
    },
    "quddpm-2": {
        "fidelity": [0.1944829799556064, 0.2704745107518063],
        "mmd": [0.9132277100191042, 0.8608502074239643],
        "wasserstein": [0.7330348939030984, 0.6710538514075035],
    },
}


@pytest.mark.slow
def test_every_experiment_runs_and_gives_the_numbers_of_the_version_before(tmp_path: Path) -> None:
    config = TINY.replace(experiments=tuple(EXPERIMENTS))
    study_command(STUDY, config, tmp_path / "run")
    results = load_results(STUDY, reopen_study(STUDY, tmp_path / "run"))
    for name, experiment in EXPERIMENTS.items():
        assert config.training_of(name, 0).iterations == max(2, round(experiment.train.iterations / 100))
        for metric, wanted in BEFORE[name].items():
            found = results.values(metric, experiment=name, states="trained")
            assert found == pytest.approx(wanted, rel=1e-3), (name, metric)
        for row in ROWS:
            for metric in METRICS:
                values = results.values(metric, experiment=name, states=row)
                assert len(values) == 2
                assert all(math.isfinite(value) for value in values)
        if name.startswith("msquddpm"):  # I/2 forty times
            assert results.values("fidelity", experiment=name, states="bypassed") == pytest.approx([0.5, 0.5])


@pytest.mark.slow
@figures_undrawn()
def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = study_command(STUDY, TINY, out, command="qhw study reproductions", markdown=tmp_path / "page.md")
    assert "· 1% of the training: not a comparison." in told
    text = (tmp_path / "page.md").read_text()
    for wanted in ("0.9888 ± 0.0007 (0.9876)", "qhw study reproductions", "40 samples against 40 new data",
                   *PUBLISHED["quddpm-1"].assumed):  # fmt: skip
        assert wanted in text
    first, second = (cell_file(out, f"evaluation-quddpm-1-seed{seed}") for seed in (0, 1))
    before, lost = first.stat().st_mtime_ns, json.loads(second.read_text())["rows"]
    weights = out / "trainings" / "quddpm-1-seed1" / "model" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    second.unlink()
    study_command(STUDY, TINY, out, resume=True)
    assert first.stat().st_mtime_ns == before
    assert weights.stat().st_mtime_ns == trained
    assert json.loads(second.read_text())["rows"] == lost
    with pytest.raises(RunFolderError, match="updates"):
        open_study(STUDY, out, TINY.replace(updates=0.02), resume=True)


def test_bad_requests() -> None:
    with pytest.raises(UnknownNameError, match="quddpm-1"):
        ReproductionsConfig(experiments=("quddpm",))
    changes: dict[str, Any]
    for changes in ({"seeds": 0}, {"n_test": 0}, {"updates": 0.0}, {"updates": 1.5}, {"experiments": ()},
                    {"experiments": ("quddpm-1", "quddpm-1")}):  # fmt: skip
        with pytest.raises(QhwError, match=next(iter(changes))):
            ReproductionsConfig(**changes)


def test_cells_are_a_training_and_its_evaluation() -> None:
    cells = STUDY.cells_of(ReproductionsConfig())
    assert len(cells) == 2 * 5 * len(EXPERIMENTS)
    assert cells["evaluation-quddpm-2-seed4"].needs == ("training-quddpm-2-seed4",)
    assert set(PUBLISHED) == set(EXPERIMENTS)


def test_verdicts() -> None:
    numbers = {"fidelity": Number(0.95, 0.002, 0.98), "mmd": Number(1e-3, 2e-4)}

    def judged(metric: str, *ours: float) -> str:
        return verdict(numbers.get(metric), metric, {"trained": list(ours), "floor": [0.979, 0.981]})

    assert judged("mmd", 5e-4, 6e-4, 5.5e-4) == "beaten"
    assert judged("mmd", 1e-3, 1.1e-3, 9e-4) == "matched"
    assert judged("mmd", 5e-4) == "matched"  # one seed has no interval
    assert judged("mmd", 2e-3, 2.1e-3, 2.2e-3) == "missed"
    # fidelity: the distance to the data, .03 as published
    assert judged("fidelity", 0.97, 0.971, 0.969) == "beaten"
    assert judged("fidelity", 0.95, 0.952, 0.951) == "matched"
    assert judged("fidelity", 0.93, 0.94, 0.95) == "missed"
    assert judged("wasserstein", 0.1, 0.1) == "–"
