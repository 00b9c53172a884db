"""The residual networks of He et al. 2016 for CIFAR-10, and published weights of them, to evaluate with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qhw_diffusion.errors import DamagedFileError

# mean and standard deviation of the channels, of pixels in 0 … 1, that the published networks were trained with
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = (".th", ".pt", ".pth")
"""Endings of files of published weights."""


class ResNetBody(nn.Module):
    """All but the last layer of a network of 6n + 2 layers (arXiv 1512.03385, section 4.2, shortcuts A).

    Images [B, 3, H, W] in [−1, 1] to features [B, 4 · width]. Its modules are named as in
    github.com/akamaster/pytorch_resnet_cifar10, whose weights it takes.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, blocks: int, width: int = 16) -> None:
        """`blocks` per stage: n = 3 is ResNet-20, n = 9 ResNet-56."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("spread", torch.tensor(_SPREAD).view(3, 1, 1), persistent=False)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        for stage in range(3):
            into = width * 2 ** max(0, stage - 1)
            out = width * 2**stage
            first = _Block(into, out, stride=2 if stage else 1)
            layer = nn.Sequential(first, *(_Block(out, out) for _ in range(blocks - 1)))
            self.add_module(f"layer{stage + 1}", layer)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Activations at the end of each of the three stages, and the features."""
        x = ((x + 1) / 2 - self.mean) / self.spread
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        found = []
        for stage in range(3):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            found.append(x)
        return [*found, x.mean((2, 3))]

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 4 · width]: the mean over all places of the last stage's activations."""
        return self.stages(x)[-1]


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.extra = stride, c_out - c_in
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.extra:  # every second pixel, with channels of zeros on both sides
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        output: Tensor = nn.functional.relu(h + x)
        return output


def is_published(path: str | Path) -> bool:
    """Whether `path` is a file of weights, by its ending (.th, .pt, .pth)."""
    return Path(path).suffix in ENDINGS and Path(path).is_file()


def read_published(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], float | None]:
    """Weights in the format of github.com/akamaster/pytorch_resnet_cifar10.

    Args:
        path: a file of that repository's `pretrained_models` (as resnet56-4bfd9763.th), or one saved by its trainer.

    Returns:
        (blocks per stage, width and number of classes, by these names; the state, keys "body…" and "head…"; the
        published accuracy 0 … 1 on CIFAR-10's test images, if the file has it).

    Raises:
        DamagedFileError: no such file, or not of that network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values alone
        saved = {k.removeprefix("module."): v for k, v in content["state_dict"].items()}
        state = {}
        for key, value in saved.items():
            body = not key.startswith("linear.")
            state[f"body.{key}" if body else f"head.{key.removeprefix('linear.')}"] = value
        shape = {
            "blocks": 1 + max(int(found[1]) for k in saved if (found := re.match(r"layer1\.(\d+)\.", k))),
            "width": len(saved["conv1.weight"]),
            "n_classes": len(saved["linear.weight"]),
        }
    except Exception as error:  # torch raises of many kinds on a file that is none of its own
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(
            f"{path} holds no weights in the format of github.com/akamaster/pytorch_resnet_cifar10 "
            f"({type(error).__name__}: {reason})"
        ) from error
    best = content.get("best_prec1")
    return shape, state, best / 100 if isinstance(best, float) else None
