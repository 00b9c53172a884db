"""The reverse process: weights of the right step, label and outcome, and states through the whole chain."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion.denoising.baselines import LinearProcess, with_classical
from qhw_diffusion.denoising.channels import check_channel, superoperator_of
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import EnsembleQDM
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.denoising.states import as_density, haar_states
from qhw_diffusion.errors import InvalidInputError, UnknownNameError


def process(dtype: torch.dtype = torch.float64, **settings: Any) -> ReverseProcess:
    defaults: dict[str, Any] = {"n_qubits": 2, "n_steps": 3, "depth": 2, "init_scale": 1.0}
    return ReverseProcess(ReverseConfig(**{**defaults, **settings}), dtype=dtype)


def states(count: int, dim: int = 4, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return haar_states(count, dim, torch.Generator().manual_seed(seed), dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(p: ReverseProcess, t: int, label: int, outcome: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """Branches [K, d] (not normalised) and probabilities [K] of one sample, from the step's Kraus operators."""
    inputs = p.inputs_of(t, torch.tensor([label]))
    kraus = p.evolution.kraus(p.weights_of(t, label, outcome), inputs)
    rows = kraus @ state
    return rows, rows.abs().square().sum(-1)


@pytest.mark.parametrize(
    ("settings", "weights", "parameters"),
    [
        ({}, (3, 1, 1, 18), 54),
        ({"kind": "unitary", "ancillas": 0}, (3, 1, 1, 12), 36),
        ({"ansatz": "cz", "outer": 1}, (3, 1, 1, 20), 60),
        ({"kind": "measured", "feed_forward": True, "ancillas": 2}, (3, 1, 4, 24), 288),
        ({"conditioning": "weights", "n_labels": 5}, (3, 5, 1, 18), 270),
        ({"conditioning": "qubits", "n_labels": 3}, (3, 1, 1, 30), 90),
        ({"conditioning": "angles", "n_labels": 3}, (3, 1, 1, 18), 54 + 3 * 3 * 4),
        ({"weight_sharing": "time_embedding"}, (1, 1, 1, 18), 18 + 3 * 4),
        ({"weight_sharing": "hypernetwork", "hypernetwork_width": 5}, (1, 1, 1, 18), 18 + 4 * 5 + 5 * 18),
    ],
)
def test_tables_of_weights(settings: dict, weights: tuple[int, ...], parameters: int) -> None:
    p = process(**settings)
    assert tuple(p.weight.shape) == weights
    assert p.n_circuit_parameters == math.prod(weights)
    assert p.n_parameters == parameters


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "measured", "feed_forward": True},
        {"kind": "measured", "feed_forward": True, "conditioning": "weights", "n_labels": 3},
        {"kind": "measured", "conditioning": "qubits", "n_labels": 3},
        {"kind": "measured", "conditioning": "angles", "n_labels": 3, "weight_sharing": "time_embedding"},
        {"kind": "measured", "weight_sharing": "hypernetwork", "feed_forward": True},
    ],
)
def test_a_step_takes_each_sample_through_its_own_label_and_outcome(settings: dict) -> None:
    p = process(**settings)
    labels = torch.tensor([0, 2, 1, 0, 2, 1]) if p.config.n_labels > 1 else torch.zeros(6, dtype=torch.long)
    before = torch.arange(6) % p.config.n_outcomes
    start = states(6)
    with torch.no_grad():
        found = p.step(start, 2, labels if p.config.n_labels > 1 else None, before)
        for b in range(6):
            rows, probabilities = by_hand(p, 2, int(labels[b]), int(before[b]), start[b])
            torch.testing.assert_close(found.probabilities[:, b], probabilities, rtol=0, atol=1e-10)
            wanted = as_density(rows) / probabilities[:, None, None]
            torch.testing.assert_close(as_density(found.states[:, b]), wanted, rtol=0, atol=1e-9)
        if p.config.feed_forward:
            other = p.step(start, 2, labels if p.config.n_labels > 1 else None, (before + 1) % 2)
            assert not torch.allclose(other.probabilities, found.probabilities)


