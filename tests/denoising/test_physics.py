"""What quantum mechanics allows a quantum diffusion model: one test for each fact that the design rests on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from qhw_diffusion.denoising.baselines import LinearProcess
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.forward import Depolarizing, GaussianAmplitudes, noise_schedule
from qhw_diffusion.denoising.losses import fidelity
from qhw_diffusion.denoising.models import AmplitudeQDM, DensityMatrixQDM, ForwardConfig
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.denoising.states import as_density, haar_states
from qhw_diffusion.denoising.training import MixedStateWarning, TrainConfig, train_qdm


def process(**settings: Any) -> ReverseProcess:
    defaults: dict[str, Any] = {"n_qubits": 2, "n_steps": 3, "depth": 2, "init_scale": 1.0, "seed": 5}
    return ReverseProcess(ReverseConfig(**{**defaults, **settings}), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def haar(count: int, dim: int = 4, seed: int = 0) -> Tensor:
    return haar_states(count, dim, generator(seed), torch.complex128)


UNITARY: dict[str, Any] = {"kind": "unitary", "ancillas": 0, "depth": 4}


# --- unitary steps ------------------------------------------------------------------------------------------------


def test_unitary_steps_keep_the_spectrum_so_that_noise_stays_noise() -> None:
    """From I/d the fidelity to every pure state stays 1/d, whatever the weights."""
    p = process(**UNITARY)
    targets = haar(20)
    with torch.no_grad():
        rho = (torch.eye(4, dtype=torch.complex128) / 4).repeat(20, 1, 1)
        torch.testing.assert_close(fidelity(p.run(rho).states, targets), torch.full((20,), 0.25).double())
        mixed = Depolarizing(noise_schedule("linear", 3)).noised(as_density(haar(5)), 2, generator())
        after = p.run(mixed).states
    torch.testing.assert_close(torch.linalg.eigvalsh(after), torch.linalg.eigvalsh(mixed), rtol=0, atol=1e-10)
    assert float((after - mixed).abs().max()) > 0.05, "they do move"


def test_no_training_lifts_a_unitary_step_over_its_bound_and_a_warning_says_so() -> None:
    """F ≤ α_t + (1 − α_t)/d from ρ_t: trained on one state the bound is nearly reached, and never passed."""
    reverse = ReverseConfig(n_qubits=1, n_steps=2, init_scale=1.0, seed=1, **UNITARY)
    forward = ForwardConfig("depolarizing", "constant", {"p": 0.3})
    model = DensityMatrixQDM(reverse, forward)
    data = haar(1, 2, seed=3).to(torch.complex64).repeat(4, 1)
    settings = TrainConfig(mode="joint", iterations=80, batch_size=4, learning_rate=0.1)
    with pytest.warns(MixedStateWarning, match=r"keeps the eigenvalues.*α_t \+ \(1 − α_t\)/d.*1/d = 0\.5"):
        history = train_qdm(model, data, settings)
    assert history[-1]["losses/train"] < history[0]["losses/train"]
    for t in (1, 2):
        alpha = model.forward_process.schedule.alpha(t)  # type: ignore[attr-defined]
        rho = model.forward_process.noised(data, t, generator())
        with torch.no_grad():
            states = rho
            for s in range(t, 0, -1):
                states = model.reverse.step(states, s).states[0]
        reached, bound = float(fidelity(states, data).max()), alpha + (1 - alpha) / 2
        assert bound - 0.02 < reached < bound + 1e-5
    with torch.no_grad():
        sampled = model.sample(8, generator()).states
    torch.testing.assert_close(fidelity(sampled, haar(8, 2).to(torch.complex64)), torch.full((8,), 0.5))


def test_measured_ancillas_do_pass_the_unitary_bound() -> None:
    """A swap with the ancilla resets the qubit to |0⟩: fidelity 1 from I/2, by one step of the same circuits."""
    p = process(n_qubits=1, n_steps=1, kind="reset", ancillas=1, depth=3, ansatz="chain")
    loss_at = []
    optimizer = torch.optim.Adam(p.parameters(), lr=0.1)
    rho = torch.eye(2, dtype=torch.complex128)[None] / 2
    target = haar(1, 2, seed=2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = 1 - fidelity(p.run(rho).states, target).mean()
        loss.backward()
        optimizer.step()
        loss_at.append(float(loss.detach()))
    assert loss_at[-1] < 0.02 < 0.5 - 0.02


# --- where diversity comes from -----------------------------------------------------------------------------------


def test_a_channel_makes_one_state_of_noise_and_outcomes_make_an_ensemble() -> None:
    start = Depolarizing(noise_schedule("linear", 3)).prior(64, 4, generator(), torch.complex128)
    with torch.no_grad():
        forgotten = process(kind="reset").run(start).states
        drawn = process(kind="measured").run(start, generator=generator()).states
    assert float((forgotten - forgotten[:1]).abs().max()) < 1e-12
    members = torch.unique(drawn.flatten(1).real.round(decimals=9), dim=0)
    assert 4 <= len(members) <= 8, "one state for each of 2³ sequences of outcomes"
    assert float((drawn - drawn[:1]).abs().max()) > 0.05


@pytest.mark.parametrize("kind", ["pure", "mixed"])
def test_outcomes_averaged_are_the_reset_channel(kind: str) -> None:
    """Without feed-forward; Σ over all sequences of outcomes, exactly. With it they are another channel."""
    states = haar(2) if kind == "pure" else 0.5 * as_density(haar(2)) + torch.eye(4) / 8
    measured, reset = process(kind="measured"), process(kind="reset")
    assert torch.equal(measured.weight, reset.weight)

    def averaged(p: ReverseProcess) -> Tensor:
        total = torch.zeros(2, 4, 4, dtype=torch.complex128)
        for outcomes in itertools.product(range(2), repeat=3):
            x, weight, before = states, torch.ones(2, dtype=torch.float64), None
            for t, outcome in zip((3, 2, 1), outcomes, strict=True):
                branches = p.step(x, t, None, before)
                before = torch.full((2,), outcome)
                x, probability = branches.select(before)
                weight = weight * probability
            total += weight[:, None, None] * as_density(x)
        return total

    with torch.no_grad():
        wanted = reset.run(states).states
        torch.testing.assert_close(averaged(measured), wanted, rtol=0, atol=1e-9)
        assert float((averaged(process(kind="measured", feed_forward=True)) - wanted).abs().max()) > 1e-2


def test_a_normalised_complex_gaussian_is_haar_random() -> None:
    """E|⟨φ|ψ⟩|^2k = k!(d−1)!/(d+k−1)! for every φ; real noise has other moments. Five standard errors."""
    schedule, d, count = noise_schedule("linear", 2), 4, 100_000
    phi = haar(3, d, seed=7)
    haar_moment = {1: 1 / 4, 2: 2 / (4 * 5), 3: 6 / (4 * 5 * 6)}
    complex_states = GaussianAmplitudes(schedule).prior(count, d, generator(1), torch.complex128)
    overlaps = (complex_states @ phi.mH).abs().square()
    for k, moment in haar_moment.items():
        values = overlaps**k
        assert bool(((values.mean(0) - moment).abs() < 5 * values.std(0) / count**0.5).all())
    real_states = GaussianAmplitudes(schedule, complex=False).prior(count, d, generator(1), torch.complex128)
    values = real_states[:, 0].abs() ** 4
    assert abs(float(values.mean()) - 3 / (4 * 6)) < 5 * float(values.std()) / count**0.5
    assert abs(float(values.mean()) - haar_moment[2]) > 20 * float(values.std()) / count**0.5


def test_phases_and_signs_are_invisible_in_images() -> None:
    model = AmplitudeQDM(ReverseConfig(n_qubits=4, n_steps=2, depth=1), image_shape=(1, 4, 4))
    states = haar(3, 16).to(torch.complex64)
    phases = torch.polar(torch.ones(3, 16), 6 * torch.rand(3, 16, generator=generator()))
    torch.testing.assert_close(model.images(states * phases), model.images(states), rtol=0, atol=1e-5)
    assert float((model.images(haar(3, 16, seed=1).to(torch.complex64)) - model.images(states)).abs().max()) > 0.1


# --- post-selection is one linear map -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"ancillas": 2, "weight_sharing": "time_embedding"}, {"conditioning": "qubits", "n_labels": 3}]
)
def test_a_postselected_chain_is_one_linear_map_and_probabilities_multiply(settings: dict) -> None:
    """x₀ ∝ M x_T for one contraction M a label, and success is ‖M x_T‖², the product over the steps."""
    p = process(**settings)
    starts = haar(12)
    conditioned = p.config.n_labels > 1
    for label in range(p.config.n_labels):
        labels = torch.full((12,), label) if conditioned else None
        with torch.no_grad():
            chain = p.run(starts, labels, keep_path=True)
            whole = torch.eye(4, dtype=torch.complex128)
            for t in (3, 2, 1):
                whole = p.evolution.kraus(p.weights_of(t, label), p.inputs_of(t, torch.tensor([label])))[0] @ whole
            steps = sum(p.step(chain.path[i], t, labels).probabilities[0].log() for i, t in enumerate((3, 2, 1)))
        printed = starts @ whole.T
        success = printed.abs().square().sum(1)
        torch.testing.assert_close(chain.probability, success, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(chain.log_probability, steps, rtol=1e-7, atol=1e-10)
        wanted = as_density(printed) / success[:, None, None]
        torch.testing.assert_close(as_density(chain.states), wanted, rtol=0, atol=1e-7)
        largest = float(torch.linalg.matrix_norm(whole, ord=2))
        assert largest <= 1 + 1e-9
        # the rival with a free matrix can be this chain, at the best success its matrix allows
        model = AmplitudeQDM(replace(p.config, seed=1), image_shape=(1, 2, 2))
        rival = LinearProcess(model).double()
        rival.weight.data[:] = torch.view_as_real(3 * whole)
        printed_by_it = rival.run(starts, labels)
        torch.testing.assert_close(as_density(printed_by_it.states), wanted, rtol=0, atol=1e-7)
        torch.testing.assert_close(printed_by_it.probability, success / largest**2, rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_measured_outcomes_fed_forward_print_what_no_linear_map_can() -> None:
    """Two codewords at random: one step draws a bit and forgets the input, the next prints |0⟩ or |+⟩ by it.

    A linear map of Haar-random inputs cannot: of one qubit, its output is near one of two states at 45° with
    fidelity above 0.99 all the time only if it has rank 1, and then it prints one of them.
    """
    codewords = torch.tensor([[1, 0], [2**-0.5, 2**-0.5]], dtype=torch.complex128)
    rho = (torch.eye(2, dtype=torch.complex128) / 2).repeat(400, 1, 1)
    p = process(n_qubits=1, n_steps=2, kind="measured", feed_forward=True, ancillas=1, depth=4, init_scale=0.8)
    optimizer = torch.optim.Adam(p.parameters(), lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        states = rho[:1]
        first = p.step(states, 2)
        loss = torch.zeros((), dtype=torch.float64)
        for outcome in (0, 1):
            second = p.step(first.states[outcome], 1, None, torch.tensor([outcome]))
            for k in (0, 1):
                weight = first.probabilities[outcome] * second.probabilities[k]
                loss = loss + (weight * (1 - fidelity(second.states[k], codewords[outcome : outcome + 1]))).sum()
        loss = loss + (first.probabilities[0, 0] - 0.5) ** 2
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chain = p.run(rho, generator=generator())
    close = torch.stack([fidelity(chain.states, word.repeat(400, 1)) for word in codewords])
    assert float(close.amax(0).mean()) > 0.99
    share = (close[0] > close[1]).double().mean()
    assert 0.35 < float(share) < 0.65
    # linear maps: over a grid of singular values and bases, the best mean fidelity to the nearer codeword at that share
    inputs = haar(2000, 2, seed=1)
    best = 0.0
    for seed, small in itertools.product(range(40), torch.linspace(0, 1, 6).tolist()):
        left, right = haar(2, 2, seed=seed), torch.linalg.qr(haar(2, 2, seed=seed + 100).T).Q
        basis = torch.linalg.qr(left.T).Q
        made = inputs @ (basis @ torch.diag(torch.tensor([1, small], dtype=torch.complex128)) @ right.mH).T
        made = made / torch.linalg.vector_norm(made, dim=1, keepdim=True)
        near = (made @ codewords.mH).abs().square()
        if 0.35 < float((near[:, 0] > near[:, 1]).double().mean()) < 0.65:
            best = max(best, float(near.amax(1).mean()))
    assert best < 0.92


# --- mitigation and concentration -----------------------------------------------------------------------------------


def test_zne_and_pec_do_not_bring_back_what_noise_has_concentrated() -> None:
    """With the same number of shots they tell two states apart no better than plain estimates do (2109.01051)."""
    pauli_z = torch.tensor([1.0, -1.0], dtype=torch.float64)
    states = as_density(torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.complex128))
    share = 0.8  # of the state that survives a step
    noise = Depolarizing(noise_schedule("constant", 36, p=1 - share))

    def values(steps: int) -> Tensor:
        found = noise.noised(states, steps, generator()) if steps else states
        return (found.diagonal(dim1=1, dim2=2).real * pauli_z).sum(1)

    def resolution(coefficients: list[float], estimates: list[Tensor]) -> float:
        """Difference of the two estimates over its standard deviation, for one shot shared by all circuits."""
        both = torch.stack([c * v for c, v in zip(coefficients, estimates, strict=True)]).sum(0)
        variance = sum(
            len(estimates) * c**2 * float((1 - v**2).mean()) for c, v in zip(coefficients, estimates, strict=True)
        )
        return float((both[0] - both[1]).abs()) / variance**0.5

    # the inverse of one step, as a quasi-probability over I and three Paulis
    rest, chosen = (1 + 3 / share) / 4, (1 - 1 / share) / 4
    gamma = rest + 3 * abs(chosen)
    assert rest - chosen == pytest.approx(1 / share)  # what it does to Z, so that PEC is exact
    assert rest + 3 * chosen == pytest.approx(1)
    plain = []
    for steps in (2, 4, 8, 12):
        noisy = [values(scale * steps) for scale in (1, 2, 3)]
        plain.append(resolution([1.0], noisy[:1]))
        assert resolution([1.5, -0.5], [noisy[0], noisy[2]]) < plain[-1]  # linear extrapolation
        assert resolution([3.0, -3.0, 1.0], noisy) < plain[-1]  # Richardson
        ideal = values(0)
        torch.testing.assert_close(values(steps) / share**steps, ideal)
        # every shot of PEC is ±γ^T: unbiased, and spread by that much
        pec = float((ideal[0] - ideal[1]).abs()) / (gamma ** (2 * steps) - float((ideal**2).mean())) ** 0.5
        assert pec < plain[-1]
    falling = [later / earlier for earlier, later in itertools.pairwise(plain)]
    assert falling[-1] == pytest.approx(share**4, rel=0.02)
