"""Checks of states, Haar states, images into amplitudes and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from qiskit.quantum_info import DensityMatrix, Statevector, random_density_matrix, random_statevector
from torch import Tensor

from qhw_diffusion.denoising.states import (
    as_density,
    check_density,
    check_pure,
    check_states,
    decode_images,
    encode_images,
    haar_states,
    normalised,
    qubits_for,
)
from qhw_diffusion.errors import InvalidInputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 5, side: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.rand(count, 1, side, side, generator=seeded(), dtype=dtype) * 2 - 1
    drawn[:, 0, 2, 3] = 1  # decoding makes the brightest pixel white; let it be white
    return drawn


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_qiskits_random_states_pass(dtype: torch.dtype) -> None:
    pure = torch.from_numpy(np.stack([random_statevector(8, seed=seed).data for seed in range(5)])).to(dtype)
    density = torch.from_numpy(np.stack([random_density_matrix(8, seed=seed).data for seed in range(5)])).to(dtype)
    for states in (pure, density):
        check_states(states)
    check_pure(pure)
    check_density(density)
    check_density(as_density(pure))


def test_density_of_a_pure_state_is_qiskits() -> None:
    states = [random_statevector(4, seed=seed) for seed in range(4)]
    ours = as_density(torch.from_numpy(np.stack([state.data for state in states])))
    np.testing.assert_allclose(ours.numpy(), np.stack([DensityMatrix(state).data for state in states]), atol=1e-15)
    assert as_density(ours) is ours


def test_what_is_wrong_with_a_pure_state_is_said() -> None:
    good = haar_states(3, 4, seeded(), torch.complex128)
    bad = good.clone()
    bad[1] *= 1.25
    with pytest.raises(InvalidInputError, match=r"targets are not normalised: the norm of row 1 is off by 0\.25"):
        check_pure(bad, "targets")
    check_pure(good * (1 + 1e-7))
    with pytest.raises(InvalidInputError, match=r"off by 0\.0001 \(allowed: 1e-06\)"):
        check_pure(good * (1 + 1e-4))
    with pytest.raises(InvalidInputError, match="row 0"):
        check_pure(torch.zeros(1, 2, dtype=torch.complex64))
    bad[2, 0] = float("nan")
    with pytest.raises(InvalidInputError, match="row 2"):
        check_pure(bad)


def test_what_is_wrong_with_a_density_matrix_is_said() -> None:
    good = as_density(haar_states(3, 4, seeded(), torch.complex128))
    skewed = good.clone()
    skewed[1, 0, 1] += 0.5
    with pytest.raises(InvalidInputError, match=r"rho are not Hermitian: \|ρ − ρ†\| of entry 1 is 0\.5"):
        check_density(skewed, "rho")
    with pytest.raises(InvalidInputError, match=r"trace one: \|tr ρ − 1\| of entry 0 is 0\.5"):
        check_density(1.5 * good)
    negative = torch.diag(torch.tensor([1.2, -0.2], dtype=torch.complex128))[None]
    with pytest.raises(InvalidInputError, match=r"not positive: −\(smallest eigenvalue\) of entry 0 is 0\.2"):
        check_density(negative)
    with pytest.raises(InvalidInputError, match="Hermitian"):
        check_density(good * float("nan"))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.ones(2, 4), "complex64 or complex128"),
        ([1.0, 0.0], "not list"),
        (torch.ones(4, dtype=torch.complex64), r"shape \[B, d\]"),
        (torch.ones(0, 4, dtype=torch.complex64), "at least one"),
        (torch.ones(2, 3, dtype=torch.complex64), "dimension 3; qubits have a power of two"),
        (torch.ones(2, 1, dtype=torch.complex64), "dimension 1"),
        (torch.ones(2, 4, 2, dtype=torch.complex64), r"shape \[B, d, d\]"),
    ],
)
def test_other_tensors_are_refused(states: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_states(states)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=message.replace(r"\[B, d\]", r"\[B, d\] or \[B, d, d\]")):
        as_density(states)  # type: ignore[arg-type]


def test_haar_states_average_to_the_mixed_state() -> None:
    """Second moment of 40,000 states: E ψψ† = I/d, E (ψψ†)⊗² = (I + SWAP)/(d(d+1)); standard error < 0.002."""
    states = haar_states(40_000, 4, seeded(), torch.complex128)
    check_pure(states)
    assert (as_density(states).mean(0) - torch.eye(4) / 4).abs().max() < 0.01
    twice = torch.einsum("bi,bj->bij", states, states).flatten(1)
    second = twice.T @ twice.conj() / len(states)
    swap = torch.eye(16).reshape(4, 4, 4, 4).transpose(0, 1).reshape(16, 16)
    assert (second - (torch.eye(16) + swap) / 20).abs().max() < 0.01
    assert torch.equal(haar_states(3, 4, seeded(1)), haar_states(3, 4, seeded(1)))
    assert haar_states(3, 4, seeded()).dtype == torch.complex64


def test_haar_states_refuse_what_they_cannot_be() -> None:
    for count, dim in [(0, 4), (2, 1)]:
        with pytest.raises(InvalidInputError, match="count ≥ 1 and dim ≥ 2"):
            haar_states(count, dim, seeded())
    with pytest.raises(InvalidInputError, match=r"not torch\.float64"):
        haar_states(1, 2, seeded(), torch.float64)


@pytest.mark.parametrize(
    ("shape", "n_qubits"),
    [((1, 8, 8), 6), ((1, 16, 16), 8), ((1, 28, 28), 10), ((3, 32, 32), 12), ((1, 1, 1), 1), ((1, 1, 3), 2), ((5,), 3)],
)
def test_the_smallest_number_of_qubits(shape: tuple[int, ...], n_qubits: int) -> None:
    assert qubits_for(shape) == n_qubits
    for wrong in [(), (1, 0, 2), (1, 2, 3, 4)]:
        with pytest.raises(InvalidInputError, match="image shape"):
            qubits_for(wrong)


@pytest.mark.parametrize(("side", "n_qubits"), [(8, None), (8, 7), (3, None), (3, 5)])
def test_images_survive_the_way_into_states_and_back(side: int, n_qubits: int | None) -> None:
    originals = images(side=max(side, 4))[:, :, :side, :side].contiguous()
    originals[:, 0, 1, 1] = 1
    states = encode_images(originals, n_qubits)
    check_pure(states)
    assert states.dtype == torch.complex128
    assert states.shape[1] == 2 ** (n_qubits or qubits_for(originals.shape[1:]))
    assert not states[:, side * side :].any(), "padding is empty"
    torch.testing.assert_close(decode_images(states.abs(), (1, side, side)), originals)


def test_amplitudes_are_pixels_over_their_norm() -> None:
    """A 1×4 image by hand, and the probability Qiskit reads for one basis state."""
    state = encode_images(torch.tensor([[[[1.0, 0.0, -1.0, 0.0]]]]))
    expected = torch.tensor([1.0, 0.5, 0.0, 0.5]) / 1.5**0.5
    torch.testing.assert_close(state[0].real, expected)
    assert state.dtype == torch.complex64
    assert Statevector(state[0].to(torch.complex128).numpy()).probabilities_dict()["01"] == pytest.approx(1 / 6)
    dark, bright = (encode_images(torch.full((1, 1, 2, 2), value)) for value in (-0.5, 0.9))
    torch.testing.assert_close(dark, bright)  # brightness is lost


def test_signs_and_phases_do_not_show() -> None:
    states = encode_images(images())
    phases = torch.polar(torch.ones(64), torch.rand(64, generator=seeded()) * 6).to(states.dtype)
    torch.testing.assert_close(decode_images((states * phases).abs(), (1, 8, 8)), images())


def test_encoding_and_decoding_are_differentiable() -> None:
    pixels = (images(2, 4) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: encode_images(x).real, (pixels,))
    magnitudes = (torch.rand(2, 16, generator=seeded(), dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: decode_images(m, (1, 3, 5)), (magnitudes,))


def test_images_that_are_no_states_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"64 pixels; 5 qubits hold 32 amplitudes\. Use 6 qubits"):
        encode_images(images(), 5)
    with pytest.raises(InvalidInputError, match="hold 1 amplitudes"):
        encode_images(images(), -3)
    black = images()
    black[[1, 3]] = -1
    with pytest.raises(InvalidInputError, match=r"image 1 is black all over \(2 in all\)"):
        encode_images(black)
    for value in (1.5, -1.2, float("nan"), float("inf")):
        wrong = images()
        wrong[0, 0, 0, 0] = value
        with pytest.raises(InvalidInputError, match=r"in \[-1, 1\]"):
            encode_images(wrong)
    for wrong in (images().to(torch.float16), (images() * 100).to(torch.uint8), images()[:, 0], [1.0]):
        with pytest.raises(InvalidInputError, match=r"float32 or float64 tensor \[N, C, H, W\]"):
            encode_images(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="no images"):
        encode_images(images()[:0])


def test_magnitudes_that_are_no_images_are_refused() -> None:
    states = encode_images(images())
    with pytest.raises(InvalidInputError, match=r"\.abs\(\)"):
        decode_images(states, (1, 8, 8))
    with pytest.raises(InvalidInputError, match=r"must be ≥ 0"):
        decode_images(-states.abs(), (1, 8, 8))
    with pytest.raises(InvalidInputError, match="256 pixels, the states only 64 amplitudes"):
        decode_images(states.abs(), (1, 16, 16))
    padding_only = torch.zeros(1, 16)
    padding_only[0, 15] = 1
    with pytest.raises(InvalidInputError, match="row 0 has no weight on the 9 pixels"):
        decode_images(padding_only, (1, 3, 3))


def test_normalised_rows() -> None:
    check_pure(normalised(torch.randn(4, 8, dtype=torch.complex128, generator=seeded())))
