"""The quantum diffusion models: a forward process, a reverse process, and what goes in and comes out.

`DensityMatrixQDM` maps density matrices, `EnsembleQDM` sets of states, `AmplitudeQDM` images held in amplitudes, and
`LatentQDM` images in the latent space of an autoencoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.circuits.reverse import MAX_QUBITS
from qhw_diffusion.config import Config, check_finite, require
from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.deferred import DenoiserLayer, compile_deferred
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.forward import Depolarizing, ForwardProcess, GaussianAmplitudes, Scrambling, noise_schedule
from qhw_diffusion.denoising.readout import ImageEstimate, sample_images
from qhw_diffusion.denoising.reverse import ReverseProcess, Trajectory
from qhw_diffusion.denoising.states import check_states, decode_images, encode_images, qubits_for
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution import Engine, GradientMethod

FORWARDS = ("gaussian", "depolarizing", "scrambling", "device")


@dataclass(frozen=True)
class ForwardConfig(Config):
    """The forward process of a quantum diffusion model."""

    kind: str = "gaussian"
    """Kind of noise: gaussian (classical noise on amplitudes), depolarizing, scrambling (random circuits) or device
    (the device's own noise while its qubits wait)."""
    schedule: str = "cosine"
    """Noise schedule of gaussian and depolarizing: linear, cosine, cosine_square, constant or msquddpm."""
    schedule_settings: dict[str, float] = field(default_factory=dict)
    """Settings of the noise schedule by name."""
    complex: bool = True
    """Complex Gaussian noise; real otherwise."""
    strength: tuple[float, float] = (0.5, 4.0)
    """Strength of the scrambling circuits at the first and at the last step."""
    seconds: float = 20e-6
    """Wait per step in seconds, for kind device."""

    def __post_init__(self) -> None:
        """Check the kind, and the numbers of every kind; `build` checks the schedule and its settings."""
        check_finite(self)
        first, last = self.strength
        require(0 <= first <= last, f"strength must be (h_1, h_T) with 0 ≤ h_1 ≤ h_T, not {self.strength}")
        require(self.seconds > 0, f"seconds per step must be > 0, not {self.seconds!r}")
        if self.kind not in FORWARDS:
            raise UnknownNameError.of("forward process", str(self.kind), FORWARDS)

    def build(self, reverse: ReverseConfig, device: Device) -> ForwardProcess:
        """The process of as many steps, on as many qubits, as the reverse process has.

        Args:
            reverse: settings of the reverse process.
            device: device whose noise the kind "device" takes.

        Raises:
            UnknownNameError, InvalidInputError: settings that the process does not take.
        """
        if self.kind == "scrambling":
            return Scrambling(reverse.n_qubits, reverse.n_steps, self.strength)
        if self.kind == "device":
            return DeviceNoise(device, reverse.n_qubits, reverse.n_steps, seconds=self.seconds)
        schedule = noise_schedule(self.schedule, reverse.n_steps, **self.schedule_settings)
        return Depolarizing(schedule) if self.kind == "depolarizing" else GaussianAmplitudes(schedule, self.complex)


class QDM(nn.Module):
    """What the four quantum diffusion models have in common: a forward process, a reverse process, sampling.

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
        """Dimension d = 2^n of the data's states."""
        return int(2**self.reverse.config.n_qubits)

    def config(self) -> dict[str, Any]:
        """Everything needed to build the model again, JSON-ready."""
        return {"model": self.kind, "reverse": self.reverse.config.to_dict(), "forward": self.forward_config.to_dict()}

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
    ) -> Trajectory:
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
        """A copy with the same weights on another device or engine; the forward process stays.

        Args and errors as in `ReverseProcess.on`.
        """
        return self.with_reverse(self.reverse.on(device=device, engine=engine))

    def as_layer(
        self,
        device: str | Device | None = None,
        engine: str | Engine = "ideal",
        *,
        gradient: GradientMethod | None = None,
        scheduled: bool = False,
    ) -> DenoiserLayer:
        """The whole reverse process as one circuit behind a `QuantumLayer`: on every engine, and on devices.

        Labels and ancillas are fresh in every step and read at the end (`circuits.deferred`): n + T·a qubits, a
        measurement basis, a circuit an image. Exact engines are for small ones.

        Args:
            device: name, path of a snapshot, or Device the circuit is compiled for; None: the model's.
            engine: as for `QuantumLayer`.
            gradient: as for `QuantumLayer`.
            scheduled: with a delay wherever a qubit waits.

        Raises:
            InvalidInputError: a model that keeps outcomes, a circuit wider than the device or with too many strings.
            MemoryBudgetError: too wide for the engine.
        """
        compiled = compile_deferred(self, device, scheduled=scheduled)
        return DenoiserLayer(self, compiled, engine, gradient=gradient)

    def with_reverse(self, reverse: nn.Module) -> Self:
        """A copy with another reverse process, or what stands in its place (see `baselines`)."""
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
        reverse: as for `QDM`.
        forward: as for `QDM`.
        device: as for `QDM`.
        image_shape: (C, H, W), also colour and not square; its C·H·W pixels must fit the 2^n amplitudes.

    Raises:
        InvalidInputError: more pixels than amplitudes; the message says what fits.
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
        """Check that images fit the qubits.

        Raises:
            InvalidInputError: they do not; the message says how many qubits hold them and what else there is.
        """
        n_qubits, needed, pixels = self.reverse.config.n_qubits, qubits_for(self.image_shape), prod(self.image_shape)
        if needed <= n_qubits:
            return
        most = MAX_QUBITS - len(self.reverse.circuit.measured)
        qubits = f"n_qubits={needed}" if needed <= most else f"at most {most} data qubits beside its others"
        raise InvalidInputError(
            f"images {self.image_shape} have {pixels} pixels, and {n_qubits} qubits hold {2**n_qubits} amplitudes. "
            f"This circuit can have {qubits}; or take images of at most {2 ** min(n_qubits, most)} pixels (C·H·W), or "
            "a latent model (--model latent, LatentQDM), whose autoencoder takes images of any size"
        )

    def config(self) -> dict[str, Any]:
        """As `QDM.config`, with the image shape."""
        return {**super().config(), "image_shape": list(self.image_shape)}

    def encode(self, data: Tensor) -> Tensor:
        """Images [N, C, H, W] in [−1, 1] → states [N, d].

        Args:
            data: float32 or float64, of the model's image shape.

        Raises:
            InvalidInputError: images of another shape, out of range, or black.
        """
        if data.ndim != 4 or tuple(data.shape[1:]) != self.image_shape:
            raise InvalidInputError(
                f"images are {tuple(data.shape)}; allowed: [N, {', '.join(map(str, self.image_shape))}], or make the "
                "model with another image_shape"
            )
        return encode_images(data, self.reverse.config.n_qubits)

    def images(self, states: Tensor) -> Tensor:
        """States → images from exact outcome probabilities (with the engine's readout errors), [B, C, H, W]."""
        return self.decode(self.reverse.outcome_probabilities(states).sqrt())

    def decode(self, magnitudes: Tensor) -> Tensor:
        """|amplitudes| [B, d] → images."""
        return decode_images(magnitudes, self.image_shape)

    def measured_images(self, trajectory: Trajectory, shots: int, generator: torch.Generator) -> Tensor:
        """Images [B, C, H, W] as `shots` shots for each would show them, of which a share counts.

        Post-selection keeps the shots that pass. Where outcomes are kept, an image belongs to one outcome history, and
        only shots in which that history comes up again show the same image. Error bars: `measured_magnitudes`.

        Args:
            trajectory: from `sample`.
            shots: circuits sent per image.
            generator: of the outcomes.

        Raises:
            InvalidInputError: a probability of success, or of the outcome history, below what the shots resolve; the
                message says how many it takes.
        """
        return self.decode(self.measured_magnitudes(trajectory, shots, generator).magnitudes)

    def measured_magnitudes(self, trajectory: Trajectory, shots: int, generator: torch.Generator) -> ImageEstimate:
        """As `measured_images`: √(counts/N) of every amplitude and the images, with standard errors.

        Args and errors as in `measured_images`. The images of a latent model's estimate are the magnitudes, (1, 1, d).
        """
        success = trajectory.probability if self.reverse.config.kind in ("postselected", "measured") else None
        probabilities = self.reverse.outcome_probabilities(trajectory.states)
        shape = self.image_shape if self.kind == AmplitudeQDM.kind else (1, 1, self.dim)
        return sample_images(probabilities, shots, generator, shape, success=success)


# Ten classes from 1,110 circuit parameters, as published; the paper gives the number and not the circuit. Ours: three
# data, four label qubits and an ancilla, the bottleneck n → n+1 → n with 7 + 34 + 7 layers, shared by all steps:
# 2·7·7·3 + 34·8·3 = 1,110. (With these numbers the CNOT chains cancel, so the initial circuit is near the identity.)
RECONSTRUCTION = ReverseConfig(
    n_qubits=3,
    n_steps=4,
    kind="postselected",
    ancillas=1,
    depth=34,
    outer=7,
    weight_sharing="time_embedding",
    conditioning="qubits",
    n_labels=10,
)


class LatentQDM(AmplitudeQDM):
    """An amplitude model whose data are the latents of images.

    The encoder's latents are magnitudes, and the decoder sees magnitudes only: what a device can measure.

    Args:
        reverse: as for `QDM`; its `n_qubits` must be the autoencoder's latent qubits.
        forward: as for `QDM`.
        device: as for `QDM`.
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
        return self.autoencoder.decode(magnitudes)


MODELS: dict[str, type[QDM]] = {m.kind: m for m in (DensityMatrixQDM, EnsembleQDM, AmplitudeQDM, LatentQDM)}
