"""Quantum states as tensors: checks, Haar-random states, images into amplitudes and back.

A pure state is a row of a complex tensor [B, d], a density matrix an entry of [B, d, d], with d = 2ⁿ. Basis states are
numbered as in Qiskit (little-endian: qubit 0 is the least significant bit).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from qhw_diffusion.errors import InvalidInputError

# Largest deviation taken for rounding: some hundred gates in the precision at hand, or an input once held in float32.
TOLERANCE = {torch.complex64: 1e-4, torch.complex128: 1e-6}


def check_pure(states: Tensor, what: str = "states") -> None:
    """Check that `states` [B, d] are complex, of a dimension that is a power of two, and of unit norm.

    Raises:
        InvalidInputError: they are not; the message names `what` and gives the largest deviation.
    """
    _check_layout(states, what, ndim=2, shape="[B, d]")
    tolerance = TOLERANCE[states.dtype]
    deviation = (torch.linalg.vector_norm(states.detach(), dim=1) - 1).abs()
    if not bool((deviation <= tolerance).all()):  # `not <=` also catches NaN
        row = int(deviation.nan_to_num(torch.inf).argmax())
        raise InvalidInputError(
            f"{what} are not normalised: the norm of row {row} is off by {float(deviation[row]):.3g} "
            f"(allowed: {tolerance:g}). Divide every row by its norm"
        )


def check_density(states: Tensor, what: str = "states") -> None:
    """Check that `states` [B, d, d] are Hermitian, of trace one and positive: density matrices.

    Raises:
        InvalidInputError: they are not; the message names `what`, which property fails and by how much.
    """
    _check_layout(states, what, ndim=3, shape="[B, d, d]")
    tolerance, states = TOLERANCE[states.dtype], states.detach()
    skew = (states - states.mH).abs().amax(dim=(1, 2))
    _refuse(skew, tolerance, f"{what} are not Hermitian: |ρ − ρ†| of", "Take (ρ + ρ†)/2, or mend what made them")
    trace = (torch.einsum("bii->b", states) - 1).abs()
    _refuse(trace, tolerance, f"{what} do not have trace one: |tr ρ − 1| of", "Divide each by its trace")
    negative = -torch.linalg.eigvalsh(states)[:, 0]
    _refuse(negative, tolerance, f"{what} are not positive: −(smallest eigenvalue) of", "No state has these entries")


def check_states(states: Tensor, what: str = "states") -> None:
    """`check_pure` for a tensor [B, d], `check_density` for a tensor [B, d, d]."""
    if isinstance(states, Tensor) and states.ndim == 3:
        check_density(states, what)
    else:
        check_pure(states, what)


def as_density(states: Tensor) -> Tensor:
    """|ψ⟩⟨ψ| [B, d, d] of pure states [B, d]; density matrices are returned as they are. Differentiable.

    Raises:
        InvalidInputError: neither shape, or not complex. Norm and positivity are not checked here.
    """
    if isinstance(states, Tensor) and states.ndim == 3:
        _check_layout(states, "states", ndim=3, shape="[B, d, d]")
        return states
    _check_layout(states, "states", ndim=2, shape="[B, d] or [B, d, d]")
    return states[:, :, None] * states[:, None, :].conj()


def haar_states(count: int, dim: int, generator: torch.Generator, dtype: torch.dtype = torch.complex64) -> Tensor:
    """`count` Haar-random pure states [count, dim]: normalised complex Gaussian vectors.

    Raises:
        InvalidInputError: count < 1, dim < 2, or a dtype that is not complex64 or complex128.
    """
    if count < 1 or dim < 2:
        raise InvalidInputError(f"Haar states need count ≥ 1 and dim ≥ 2, got count={count}, dim={dim}")
    if dtype not in TOLERANCE:
        raise InvalidInputError(f"states have dtype complex64 or complex128, not {dtype}")
    gaussian = torch.randn(count, dim, generator=generator, dtype=dtype, device=generator.device)
    return normalised(gaussian)


def normalised(vectors: Tensor) -> Tensor:
    """Rows of [B, d] divided by their norms. Differentiable; a zero row gives NaN, which `check_pure` reports."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def qubits_for(image_shape: Sequence[int]) -> int:
    """Smallest number of qubits whose 2ⁿ amplitudes hold an image of shape (C, H, W); at least 1.

    Raises:
        InvalidInputError: a shape that is not one to three positive numbers.
    """
    shape = tuple(int(side) for side in image_shape)
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise InvalidInputError(f"an image shape is (C, H, W), all ≥ 1; given {shape}")
    return max(1, (prod(shape) - 1).bit_length())


