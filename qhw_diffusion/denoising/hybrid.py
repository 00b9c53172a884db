"""A U-Net whose coarsest level is a quantum circuit with trained observables (after arXiv 2602.03405).

Image → convolutions → angles → circuit on a few qubits → one value an observable → convolutions, with skip connections
at every finer level and none round the circuit: what the coarsest level tells the decoder has gone through it. It is
trained as any backbone (`train_backbone`), by the diffusion loss with labels, and is one: guidance, sampling and
evaluation take it as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from qiskit.circuit import QuantumCircuit
from torch import Tensor, nn

from qhw_diffusion.circuits.ansatz import append_layer, chain_layer, check_integer, named_parameters, z_observables
from qhw_diffusion.circuits.observables import check_observables_text
from qhw_diffusion.circuits.preparation import preparation_size, prepare
from qhw_diffusion.config import require
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import Backbone, BackboneConfig
from qhw_diffusion.diffusion.autoencoder import Autoencoder
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.execution import Engine, QuantumLayer, check_engine_text, compile_circuit
from qhw_diffusion.execution.layer import read_layer, write_layer

BOTTLENECKS = ("quantum", "classical", "none")
ENCODINGS = ("amplitude", "angle")
Z = "z"
"""Observables ⟨Z⟩ of every qubit."""
MAX_QUBITS = 8
_CIRCUIT = "circuit"  # folder beside the weights


@dataclass(frozen=True)
class HybridConfig(BackboneConfig):
    """A backbone with a bottleneck, or without one: with `bottleneck` empty it is a `BackboneConfig` and no more.

    With one, the network has convolutions alone: `attention` is off, `mid_attention` and its heads are not used.
    """

    bottleneck: str = ""
    """What the coarsest level is: "quantum" (a circuit), "classical" (a network of two layers with as many parameters
    as the circuit, as nearly as whole units allow) or "none" (nothing passes: the control without a bottleneck). Empty:
    the ordinary U-Net."""
    n_qubits: int = 4
    """Qubits of the bottleneck."""
    depth: int = 4
    """Layers of its circuit, each RX, RZ, RY on every qubit and a chain of CNOTs."""
    encoding: str = "amplitude"
    """How features enter the circuit: "amplitude" (they are the 2·(2^n − 1) angles that prepare any state) or "angle"
    (RY and RZ on every qubit)."""
    observables: str = "adaptive:2"
    """Observables: "z" (⟨Z⟩ of every qubit) or "adaptive:K" (trained Hermitian ones on K neighbouring qubits)."""
    device: str = "ideal"
    """Device the circuit is compiled for: ideal, a name, a snapshot file, or your own (module:name, file.py:name)."""
    engine: str = "ideal"
    """Engine that evaluates the circuit: ideal, noisy, shots:N (sampled values, exact gradients), with mitigation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bottleneck:
            return
        for kind, given, allowed in (
            ("bottleneck", self.bottleneck, BOTTLENECKS),
            ("encoding", self.encoding, ENCODINGS),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, given, allowed)
        if self.observables != Z:
            check_observables_text(self.observables)
        check_engine_text(self.engine)
        check_integer("n_qubits", self.n_qubits, 1, MAX_QUBITS)
        check_integer("depth", self.depth, 1, None)
        require(
            len(self.channels) > 1,
            f"channels are {self.channels}: a bottleneck needs two levels or more, since only what passes round it by "
            "a skip connection of a finer level keeps the image's details; give two numbers of channels, and patch=1 "
            "where the image is small",
        )
        require(not any(self.attention), f"attention is {self.attention}: with a bottleneck there is none")


def bottleneck_layer(config: HybridConfig) -> QuantumLayer:
    """The circuit of a bottleneck, compiled for its device, on its engine.

    Raises:
        UnknownNameError, InvalidInputError: a device or an engine that does not exist or does not fit, observables that
            are wider than the circuit.
    """
    n, size = config.n_qubits, _n_angles(config)
    inputs = named_parameters("bottleneck", "x", size)
    weights = named_parameters("bottleneck", "w", 3 * n * config.depth)
    circuit = QuantumCircuit(n, name=f"bottleneck_{n}q_{config.depth}l_{config.encoding}")
    if config.encoding == "amplitude":
        prepare(circuit, range(n), inputs)
    else:
        for qubit in range(n):
            circuit.ry(inputs[qubit], qubit)
            circuit.rz(inputs[n + qubit], qubit)
    for layer in range(config.depth):
        own = weights[3 * n * layer : 3 * n * (layer + 1)]
        append_layer(circuit, chain_layer(n, layer), range(n), own)
    observables = z_observables(n) if config.observables == Z else config.observables
    compiled = compile_circuit(
        circuit, Device.load(config.device), inputs=inputs, weights=weights, observables=observables
    )
    return QuantumLayer(compiled, config.engine, seed=config.seed)


