"""Latent QDM: an amplitude model in the latent space of a classical autoencoder (MODELS §2c)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.models import MODELS, AmplitudeQDM, ForwardConfig
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError

# Ten classes from 1,110 circuit parameters, as published; the paper gives the number and not the circuit. Ours: three
# data, four label qubits and an ancilla, the bottleneck n → n+1 → n with 7 + 34 + 7 layers, shared by all steps:
# 2·7·7·3 + 34·8·3 = 1,110. (With these numbers the CNOT chains cancel, and the circuit starts near the identity.)
RECONSTRUCTION = ReverseConfig(
    n_qubits=3,
    n_steps=4,
    kind="postselected",
    ancillas=1,
    depth=34,
    outer=7,
    sharing="angle",
    labels_by="qubits",
    n_labels=10,
)


class LatentQDM(AmplitudeQDM):
    """An amplitude model whose data are the latents of images.

    The encoder's latents are magnitudes, and the decoder sees magnitudes only: what a device can measure.

    Args:
        reverse, forward, device: as for `QDM`; `reverse.n_qubits` must be the autoencoder's latent qubits.
        autoencoder: a trained one (frozen here), or None for an untrained one of the default shape.

    Raises:
        InvalidInputError: an autoencoder with another number of latent qubits.
    """

    kind = "latent"

    def __init__(
        self,
        reverse: ReverseConfig | ReverseProcess,
        forward: ForwardConfig | None = None,
        *,
        autoencoder: LatentAutoencoder | None = None,
        device: Device | None = None,
    ) -> None:
        n_qubits = (reverse.config if isinstance(reverse, ReverseProcess) else reverse).n_qubits
        if autoencoder is None:
            autoencoder = LatentAutoencoder(AutoencoderConfig(latent_qubits=n_qubits))
        if autoencoder.config.latent_qubits != n_qubits:
            raise InvalidInputError(
                f"the autoencoder's latents are on {autoencoder.config.latent_qubits} qubits, the reverse process on "
                f"{n_qubits}: make them equal"
            )
        super().__init__(reverse, forward, image_shape=autoencoder.image_shape, device=device)
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    def encode_check(self) -> None:
        """Images of any size fit: the autoencoder brings them into the latent space."""

    def config(self) -> dict[str, Any]:
        """As `QDM.config`, with the autoencoder's."""
        base = super().config()
        del base["image_shape"]
        return {**base, "autoencoder": self.autoencoder.config.to_dict()}

    def encode(self, data: Tensor) -> Tensor:
        """Images [N, C, H, W] in [−1, 1] → latent states [N, d]."""
        with torch.no_grad():
            return self.autoencoder.encode(data).to(torch.complex64)

    def decode(self, magnitudes: Tensor) -> Tensor:
        """|latent amplitudes| [B, d] → images."""
        with torch.no_grad():
            return self.autoencoder.decode(magnitudes)


MODELS[LatentQDM.kind] = LatentQDM
