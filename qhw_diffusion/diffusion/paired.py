"""PSNR, SSIM and LPIPS: similarities of *pairs* of images, so they mean something only where a pairing does.

Pairings that mean something here: the same starting noise and label sampled twice — under two controllers or two
engines (ideal against noisy), or with few steps against many. A generated image paired with a real image of the same
class is **not** one of them: nothing says that the two should agree pixel by pixel, and the number is that of
`paired_floor`, whatever the generator does.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ..errors import DamagedFileError, InvalidInputError, MissingDataError, MissingDependencyError
from .checks import check_images
from .datasets import ImageDataset

_SSIM_WINDOW = 7
_LPIPS_SIDE = 64  # LPIPS-squeeze fails below 28 pixels


def paired_similarity(x: Tensor, reference: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """{"psnr", "ssim"} and, given a perceptual distance, {"lpips"}: means over the pairs (x_i, reference_i).

    "psnr" in dB, the mean over images, an image equal to its reference counted as 100 dB; "ssim" (Wang et al. 2004)
    with a uniform window of 7×7 pixels (mirrored borders), since the usual Gaussian one
    does not fit into 8×8 images; both on a range of 2.
    See the module's text for which pairings mean something.

    Args:
        x, reference: [N, C, H, W] in [−1, 1].
        lpips: see `Lpips`.
    """
    if x.shape != reference.shape or x.ndim != 4 or len(x) == 0 or min(x.shape[2:]) < _SSIM_WINDOW:
        raise InvalidInputError(
            f"{tuple(x.shape)} and {tuple(reference.shape)}: need twice the same [N, C, H, W], "
            f"N ≥ 1, at least {_SSIM_WINDOW} pixels high and wide"
        )
    check_images(x)
    check_images(reference)
    # here, since importing it takes seconds
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    psnr = peak_signal_noise_ratio(x, reference, data_range=2.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(
        x, reference, data_range=2.0, gaussian_kernel=False, kernel_size=_SSIM_WINDOW, reduction="elementwise_mean"
    )
    result = {"psnr": psnr.clamp(max=100.0).mean().item(), "ssim": float(ssim)}  # type: ignore[arg-type]
    if lpips is not None:
        result["lpips"] = lpips(x, reference).mean().item()
    return result


def paired_floor(real: ImageDataset, n: int, *, seed: int = 0, lpips: Lpips | None = None) -> dict[str, float]:
    """`paired_similarity` of `n` random pairs of *different real images of one class*: what an unrelated pair scores.

    Args:
        real: a split with at least two images of some class.
        n: number of pairs.
        seed: of the choice.
    """
    if n < 1:
        raise InvalidInputError(f"n is {n}, must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    members = {int(c): (real.labels == c).nonzero().squeeze(1) for c in real.labels.unique()}
    usable = [c for c, rows in members.items() if len(rows) > 1]
    if not usable:
        raise InvalidInputError("no class has two images: a pair within a class needs them")
    for pick in torch.randint(len(usable), (n,), generator=generator).tolist():
        rows = members[usable[pick]]
        pair = rows[torch.randperm(len(rows), generator=generator)[:2]]
        first.append(pair[0])
        second.append(pair[1])
    return paired_similarity(real.images[torch.stack(first)], real.images[torch.stack(second)], lpips)


class Lpips:
    """LPIPS with the SqueezeNet backbone (Zhang et al. 2018, arXiv 1801.03924); needs its real weights.

    With a random backbone the number does not measure perception, so there is no default: the weights are given as a
    safetensors file with torchvision's SqueezeNet 1.1 names (`features.N.…` or `N.…`) or lpips' own (`slice…`). From
    the .pth that PyTorch distributes, once: `safetensors.torch.save_file(torch.load(pth, weights_only=True), path)`.
    """

    def __init__(self, weights: str | Path) -> None:
        """Raises MissingDependencyError, MissingDataError (no file) or DamagedFileError (not those weights)."""
        try:
            import lpips
        except ImportError as error:
            raise MissingDependencyError("LPIPS needs the package lpips: pip install lpips") from error
        path = Path(weights)
        if not path.is_file():
            raise MissingDataError(f"no LPIPS backbone weights at {path}: give a safetensors file of SqueezeNet 1.1")
        try:
            state = load_tensors(path.read_bytes())
        except SafetensorError as error:
            raise DamagedFileError(f"{path} is not a safetensors file ({error})") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in a deprecated way
            self._net: Any = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
        expected = self._net.net.state_dict()
        renamed = _lpips_names(state, list(expected))
        fits = set(renamed) == set(expected) and all(renamed[k].shape == v.shape for k, v in expected.items())
        if not fits:
            raise DamagedFileError(f"{path} does not hold the weights of SqueezeNet 1.1's features")
        self._net.net.load_state_dict(renamed)
        self._net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distances [N] of image pairs [N, C, H, W] in [−1, 1], C = 1 or 3; enlarged to 64 pixels when smaller."""
        pair = []
        for images in (x, reference):
            if min(images.shape[2:]) < _LPIPS_SIDE:
                images = torch.nn.functional.interpolate(images, size=_LPIPS_SIDE, mode="bilinear")
            pair.append(images.expand(-1, 3, -1, -1))
        distances: Tensor = self._net(*pair)
        return distances.flatten()


def _lpips_names(state: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.…` and prefixed `….sliceK.N.…` to lpips' `sliceK.N.…`."""
    by_suffix = {name.split(".", 1)[1]: name for name in expected}  # "3.squeeze.weight" -> "slice2.3.squeeze.weight"
    renamed = {}
    for name, value in state.items():
        if name.startswith("classifier."):
            continue
        _, found, tail = name.partition("slice")
        suffix = tail.split(".", 1)[1] if found else name.removeprefix("features.")
        renamed[by_suffix.get(suffix, name)] = value
    return renamed