@pytest.mark.parametrize("weight_sharing", ["per_step", "time_embedding", "hypernetwork"])
def test_every_step_is_another_circuit(weight_sharing: str) -> None:
    p = process(weight_sharing=weight_sharing)
    with torch.no_grad():
        first, second = (p.step(states(2), t).states for t in (1, 2))
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("kind", ["unitary", "measured", "postselected", "reset"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_runs_keep_states_normalised_and_dtypes(kind: str, dtype: torch.dtype) -> None:
    p = process(torch.float32, kind=kind, ancillas=0 if kind == "unitary" else 1)
    start = states(4, dtype=dtype)
    for given in (start, as_density(start)):
        chain = p.run(given, generator=generator(), keep_path=True)
        assert chain.states.dtype == dtype
        assert chain.states.ndim == (3 if given.ndim == 3 or kind == "reset" else 2)
        trace = as_density(chain.states).diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(trace, torch.ones_like(trace), rtol=0, atol=1e-5)
        assert len(chain.path) == 4
        assert chain.outcomes.shape == (4, 3)
        assert bool((chain.probability <= 1 + 1e-6).all())
    chain.states.abs().square().sum().backward()
    assert p.weight.grad is not None
    assert p.weight.grad.dtype == torch.float32


def test_a_run_is_its_steps_one_after_the_other() -> None:
    p = process(kind="measured", feed_forward=True)
    with torch.no_grad():
        chain = p.run(states(5), generator=generator(3), keep_path=True)
        again = p.run(states(5), generator=generator(3))
        half = p.run(states(5), generator=generator(3), stop=1)
        total = torch.zeros(5, dtype=torch.float64)
        for column, t in enumerate((3, 2, 1)):
            before = chain.outcomes[:, column - 1] if column else None
            kept, probability = p.step(chain.path[column], t, None, before).select(chain.outcomes[:, column])
            torch.testing.assert_close(kept, chain.path[column + 1])
            total += probability.log()
    torch.testing.assert_close(chain.log_probability, total)
    assert torch.equal(again.states, chain.states), "the same seed"
    torch.testing.assert_close(half.states, chain.path[2], rtol=0, atol=0)
    assert not torch.equal(p.run(states(5), generator=generator(4)).outcomes, chain.outcomes)


def test_importance_is_one_and_has_the_gradient_of_the_log_probability() -> None:
    p = process(kind="measured")
    chain = p.run(states(3), generator=generator())
    torch.testing.assert_close(chain.importance, torch.ones(3, dtype=torch.float64))
    (a,) = torch.autograd.grad(chain.importance.sum(), p.weight, retain_graph=True)
    (b,) = torch.autograd.grad(chain.log_probability.sum(), p.weight)
    torch.testing.assert_close(a, b)
    assert a.abs().max() > 1e-3


@pytest.mark.parametrize("device", ["ideal", "fake_manila"])
def test_every_step_is_a_channel(device: str) -> None:
    """Outcomes added up: completely positive and trace preserving, with the device's noise as without."""
    p = process(kind="measured", device=device, engine="ideal" if device == "ideal" else "noisy")

    def channel(rho: Tensor) -> Tensor:
        with torch.no_grad():
            return p.step(rho, 1).average()

    check_channel(superoperator_of(channel, 4), tolerance=1e-9)


def test_another_device_and_engine_with_the_same_weights() -> None:
    p = process(torch.float32)
    start = states(3, dtype=torch.complex64)
    with torch.no_grad():
        ideal = p.run(start)
        routed = p.on(device="fake_manila")
        noisy = routed.on(engine="noisy")
        on_device, with_noise = routed.run(start), noisy.run(start)
    torch.testing.assert_close(on_device.probability, ideal.probability, rtol=0, atol=1e-5)
    torch.testing.assert_close(as_density(on_device.states), as_density(ideal.states), rtol=0, atol=1e-4)
    assert with_noise.states.ndim == 3
    difference = (as_density(ideal.states) - with_noise.states).abs().max()
    assert 1e-3 < difference < 0.7
    assert noisy.config.device == "fake_manila"
    assert noisy.compiled.device is routed.compiled.device
    assert torch.equal(noisy.weight, p.weight)
    assert noisy.weight is not p.weight
    read = noisy.outcome_probabilities(with_noise.states)
    torch.testing.assert_close(read.sum(1), torch.ones(3), rtol=0, atol=1e-5)
    true = with_noise.states.diagonal(dim1=1, dim2=2).real
    assert not torch.allclose(read, true, atol=1e-3), "read with readout errors"


def test_the_seed_sets_the_first_weights() -> None:
    assert torch.equal(process(seed=3).weight, process(seed=3).weight)
    assert not torch.equal(process(seed=3).weight, process(seed=4).weight)
    assert float(process(init_scale=0.0).weight.detach().abs().max()) == 0


def test_a_postselection_that_never_succeeds_says_what_it_would_cost() -> None:
    p = process(depth=2, n_steps=1)
    with torch.no_grad():
        p.weight.zero_()
        ancilla = [i for i, w in enumerate(p.circuit.weights) if i in (6,)]  # RX of the ancilla in the first layer
        p.weight[0, 0, 0, ancilla] = torch.pi
    with pytest.raises(InvalidInputError, match=r"step 1 succeeds with probability .* shots for one success"):
        p.run(states(2))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"3 labels: give labels, \[B\] from 0 to 2"),
        (torch.tensor([0, 1, 3]), "labels run from 0 to 3; allowed: 0 to 2"),
        (torch.tensor([0, -1, 2]), "from -1"),
        (torch.tensor([0, 1]), "2 labels for 3"),
        (torch.tensor([0.0, 1.0, 2.0]), "float32"),
    ],
)
def test_labels_that_do_not_fit(labels: Tensor | None, message: str) -> None:
    p = process(conditioning="weights", n_labels=3)
    with pytest.raises(InvalidInputError, match=message):
        p.run(states(3), labels)
    with pytest.raises(InvalidInputError, match=message):
        p.step(states(3), 1, labels)


