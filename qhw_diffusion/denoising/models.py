"""The quantum diffusion models: a forward process, a reverse process, and what goes in and comes out.

`DensityMatrixQDM` maps density matrices, `EnsembleQDM` sets of states, `AmplitudeQDM` images held in amplitudes;
`latent.LatentQDM` does the latter in the latent space of an autoencoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.forward import Depolarizing, ForwardProcess, GaussianAmplitudes
from qhw_diffusion.denoising.readout import ImageEstimate, sample_images
from qhw_diffusion.denoising.reverse import Chain, ReverseProcess
from qhw_diffusion.denoising.schedules import noise_schedule
from qhw_diffusion.denoising.scrambling import Scrambling
from qhw_diffusion.denoising.states import check_states, decode_images, encode_images
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine
from qhw_diffusion.runs import settings_from_dict

FORWARDS = ("gaussian", "depolarizing", "scrambling", "device")


@dataclass(frozen=True)
class ForwardConfig:
    """The forward process of a quantum diffusion model.

    Attributes:
        kind: ``"gaussian"`` (classical noise on amplitudes), ``"depolarizing"``, ``"scrambling"`` (random circuits) or
            ``"device"`` (the noise of the device itself, waiting).
        schedule: name of the noise schedule of the first two (`noise_schedule`).
        schedule_settings: its settings.
        complex: whether Gaussian noise is complex.
        strength: (first, last) strength of the scrambling circuits.
        seconds: of waiting a step, for ``"device"``.
    """

    kind: str = "gaussian"
    schedule: str = "cosine"
    schedule_settings: dict[str, float] = field(default_factory=dict)
    complex: bool = True
    strength: tuple[float, float] = (0.5, 4.0)
    seconds: float = 20e-6

    def __post_init__(self) -> None:
        if self.kind not in FORWARDS:
            raise UnknownNameError.of("forward process", str(self.kind), FORWARDS)

    def build(self, reverse: ReverseConfig, device: Device) -> ForwardProcess:
        """The process of as many steps, on as many qubits, as the reverse process has."""
        if self.kind == "scrambling":
            return Scrambling(reverse.n_qubits, reverse.n_steps, tuple(self.strength))  # type: ignore[arg-type]
        if self.kind == "device":
            return DeviceNoise(device, reverse.n_qubits, reverse.n_steps, seconds=self.seconds)
        schedule = noise_schedule(self.schedule, reverse.n_steps, **self.schedule_settings)
        return Depolarizing(schedule) if self.kind == "depolarizing" else GaussianAmplitudes(schedule, self.complex)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ForwardConfig:
        """Reads what `dataclasses.asdict` wrote. Raises InvalidInputError on unknown entries."""
        return settings_from_dict(cls, data, "a forward process")


class QDM(nn.Module):
    """A quantum diffusion model: what the four models share.

    Args:
        reverse: settings of the reverse process, or one that is made already.
        forward: settings of the forward process; None for the model's default.
        device: what the circuit is compiled for, and whose noise ``"device"`` diffuses with; None loads the one
            `reverse` names, or takes that of the process made already.

    Attributes:
        reverse: the `ReverseProcess`, which has all the weights.
        forward_process: the `ForwardProcess`.
    """

    kind: ClassVar[str] = ""
    default_forward: ClassVar[ForwardConfig] = ForwardConfig()

    def __init__(
        self,
        reverse: ReverseConfig | ReverseProcess,
        forward: ForwardConfig | None = None,
        *,
        device: Device | None = None,
    ) -> None:
        super().__init__()
        self.reverse = reverse if isinstance(reverse, ReverseProcess) else ReverseProcess(reverse, device=device)
        self.forward_config = forward or self.default_forward
        self.forward_process = self.forward_config.build(self.reverse.config, device or self.reverse.compiled.device)

    @property
    def dim(self) -> int:
        """d = 2^n of the data."""
        return int(2**self.reverse.config.n_qubits)

    def config(self) -> dict[str, Any]:
        """Everything needed to build the model again, JSON-ready."""
        return {"model": self.kind, "reverse": self.reverse.config.to_dict(), "forward": asdict(self.forward_config)}

    def encode(self, data: Tensor) -> Tensor:
        """Data → states that training and sampling work with; here the states themselves, checked."""
        check_states(data, "data")
        if data.shape[-1] != self.dim:
            raise InvalidInputError(
                f"states of dimension {data.shape[-1]}; {self.reverse.config.n_qubits} qubits have {self.dim}"
            )
        return data

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        labels: Tensor | None = None,
        *,
        keep_path: bool = False,
    ) -> Chain:
        """States at t = 0 from the forward process's prior through all reverse steps, without gradient.

        Args:
            count: how many.
            generator: of x_T and of the measurement outcomes.
            labels: [count] int64, for a conditioned model.
            keep_path: keep the states of every step.

        Raises:
            InvalidInputError: labels missing or out of range, or a post-selection that (next to) never succeeds.
        """
        with torch.no_grad():
            start = self.forward_process.prior(count, self.dim, generator)
            return self.reverse.run(start, labels, generator, keep_path=keep_path)

    def on(self, *, device: str | Device | None = None, engine: str | Engine | None = None) -> Self:
        """A copy with the same weights on another device or engine; the forward process stays."""
        return self.with_reverse(self.reverse.on(device=device, engine=engine))

    def with_reverse(self, reverse: nn.Module) -> Self:
        """A copy with another reverse process (or what stands for one, see `classical`)."""
        other = copy.copy(self)
        other._modules = {**self._modules, "reverse": reverse}
        return other


class DensityMatrixQDM(QDM):
    """A diffusion of density matrices: depolarizing (or the device's noise) forwards, channels backwards (MODELS §2a).

    Trained pairwise, ρ_t → ρ_{t−1} of one path, by infidelity, trace distance or Hilbert–Schmidt distance.
    """

    kind = "density"
    default_forward = ForwardConfig("depolarizing", "cosine")


class EnsembleQDM(QDM):
    """A diffusion of ensembles of states (QuDDPM, arXiv 2310.05866; MSQuDDPM, 2411.17608).

    Trained on distances between ensembles, MMD or Wasserstein; outcomes of the ancillas make the diversity.
    """

    kind = "ensemble"
    default_forward = ForwardConfig("scrambling")


class AmplitudeQDM(QDM):
    """A diffusion of images in the amplitudes of n qubits (arXiv 2311.15444).

    Noise is complex Gaussian, so x_T is a Haar-random state; states stay coherent between steps.

    Args:
        reverse, forward, device: as for `QDM`.
        image_shape: (C, H, W); its pixels must fit the 2^n amplitudes.
    """

    kind = "amplitude"

    def __init__(
        self,
        reverse: ReverseConfig | ReverseProcess,
        forward: ForwardConfig | None = None,
        *,
        image_shape: Sequence[int] = (1, 8, 8),
        device: Device | None = None,
    ) -> None:
        super().__init__(reverse, forward, device=device)
        self.image_shape = tuple(int(side) for side in image_shape)
        self.encode_check()

    def encode_check(self) -> None:
        """Raise InvalidInputError where images do not fit the qubits."""
        encode_images(torch.ones(1, *self.image_shape), self.reverse.config.n_qubits)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "image_shape": list(self.image_shape)}

    def encode(self, data: Tensor) -> Tensor:
        """Images [N, C, H, W] in [−1, 1] → states [N, d].

        Raises:
            InvalidInputError: images of another shape, out of range, or black.
        """
        if data.ndim != 4 or tuple(data.shape[1:]) != self.image_shape:
            raise InvalidInputError(
                f"images are {tuple(data.shape)}; allowed: [N, {', '.join(map(str, self.image_shape))}]"
            )
        return encode_images(data, self.reverse.config.n_qubits)

    def images(self, states: Tensor) -> Tensor:
        """States → images from exact outcome probabilities (with the engine's readout errors), [B, C, H, W]."""
        return self.decode(self.reverse.outcome_probabilities(states).sqrt())

    def decode(self, magnitudes: Tensor) -> Tensor:
        """|amplitudes| [B, d] → images."""
        return decode_images(magnitudes, self.image_shape)

    def measured_images(self, chain: Chain, shots: int, generator: torch.Generator) -> Tensor:
        """Images [B, C, H, W] as `shots` shots for each would show them, of which a share counts.

        Post-selection keeps the shots that pass. Where outcomes are kept, an image belongs to one record of outcomes,
        and only shots in which that record comes up again show the same image. Error bars: `measured_magnitudes`.

        Raises:
            InvalidInputError: a probability of success, or of the record, below what the shots resolve; the message
                says how many it takes.
        """
        return self.decode(self.measured_magnitudes(chain, shots, generator).magnitudes)

    def measured_magnitudes(self, chain: Chain, shots: int, generator: torch.Generator) -> ImageEstimate:
        """As `measured_images`: √(counts/N) of every amplitude with its standard error, also as a picture of pixels."""
        success = chain.probability if self.reverse.config.kind in ("postselected", "measured") else None
        probabilities = self.reverse.outcome_probabilities(chain.states)
        shape = self.image_shape if self.kind == AmplitudeQDM.kind else (1, 1, self.dim)
        return sample_images(probabilities, shots, generator, shape, success=success)


MODELS: dict[str, type[QDM]] = {m.kind: m for m in (DensityMatrixQDM, EnsembleQDM, AmplitudeQDM)}
