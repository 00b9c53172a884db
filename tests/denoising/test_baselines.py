from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qhw_diffusion.denoising import baselines
from qhw_diffusion.denoising.states import haar_states, normalised
from qhw_diffusion.errors import InvalidInputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(per_class: int = 40, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes of states around two random centres, with unequal spread, interleaved."""
    generator = seeded(seed)
    centres = haar_states(2, dim, generator, torch.complex128)
    labels = torch.arange(2 * per_class) % 2
    spread = torch.tensor([0.3, 1.0], dtype=torch.float64)[labels, None]
    noise = spread * haar_states(2 * per_class, dim, generator, torch.complex128)
    return normalised(centres[labels] + noise), labels


def second_moment(states: Tensor) -> Tensor:
    return torch.einsum("ni,nj->ij", states, states.conj()) / len(states)


def fitted_matrix(fitted: baselines.LinearMap, label: int) -> Tensor:
    return fitted.norms[label] * fitted.maps[label]


@pytest.mark.parametrize("per_class", [40, 5])  # 5 members: a moment of rank 5 in dimension 8
def test_unnormalised_output_has_the_second_moment_of_the_data(per_class: int) -> None:
    states, labels = data(per_class)
    fitted = baselines.LinearMap.fit(states, labels)
    for label in (0, 1):
        matrix = fitted_matrix(fitted, label)
        # E (Mz)(Mz)† = M M† for E zz† = I
        torch.testing.assert_close(matrix @ matrix.mH, second_moment(states[labels == label]), atol=1e-12, rtol=0)
        assert torch.linalg.matrix_norm(fitted.maps[label], ord=2) == pytest.approx(1, abs=1e-12)


def test_second_moment_of_drawn_vectors() -> None:
    states, labels = data()
    matrix = fitted_matrix(baselines.LinearMap.fit(states, labels), 1)
    z = torch.randn(200_000, 8, dtype=torch.complex128, generator=seeded(1))
    torch.testing.assert_close(second_moment(z @ matrix.T), second_moment(states[labels == 1]), atol=5e-3, rtol=0)


def test_post_selected_average_is_the_average_of_the_data() -> None:
    """Starts redrawn after each failure: outputs weighted by |M x_T|², whose average is S_y exactly."""
    states, labels = data()
    fitted = baselines.LinearMap.fit(states, labels)
    starts = haar_states(200_000, 8, seeded(1), torch.complex128)
    passed = starts @ fitted.maps[1].T
    average = second_moment(passed) / second_moment(passed).trace()
    torch.testing.assert_close(average, second_moment(states[labels == 1]), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("rank", "power"), [(None, 1.0), (3, 1.0), (3, 0.0), (1, 1.0), (None, 2.0)])
def test_success_probability_against_monte_carlo(rank: int | None, power: float) -> None:
    states, labels = data()
    fitted = baselines.LinearMap.fit(states, labels, rank, power)
    starts = haar_states(100_000, 8, seeded(2), torch.complex128)
    for label in (0, 1):
        drawn = (starts @ fitted.maps[label].T).abs().square().sum(1)
        error = float(drawn.std()) / 100_000**0.5
        assert fitted.success_probability(label) == pytest.approx(float(drawn.mean()), abs=5 * error)


def test_rank_trades_success_for_subspace() -> None:
    states, labels = data()
    assert baselines.LinearMap.fit(states, labels, rank=1).success_probability(0) == pytest.approx(1 / 8)
    assert baselines.LinearMap.fit(states, labels, rank=3, power=0).success_probability(0) == pytest.approx(3 / 8)
    assert baselines.LinearMap.fit(states, labels, power=0).success_probability(0) == pytest.approx(1)
    # power 0 does not make ones of the rounded zeros of a singular moment
    few, few_labels = data(per_class=5)
    assert baselines.LinearMap.fit(few, few_labels, power=0).success_probability(0) == pytest.approx(5 / 8)


def test_rank_one_prints_the_principal_component() -> None:
    states, labels = data()
    fitted = baselines.LinearMap.fit(states, labels, rank=1)
    drawn = fitted.sample(torch.zeros(20, dtype=torch.int64), seeded(3))
    principal = torch.linalg.eigh(second_moment(states[labels == 0])).eigenvectors[:, -1]
    torch.testing.assert_close((drawn @ principal.conj()).abs(), torch.ones(20, dtype=torch.float64))


def test_sample_follows_the_label_and_the_seed() -> None:
    states, labels = data()
    fitted = baselines.LinearMap.fit(states.to(torch.complex64), labels)
    wanted = torch.tensor([0, 1] * 500)
    drawn = fitted.sample(wanted, seeded(4))
    assert drawn.dtype == torch.complex64
    torch.testing.assert_close(torch.linalg.vector_norm(drawn, dim=1), torch.ones(1000))
    assert torch.equal(drawn, fitted.sample(wanted, seeded(4)))
    for label in (0, 1):
        mine, other = (second_moment(states[labels == y]) for y in (label, 1 - label))
        average = second_moment(drawn[wanted == label].to(torch.complex128))
        assert torch.linalg.matrix_norm(average - mine) < 0.5 * torch.linalg.matrix_norm(average - other)


def test_a_product_of_contractions_is_no_better_than_its_own_linear_map() -> None:
    """A chain of post-selected steps is one matrix: applying steps in turn or their product gives one state."""
    generator = seeded(5)
    steps = [torch.randn(8, 8, dtype=torch.complex128, generator=generator) for _ in range(4)]
    state = start = haar_states(1, 8, generator, torch.complex128)
    for step in steps:
        state = normalised(state @ step.T)
    product = steps[3] @ steps[2] @ steps[1] @ steps[0]
    torch.testing.assert_close(state, normalised(start @ product.T))


@pytest.mark.parametrize(("dim", "classes", "budget"), [(64, 10, 1110), (16, 10, 1110), (8, 1, 59), (4, 2, 200)])
def test_parameter_count_is_the_largest_within_the_budget(dim: int, classes: int, budget: int) -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    model = baselines.ClassicalDenoiser(dim, classes, 10, budget, seeded())
    assert count(model) <= budget
    one_wider = baselines.ClassicalDenoiser(dim, classes, 10, 10 * budget, seeded())
    per_unit = (count(one_wider) - count(model)) / (one_wider.hidden_width - model.hidden_width)
    assert count(model) + per_unit > budget


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_denoiser_returns_states_and_depends_on_step_and_label(dtype: torch.dtype) -> None:
    model = baselines.ClassicalDenoiser(8, 3, 5, 600, seeded())
    states = haar_states(6, 8, seeded(1), dtype)
    labels = torch.tensor([0, 1, 2] * 2)
    out = model(states, 2, labels)
    assert out.shape == states.shape
    assert out.dtype == dtype
    torch.testing.assert_close(torch.linalg.vector_norm(out, dim=1), torch.ones(6, dtype=out.real.dtype))
    torch.testing.assert_close(model(states, torch.full((6,), 2), labels), out)
    assert not torch.allclose(model(states, 3, labels), out)
    assert not torch.allclose(model(states, 2, labels.flip(0))[0], out[0])
    again = baselines.ClassicalDenoiser(8, 3, 5, 600, seeded())
    assert torch.equal(again(states, 2, labels), out)


def test_denoiser_learns() -> None:
    states, labels = data()
    model = baselines.ClassicalDenoiser(8, 2, 1, 600, seeded())
    noise = haar_states(len(states), 8, seeded(1), torch.complex128)
    target = torch.stack([states[labels == label][0] for label in (0, 1)])[labels]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = 1 - (target.conj() * model(noise, 1, labels)).sum(1).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


def test_bad_input() -> None:
    states, labels = data()
    with pytest.raises(InvalidInputError, match="not normalised"):
        baselines.LinearMap.fit(2 * states, labels)
    with pytest.raises(InvalidInputError, match="rank is 9"):
        baselines.LinearMap.fit(states, labels, rank=9)
    with pytest.raises(InvalidInputError, match="power is -1"):
        baselines.LinearMap.fit(states, labels, power=-1)
    with pytest.raises(InvalidInputError, match="without gaps"):
        baselines.LinearMap.fit(states, 2 * labels)
    with pytest.raises(InvalidInputError, match=f"3 labels for {len(states)}"):
        baselines.LinearMap.fit(states, labels[:3])
    fitted = baselines.LinearMap.fit(states, labels)
    with pytest.raises(InvalidInputError, match="allowed: 0 to 1"):
        fitted.sample(torch.tensor([2]), seeded())
    with pytest.raises(InvalidInputError, match="no labels"):
        fitted.sample(torch.tensor([], dtype=torch.int64), seeded())
    with pytest.raises(InvalidInputError, match="label is 2"):
        fitted.success_probability(2)
    with pytest.raises(InvalidInputError, match="one hidden unit takes 60"):
        baselines.ClassicalDenoiser(8, 10, 5, 59, seeded())
    with pytest.raises(InvalidInputError, match="at least 1"):
        baselines.ClassicalDenoiser(8, 0, 5, 100, seeded())
    model = baselines.ClassicalDenoiser(8, 2, 5, 100, seeded())
    with pytest.raises(InvalidInputError, match="built for 8"):
        model(haar_states(2, 4, seeded()), 1, torch.tensor([0, 1]))
    with pytest.raises(InvalidInputError, match="t is 6"):
        model(haar_states(2, 8, seeded()), 6, torch.tensor([0, 1]))
    with pytest.raises(InvalidInputError, match="allowed: 0 to 1"):
        model(haar_states(2, 8, seeded()), 1, torch.tensor([0, 2]))