def test_other_errors() -> None:
    p = process(kind="measured")
    for t in (0, 4):
        with pytest.raises(InvalidInputError, match=f"step {t}; allowed: 1 to 3"):
            p.step(states(1), t)
    with pytest.raises(InvalidInputError, match=r"torch\.Generator"):
        p.run(states(1))
    with pytest.raises(InvalidInputError, match="labels run from 0 to 1; allowed: 0 to 0"):
        p.run(states(2), torch.tensor([0, 1]), generator())
    with pytest.raises(InvalidInputError, match=r"\[B, 4\]"):
        p.run(states(2, dim=8), generator=generator())
    with pytest.raises(InvalidInputError, match="before"):
        process(kind="measured", feed_forward=True).step(states(2), 1, None, torch.tensor([0, 2]))
    with pytest.raises(UnknownNameError, match="fake_marrakesh"):
        p.on(device="fake_marakesh")
    with pytest.raises(InvalidInputError, match="has no noise"):
        p.on(engine="noisy")


@pytest.mark.parametrize("conditioning", ["weights", "angles", "qubits"])
@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0, 1, 3]), torch.tensor([0, -1, 2]), torch.tensor([0.0, 1, 2]), torch.tensor([True, False, True]),
     torch.tensor([0, 1, 2], dtype=torch.uint8), torch.eye(3, dtype=torch.long), torch.tensor([0, 1]), [0, 1, 2]],
    ids=["one too high", "negative", "float", "bool", "uint8", "one-hot", "too few", "list"],
)  # fmt: skip
def test_labels_that_a_conditioned_process_does_not_have(conditioning: str, labels: Tensor) -> None:
    """Every way in, the tables of weights and of angles among them: none takes an index from the end."""
    model = EnsembleQDM(ReverseConfig(n_qubits=2, n_steps=3, depth=1, conditioning=conditioning, n_labels=3))
    p = model.reverse
    rivals = (with_classical(model), model.with_reverse(LinearProcess(model)))
    ways = [lambda: p.run(states(3), labels), lambda: p.step(states(3), 1, labels),
            *[lambda m=m: m.sample(3, generator(), labels) for m in (model, *rivals)],
            lambda: rivals[0].reverse.step(states(3), 1, labels)]  # fmt: skip
    if len(labels) == 3:  # how many is not said there
        ways.append(lambda: p.inputs_of(1, labels))
    for way in ways:
        with pytest.raises(InvalidInputError, match="labels"):
            way()


def test_a_label_is_needed_by_the_rivals_of_a_conditioned_process_too() -> None:
    model = EnsembleQDM(ReverseConfig(n_qubits=2, n_steps=3, depth=1, conditioning="weights", n_labels=3))
    for reverse in (model.reverse, with_classical(model).reverse):
        with pytest.raises(InvalidInputError, match="give labels"):
            reverse.step(states(3), 1)


def test_weights_of_no_step_label_or_outcome() -> None:
    p = process(kind="measured", feed_forward=True, conditioning="weights", n_labels=3)
    for wrong in ((0,), (4,), (1, -1), (1, 3), (1, 0, -1), (1, 0, 2)):
        with pytest.raises(InvalidInputError, match="allowed"):
            p.weights_of(*wrong)
    assert p.weights_of(3, 2, 1).shape == p.weight.shape[-1:]
    for label in (-1, 3, 1.0, True):
        with pytest.raises(InvalidInputError, match="labels"):
            p.dynamic_circuit(label)


def test_a_unitary_process_has_a_classical_baseline_too() -> None:
    model = EnsembleQDM(ReverseConfig(n_qubits=2, n_steps=2, kind="unitary", ancillas=0, depth=4))
    other = with_classical(model)
    assert other.reverse.n_parameters <= model.reverse.n_parameters
    assert other.sample(3, torch.Generator().manual_seed(0)).states.shape == (3, 4)
