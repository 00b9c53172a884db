"""The mitigation study, as small as it can be: the denoiser's circuit, costs, errors, recommendation, resume, page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector
from undrawn import figures_undrawn

from qhw_diffusion.denoising import LatentQDM, ReverseConfig
from qhw_diffusion.denoising.device_step import DenoiserStep, classical_fidelity
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.execution import Ideal, Noisy, Shots
from qhw_diffusion.experiment import Results, interval_cell, load_study, open_study, run_study, write_page
from qhw_diffusion.experiment.study import cell_file, load_results
from qhw_diffusion.guidance import GuidanceConfig, PolicyConfig, PPOConfig
from qhw_diffusion.mitigation import Mitigated, MitiqPEC, MitiqZNE, Readout
from qhw_diffusion.runs import RunFolder
from qhw_diffusion.studies.mitigation.experiment import STRATEGIES, MitigationConfig, mitigated, runs_of
from qhw_diffusion.studies.mitigation.page import (
    default_of,
    findings,
    mean,
    page,
    ratios,
    shots_where_zne_pays,
    values,
)
from qhw_diffusion.studies.mitigation.process import ProcessConfig
from qhw_diffusion.studies.mitigation.words import READOUT, READOUT_ZNE, is_scheduled, knows_the_noise, label_of
from qhw_diffusion.studies.reference_models import ReferenceModelsConfig
from tests.studies.conftest import without_energy

STUDY = load_study("mitigation")
DEVICE = "fake_manila"
TINY = MitigationConfig(
    models=ReferenceModelsConfig(
        guidance=GuidanceConfig(n_steps=2, spacing="trailing", noise_pool=40, g0=2.0),
        ppo=PPOConfig.short(num_iterations=1, num_envs=20, update_epochs=1, num_minibatches=2),
        policy=PolicyConfig(device=DEVICE, engine="ideal"),
        denoiser_iterations=2,
        autoencoder_steps=30,
        eval_images=40,
        seeds=2,
    ),
    devices=(DEVICE,),
    strategies=("none", READOUT, READOUT_ZNE),
    steering=("none", READOUT),
    shots=(512,),
    steering_shots=(512,),
    states=8,
    repeats=20,
    denoiser_rows=40,
    process=ProcessConfig(
        steps=(1,), strategies=("none", READOUT, READOUT_ZNE), shots=(2048,), images=20, repeats=2, judged=1, seeds=2,
        gate_steps=(1,), gate_qubits=(2,),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = open_study(STUDY, tmp_path_factory.mktemp("mitigation") / "run", TINY, command="qhw study mitigation …")
    run_study(STUDY, folder)
    return folder


@pytest.fixture(scope="module")
def results(run: RunFolder) -> Results[MitigationConfig]:
    return load_results(STUDY, run)


def cells(results: Results[MitigationConfig], part: str) -> list[dict[str, Any]]:
    return [cell for cell in results.cells.values() if cell["parameters"]["part"] == part]


@pytest.fixture(scope="module")
def step() -> DenoiserStep:
    reverse = ReverseConfig(n_qubits=3, n_steps=1, depth=2, conditioning="angles", n_labels=10, init_scale=0.7, seed=3)
    return DenoiserStep.of(LatentQDM(reverse))


def test_the_denoisers_circuit_is_the_preparation_and_the_step(step: DenoiserStep) -> None:
    labels = torch.tensor([3, 0, 7])
    rows = step.rows(labels, torch.Generator().manual_seed(1))
    compiled = step.compile(Device.load("ideal"))
    shares, success = step.read(Ideal().estimate(compiled, rows).values)
    # the same by Qiskit's states and the reverse process: nothing of the circuit's read-out is used
    prepared = QuantumCircuit(3)
    angles = iter(step.preparation)
    for layer in range(3):
        for qubit in range(3):
            prepared.ry(next(angles), qubit)
            prepared.rz(next(angles), qubit)
        if layer < 2:
            prepared.cx(0, 1)
            prepared.cx(1, 2)
    values = rows[:, : len(step.preparation)].numpy()
    states = [Statevector(prepared.assign_parameters(dict(zip(step.preparation, v, strict=True)))).data for v in values]
    after, log_probability, _ = step.model.reverse.advance(
        torch.tensor(np.array(states)).to(torch.complex64), 1, labels
    )
    assert torch.allclose(shares, after.detach().abs().square().double(), atol=1e-5)
    assert torch.allclose(success, log_probability.detach().exp().double(), atol=1e-5)
    assert float(classical_fidelity(shares, shares).min()) == pytest.approx(1)


def test_random_starting_states_are_spread_like_haar_random_ones(step: DenoiserStep) -> None:
    rows = step.rows(torch.zeros(4000, dtype=torch.int64), torch.Generator().manual_seed(0))
    polar = rows[:, 0 : len(step.preparation) : 2]
    # for a random point on a sphere, cos of the polar angle is uniform in [-1, 1]
    assert float(polar.cos().mean()) == pytest.approx(0, abs=0.02)
    assert float(polar.cos().square().mean()) == pytest.approx(1 / 3, abs=0.01)


def test_what_is_no_distribution_is_replaced_by_the_nearest(step: DenoiserStep) -> None:
    values = torch.full((1, 15), -0.4)
    shares, success = step.read(values)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares.min()) >= 0
    # the ancilla, highest bit, reads 1 for certain: Z on it is −1, products with it −1 times those without
    certain = torch.tensor([[-1.0 if s & 8 else 1.0 for s in range(1, 16)]])
    shares, success = step.read(certain)
    assert float(success) == 0
    assert torch.allclose(shares, torch.full((1, 8), 1 / 8, dtype=torch.float64))


def test_only_one_post_selected_step_is_one_circuit() -> None:
    model = LatentQDM(ReverseConfig(n_qubits=3, n_steps=2, depth=1))
    with pytest.raises(InvalidInputError, match="2 postselected steps"):
        DenoiserStep.of(model)


def test_shots_are_shared_among_the_circuits() -> None:
    assert list(runs_of(1.0, (1024, 4096))) == [("total", 1024, 1024), ("total", 4096, 4096)]
    assert list(runs_of(2.0, (1024,))) == [("total", 1024, 512), ("each", 1024, 1024)]
    assert list(runs_of(1.04, (1000,))) == [("total", 1000, 962)]
    assert list(runs_of(24.0, (1024,))) == [("total", 1024, 43)]


@pytest.mark.slow
def test_without_mitigation_the_error_is_bias_and_the_shots_variance(results: Results[MitigationConfig]) -> None:
    """rms² = bias² + mean(1 − ⟨Z⟩²)/N, with the noisy ⟨Z⟩ not far from the ideal one."""
    for found in cells(results, "policy"):
        exact, finite = (r for r in found["rows"] if r["strategy"] == "none")
        variance = (1 - found["rms_z"] ** 2) / 512
        assert finite["sd"] ** 2 == pytest.approx(variance, rel=0.12)
        assert finite["rms"] ** 2 == pytest.approx(exact["bias"] ** 2 + finite["sd"] ** 2, rel=0.12)
        assert finite["total_shots"] == 512


@pytest.mark.slow
def test_costs_and_biases(results: Results[MitigationConfig]) -> None:
    for piece in ("policy", "denoiser"):
        none, readout, zne = (mean(results, piece, DEVICE, n, "bias", how="exact") for n in TINY.strategies)
        assert zne < readout < none
        n = {"policy": TINY.states, "denoiser": TINY.denoiser_rows}[piece]
        wanted = {"none": 1, READOUT: 1 + 2 / n, READOUT_ZNE: 2 + 2 / n}
        for name, factor in wanted.items():
            assert mean(results, piece, DEVICE, name, "circuits", how="exact") == pytest.approx(factor)
            total = mean(results, piece, DEVICE, name, "total_shots", how="total", shots=512)
            assert total == pytest.approx(512, abs=factor)
        each = mean(results, piece, DEVICE, READOUT_ZNE, "total_shots", how="each", shots=512)
        assert each == pytest.approx(512 * wanted[READOUT_ZNE])
    ideal = mean(results, "denoiser", DEVICE, "ideal", "fidelity")
    assert ideal == pytest.approx(1)
    fidelity = [mean(results, "denoiser", DEVICE, n, "fidelity", how="exact") for n in TINY.strategies]
    assert fidelity == sorted(fidelity)
    assert fidelity[-1] < 1
    # 7 free probabilities: 1 − F ≈ 7 / (4 N · success) where only shots are in the way
    shots = mean(results, "denoiser", DEVICE, "shots", "fidelity", how="total", shots=512)
    success = np.mean([r["success"] for r in cells(results, "denoiser")])
    assert 1 - shots == pytest.approx(7 / (4 * 512 * success), rel=0.5)


@pytest.mark.slow
def test_whole_processes_are_judged_as_images(results: Results[MitigationConfig]) -> None:
    for found in cells(results, "process"):
        rows = {(row["strategy"], row["shots"]): row for row in found["rows"]}
        assert all(rows["ideal", None][key] >= 0 for key in ("energy", "fd", "accuracy"))
        assert rows["none", None]["fd"] != rows["ideal", None]["fd"] != rows["none", 2048]["fd"]


@pytest.mark.slow
def test_the_steered_images_start_from_the_same_noise(results: Results[MitigationConfig]) -> None:
    for found in cells(results, "images"):
        rows = {row["strategy"]: row for row in found["rows"]}
        assert rows["ideal"]["rms_g"] == 0 < rows["shots"]["rms_g"]
        for name, steps in (("shots", 0), ("none", 0), (READOUT, 2)):
            circuits = TINY.models.eval_images * TINY.models.guidance.n_steps + steps  # calibrated once
            assert rows[name]["circuits"] == circuits


@pytest.mark.slow
def test_the_recommendation_is_the_smallest_product(results: Results[MitigationConfig]) -> None:
    assert ratios(results, "none") == pytest.approx((1, 1))
    products = {name: np.prod(ratios(results, name)) for name in TINY.strategies}
    assert default_of(results) == min(products, key=products.__getitem__)
    # made worse by hand, it is no longer chosen
    chosen = default_of(results)
    spoiled = json.loads(json.dumps(results.cells))
    for found in spoiled.values():
        for row in found.get("rows", ()):
            if found["parameters"]["part"] == "policy" and row["strategy"] == chosen and row["how"] == "total":
                row["rms_g"] *= 100
    other = Results(STUDY, results.folder, results.config, results.manifest, spoiled)
    assert default_of(other) != chosen
    assert any(sentence.startswith("**Worse than nothing**") for sentence in findings(other))
    assert label_of(default_of(results)) in findings(results)[0]


@pytest.mark.slow
def test_a_stopped_study_does_only_what_is_left(run: RunFolder, results: Results[MitigationConfig]) -> None:
    again, kept = (cell_file(run.path, f"policy-{DEVICE}-seed{seed}") for seed in (0, 1))
    untouched = kept.stat().st_mtime_ns
    again.unlink()
    with pytest.raises(RunFolderError, match="policy-fake_manila-seed0"):
        load_results(STUDY, run)
    run_study(STUDY, open_study(STUDY, run.path, TINY, resume=True))
    first = cells(results, "policy")[0]
    assert {**json.loads(again.read_text()), "seconds": 0} == {**first, "seconds": 0}
    assert kept.stat().st_mtime_ns == untouched
    with pytest.raises(RunFolderError, match="states"):
        open_study(STUDY, run.path, TINY.replace(states=9), resume=True)


@pytest.mark.slow
def test_the_page_shows_every_strategy(tmp_path: Path, results: Results[MitigationConfig]) -> None:
    with figures_undrawn():
        shown, _ = write_page(results)
    text = shown.save_markdown(tmp_path / "p.md", figures=tmp_path / "f").read_text()
    for name in TINY.strategies:
        assert text.count(f"| {label_of(name)} |") >= 2
    assert (tmp_path / "f" / "mitigation-policy.png").exists()
    assert "Recommended default" in text


@pytest.mark.slow
def test_energy_is_first_and_a_dash_in_results_of_an_earlier_version(
    tmp_path: Path, results: Results[MitigationConfig]
) -> None:
    assert sum("energy distance" in sentence for sentence in findings(results)) == 2  # the policy's and the denoiser's
    old = without_energy(results)
    assert not any("energy distance" in sentence for sentence in findings(old))
    for name, given in (("new", results), ("old", old)):
        figures = tmp_path / "figures" if name == "old" else None
        text = page(given).save_markdown(tmp_path / f"{name}.md", figures=figures).read_text()
        exact = next(line for line in text.splitlines() if line.startswith("| no noise, exact |"))
        energy, fd = (interval_cell(values(given, "images", DEVICE, "ideal", key), n)
                      for key, n in (("energy", 3), ("fd", 2)))  # fmt: skip
        assert (energy == "–") == (name == "old")
        assert exact.startswith(f"| no noise, exact | – | 0 | 0 | {energy} | – | – | {fd} |")


# Of the same study, settings and seeds as version 0.1 ran it; linear algebra may round otherwise on another machine.
PUBLISHED = {
    ("policy", READOUT_ZNE, "rms_g", "total"): [0.07245103244709493, 0.07518493602094932],
    ("denoiser", READOUT, "fidelity", "total"): [0.9829659199932047, 0.982534067421738],
    ("images", READOUT, "fd", None): [23.042092101840353, 20.15426782701502],
}


@pytest.mark.slow
def test_the_same_seeds_give_the_numbers_of_the_version_before(results: Results[MitigationConfig]) -> None:
    for (part, strategy, metric, how), wanted in PUBLISHED.items():
        found = results.values(metric, part=part, strategy=strategy, how=how, shots=512)
        assert found == pytest.approx(wanted, rel=1e-3), (part, metric)


def test_from_how_many_shots_on_zne_pays() -> None:
    """At that number both errors, bias and scatter together, are equal; more shots favour ZNE."""
    shots = shots_where_zne_pays(0.02, 0.005, 0.04)

    def gap(n: float) -> float:
        variance = (1 - 0.04) / n
        return (0.02**2 + variance) - (0.005**2 + 2 * (1.5**2 + 0.5**2) * variance)

    assert gap(shots) == pytest.approx(0, abs=1e-12)
    assert gap(shots / 2) < 0 < gap(2 * shots)
    assert shots_where_zne_pays(0.01, 0.02, 0.0) == float("inf")


def test_strategies_are_made_anew_and_bad_settings_refused() -> None:
    engine = Shots(100)
    assert mitigated(engine, "none") is engine
    made = [mitigated(Noisy(), READOUT_ZNE) for _ in range(2)]
    assert all(isinstance(each, Mitigated) for each in made)
    assert made[0].spec == "noisy+readout:measured+zne:linear:1,3"
    assert MitigationConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY
    with pytest.raises(UnknownNameError, match="readout"):
        TINY.replace(strategies=("none", "readuot"))
    for changes in ({"strategies": ("zne",)}, {"shots": (8,)}, {"devices": ()}, {"repeats": 1}, {"denoiser_rows": 3}):
        with pytest.raises(InvalidInputError):
            TINY.replace(**changes)
    with pytest.raises(UnknownNameError, match="fake_manila"):
        open_study(STUDY, "nowhere", TINY.replace(devices=("fake_manilla",)))


def test_every_strategy_of_mitiq_is_made() -> None:
    pytest.importorskip("mitiq")
    for name in STRATEGIES:
        assert (name in ("none", "scheduled")) == (mitigated(Noisy(), name) == Noisy())
    made = {name: mitigated(Noisy(), name) for name in STRATEGIES}
    readout = Readout("measured")
    assert made["readout:measured+mitiq-zne:linear:1,3:global:0"] == Mitigated("noisy", [readout, MitiqZNE((1, 3))])
    assert made["readout:measured+mitiq-pec:24:0"] == Mitigated("noisy", [readout, MitiqPEC(24)])
    assert MitigationConfig().strategies == STRATEGIES  # each is written as it is spelled


def test_what_a_strategy_needs_decides_how_it_is_run() -> None:
    assert [name for name in STRATEGIES if is_scheduled(name)] == ["scheduled", "decoupling:xx"]
    told = ["readout", "readout:measured+mitiq-pec:24:0"]
    assert [name for name in STRATEGIES if knows_the_noise(name)] == told
    labels = [label_of(name) for name in STRATEGIES]
    assert len(set(labels)) == len(labels)
    assert label_of("scheduled") == "none, scheduled"
    assert label_of(READOUT_ZNE) == "readout measured + ZNE linear 1, 3"


def test_strategies_are_texts_of_the_grammar_and_may_be_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own_line.py"
    file.write_text("from qhw_diffusion.mitigation import ZNE\nclass Line(ZNE):\n    label = 'a line of my own'\n")
    own = f"{file}:Line"
    config = TINY.replace(strategies=("none", "readout+zne", "zne:linear:1,3", own))
    spelled = f"{own}:linear:1,3,5"
    assert config.strategies == ("none", "readout+zne:linear:1,3,5", "zne:linear:1,3", spelled)
    assert label_of(spelled) == "a line of my own"
    # split at all commas, as a list on the command line is
    split = ("none", "zne:richardson:1", "1.5", "3:global", "readout")
    assert TINY.replace(strategies=split).strategies == ("none", "zne:richardson:1,1.5,3:global", "readout")
