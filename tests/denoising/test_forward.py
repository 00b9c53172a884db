"""Depolarizing and Gaussian forward processes against closed forms, Qiskit and moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from qiskit.quantum_info import SuperOp, random_density_matrix
from torch import Tensor

from qhw_diffusion.denoising.channels import (
    is_completely_positive,
    is_trace_preserving,
    smallest_image_eigenvalue,
    superoperator_of,
)
from qhw_diffusion.denoising.forward import (
    Depolarizing,
    ForwardProcess,
    GaussianAmplitudes,
    NoiseSchedule,
    Scrambling,
    noise_schedule,
)
from qhw_diffusion.denoising.states import as_density, check_density, check_pure, haar_states
from qhw_diffusion.errors import InvalidInputError

PROCESSES: dict[str, Callable[[], ForwardProcess]] = {
    "depolarizing": lambda: Depolarizing(noise_schedule("cosine", 5)),
    "complex": lambda: GaussianAmplitudes(noise_schedule("cosine", 5)),
    "real": lambda: GaussianAmplitudes(noise_schedule("linear", 5), complex=False),
    "scrambling": lambda: Scrambling(2, 5),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def densities(count: int, n_qubits: int) -> Tensor:
    return torch.from_numpy(np.stack([random_density_matrix(2**n_qubits, seed=seed).data for seed in range(count)]))


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_square", "constant", "msquddpm"])
@pytest.mark.parametrize("n_qubits", [1, 3])
def test_depolarizing_closed_form_is_step_by_step(name: str, n_qubits: int) -> None:
    process, data = Depolarizing(noise_schedule(name, 12)), densities(4, n_qubits)
    path = process.path(data, seeded())
    for t in range(13):
        alpha, dim = process.schedule.alpha(t), 2**n_qubits
        exact = alpha * data + (1 - alpha) * torch.eye(dim, dtype=torch.complex128) / dim
        assert (path[t] - exact).abs().max() < 1e-12
        assert (process.noised(data, t, seeded()) - exact).abs().max() < 1e-12
        check_density(path[t])


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_depolarizing_step_is_a_channel_and_qiskits(p: float) -> None:
    process = Depolarizing(NoiseSchedule((p,)))
    ours = superoperator_of(lambda states: process.step(states, 1, seeded()), 4)
    assert is_trace_preserving(ours)
    assert is_completely_positive(ours)
    assert smallest_image_eigenvalue(ours, seeded()) > -1e-12
    from qiskit_aer.noise import depolarizing_error

    np.testing.assert_allclose(ours.numpy(), SuperOp(depolarizing_error(p, 2)).data, atol=1e-12)


def test_depolarizing_takes_pure_states_and_ends_in_the_prior() -> None:
    process = Depolarizing(noise_schedule("msquddpm", 6))
    data = haar_states(3, 4, seeded())
    before, after = process.pair(data, 4, seeded())
    torch.testing.assert_close(before, process.noised(as_density(data), 3, seeded()))
    torch.testing.assert_close(after, process.step(before, 4, seeded()))
    prior = process.prior(3, 4, seeded())
    check_density(prior)
    torch.testing.assert_close(process.noised(data, 6, seeded()), prior, atol=1e-6, rtol=0)


@pytest.mark.parametrize("complex", [True, False])
def test_gaussian_noise_has_the_norm_of_a_state(complex: bool) -> None:
    """E|ε|² = 1 in any dimension; 20,000 draws, standard error below 0.005 at d = 2 (real)."""
    process = GaussianAmplitudes(noise_schedule("cosine", 3), complex)
    for dim in (2, 16):
        noise = process.noise((20_000, dim), seeded(), torch.complex128)
        assert noise.abs().square().sum(1).mean() == pytest.approx(1, abs=0.03)
        assert noise.mean(0).abs().max() < 0.03
        pseudo = (noise * noise).sum(1).mean().abs()  # E Σ ε² vanishes for circular noise, is 1 for real noise
        assert pseudo == pytest.approx(0 if complex else 1, abs=0.03)
        assert complex or not noise.imag.any()


@pytest.mark.parametrize("t", [1, 4, 6])
def test_noised_and_step_by_step_have_the_same_moments(t: int) -> None:
    """E⟨x_0|x_t⟩ and E|⟨x_0|x_t⟩|² of the states, 40,000 paths each way; standard error below 0.004."""
    process = GaussianAmplitudes(noise_schedule("cosine", 6))
    data = haar_states(1, 4, seeded(3), torch.complex128).repeat(40_000, 1)
    direct = process.noised(data, t, seeded(1))
    chained = process.path(data, seeded(2))[t]
    for states in (direct, chained):
        check_pure(states)
    overlaps = [(data.conj() * states).sum(1) for states in (direct, chained)]
    assert abs(overlaps[0].mean() - overlaps[1].mean()) < 0.015
    squares = [overlap.abs().square().mean() for overlap in overlaps]
    assert abs(squares[0] - squares[1]) < 0.015


def test_gaussian_overlap_with_the_data_has_its_closed_form() -> None:
    """x = √α e_1 + √(1 − α) ε: before normalising, E x = √α e_1 and E|x|² = 1."""
    process = GaussianAmplitudes(NoiseSchedule((0.3, 0.5)))
    data = torch.zeros(50_000, 8, dtype=torch.complex128)
    data[:, 0] = 1
    inside = process._jump(data, 2, seeded())
    assert abs(inside[:, 0].mean() - 0.35**0.5) < 0.01
    assert inside[:, 1:].mean(0).abs().max() < 0.01
    assert inside.abs().square().sum(1).mean() == pytest.approx(1, abs=0.01)


def test_a_pair_lies_on_one_path() -> None:
    """A tiny last step hardly moves the state; two independent draws of x_3 and x_4 would be far apart."""
    for process in (GaussianAmplitudes(NoiseSchedule((0.5, 0.5, 0.5, 1e-6))), Scrambling(2, 4, (0.0, 2.0))):
        data = haar_states(50, 4, seeded(), torch.complex128)
        before, after = process.pair(data, 4 if isinstance(process, GaussianAmplitudes) else 1, seeded(1))
        assert (before - after).abs().max() < 0.02
    process = GaussianAmplitudes(NoiseSchedule((0.5, 0.5, 0.5, 1e-6)))
    again = process.noised(data, 3, seeded(2)) - process.noised(data, 4, seeded(3))
    assert again.abs().max() > 0.5


def test_the_complex_prior_has_the_haar_moments() -> None:
    """E|ψ_i|² = 1/d, E|ψ_i|⁴ = 2/(d(d+1)), E|⟨ψ|φ⟩|² = 1/d; 40,000 states, tolerance five standard errors."""
    process, count, dim = GaussianAmplitudes(noise_schedule("cosine", 3)), 40_000, 4
    for states in (process.prior(count, dim, seeded(), torch.complex128), process.prior(count, dim, seeded())):
        check_pure(states)
        weights = states.abs().square()
        second, fourth = 1 / dim, 2 / (dim * (dim + 1))
        assert (weights.mean(0) - second).abs().max() < 5 * ((fourth - second**2) / count) ** 0.5
        eighth = 24 / (dim * (dim + 1) * (dim + 2) * (dim + 3))
        assert (weights.square().mean(0) - fourth).abs().max() < 5 * ((eighth - fourth**2) / count) ** 0.5
        overlap = (states[::2].conj() * states[1::2]).sum(1).abs().square().mean()
        assert overlap == pytest.approx(second, abs=5 * ((fourth - second**2) / (count / 2)) ** 0.5)
        assert (states * states).mean(0).abs().max() < 5 * second / count**0.5, "phases are uniform"


def test_the_real_prior_is_real_with_its_own_fourth_moment() -> None:
    """Uniform on the real sphere: E ψ_i⁴ = 3/(d(d+2)), not Haar's 2/(d(d+1))."""
    states = GaussianAmplitudes(noise_schedule("cosine", 3), complex=False).prior(40_000, 4, seeded(), torch.complex128)
    check_pure(states)
    assert not states.imag.any()
    assert states.real.pow(4).mean() == pytest.approx(3 / 24, abs=0.003)


