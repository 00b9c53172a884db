"""The training loop: it learns, it resumes bit for bit, and its gradients are those of what it is said to minimise."""

from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_checkpoint
from qhw_diffusion.denoising import training
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.ensembles import mean_fidelity, mmd
from qhw_diffusion.denoising.losses import fidelity
from qhw_diffusion.denoising.models import QDM, AmplitudeQDM, DensityMatrixQDM, EnsembleQDM, ForwardConfig
from qhw_diffusion.denoising.states import haar_states, normalised
from qhw_diffusion.denoising.training import TrainConfig, train_qdm
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError, UnknownNameError
from qhw_diffusion.runs import RunFolder

ONE: dict[str, Any] = {"n_qubits": 1, "n_steps": 2, "depth": 3, "init_scale": 1.0, "kind": "measured"}
QUICK: dict[str, Any] = {"iterations": 6, "batch_size": 8, "targets": 8, "checkpoint_every": 100}


def cluster(count: int = 64, dim: int = 2, width: float = 0.1, seed: int = 0) -> Tensor:
    """States close to (|0⟩ + |1⟩)/√2 or the like."""
    noise = torch.randn(count, dim, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return normalised(torch.ones(count, dim) + width * noise)


def run_at(path: Path) -> RunFolder:
    return RunFolder.create(path, kind="denoiser", config={})


def state(model: QDM) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def falls(values: list[float]) -> bool:
    """The last ten lie below the first by four of their standard deviations, and by a tenth."""
    last = torch.tensor(values[-10:])
    return values[0] > float(last.mean() + 4 * last.std()) and values[0] > 1.1 * float(last.mean())


# --- it learns ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "mode", "kind"),
    [
        ("infidelity", "greedy", "measured"),
        ("infidelity", "joint", "reset"),
        ("infidelity", "joint", "postselected"),
        ("trace_distance", "greedy", "reset"),
        ("trace_distance", "joint", "measured"),
        ("hilbert_schmidt", "greedy", "postselected"),
        ("hilbert_schmidt", "joint", "measured"),
    ],
)
def test_pairwise_losses_fall(loss: str, mode: str, kind: str) -> None:
    reverse = ReverseConfig(**{**ONE, "kind": kind})
    model = DensityMatrixQDM(reverse, ForwardConfig("depolarizing", "constant", {"p": 0.4}))
    config = TrainConfig(loss=loss, mode=mode, iterations=40, batch_size=16, learning_rate=0.1)
    history = train_qdm(model, cluster(), config)
    for step in {row["charts/step"] for row in history}:
        values = [row["losses/train"] for row in history if row["charts/step"] == step]
        assert len(values) == 40
        assert falls(values)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["greedy", "joint"])
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "mmd"},
        {"loss": "mmd", "kernels": ("fidelity", 0.2)},
        {"loss": "mmd", "similarity": "measured"},
        {"loss": "wasserstein"},
    ],
    ids=["mmd", "two kernels", "measured", "wasserstein"],
)
def test_ensemble_losses_fall_and_what_is_generated_gets_better(settings: dict, mode: str) -> None:
    model = EnsembleQDM(ReverseConfig(**ONE, feed_forward=True))
    target = torch.full((1, 2), 2**-0.5, dtype=torch.complex64)

    def generated() -> float:
        made = model.sample(400, torch.Generator().manual_seed(9)).states
        made = made.abs().to(torch.complex64) if settings.get("similarity") else made
        return float(mean_fidelity(made, target))

    before = generated()
    config = TrainConfig(mode=mode, iterations=50, batch_size=32, targets=32, learning_rate=0.1, **settings)
    train_qdm(model, cluster(), config)
    assert generated() > max(before + 0.05, 0.85)


def test_a_pool_of_entering_samples_trains_as_well() -> None:
    model = EnsembleQDM(ReverseConfig(**ONE))
    config = TrainConfig(loss="mmd", iterations=50, batch_size=32, targets=32, buffer_size=100, learning_rate=0.1)
    train_qdm(model, cluster(), config)
    made = model.sample(400, torch.Generator().manual_seed(9)).states
    assert float(mean_fidelity(made, torch.full((1, 2), 2**-0.5, dtype=torch.complex64))) > 0.85


