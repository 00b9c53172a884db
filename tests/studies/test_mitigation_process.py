"""The mitigation study's part on whole reverse processes: its engine, its quotients, its measures, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qhw_diffusion.denoising import LatentQDM, ReverseConfig
from qhw_diffusion.denoising.quotient import quotient_of
from qhw_diffusion.denoising.readout import project_simplex
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Noisy, Shots, engines
from qhw_diffusion.experiment import Results, load_study
from qhw_diffusion.mitigation import Mitigated, strategies_of
from qhw_diffusion.mitigation.rewriting import folded
from qhw_diffusion.studies.mitigation import process
from qhw_diffusion.studies.mitigation.experiment import PARTS, QUICK, MitigationConfig
from qhw_diffusion.studies.mitigation.page import page
from qhw_diffusion.studies.mitigation.process import (
    EXACT,
    OF_QUOTIENT,
    Circuits,
    ProcessConfig,
    Redrawn,
    clipped,
    compiled_process,
    distance,
    measure,
    of_quotient,
)
from qhw_diffusion.studies.mitigation.process_page import tests_of as paired_tests
from qhw_diffusion.studies.mitigation.words import READOUT_ZNE

DEVICE = "fake_manila"
CONFIG = ProcessConfig(
    steps=(2,), strategies=("none", "readout:measured", READOUT_ZNE), shots=(1000, 4000), images=20, repeats=2,
    judged=1, seeds=2, gate_steps=(1,), gate_qubits=(2,),
)  # fmt: skip


@pytest.fixture(scope="module")
def circuits() -> Circuits:
    reverse = ReverseConfig(n_qubits=2, n_steps=2, depth=1, conditioning="angles", n_labels=10, init_scale=0.6, seed=1)
    return Circuits.of(LatentQDM(reverse), DEVICE, CONFIG.images, 0, scheduled=False)


@pytest.fixture(scope="module")
def rows(circuits: Circuits) -> list[dict[str, Any]]:
    """Without the classifiers, which take seconds to load; test_mitigation_study has the part with them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(process, "_judged", lambda _, p: {key: float(p.var()) for key in process.JUDGED})
        return measure(CONFIG, circuits, 0)


def row(rows: list[dict[str, Any]], strategy: str, shots: int | None) -> dict[str, Any]:
    (found,) = (each for each in rows if each["strategy"] == strategy and each["shots"] == shots)
    return found


