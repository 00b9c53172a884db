"""Policies whose circuit is measured in trained observables: parameters, gradients, files, cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qhw_diffusion.cli.cost import Workload, cost_of
from qhw_diffusion.errors import QhwError
from qhw_diffusion.guidance import (
    PolicyConfig,
    QuantumPolicy,
    build_policy,
    load_policy_model,
    save_policy_model,
)

STATES = torch.linspace(-1, 1, 18).reshape(3, 6)


def policy(**changes: object) -> QuantumPolicy:
    settings = {"device": "fake_manila", "engine": "noisy", "observables": "adaptive:2", **changes}
    built = build_policy(PolicyConfig(**settings), seed=2)  # type: ignore[arg-type]
    assert isinstance(built, QuantumPolicy)
    return built


def test_it_starts_as_the_fixed_one_and_has_more_parameters() -> None:
    """⟨Z⟩ of every qubit before training, within readout's rounding; 4·15 coefficients more, all of them trained."""
    fixed, adaptive = policy(observables="fixed"), policy()
    torch.testing.assert_close(adaptive(STATES), fixed(STATES))
    assert adaptive.parameter_counts()["circuit"] == fixed.parameter_counts()["circuit"] + 60
    assert (fixed.circuits_per_state, adaptive.circuits_per_state) == (1, 9)
    adaptive(STATES)[0].sum().backward()  # type: ignore[no-untyped-call]
    coefficients = adaptive.layer.coefficients
    assert coefficients is not None
    assert coefficients.grad is not None
    assert bool((coefficients.grad != 0).all())
    assert any(p is coefficients for p in adaptive.parameter_groups()["circuit"])


def test_controls_follow() -> None:
    """The frozen control freezes the coefficients, the matched one has as many parameters."""
    frozen = policy(kind="frozen")
    assert frozen.layer.coefficients is not None
    assert not frozen.layer.coefficients.requires_grad
    matched = build_policy(PolicyConfig(kind="matched", observables="adaptive:2"))
    wanted = policy().parameter_counts()["total"]
    assert abs(matched.parameter_counts()["total"] - wanted) < 0.01 * wanted


def test_saved_moved_and_costed(tmp_path: Path) -> None:
    """A folder brings the coefficients back, another device keeps them, and the cost counts nine bases an image."""
    made = policy()
    assert made.layer.coefficients is not None
    with torch.no_grad():
        made.layer.coefficients.copy_(torch.linspace(-1, 1, 60))
    save_policy_model(made, tmp_path / "policy")
    loaded = load_policy_model(tmp_path / "policy")
    assert isinstance(loaded, QuantumPolicy)
    torch.testing.assert_close(loaded(STATES), made(STATES))
    moved = loaded.on(engine="ideal")
    assert torch.equal(moved.layer.coefficients, made.layer.coefficients)  # type: ignore[arg-type]
    assert not torch.allclose(moved(STATES)[0], made(STATES)[0])
    cost = cost_of(Workload("policy", made.layer.compiled, rows=5, calls=2), shots=100)
    assert (cost.jobs, cost.circuits) == (2, 5 * 9)  # circuits of one call


@pytest.mark.parametrize("text", ["z", "adaptive", "adaptive:0", "adaptive:2:star"])
def test_other_texts(text: str) -> None:
    """Refused when the configuration is made."""
    with pytest.raises(QhwError, match="adaptive:K"):
        PolicyConfig(observables=text)


def test_wider_than_the_circuit() -> None:
    """Told with both numbers."""
    with pytest.raises(QhwError, match="5 neighbouring qubits, the circuit has 4"):
        policy(observables="adaptive:5")