@pytest.mark.slow
def test_images_by_label_and_a_success_that_stays_affordable() -> None:
    """Two images, one a label: the right one comes out; a probability weight raises the success."""
    images = torch.tensor([[1.0, -1, -1, -1], [-1, -1, 1, 1]]).reshape(2, 1, 2, 2)
    labels = torch.tensor([0, 1])
    success = []
    for weight in (0.0, 1.0):
        reverse = ReverseConfig(n_qubits=2, n_steps=2, depth=4, conditioning="weights", n_labels=2)
        model = AmplitudeQDM(reverse, ForwardConfig("gaussian", "constant", {"p": 0.6}), image_shape=(1, 2, 2))
        config = TrainConfig(mode="joint", iterations=100, batch_size=16, learning_rate=0.1, probability_weight=weight)
        train_qdm(model, images.repeat(4, 1, 1, 1), config, labels=labels.repeat(4))
        chain = model.sample(200, torch.Generator().manual_seed(0), labels.repeat(100))
        success.append(float(chain.probability.mean()))
        if not weight:
            close = fidelity(chain.states, model.encode(images).repeat(100, 1))
            wrong = fidelity(chain.states, model.encode(images.flip(0)).repeat(100, 1))
            assert float((close > wrong).double().mean()) > 0.9
    assert success[1] > 1.3 * success[0]


@pytest.mark.slow
def test_training_under_noise_raises_the_fidelity_under_noise() -> None:
    reverse = ReverseConfig(
        n_qubits=2, n_steps=2, depth=3, kind="reset", device="fake_marrakesh", engine="noisy", init_scale=0.5
    )
    model = DensityMatrixQDM(reverse, ForwardConfig("depolarizing", "constant", {"p": 0.5}))
    data = cluster(16, dim=4, width=0.02)

    def reached() -> float:
        made = model.sample(1, torch.Generator().manual_seed(0)).states
        return float(fidelity(made, normalised(torch.ones(1, 4, dtype=torch.complex64))))

    before = reached()
    config = TrainConfig(mode="joint", iterations=120, batch_size=4, learning_rate=0.1)
    history = train_qdm(model, data, config)
    assert falls([row["losses/train"] for row in history])
    assert reached() > before + 0.2
    assert reached() < 0.999, "there is noise"


# --- what is trained when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "loss"), [("postselected", "infidelity"), ("measured", "mmd")])
def test_greedy_training_leaves_other_steps_alone(kind: str, loss: str) -> None:
    settings = {**ONE, "n_steps": 3, "kind": kind}
    model = EnsembleQDM(ReverseConfig(**settings))
    seen: list[tuple[int, Tensor]] = [(0, model.reverse.weight.detach().clone())]

    def watch(update: int, metrics: dict[str, float]) -> None:
        seen.append((int(metrics["charts/step"]), model.reverse.weight.detach().clone()))

    train_qdm(model, cluster(), TrainConfig(loss=loss, **QUICK), on_update=watch)
    assert [t for t, _ in seen[1:]] == [3] * 6 + [2] * 6 + [1] * 6
    for (_, before), (t, after) in itertools.pairwise(seen):
        for step in (1, 2, 3):
            assert torch.equal(before[step - 1], after[step - 1]) == (step != t)


def test_joint_training_moves_every_step_and_outcome() -> None:
    model = EnsembleQDM(ReverseConfig(**ONE, feed_forward=True))
    before = model.reverse.weight.detach().clone()
    train_qdm(model, cluster(), TrainConfig(loss="mmd", mode="joint", **{**QUICK, "batch_size": 32}))
    moved = (model.reverse.weight.detach() - before).abs().amax(-1)[:, 0]
    assert bool((moved[0] > 0).all()), "t = 1, by both outcomes of t = 2"
    assert float(moved[1, 0]) > 0
    assert float(moved[1, 1]) == 0, "nothing comes before t = T"


