"""The ablation study: its variants, one small run checked against another way to the same numbers, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrations import few_calibration_images  # noqa: F401 - for every test here

from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.experiment import load_study, open_study, run_study, write_page
from qhw_diffusion.guidance import PathwiseConfig, PolicyConfig, QuantumPolicy, build_policy
from qhw_diffusion.guidance.policies import mlp_parameters
from qhw_diffusion.studies.ablation.experiment import QUICK, AblationConfig, build_variant
from qhw_diffusion.studies.ablation.page import PARTS, on_the_frontier

SMALL = QUICK.replace(
    study=QUICK.study.replace(
        policy=PolicyConfig(device="fake_manila"),
        n_steps=2,
        spacing="trailing",
        constants=(1.0, 1.5),
        sweep_images=20,
        tune_images=20,
        eval_images=20,
        noise_pool=40,
        schedules=(),
        pathwise=PathwiseConfig(num_iterations=1, num_images=20),
    ),
    qubits=(2,),
    depths=(2,),
    entanglements=("ring",),
    reuploading=False,
    observables=("fixed",),
)


def test_the_default_varies_one_thing_at_a_time_and_trains_each_circuit_with_and_without_noise() -> None:
    config = AblationConfig()
    found = config.variants()
    circuits = [v for v in found.values() if v.policy.engine != "ideal" and v.policy.kind == "quantum"]
    reference = found["reference"].policy
    for variant in circuits:
        changed = [k for k, v in variant.policy.to_dict().items() if v != reference.to_dict()[k] and k != "engine"]
        assert len(changed) <= 1
    assert (
        len(circuits) == 1 + 3 + 2 + 2 + 1 + 1 + 1
    )  # reference, qubits, depth, entanglement, upload, observables, head
    for name in [name for name in found if name.endswith("@ideal")]:
        assert found[name].policy == found[name.removesuffix("@ideal")].policy.replace(engine="ideal")
    assert {v.policy.n_qubits: v.policy.engine for v in circuits} == {
        2: "noisy",
        4: "noisy",
        6: "noisy",
        8: "trajectories:16",
    }
    assert config.seeds_of("reference") == 10
    assert config.seeds_of("chain") == 5


def test_the_grid_holds_every_combination_once() -> None:
    found = QUICK.replace(design="grid", trained_without=False, parts=False).variants()
    assert len(found) == 2 * 2 * 2 * 2 * 2
    assert len({str(v.policy) for v in found.values()}) == len(found)


def test_policies_without_a_part_have_what_they_say() -> None:
    found = {n: v.policy for n, v in AblationConfig().variants().items() if n in ("reference", *PARTS)}
    made = {name: build_variant(policy, 7, 0) for name, policy in found.items()}
    total = {name: policy.parameter_counts()["total"] for name, policy in made.items()}
    circuit = 24 + 7  # 2 layers of three angles on 4 qubits, and a scale for each of the seven inputs
    head = mlp_parameters([4, 64, 32, 2])
    assert total["reference"] == circuit + head
    assert total["frozen"] == head
    assert total["frozen_head"] == circuit
    assert total["linear_head"] == circuit + 4 * 2 + 2
    assert total["linear_head_frozen"] == 4 * 2 + 2
    assert total["linear"] == 7 * 2 + 2
    assert abs(total["matched"] - total["reference"]) < 0.01 * total["reference"]
    assert abs(total["matched_linear"] - total["linear_head"]) <= 3
    assert total["mlp"] == mlp_parameters([7, 128, 64, 2])
    for policy in made.values():
        assert policy(torch.zeros(3, 7))[0].shape == (3, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    study, path = load_study("ablation"), tmp_path_factory.mktemp("ablation") / "run"
    return path, run_study(study, open_study(study, path, SMALL))


def test_a_run_has_every_cell_and_the_table_holds_what_the_cells_found(small: tuple[Path, Any]) -> None:
    path, results = small
    names = set(SMALL.variants())
    assert names >= {"reference", "2-qubits", "2-qubits@ideal", "frozen", "frozen_head", "linear", "matched", "mlp"}
    for name in names:
        cells = [json.loads((path / "cells" / f"{name}-seed{k}.json").read_text()) for k in range(2)]
        rows = [row for cell in cells for row in cell["rows"] if row["played"] == "device"]
        assert results.values("energy", part="variant", policy=name, played="device") == [r["energy"] for r in rows]
    classical = results.table.query("part == 'variant' and policy == 'matched' and metric == 'energy'")
    assert set(classical.played) == {"device"}


def test_noise_and_training_reach_the_numbers(small: tuple[Path, Any]) -> None:
    _, results = small
    device, ideal = (
        results.values("energy", part="variant", policy="reference", played=p) for p in ("device", "ideal")
    )
    assert device != ideal  # the same weights under noise and without
    taught = results.values("energy", part="variant", policy="reference@ideal", played="device")
    assert device != taught  # trained under noise and without
    assert results.values("two_qubit_gates", part="variant", policy="2-qubits") < results.values(
        "two_qubit_gates", part="variant", policy="reference"
    )


def test_the_page_tells_of_every_variant_and_pairs_by_seed(small: tuple[Path, Any]) -> None:
    _, results = small
    page, report = write_page(results)
    text = report.read_text(encoding="utf-8")
    for words in ("Does the circuit matter?", "head frozen at random values", "no circuit, linear policy", "2 qubits"):
        assert words in text
    a, b = (results.values("energy", part="variant", policy=p, played="device") for p in ("2-qubits", "reference"))
    difference = np.mean(np.subtract(a, b))
    assert f"{difference:+.3f}" in text
    assert any("frontier" in sentence for sentence in page.findings)


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 6.0), (3.0, 4.0), (4.0, 1.0)]
    assert on_the_frontier(points) == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant_seeds": 3}, "more than the study's 2 seeds"),
        ({"qubits": (4, 4)}, "each once"),
        ({"design": "two"}, "unknown design 'two'"),
        ({"observables": ("fixed", "adaptive:x")}, "adaptive:x"),
        ({"study": QUICK.study.replace(policies=("quantum",))}, "policies are the guidance study's"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QhwError, match=words):
        QUICK.replace(**changes)


def test_a_frozen_head_learns_in_its_circuit_alone() -> None:
    policy = build_policy(PolicyConfig(kind="frozen_head", device="ideal", engine="ideal"), n_features=6, seed=3)
    assert isinstance(policy, QuantumPolicy)
    groups = policy.parameter_groups()
    assert groups["head"] == []
    policy(torch.full((2, 6), 0.3))[0].sum().backward()
    assert all(p.grad is None for p in policy.head.parameters())
    assert policy.layer.weight.grad is not None
    assert bool(policy.layer.weight.grad.abs().max() > 1e-4)


def test_a_linear_head_is_refused_where_there_is_none() -> None:
    with pytest.raises(InvalidInputError, match="linear_head"):
        PolicyConfig(kind="annealing", linear_head=True)