def test_redrawing_is_drawing(circuits: Circuits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outcomes as `Shots` of that seed; the second time nothing is simulated; other rows are."""
    compiled, rows = circuits.compiled[False], circuits.rows
    redrawn = Redrawn(500, seed=3)
    for expected in (Shots(500, seed=3).estimate(compiled, rows),):
        found = redrawn.estimate(compiled, rows)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.std_errors, expected.std_errors)
    other = redrawn.estimate(compiled, rows + 0.3)
    assert torch.equal(other.values, _second(Shots(500, seed=3), compiled, rows, rows + 0.3))
    with monkeypatch.context() as patched:
        patched.setattr(Shots, "distributions", lambda *_: pytest.fail("simulated again"))
        again = redrawn.estimate(compiled, rows + 0.3)
    assert not torch.equal(again.values, other.values)


def _second(engine: Shots, compiled: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    engine.estimate(compiled, first)
    return engine.estimate(compiled, second).values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "readout", READOUT_ZNE])
def test_a_bootstrap_over_the_shots_of_one_run_gives_the_stated_errors(
    circuits: Circuits, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes resampled from those of one run, calibration included: scatter of p and of the success, as stated."""
    shots, repeats = 20_000, 100
    run = Circuits(circuits.model, circuits.labels[:4], circuits.compiled, circuits.rows[:4])
    run.read(name, shots, 0)
    generator = np.random.default_rng(5)
    for compiled, (rows, exact) in list(run.known.items()):  # from here on what was drawn once is all that is known
        drawn = [(chunk, members, generator.multinomial(shots, p) / shots) for chunk, members, p in exact]
        run.known[compiled] = (rows, drawn)
    with monkeypatch.context() as patched:
        patched.setattr(engines, "draw_counts", lambda p, n, _: np.rint(p * n).astype(np.int64))
        stated = run.read(name, shots, 0)
    reads = [run.read(name, shots, 100 + r) for r in range(repeats)]
    for values, errors in (
        (torch.stack([read.probabilities for read in reads]), stated.probability_errors),
        (torch.stack([read.success for read in reads]), stated.success_errors),
    ):
        ratio = values.std(0) / errors
        assert float(ratio.square().mean().sqrt()) == pytest.approx(1, abs=0.1)
        assert float(ratio.min()) > 0.75  # one ratio scatters by 7 %
        assert float(ratio.max()) < 1.3


def test_the_other_order_divides_at_every_noise_scale(circuits: Circuits) -> None:
    """Against the two folded circuits evaluated one by one, by hand: linear ZNE of scales 1 and 3 is (3 a − b)/2."""
    inner = Mitigated(Noisy(), strategies_of("readout"))
    at = []
    for factor in (1, 3):
        found = inner.estimate(folded(circuits.compiled[False], factor)[0], circuits.rows)
        at.append(quotient_of(found.values, found.std_errors).probabilities)
    p, told = of_quotient(circuits, "readout+zne:linear:1,3", EXACT, 0)
    assert bool(told.all())
    torch.testing.assert_close(p, (3 * at[0] - at[1]) / 2, rtol=0, atol=1e-4)
    each = circuits.read("readout+zne:linear:1,3", EXACT, 0).probabilities
    assert float((p - each).abs().max()) > 1e-3  # it is another estimate


def test_what_is_done_with_negative_probabilities() -> None:
    p = torch.tensor([[0.7, 0.4, -0.1]], dtype=torch.float64)
    torch.testing.assert_close(project_simplex(p), torch.tensor([[0.65, 0.35, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(clipped(p), torch.tensor([[7 / 11, 4 / 11, 0.0]], dtype=torch.float64))
    # an outcome that never comes, measured with error σ: unbiased as measured, σ/√(2π) once it must not be negative
    sigma = 0.05
    noise = sigma * torch.randn(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    measured = torch.stack([1 - noise, noise], 1)
    assert float(measured[:, 1].mean()) == pytest.approx(0, abs=5 * sigma / 200)
    for mended in (project_simplex(measured), clipped(measured)):
        assert float(mended[:, 1].mean()) == pytest.approx(sigma / (2 * np.pi) ** 0.5, rel=0.03)


def test_bias_and_scatter_and_equal_shots(rows: list[dict[str, Any]]) -> None:
    for name in CONFIG.strategies:
        exact = row(rows, name, None)
        calibration = 0 if name == "none" else 2 / CONFIG.images
        assert exact["circuits"] == pytest.approx((2 if "zne" in name else 1) + calibration)
        for shots in CONFIG.shots:
            found = row(rows, name, shots)
            assert found["total_shots"] == pytest.approx(shots, rel=2e-3)
            assert max(exact["distance"] - found["scatter"], 0) <= found["distance"]  # the triangle's inequality
            assert found["distance"] <= exact["distance"] + found["scatter"]
            assert found["rms_success"] ** 2 == pytest.approx(
                exact["bias_success"] ** 2 + found["sd_success"] ** 2, rel=0.6
            )
            assert found["told_success"] == pytest.approx(found["sd_success"], rel=0.4)
    biases = [row(rows, name, None)["distance"] for name in CONFIG.strategies]
    assert biases == sorted(biases, reverse=True)
    assert row(rows, OF_QUOTIENT, None)["distance"] < biases[1]
    for shots in CONFIG.shots:
        plain = row(rows, "shots", shots)
        assert plain["distance"] == plain["scatter"]  # nothing but shots is in the way
        # half as much with four times the shots
    assert row(rows, "shots", 1000)["distance"] / row(rows, "shots", 4000)["distance"] == pytest.approx(2, rel=0.35)
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert distance(p, p.flip(1)).tolist() == [1.0]


def test_the_page_has_every_table(tmp_path: Path, rows: list[dict[str, Any]], circuits: Circuits) -> None:
    config = MitigationConfig(parts=("process",), devices=(DEVICE,), process=CONFIG)
    cells = {}
    for seed in range(2):
        changed = json.loads(json.dumps(rows))
        for each in changed:
            if each["strategy"] == READOUT_ZNE and "distance" in each:
                each["distance"] = 0.5 + 0.01 * seed  # beyond chance against none, of any seed
        cells[f"seed{seed}"] = {
            "parameters": {"part": "process", "device": DEVICE, "seed": seed, "steps": 2},
            "rows": changed,
            "circuit": circuits.compiled[False].summary(),
        }
    told = {"data_qubits": 2, "steps": 1, "qubits": 3, "two_qubit_gates": 7, "depth": 31, "duration_seconds": 1.25e-6}
    cells["gates"] = {"parameters": {"part": "gates", "device": DEVICE}, "rows": [told]}
    results = Results(load_study("mitigation"), tmp_path, config, {}, cells)
    shown = page(results)
    shown.title = "t"
    text = shown.save_markdown(tmp_path / "p.md", figures=tmp_path / "f").read_text()
    assert (tmp_path / "f" / "mitigation-process.png").exists()
    assert "| 2 | 1 | 3 | 7 | 31 | 1.2 |" in text
    assert "divided, then extrapolated" in text
    for name in ("no noise", "none", "readout measured", "readout measured + ZNE linear 1, 3"):
        assert f"| {name} |" in text
    tests = paired_tests(results, DEVICE, 2, "distance", 1000)
    assert tests[READOUT_ZNE].difference.mean > 0
    assert "| readout measured + ZNE linear 1, 3 | 0 · 1 | 0 · 1 |" in text  # better · worse at both numbers of shots


def test_the_gates_are_those_of_the_model_s_circuit() -> None:
    """The table's circuit is the one a trained model's `as_layer` compiles."""
    reverse = ReverseConfig(n_qubits=2, n_steps=2, depth=2, conditioning="angles", n_labels=10)
    made, model = compiled_process(DEVICE, reverse), LatentQDM(reverse)
    expected = model.as_layer(DEVICE).compiled
    assert (made.two_qubit_gates, made.depth, made.duration) == (
        expected.two_qubit_gates, expected.depth, expected.duration,
    )  # fmt: skip
    assert len(made.physical_qubits) == 4


def test_settings() -> None:
    assert MitigationConfig().parts == PARTS
    stored = {k: v for k, v in QUICK.to_dict().items() if k not in ("parts", "process")}
    assert MitigationConfig.from_dict(stored).parts == PARTS[:-1]  # a folder of before there was the part
    names = [
        cell.name for cell in load_study("mitigation").cells(MitigationConfig(parts=("process",), devices=(DEVICE,)))
    ]
    assert names[:2] == ["preparation", f"gates-{DEVICE}"]
    assert sum(name.startswith("process-T") for name in names) == 10
    with pytest.raises(InvalidInputError, match="parts are"):
        MitigationConfig(parts=("proces",))
    for changes in ({"strategies": ("readout",)}, {"repeats": 1}, {"judged": 9}, {"shots": (8,)}, {"steps": (0,)}):
        with pytest.raises(InvalidInputError):
            ProcessConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="readout"):
        MitigationConfig(process=ProcessConfig(strategies=("none", "readuot")))
