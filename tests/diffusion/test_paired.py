from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import uniform_filter

from qhw_diffusion import diffusion
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, MissingDependencyError


def ssim_by_hand(x: np.ndarray, y: np.ndarray, window: int = 7, data_range: float = 2.0) -> float:
    """Wang et al. 2004, eq. 13, uniform window, image mirrored at its border."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(values, window, mode="mirror"))

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    cov = mean(x * y) - mean_x * mean_y
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(score.mean())


def test_psnr_and_ssim_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 16, 16, generator=generator) * 2 - 1
    y = (x + 0.3 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    result = diffusion.paired_similarity(x, y)
    errors = (x - y).square().flatten(1).mean(1).double().numpy()
    assert result["psnr"] == pytest.approx(float(np.mean(10 * np.log10(4.0 / errors))), rel=1e-5)
    pairs = zip(x[:, 0].double().numpy(), y[:, 0].double().numpy(), strict=True)
    assert result["ssim"] == pytest.approx(np.mean([ssim_by_hand(a, b) for a, b in pairs]), rel=1e-4)


def test_equal_images() -> None:
    x = diffusion.load_dataset("digits", "heldout").images[:5]
    assert diffusion.paired_similarity(x, x) == pytest.approx({"psnr": 100.0, "ssim": 1.0})


def test_floor_is_far_below_a_pair_that_means_something() -> None:
    heldout = diffusion.load_dataset("digits", "heldout")
    floor = diffusion.paired_floor(heldout, 200)
    assert floor == diffusion.paired_floor(heldout, 200)
    sampler = diffusion.GuidedDDIM(diffusion.Backbone.load("digits"), 10)
    labels = torch.arange(40) % 10
    noise = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    # the same starting noise under nearly the same guidance
    pair = diffusion.paired_similarity(sampler.sample(labels, 1.3, noise), sampler.sample(labels, 1.5, noise))
    assert pair["psnr"] > floor["psnr"] + 5
    assert pair["ssim"] > floor["ssim"] + 0.2


def squeezenet_features() -> dict[str, torch.Tensor]:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return dict(torchvision.models.squeezenet1_1(weights=None).state_dict())


def test_lpips_takes_weights_under_either_name(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips")
    state = squeezenet_features()
    save_file(state, tmp_path / "torchvision.safetensors")
    distance = diffusion.Lpips(tmp_path / "torchvision.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips' own use of torchvision
        own = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).net.state_dict()
    by_layer = {name.split(".", 1)[1]: name for name in own}
    renamed = {f"x.{by_layer[k.removeprefix('features.')]}": v for k, v in state.items() if k.startswith("features.")}
    save_file(renamed, tmp_path / "lpips.safetensors")
    x, y = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = distance(x, y)
    assert values.shape == (3,)
    assert torch.equal(diffusion.Lpips(tmp_path / "lpips.safetensors")(x, y), values)
    assert float(distance(x, x).abs().max()) < 1e-6 < float(values.min())
    assert diffusion.paired_similarity(x, y, distance)["lpips"] == pytest.approx(float(values.mean()))
    with pytest.raises(InvalidInputError, match="1 or 3 channels"):
        distance(x.expand(-1, 2, -1, -1), y.expand(-1, 2, -1, -1))


def test_lpips_without_weights_or_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lpips")
    with pytest.raises(MissingDataError, match="safetensors"):
        diffusion.Lpips(tmp_path / "absent.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 not safetensors")
    with pytest.raises(DamagedFileError, match="safetensors"):
        diffusion.Lpips(tmp_path / "weights.pth")
    save_file({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedFileError, match="SqueezeNet"):
        diffusion.Lpips(tmp_path / "other.safetensors")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingDependencyError, match="pip install lpips"):
        diffusion.Lpips(tmp_path / "other.safetensors")


def test_bad_input() -> None:
    x = torch.zeros(2, 1, 8, 8)
    for pair in ((x, x[:1]), (x[0], x[0]), (x[:0], x[:0]), (x[..., :4], x[..., :4])):
        with pytest.raises(InvalidInputError, match="need twice"):
            diffusion.paired_similarity(*pair)
    heldout = diffusion.load_dataset("digits", "heldout")
    with pytest.raises(InvalidInputError, match="n is 0"):
        diffusion.paired_floor(heldout, 0)
    with pytest.raises(InvalidInputError, match="no class"):
        diffusion.paired_floor(heldout.subset(torch.tensor([0])), 3)
