"""Pooled features: the output of a U-Net's middle block, averaged over positions, read off while it predicts.

They say what the network itself makes of x_t and the prompt, in as many numbers as the block has channels, and cost no
further evaluation: a hook looks at the block during the prediction that the sampler makes anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qhw_diffusion.diffusion.sampler import scale_dtype
from qhw_diffusion.errors import InvalidInputError


def middle_block(network: Any) -> nn.Module:
    """The middle block of a U-Net of diffusers.

    Raises:
        InvalidInputError: the network has none.
    """
    block = getattr(network, "mid_block", None)
    if block is None:
        raise InvalidInputError(
            f"a {type(network).__name__} has no middle block, whose output the pooled features are the mean of; take a "
            "U-Net of diffusers with one, or leave out pooled_features and the policy's embedding"
        )
    return block  # type: ignore[no-any-return]


def middle_channels(network: Any) -> int:
    """Channels of a U-Net's middle block: the number of its pooled features; raises as `middle_block`."""
    middle_block(network)
    return int(network.config.block_out_channels[-1])


@contextmanager
def watching_middle(network: Any) -> Iterator[list[Tensor]]:
    """While it is open, the pooled features of each call of a U-Net are added to the list, [rows, F] a call."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output.to(scale_dtype(output)).mean((2, 3)))

    hook = middle_block(network).register_forward_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def pooled_width(denoiser: Any) -> int:
    """Number F of a denoiser's pooled features.

    Raises:
        InvalidInputError: it has none.
    """
    if not callable(getattr(denoiser, "predict_pooled", None)):
        raise InvalidInputError(
            f"denoiser {type(denoiser).__name__} gives no pooled features of a U-Net's middle block, which "
            "pooled_features asks for: it lacks predict_pooled(x_t, t, labels) and n_pooled, which the package's "
            "backbones and pipelines have; leave out pooled_features and the policy's embedding"
        )
    return int(denoiser.n_pooled)
