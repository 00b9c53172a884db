from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qhw_diffusion.denoising.ensembles import mmd
from qhw_diffusion.denoising.states import check_density, check_pure
from qhw_diffusion.errors import InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.runs import read_json
from qhw_diffusion.studies import anchors
from qhw_diffusion.studies.anchor_data import (
    ANCHORS,
    METRICS,
    Published,
    circle_states,
    cluster_states,
    slightly_mixed,
)
from qhw_diffusion.studies.anchors import Effort, measure, result_file, run_anchors, run_seed, scaled, verdict

TINY = Effort(n_test=40, share=0.01)


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
    draws = ANCHORS["msquddpm-cluster"].draw(20_000, generator(1))
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
    anchor = ANCHORS["msquddpm-circle"]
    draws = [anchor.draw(1000, generator(seed)) for seed in range(4)]
    values = [measure(anchor, draws[i], draws[i + 1])["wasserstein"] for i in (0, 2)]
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
    anchor = ANCHORS["quddpm-1"]
    up, down = torch.tensor([[1, 0]]).repeat(8, 1) + 0j, torch.tensor([[0, 1]]).repeat(8, 1) + 0j
    same, far = measure(anchor, up, up), measure(anchor, down, up)
    assert same == {"fidelity": 1, "mmd": 0, "wasserstein": 0}
    assert far == pytest.approx({"fidelity": 0, "mmd": 2, "wasserstein": 1})
    half = torch.cat([up[:4], down[:4]])
    assert measure(anchor, half, up) == pytest.approx(
        {"fidelity": 0.5, "mmd": float(mmd(half, up)), "wasserstein": 0.5}
    )


def test_training_beats_the_untrained_and_the_bypassed_circuit() -> None:
    anchor = ANCHORS["quddpm-1"]
    short = replace(
        anchor,
        reverse=replace(anchor.reverse, n_steps=4),
        train=replace(anchor.train, iterations=50, buffer_size=200, batch_size=50, targets=50),
    )
    rows = run_seed(short, 0, 200)["rows"]
    assert rows["bypassed"]["fidelity"] == pytest.approx(0.5, abs=0.08)  # Haar states
    assert rows["trained"]["fidelity"] > 0.9
    for metric in ("mmd", "wasserstein"):
        assert rows["trained"][metric] < 0.2 * min(rows["untrained"][metric], rows["bypassed"][metric])
        assert rows["floor"][metric] < rows["trained"][metric]


def test_a_seed_gives_the_same_numbers_again() -> None:
    anchor = ANCHORS["quddpm-1"]
    short = replace(scaled(anchor, TINY), reverse=replace(anchor.reverse, n_steps=2))
    rows = run_seed(short, 0, 40)["rows"]
    assert run_seed(short, 0, 40)["rows"] == rows
    assert run_seed(short, 1, 40)["rows"] != rows


@pytest.mark.parametrize("name", sorted(ANCHORS))
def test_every_anchor_runs(name: str) -> None:
    anchor = scaled(ANCHORS[name], TINY)
    assert anchor.train.iterations == max(2, round(ANCHORS[name].train.iterations / 100))
    rows = run_seed(anchor, 0, TINY.n_test)["rows"]
    assert set(rows) == set(anchors.ROWS)
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    if name.startswith("msquddpm"):  # I/2 forty times
        assert rows["bypassed"]["fidelity"] == pytest.approx(0.5)


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "QUICK", TINY)
    anchor = ANCHORS["quddpm-1"]
    monkeypatch.setitem(ANCHORS, "quddpm-1", replace(anchor, reverse=replace(anchor.reverse, n_steps=2)))
    text = run_anchors(tmp_path, ["quddpm-1"], seeds=2, quick=True, command="qhw study anchors")
    assert (tmp_path / "anchors.md").read_text() == text + "\n"
    for told in ("0.9888 ± 0.0007 (0.9876)", "qhw study anchors", "Quick", *ANCHORS["quddpm-1"].assumed):
        assert told in text
    first, second = (result_file(tmp_path, "quddpm-1", seed) for seed in (0, 1))
    before, lost = first.stat().st_mtime_ns, read_json(second)["rows"]
    second.unlink()
    monkeypatch.setattr(anchors, "run_seed", counted := Counted())
    assert run_anchors(tmp_path, ["quddpm-1"], seeds=2, quick=True, command="qhw study anchors").count("0.9888") == 1
    assert counted.seeds == [1]
    assert first.stat().st_mtime_ns == before
    assert read_json(second)["rows"] == lost
    with pytest.raises(RunFolderError, match="other settings"):
        run_anchors(tmp_path, ["quddpm-1"], seeds=1)


class Counted:
    """`run_seed` that notes which seeds it was asked for."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, anchor: anchors.Anchor, seed: int, n_test: int) -> dict[str, object]:
        self.seeds.append(seed)
        return run_seed(anchor, seed, n_test)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="quddpm-1"):
        run_anchors(tmp_path, ["quddpm"])
    with pytest.raises(InvalidInputError, match="seeds=0"):
        run_anchors(tmp_path, seeds=0)


def test_verdicts() -> None:
    anchor = replace(
        ANCHORS["quddpm-1"], published={"fidelity": Published(0.95, 0.002, 0.98), "mmd": Published(1e-3, 2e-4)}
    )

    def judged(metric: str, *ours: float) -> str:
        return verdict(anchor, metric, {"trained": list(ours), "floor": [0.979, 0.981]})

    assert judged("mmd", 5e-4, 6e-4, 5.5e-4) == "beaten"
    assert judged("mmd", 1e-3, 1.1e-3, 9e-4) == "matched"
    assert judged("mmd", 5e-4) == "matched"  # one seed has no interval
    assert judged("mmd", 2e-3, 2.1e-3, 2.2e-3) == "missed"
    # fidelity: the distance to the data, .03 as published
    assert judged("fidelity", 0.97, 0.971, 0.969) == "beaten"
    assert judged("fidelity", 0.95, 0.952, 0.951) == "matched"
    assert judged("fidelity", 0.93, 0.94, 0.95) == "missed"
    assert judged("wasserstein", 0.1, 0.1) == "–"
    assert set(METRICS) == set(anchors.NAMES) == set(anchors.DIGITS)