@pytest.mark.slow
def test_the_score_function_gradient_of_joint_training_is_that_of_the_expected_distance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exact: all four sequences of outcomes of two steps from one state, with their probabilities as weights.

    Drawn: 80 batches of 500. Tolerance: five standard errors of their mean and 2/B of the gradient for the bias of
    normalised weights (order 1/B). Without the weights the gradient is another one, far outside.
    """
    model = EnsembleQDM(ReverseConfig(**ONE, seed=2))
    start = haar_states(1, 2, torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.forward_process, "prior", lambda count, *rest: start.repeat(count, 1))
    data = cluster(1).repeat(4, 1)
    size, draws = 500, 80
    config = TrainConfig(loss="mmd", mode="joint", batch_size=size, targets=4)
    weight = model.reverse.weight

    states, probabilities = [], []
    for first, second in itertools.product((0, 1), repeat=2):
        x, p = model.reverse.step(start, 2).select(torch.tensor([first]))
        y, q = model.reverse.step(x, 1).select(torch.tensor([second]))
        states.append(y)
        probabilities.append(p * q)
    exact_loss = mmd(torch.cat(states), data, torch.cat(probabilities))
    (exact,) = torch.autograd.grad(exact_loss, weight, retain_graph=True)
    (blind,) = torch.autograd.grad(mmd(torch.cat(states), data, torch.cat(probabilities).detach()), weight)

    task = training.TrainingTask(model, data, None, config)
    generator = torch.Generator().manual_seed(1)
    found = torch.stack([torch.autograd.grad(task.loss(0, generator)[0], weight)[0] for _ in range(draws)])
    error = found.std(0) / draws**0.5
    tolerance = 5 * error + 2 / size * exact.abs().max() + 1e-6
    assert bool(((found.mean(0) - exact).abs() < tolerance).all())
    assert float(((blind - exact).abs() - 5 * tolerance).max()) > 0


def test_a_greedy_step_holds_every_outcome_with_its_probability() -> None:
    model = EnsembleQDM(ReverseConfig(**ONE), ForwardConfig("depolarizing", "constant", {"p": 0.5}))
    data = cluster(1).repeat(4, 1)
    task = training.TrainingTask(model, data, None, TrainConfig(loss="mmd", batch_size=2, targets=2))
    with torch.no_grad():
        once = model.reverse.step(model.forward_process.prior(1, 2, torch.Generator()), 2)
        noised = model.forward_process.noised(data[:1], 1, torch.Generator())
        wanted = mmd(once.states.flatten(0, 1), noised, once.probabilities.flatten())
        found, _ = task.loss(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["measured", "postselected", "reset"])
def test_a_pairwise_loss_is_the_mean_over_outcomes(kind: str) -> None:
    model = DensityMatrixQDM(ReverseConfig(**{**ONE, "kind": kind}), ForwardConfig("depolarizing", "linear"))
    data = cluster(1).repeat(2, 1)
    task = training.TrainingTask(model, data, None, TrainConfig(batch_size=2))
    before, after = model.forward_process.pair(data[:1], 2, torch.Generator())
    with torch.no_grad():
        branches = model.reverse.step(after, 2)
        values = torch.stack([1 - fidelity(s, before) for s in branches.states])
        weights = branches.probabilities if kind == "measured" else torch.tensor([[1.0], [0.0]])[: len(values)]
        found, probability = task.loss(2, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(float((values * weights).sum()), abs=1e-5)
    if kind == "postselected":
        assert probability == pytest.approx(float(branches.probabilities[0]), abs=1e-5)


# --- runs ---------------------------------------------------------------------------------------------------------


class Crash(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "mmd", "mode": "greedy"},
        {"loss": "mmd", "mode": "greedy", "buffer_size": 20},
        {"loss": "mmd", "mode": "joint"},
        {"loss": "infidelity", "mode": "joint"},
    ],
    ids=["greedy", "pool", "joint", "pairwise"],
)
def test_resume_is_bit_for_bit(tmp_path: Path, settings: dict) -> None:
    """After a crash within a stage, with its last checkpoint, and in the next stage."""
    config = TrainConfig(**{**QUICK, "checkpoint_every": 2, **settings})
    data, reverse = cluster(), ReverseConfig(**ONE)
    whole = EnsembleQDM(reverse)
    with run_at(tmp_path / "whole") as run:
        history = train_qdm(whole, data, config, run=run)
        logged = run.metrics()
    assert len(logged) == len(history) == (12 if config.mode == "greedy" else 6)
    assert not list((tmp_path / "whole").glob("*.tmp"))
    plain = EnsembleQDM(reverse)
    assert train_qdm(plain, data, config) == history, "a run folder changes nothing"
    assert equal(state(plain), state(whole))

    for crash_at in (2, 6, 7):
        if crash_at >= len(history):
            break

        def crash(update: int, metrics: dict[str, float], crash_at: int = crash_at) -> None:
            if update == crash_at:
                raise Crash

        broken = tmp_path / f"broken at {crash_at}"
        with run_at(broken) as run, pytest.raises(Crash):
            train_qdm(EnsembleQDM(reverse), data, config, run=run, on_update=crash)
        again = EnsembleQDM(ReverseConfig(**{**ONE, "seed": 77}))  # its own first weights do not matter
        with RunFolder.open(broken, kind="denoiser") as run:
            resumed = train_qdm(again, data, config, run=run, resume=True)
            assert run.metrics() == logged
            assert train_qdm(again, data, config, run=run, resume=True) == history, "nothing is left to do"
        assert resumed == history
        assert equal(state(again), state(whole))


@pytest.mark.parametrize("stop_at", [3, 5])
def test_ctrl_c_stops_after_the_update_and_saves(tmp_path: Path, stop_at: int) -> None:
    config, data = TrainConfig(loss="mmd", **QUICK), cluster()
    whole = EnsembleQDM(ReverseConfig(**ONE))
    history = train_qdm(whole, data, config)

    def interrupt(update: int, metrics: dict[str, float]) -> None:
        if update == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    model = EnsembleQDM(ReverseConfig(**ONE))
    with run_at(tmp_path / "run") as run:
        stopped = train_qdm(model, data, config, run=run, on_update=interrupt)
        assert run.has_checkpoint
        assert load_checkpoint(run)[1]["updates"] == len(stopped)
        assert stop_at < len(stopped) <= stop_at + 2
        assert run.outcome == ("stopped" if len(stopped) < len(history) else "finished")
        assert train_qdm(model, data, config, run=run, resume=True) == history
        assert run.outcome == "finished"
    assert equal(state(model), state(whole))


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    data, config = cluster(), TrainConfig(**QUICK)
    with run_at(tmp_path / "run") as run:
        with pytest.raises(RunFolderError, match="no checkpoint"):
            train_qdm(EnsembleQDM(ReverseConfig(**ONE)), data, config, run=run, resume=True)
        train_qdm(EnsembleQDM(ReverseConfig(**ONE)), data, config, run=run)
        for other in ({"depth": 4}, {"n_steps": 3}, {"weight_sharing": "hypernetwork"}):
            model = EnsembleQDM(ReverseConfig(**{**ONE, **other}))
            before = state(model)
            settings = TrainConfig(**QUICK, mode="joint") if "weight_sharing" in other else config
            with pytest.raises(DamagedFileError, match="does not fit this training"):
                train_qdm(model, data, settings, run=run, resume=True)
            assert equal(state(model), before), "a model that could not be restored is left as it was"
        file = run.path / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[:-50])
        with pytest.raises(DamagedFileError):
            train_qdm(EnsembleQDM(ReverseConfig(**ONE)), data, config, run=run, resume=True)
    with pytest.raises(InvalidInputError, match="run folder"):
        train_qdm(EnsembleQDM(ReverseConfig(**ONE)), data, config, resume=True)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "1 or more"),
        ({"batch_size": 1}, "2 or more"),
        ({"learning_rate": 0.0}, "positive"),
        ({"learning_rate": math.nan}, "finite"),
        ({"probability_weight": -1.0}, "positive numbers"),
        ({"buffer_size": 10}, "buffer_size is 10"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TrainConfig(**settings)


def test_settings_unknown() -> None:
    for settings in ({"loss": "fidelty"}, {"mode": "greed"}, {"similarity": "cosine"}, {"kernels": ("gauss",)}):
        with pytest.raises(UnknownNameError):
            TrainConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="TrainConfig setting 'epochs'"):
        TrainConfig.from_dict({"epochs": 3})
    config = TrainConfig(loss="mmd", kernels=("fidelity", 0.1), buffer_size=5)
    assert TrainConfig.from_dict({"loss": "mmd", "kernels": ["fidelity", 0.1], "buffer_size": 5}) == config


@pytest.mark.parametrize(
    ("reverse", "config", "labels", "message"),
    [
        ({"conditioning": "weights", "n_labels": 3}, {}, None, "conditioned: give labels"),
        ({}, {}, torch.zeros(6, dtype=torch.long), "takes no labels"),
        ({"conditioning": "weights", "n_labels": 3}, {}, torch.tensor([0, 1, 2, 3, 0, 1]), "allowed: 0 to 2"),
        ({"conditioning": "weights", "n_labels": 3}, {}, torch.tensor([0, 1, 1, 1, 0, 1]), "no data for label 2"),
        ({"conditioning": "weights", "n_labels": 3}, {}, torch.tensor([0, 1, 2]), "3 labels for 6"),
        ({"conditioning": "weights", "n_labels": 3}, {}, torch.linspace(0, 2, 6), "int64"),
        ({"weight_sharing": "time_embedding"}, {}, None, "use mode='joint'"),
        ({"weight_sharing": "hypernetwork"}, {}, None, "use mode='joint'"),
        ({"kind": "unitary", "ancillas": 0}, {"loss": "mmd", "mode": "joint"}, None, "train it pairwise"),
        ({"feed_forward": True}, {"loss": "infidelity"}, None, "mmd or wasserstein"),
    ],
)
def test_what_does_not_fit_together(reverse: dict, config: dict, labels: Tensor | None, message: str) -> None:
    model = EnsembleQDM(ReverseConfig(**{**ONE, **reverse}))
    with pytest.raises(InvalidInputError, match=message):
        train_qdm(model, cluster(6), TrainConfig(**{**QUICK, **config}), labels=labels)


def test_data_that_does_not_fit() -> None:
    model = AmplitudeQDM(ReverseConfig(n_qubits=2, n_steps=2), image_shape=(1, 2, 2))
    with pytest.raises(InvalidInputError, match=r"allowed: \[N, 1, 2, 2\]"):
        train_qdm(model, torch.ones(5, 1, 3, 3), TrainConfig(**QUICK))
    with pytest.raises(InvalidInputError, match="dimension 4; 1 qubits have 2"):
        train_qdm(EnsembleQDM(ReverseConfig(**ONE)), cluster(4, dim=4), TrainConfig(**QUICK))