def test_all_noise_at_the_last_step_is_the_prior() -> None:
    """With α_T = 0 the data has no say: the same draws give the same states."""
    process = GaussianAmplitudes(noise_schedule("msquddpm", 4))
    first, second = haar_states(10, 4, seeded(1)), haar_states(10, 4, seeded(2))
    torch.testing.assert_close(process.noised(first, 4, seeded(5)), process.noised(second, 4, seeded(5)))
    torch.testing.assert_close(process.noised(first, 4, seeded(5)), process.prior(10, 4, seeded(5)))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_every_process_keeps_dtype_data_and_seed(name: str, dtype: torch.dtype) -> None:
    process = PROCESSES[name]()
    data = haar_states(6, 4, seeded(), dtype)
    shape = (6, 4, 4) if process.density else (6, 4)
    path = process.path(data, seeded(1))
    assert path.shape == (6, *shape)
    assert path.dtype == dtype
    torch.testing.assert_close(path[0], as_density(data) if process.density else data)
    torch.testing.assert_close(process.noised(data, 0, seeded(1)), path[0])
    for produced in (path[5], process.prior(6, 4, seeded(), dtype), *process.pair(data, 3, seeded(1))):
        assert produced.shape == shape
        assert produced.dtype == dtype
        (check_density if process.density else check_pure)(produced)
    assert torch.equal(process.path(data, seeded(1)), path)
    assert process.density or not torch.equal(process.path(data, seeded(2))[1], path[1])


@pytest.mark.parametrize("name", PROCESSES)
def test_bad_states_and_steps_are_refused(name: str) -> None:
    process, data = PROCESSES[name](), haar_states(2, 4, seeded())
    for method in (process.noised, process.step, process.pair):
        with pytest.raises(InvalidInputError, match=r"norm of row 0 is off by 0\.5"):
            method(1.5 * data, 1, seeded())
        with pytest.raises(InvalidInputError, match=r"from [01] to 5, not 6"):
            method(data, 6, seeded())
        with pytest.raises(InvalidInputError, match=r"not 2\.5"):
            method(data, 2.5, seeded())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="from 1 to 5, not 0"):
        process.step(data, 0, seeded())
    with pytest.raises(InvalidInputError, match="count"):
        process.prior(0, 4, seeded())
    with pytest.raises(InvalidInputError, match="power of two"):
        process.prior(2, 3, seeded())
    with pytest.raises(InvalidInputError, match="complex64 or complex128"):
        process.prior(2, 4, seeded(), torch.float32)


def test_pure_processes_refuse_density_matrices() -> None:
    for name in ("complex", "scrambling"):
        with pytest.raises(InvalidInputError, match="pure states"):
            PROCESSES[name]().noised(densities(2, 2), 1, seeded())
