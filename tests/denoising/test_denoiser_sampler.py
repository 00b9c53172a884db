"""A denoiser through a Sampler: records and images against all branches enumerated in the package's own simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qiskit_aer.primitives import SamplerV2
from scipy import stats
from torch import Tensor

from qhw_diffusion.denoising import AmplitudeQDM, ForwardConfig, ReverseConfig
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import SamplerEngine
from qhw_diffusion.hardware import Ledger, open_runner

SHOTS, ALARM = 2000, 1e-5


def model_of(forward: str = "gaussian", **settings: Any) -> AmplitudeQDM:
    given = {"n_qubits": 2, "n_steps": 2, "depth": 2, "init_scale": 0.9, "seed": 3, **settings}
    return AmplitudeQDM(ReverseConfig(**given), ForwardConfig(forward), image_shape=(1, 2, 2))


def starts(model: AmplitudeQDM, batch: int = 2) -> Tensor:
    return model.forward_process.prior(batch, model.dim, torch.Generator().manual_seed(5))


def quick(model: AmplitudeQDM) -> DenoiserSampler:
    return DenoiserSampler(model, "ideal", optimization_level=1)


@torch.no_grad()
def exact(model: AmplitudeQDM, states: Tensor, labels: Tensor) -> dict[tuple[int, ...], Tensor]:
    """{history: [B, d] joint probabilities with the data}, all branches of all steps."""
    process = model.reverse
    branches = {(): (states, torch.ones(len(states)))}
    for t in range(process.config.n_steps, 0, -1):
        after = {}
        for history, (now, weight) in branches.items():
            before = torch.full((len(states),), history[-1] if history else 0)
            made = process.step(now, t, labels, before)
            for outcome in range(len(made.states)):
                after[*history, outcome] = (made.states[outcome], weight * made.probabilities[outcome])
        branches = after
    found = {}
    for history, (now, weight) in branches.items():
        p = now.abs().square() if now.ndim == 2 else torch.diagonal(now, dim1=1, dim2=2).real
        found[history] = weight[:, None] * p
    return found


FED: dict[str, Any] = {"kind": "measured", "feed_forward": True}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "feed-forward, labels": ({**FED, "conditioning": "weights", "n_labels": 2}, "dynamic"),
    "kept, read on the way": ({"kind": "measured"}, "dynamic"),
    "kept, labels": ({"kind": "measured", "conditioning": "angles", "n_labels": 3}, "deferred"),
    "post-selected": ({"kind": "postselected", "conditioning": "qubits", "n_labels": 2}, "deferred"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_record_comes_up_as_often_as_it_should(name: str) -> None:
    settings, way = KINDS[name]
    model = model_of(**settings)
    states = starts(model, 3)
    labels = torch.arange(3) % model.reverse.config.n_labels
    sampler = DenoiserSampler(model, "ideal", way=way, optimization_level=1)  # type: ignore[arg-type]
    engine = SamplerEngine(SamplerV2(seed=7), shots=SHOTS)
    made = sampler.pubs(engine, states, labels)
    assert len(made) == (len(set(labels.tolist())) if way == "dynamic" else 1)
    sampled = engine.sample_many([pub for pub, _ in made])
    wanted = exact(model, states, labels)
    for (_, index), samples in zip(made, sampled, strict=True):
        data, histories = sampler.read(samples, SHOTS)
        for place, image in enumerate(index.tolist()):
            counts = np.array(
                [
                    torch.bincount(data[place][(histories[place] == torch.tensor(h)).all(1)], minlength=4).numpy()
                    for h in wanted
                ]
            )
            p = np.array([each[image].numpy() for each in wanted.values()], dtype=float)
            assert counts.sum() == SHOTS
            rare = p * SHOTS < 5
            bins = [*counts[~rare], counts[rare].sum()], [*p[~rare], p[rare].sum()]
            seen = np.array(bins[1]) > 0
            expected = np.array(bins[1])[seen] / np.sum(bins[1]) * SHOTS
            assert stats.chisquare(np.array(bins[0])[seen], expected).pvalue > ALARM


def test_images_are_those_of_their_own_history() -> None:
    """Histories come up as often as the model draws them; an image's counts are the data's given its history."""
    model = model_of(kind="measured", feed_forward=True)
    batch = 24
    states = starts(model, 1).expand(batch, -1)
    made = quick(model).sample(SamplerEngine(SamplerV2(seed=2), shots=300), states)
    joint = exact(model, states[:1], torch.zeros(1, dtype=torch.long))
    shares = {history: float(p.sum()) for history, p in joint.items()}
    assert made.outcomes.shape == (batch, 2)
    assert len({tuple(h) for h in made.outcomes.tolist()}) > 2
    total = torch.zeros(4)
    for history, counts, share in zip(made.outcomes.tolist(), made.counts, made.share, strict=True):
        assert float(share) == pytest.approx(shares[tuple(history)], abs=5 * 0.5 / np.sqrt(300))
        assert int(counts.sum()) == round(300 * float(share))
        p = joint[tuple(history)][0] / shares[tuple(history)]
        error = (p * (1 - p) / counts.sum()).sqrt()
        assert ((counts / counts.sum() - p).abs() < 5 * error + 2 / counts.sum()).all()
        total += counts
    drawn = [tuple(h) for h in made.outcomes.tolist()]
    often = np.array([drawn.count(h) for h in shares])
    assert stats.chisquare(often, batch * np.array(list(shares.values())) / sum(shares.values())).pvalue > ALARM
    assert made.images is not None
    assert made.images.shape == (batch, 1, 2, 2)
    given = made.outcomes.flip(1)
    asked = quick(model).sample(SamplerEngine(SamplerV2(seed=2), shots=20), states, outcomes=given)
    assert torch.equal(asked.outcomes, given)


def test_post_selected_and_reset_models_by_both_ways() -> None:
    """The same images as the exact simulation, a mixed start purified."""
    for forward, kind in (("gaussian", "postselected"), ("depolarizing", "reset")):
        model = model_of(forward, kind=kind)
        states = starts(model)
        with torch.no_grad():
            trajectory = model.reverse.run(states)
            p = model.reverse.outcome_probabilities(trajectory.states)
        for way in ("deferred", "dynamic"):
            made = DenoiserSampler(model, "ideal", way=way, optimization_level=1).sample(  # type: ignore[arg-type]
                SamplerEngine(SamplerV2(seed=4), shots=SHOTS), states
            )
            share = trajectory.probability if kind == "postselected" else torch.ones(2)
            torch.testing.assert_close(made.share.float(), share, atol=5 * 0.5 / SHOTS**0.5, rtol=0)
            n = made.counts.sum(1, keepdim=True)
            assert ((made.counts / n - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 2 / n).all(), (way, kind)
            assert made.estimate is not None
            torch.testing.assert_close(made.estimate.magnitudes, (made.counts / n).sqrt().float())


def test_on_a_fake_device_through_the_ledger(tmp_path: Path) -> None:
    """Close to the simulation of the same steps without noise; the second time from the ledger, shot for shot."""
    model = model_of(kind="measured", feed_forward=True, depth=1)
    device = Device.load("fake_manila")
    states = starts(model)
    sampler = DenoiserSampler(model, device)
    assert sampler.way == "dynamic"
    assert "if_else" in sampler.circuit().count_ops()
    with Ledger.open(tmp_path / "ledger") as ledger, open_runner(device, ledger=ledger, run="r") as runner:
        engine = SamplerEngine(runner, shots=400)
        made = sampler.sample(engine, states)
        again = DenoiserSampler(model, device).sample(engine, states)
        assert (again.job_ids, len(ledger.rows())) == (made.job_ids, 1)
    assert torch.equal(again.counts, made.counts)
    assert made.images is not None
    assert torch.equal(again.images, made.images)  # type: ignore[arg-type]
    noisy = exact(model, states, torch.zeros(2, dtype=torch.long))
    shares = torch.stack([noisy[tuple(h)][image].sum() for image, h in enumerate(made.outcomes.tolist())])
    assert (made.share - shares).abs().max() < 0.25


def test_bad_input() -> None:
    model = model_of(kind="measured", feed_forward=True)
    with pytest.raises(InvalidInputError, match="choose the next step's angles"):
        DenoiserSampler(model, "ideal", way="deferred")
    with pytest.raises(InvalidInputError, match=r"dynamic \(if_else\), and fake_miami has no control flow"):
        DenoiserSampler(model, "fake_miami").circuit()
    with pytest.raises(InvalidInputError, match="way is 'other'"):
        DenoiserSampler(model, "ideal", way="other")  # type: ignore[arg-type]
    engine = SamplerEngine(SamplerV2(seed=1), shots=50)
    with pytest.raises(InvalidInputError, match="for a model that keeps"):
        quick(model).sample(engine, starts(model), outcomes=torch.zeros(2, 1, dtype=torch.long))
    wide = model_of(kind="measured", n_steps=4)
    assert DenoiserSampler(wide, "fake_manila").way == "dynamic", "six qubits, were it deferred"
    selected = model_of(kind="postselected")
    with pytest.raises(InvalidInputError, match="do not resolve a success probability"):
        quick(selected).sample(SamplerEngine(SamplerV2(), shots=3), starts(selected))