class HybridNetwork(nn.Module):
    """The U-Net: residual blocks at every level, and the bottleneck between those of the coarsest.

    Attributes: `angles` (features → inputs of the bottleneck), `bottleneck` (a `QuantumLayer`, a small network, or None
    where nothing passes), `spread` (its values → features).
    """

    def __init__(self, config: HybridConfig, channels: int, sides: tuple[int, int]) -> None:
        """An untrained network for images of so many channels and sides, as the backbone hands them over."""
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # here, since importing takes seconds
        from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

        widths, groups = config.channels, config.norm_groups
        embedded = 4 * widths[0]

        def block(a: int, b: int) -> nn.Module:
            return ResnetBlock2D(  # type: ignore[no-any-return]
                in_channels=a, out_channels=b, temb_channels=embedded, groups=groups if a % groups == 0 else 1,
                groups_out=groups,
            )  # fmt: skip

        self.frequencies = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(widths[0], embedded)
        self.label = nn.Embedding(config.n_classes + 1, embedded)
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        down, up = [], []
        for level, width in enumerate(widths[:-1]):
            down.append(nn.ModuleList([block(width, width) for _ in range(config.layers_per_block)]))
            below = widths[level + 1]
            up.append(nn.ModuleList([block(2 * width if i == 0 else width, width)
                                     for i in range(config.layers_per_block)]))  # fmt: skip
            down.append(Downsample2D(width, use_conv=True, out_channels=below))
            up.append(Upsample2D(below, use_conv=True, out_channels=width))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        coarse = widths[-1]
        self.before, self.after = block(coarse, coarse), block(coarse, coarse)
        scale = 2 ** (len(widths) - 1)
        self.shape = (coarse, sides[0] // scale, sides[1] // scale)
        features = coarse * self.shape[1] * self.shape[2]
        layer = bottleneck_layer(config)
        n_values = layer.compiled.n_values
        self.norm = nn.GroupNorm(groups, coarse)
        self.angles = nn.Linear(features, layer.compiled.n_inputs)
        self.bottleneck = _bottleneck(config, layer)
        self.n_values = n_values
        self.spread = nn.Linear(n_values, features)
        self.leave = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor | int, class_labels: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Images [B, C, H, W] at timesteps [B] or one, labels [B] → ([B, C, H, W],), as diffusers' U-Net is called."""
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        embedded = self.time(self.frequencies(times).to(x.dtype)) + self.label(class_labels)
        skips: list[Tensor] = []
        h = self.enter(x)
        for part in self.down:
            if isinstance(part, nn.ModuleList):
                for block in part:
                    h = block(h, embedded)
                skips.append(h)
            else:
                h = part(h)
        h = self.spread(self.values(self.before(h, embedded))).view(len(x), *self.shape)
        h = self.after(h, embedded)
        for level in range(len(self.up) // 2 - 1, -1, -1):
            h = torch.cat([self.up[2 * level + 1](h), skips[level]], 1)
            for block in self.up[2 * level]:  # type: ignore[attr-defined, union-attr]
                h = block(h, embedded)
        return (self.leave(h),)

    def values(self, h: Tensor) -> Tensor:
        """What the bottleneck gives for features [B, c, h, w]: [B, n_values]."""
        if self.bottleneck is None:
            return h.new_zeros(len(h), self.n_values)
        values: Tensor = self.bottleneck(self.angles(nn.functional.silu(self.norm(h)).flatten(1)))
        return values


def _bottleneck(config: HybridConfig, layer: QuantumLayer) -> nn.Module | None:
    if config.bottleneck == "none":
        return None
    if config.bottleneck == "quantum":
        return layer
    n_in, n_out = layer.compiled.n_inputs, layer.compiled.n_values
    hidden = max(1, round((sum(p.numel() for p in layer.parameters()) - n_out) / (n_in + 1 + n_out)))
    return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out))


def _n_angles(config: HybridConfig) -> int:
    return preparation_size(config.n_qubits) if config.encoding == "amplitude" else 2 * config.n_qubits


class HybridBackbone(Backbone):
    """A `Backbone` with a bottleneck; its circuit is saved beside the weights, compiled as it was trained."""

    network: ClassVar[str] = "hybrid"
    config_class: ClassVar[type[BackboneConfig]] = HybridConfig
    config: HybridConfig

    def __init__(self, config: HybridConfig, autoencoder: Autoencoder | None = None) -> None:
        require(
            isinstance(config, HybridConfig) and bool(config.bottleneck),
            f"a hybrid backbone needs a bottleneck: HybridConfig(bottleneck=…), one of {', '.join(BOTTLENECKS)}",
        )
        super().__init__(config, autoencoder)

    def _make_network(self, channels: int, sides: tuple[int, int]) -> nn.Module:
        return HybridNetwork(self.config, channels, sides)

    @property
    def layer(self) -> QuantumLayer | None:
        """The circuit; None where the bottleneck has none."""
        inner = self.unet.bottleneck
        return inner if isinstance(inner, QuantumLayer) else None

    def on(self, device: str | Path | Device | None = None, engine: str | Engine | None = None) -> Self:
        """A copy, weights unchanged, whose circuit is compiled for another device or runs on another engine.

        Raises:
            InvalidInputError: the bottleneck is no circuit, or the engine cannot evaluate it.
        """
        if self.layer is None:
            return super().on(device, engine)
        compiled = self.layer.compiled
        if device is not None:
            compiled = compiled.compile_for(device if isinstance(device, Device) else Device.load(device))
        moved = copy.deepcopy(self)
        moved.unet.bottleneck = self.layer.with_compiled(compiled, engine)
        return moved

    def _write_parts(self, folder: Path) -> dict[str, Any]:
        if self.layer is None:
            return {}
        inner = folder / _CIRCUIT
        inner.mkdir(parents=True, exist_ok=True)
        return {"layer": write_layer(self.layer, inner)}

    @classmethod
    def _read(cls, folder: Path, saved: Mapping[str, Any], autoencoder: Autoencoder | None) -> Self:
        config = HybridConfig.from_dict(saved["config"])
        made = cls(config.replace(device="ideal", engine="ideal"), autoencoder)  # the compiled circuit is read below
        made.config = config
        if "layer" in saved:
            made.unet.bottleneck = read_layer(folder / _CIRCUIT, saved["layer"])
        return made
