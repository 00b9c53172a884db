"""Zero-noise extrapolation against Aer and numpy; gradients, rows, error bars, cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Ideal, Shots
from qhw_diffusion.mitigation import ZNE, Cost, Mitigated, Readout, folded
from qhw_diffusion.mitigation.zne import at_zero, extrapolate

FIT = {
    "linear": lambda x, y: np.polyfit(x, y, 1)[-1],
    "polynomial2": lambda x, y: np.polyfit(x, y, 2)[-1],
    "richardson": lambda x, y: np.polyfit(x, y, len(x) - 1)[-1],
    "exponential": lambda x, y: (
        np.sign(y[0]) * np.exp(np.polyfit(x, np.log(np.abs(y)), 1)[-1])
        if abs(np.sign(y).sum()) == len(y)
        else np.polyfit(x, y, 1)[-1]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fake_manila", "fake_brisbane", "fake_marrakesh", "fake_nighthawk"])
def test_on_the_noisy_engine_it_is_numpys_fit_of_aers_density_matrices(name, policy, rows, aer):
    compiled, factors = policy(name), (1, 1.8, 3, 5)
    values = rows(compiled, 2)
    reached = ZNE(factors).reached(compiled)
    at_scale = np.array([aer(folded(compiled, factor)[0], values) for factor in factors])  # [K, B, M]
    for extrapolation, fit in FIT.items():
        estimate = Mitigated("noisy", [ZNE(factors, extrapolation)]).estimate(compiled, values)
        wanted = np.array([[fit(reached, at_scale[:, b, m]) for m in range(4)] for b in range(2)])
        np.testing.assert_allclose(estimate.values.numpy(), wanted, atol=2e-5)
        assert not estimate.std_errors.any()


@pytest.mark.parametrize(("folding", "left"), [("local", 0.75), ("global", 0.2)])  # local: gates on one qubit err on
def test_it_comes_closer_to_the_ideal_values(folding, left, policy, rows):
    compiled = policy("fake_marrakesh", depth=2)
    values = rows(compiled, 16)
    ideal = Ideal().estimate(compiled, values).values
    without = (Mitigated("noisy", [Readout()]).estimate(compiled, values).values - ideal).abs().mean()
    for extrapolation in FIT:
        engine = Mitigated("noisy", [Readout(), ZNE((1, 3, 5), extrapolation, folding)])
        assert (engine.estimate(compiled, values).values - ideal).abs().mean() < left * without, extrapolation


def test_extrapolations_are_exact_on_their_own_curves():
    factors = (1.0, 1.4, 3.0, 5.0)
    scale = torch.tensor(factors, dtype=torch.float64)[:, None, None]
    a, b, c = (torch.rand(1, 2, 3, dtype=torch.float64) + 0.1 for _ in range(3))
    none = torch.zeros(4, 2, 3, dtype=torch.float64)
    for curve, degree, kind in [
        (a - b * scale, 1, "linear"),
        (a - b * scale + c * scale**2, 2, "polynomial2"),
        (a - b * scale + c * scale**3, 3, "richardson"),
        (-a * torch.exp(-0.3 * b * scale), 1, "exponential"),
    ]:
        values, errors = extrapolate(curve, none, factors, degree, kind)
        np.testing.assert_allclose(values, -a[0] if kind == "exponential" else a[0], atol=1e-10)
        assert not errors.any()
    assert at_zero((1, 3), 1) == pytest.approx([1.5, -0.5])
    assert at_zero((1, 2, 3), 2) == pytest.approx([3, -3, 1])


def test_an_entry_that_changes_sign_is_extrapolated_linearly():
    values = torch.tensor(
        [[0.4, 0.1, 0.0], [0.3, -0.1, 0.2], [0.2, -0.2, 0.1]], dtype=torch.float64, requires_grad=True
    )
    errors = torch.full_like(values, 0.01)
    result, spread = extrapolate(values, errors.detach(), (1, 3, 5), 1, "exponential")
    linear, linear_spread = extrapolate(values, errors.detach(), (1, 3, 5), 1, "linear")
    assert torch.equal(result[1:], linear[1:])
    assert torch.equal(spread[1:], linear_spread[1:])
    assert result[0] != linear[0]
    result.sum().backward()
    assert torch.isfinite(values.grad).all()


def test_an_exponential_through_values_near_zero_does_not_explode():
    values = torch.tensor([[0.02, 0.5], [1e-9, 0.3], [0.01, 0.18]], dtype=torch.float64)
    errors = torch.full_like(values, 0.01)
    result, spread = extrapolate(values, errors, (1, 3, 5), 1, "exponential")
    linear, _ = extrapolate(values, errors, (1, 3, 5), 1, "linear")
    assert result[0] == linear[0]
    assert result[1] == pytest.approx(0.5 * (0.5 / 0.18) ** 0.25, rel=0.01)
    most = 2 * np.linalg.norm(at_zero((1, 3, 5), 2)) * 0.01
    assert (spread <= most).all()


@pytest.mark.parametrize("extrapolation", FIT)
def test_propagated_errors_are_the_spread_of_the_extrapolated_values(extrapolation):
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([0.6, 0.5, 0.35, 0.25], dtype=torch.float64)[:, None]
    errors = torch.tensor([0.004, 0.006, 0.003, 0.005], dtype=torch.float64)[:, None]
    drawn = centre + errors * torch.randn(4, 20000, generator=generator, dtype=torch.float64)
    degree = ZNE((1, 2, 3, 5), extrapolation).degree
    _, stated = extrapolate(centre, errors, (1, 2, 3, 5), degree, extrapolation)
    values, _ = extrapolate(drawn, errors.expand_as(drawn), (1, 2, 3, 5), degree, extrapolation)
    assert values.std().item() == pytest.approx(stated.item(), rel=0.03)


@pytest.mark.parametrize("strategy", [ZNE(), ZNE((1, 1.8, 3), "exponential", "global")])
def test_gradients_agree_with_finite_differences(strategy, policy, rows):
    compiled = policy("fake_brisbane")
    values = rows(compiled, 2)
    x = values[:, : compiled.n_inputs].clone().requires_grad_()
    w = values[0, compiled.n_inputs :].clone().requires_grad_()
    engine = Mitigated("noisy", [strategy])
    result = engine.expectation(compiled, x, w)
    torch.testing.assert_close(result, engine.estimate(compiled, values).values)
    weight = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape)
    (result * weight).sum().backward()
    for tensor, column, row in [(x, 0, 0), (x, 4, 1), (w, 2, None), (w, 7, None)]:
        moved = []
        for step in (1e-4, -1e-4):
            other = values.clone()
            at = column if tensor is x else compiled.n_inputs + column
            other[slice(None) if row is None else row, at] += step
            moved.append((engine.estimate(compiled, other).values * weight).sum().item())
        gradient = tensor.grad[column] if row is None else tensor.grad[row, column]
        assert gradient.item() == pytest.approx((moved[0] - moved[1]) / 2e-4, abs=1e-6)


def test_all_rows_at_once_is_row_by_row(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled, 4)
    values[2:, compiled.n_inputs :] += 0.3  # rows with weights of their own
    engine = Mitigated("noisy", [ZNE((1, 2, 3), "exponential")])
    together = engine.estimate(compiled, values).values
    one_by_one = torch.cat([engine.estimate(compiled, row[None]).values for row in values])
    torch.testing.assert_close(together, one_by_one, atol=1e-12, rtol=0)


@pytest.mark.parametrize("extrapolation", ["linear", "exponential", "richardson"])
def test_error_bars_cover(extrapolation, policy, rows):
    compiled = policy("fake_marrakesh")
    values = rows(compiled, 2)
    exact = Mitigated("noisy", [ZNE((1, 3, 5), extrapolation)]).estimate(compiled, values).values
    engine = Mitigated(Shots(2048, seed=5), [ZNE((1, 3, 5), extrapolation)])
    estimate = engine.estimate(compiled, values.repeat(200, 1))
    pulls = (estimate.values - exact.repeat(200, 1)) / estimate.std_errors
    assert pulls.std().item() == pytest.approx(1, abs=0.05)
    assert pulls.mean().abs().item() < 0.1
    assert estimate.usage.circuits == 3 * 400
    assert estimate.usage.shots == 3 * 400 * 2048


def test_cost_and_spec(policy):
    strategy = ZNE((1, 1.5, 2, 3), "polynomial2", "global")
    assert strategy.cost(policy("fake_manila")) == Cost(4)
    assert strategy.spec == "zne:polynomial2:1,1.5,2,3:global"
    assert ZNE().spec == "zne:linear:1,3,5"
    assert Mitigated("noisy", [ZNE()]).spec == "noisy+zne:linear:1,3,5"


def test_bad_settings_are_refused(policy):
    for factors in ((1,), (3, 1), (1, 1), (0.5, 2), (1, float("inf")), 3, ("a", "b")):
        with pytest.raises(InvalidInputError, match="scale_factors"):
            ZNE(factors)
    with pytest.raises(UnknownNameError, match="exponential"):
        ZNE(extrapolation="exponental")
    with pytest.raises(UnknownNameError, match="local"):
        ZNE(folding="all")
    with pytest.raises(InvalidInputError, match="at least 4 scale factors"):
        ZNE((1, 3, 5), "polynomial3")
    with pytest.raises(InvalidInputError, match="come out as 1, 1, 3 with 3"):
        ZNE((1, 1.2, 3)).reached(policy("fake_manila"))


def test_scale_one_is_the_circuit_itself(policy, rows):
    compiled = policy("fake_manila")
    values = rows(compiled)
    leaves = ZNE().construct(compiled, values)
    assert leaves[0][0] is compiled