def encode_images(images: Tensor, n_qubits: int | None = None) -> Tensor:
    """Images in [-1, 1] → pure states: the amplitudes are the pixels (x + 1)/2 (black 0, white 1) over their norm.

    Pixels are taken in the tensor's order (C, H, W); what remains of the 2ⁿ amplitudes is zero. The overall brightness
    is lost: `decode_images` makes the brightest pixel white. Differentiable.

    Args:
        images: float [N, C, H, W] (or [N, pixels]).
        n_qubits: None takes the smallest number that fits.

    Returns:
        [N, 2ⁿ], complex64 for float32, complex128 for float64.

    Raises:
        InvalidInputError: not such a tensor, pixels outside [-1, 1] or not finite, more pixels than amplitudes, or an
            image that is black all over, which no state stands for.
    """
    if (
        not isinstance(images, Tensor)
        or images.ndim not in (2, 4)
        or images.dtype not in (torch.float32, torch.float64)
    ):
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InvalidInputError(f"images must be a float32 or float64 tensor [N, C, H, W], not {given}")
    if images.shape[0] < 1:
        raise InvalidInputError("there are no images to encode")
    shape = tuple(images.shape[1:])
    needed = qubits_for(shape)
    n_qubits = needed if n_qubits is None else n_qubits
    if n_qubits < needed:
        raise InvalidInputError(
            f"images of shape {shape} have {prod(shape)} pixels; {n_qubits} qubits hold {2 ** max(n_qubits, 0)} "
            f"amplitudes. Use {needed} qubits, or smaller images"
        )
    low, high = float(images.detach().min()), float(images.detach().max())
    if not (low >= -1 - 1e-5 and high <= 1 + 1e-5):
        raise InvalidInputError(f"pixels must be finite and in [-1, 1]; these go from {low:.4g} to {high:.4g}")
    pixels = ((images.flatten(1) + 1) / 2).clamp_min(0)
    norms = torch.linalg.vector_norm(pixels, dim=1, keepdim=True)
    black = (norms.detach()[:, 0] < 1e-6).nonzero()[:, 0].tolist()
    if black:
        raise InvalidInputError(
            f"image {black[0]} is black all over{f' ({len(black)} in all)' if len(black) > 1 else ''}: "
            "its amplitudes are all zero, which is no quantum state. Leave it out"
        )
    padded = torch.nn.functional.pad(pixels / norms, (0, 2**n_qubits - pixels.shape[1]))
    return torch.complex(padded, torch.zeros_like(padded))


def decode_images(magnitudes: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Magnitudes of amplitudes (√probability, all that can be measured) → images in [-1, 1]. Differentiable.

    The first C·H·W magnitudes are the pixels; the brightest of them becomes 1. What lies in the padding is dropped.

    Args:
        magnitudes: real [B, d], ≥ 0; need not be normalised.
        image_shape: (C, H, W).

    Returns:
        [B, C, H, W].

    Raises:
        InvalidInputError: a complex or negative tensor, too few amplitudes for the shape, or a row without any weight
            on the pixels.
    """
    qubits_for(image_shape)  # checks the shape
    n_pixels = prod(int(side) for side in image_shape)
    if not isinstance(magnitudes, Tensor) or magnitudes.ndim != 2 or not magnitudes.is_floating_point():
        raise InvalidInputError("magnitudes must be a real tensor [B, d]: take the states' .abs()")
    if magnitudes.shape[1] < n_pixels:
        raise InvalidInputError(
            f"an image of shape {tuple(image_shape)} has {n_pixels} pixels, "
            f"the states only {magnitudes.shape[1]} amplitudes"
        )
    pixels = magnitudes[:, :n_pixels]
    if not bool((pixels.detach() >= 0).all()):
        raise InvalidInputError("magnitudes must be ≥ 0 and not NaN: signs are not measurable, take the states' .abs()")
    brightest = pixels.amax(dim=1, keepdim=True)
    empty = (brightest.detach()[:, 0] == 0).nonzero()[:, 0].tolist()
    if empty:
        raise InvalidInputError(f"row {empty[0]} has no weight on the {n_pixels} pixels: there is no image to show")
    return (2 * pixels / brightest - 1).reshape(-1, *(int(side) for side in image_shape))


def _check_layout(states: Tensor, what: str, ndim: int, shape: str) -> None:
    if not isinstance(states, Tensor) or states.dtype not in TOLERANCE:
        given = str(states.dtype) if isinstance(states, Tensor) else type(states).__name__
        raise InvalidInputError(f"{what} must be a complex64 or complex128 tensor {shape}, not {given}")
    if states.ndim != ndim or states.shape[0] < 1 or (ndim == 3 and states.shape[1] != states.shape[2]):
        raise InvalidInputError(f"{what} must have shape {shape}, at least one of them; given {list(states.shape)}")
    dim = states.shape[-1]
    if dim < 2 or dim & (dim - 1):
        raise InvalidInputError(f"{what} have dimension {dim}; qubits have a power of two, 2 or more")


def _refuse(deviation: Tensor, tolerance: float, complaint: str, advice: str) -> None:
    if not bool((deviation <= tolerance).all()):
        row = int(deviation.nan_to_num(torch.inf).argmax())
        raise InvalidInputError(
            f"{complaint} entry {row} is {float(deviation[row]):.3g} (allowed: {tolerance:g}). {advice}"
        )
