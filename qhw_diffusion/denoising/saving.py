"""Quantum diffusion models on disk, diffusers style: weights, configuration, circuit and device in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qhw_diffusion.circuits import load_circuit, save_circuit
from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.config import ReverseConfig
from qhw_diffusion.denoising.latent import LatentQDM
from qhw_diffusion.denoising.models import MODELS, QDM, AmplitudeQDM, ForwardConfig
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError
from qhw_diffusion.runs import atomic_write_json, load_module_state, save_module

SNAPSHOT = "device.snapshot.json.gz"


def save_pretrained(model: QDM, folder: str | Path) -> Path:
    """Write a model: model.safetensors and config.json, one step's circuit (circuit.qpy, circuit.qasm), the ISA circuit
    (isa.qpy, isa.qasm), device.json (layout, cost, provenance) and the snapshot it was compiled with.

    Raises:
        InvalidInputError: a model whose circuit was replaced by a classical network: save its weights with save_module.
    """
    if not isinstance(model.reverse, ReverseProcess):
        raise InvalidInputError(
            f"only models with a circuit are saved here; this one has a {type(model.reverse).__name__} in its place: "
            "use qhw_diffusion.runs.save_module(folder, model.reverse, {}) for its weights"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    compiled = model.reverse.compiled
    save_circuit(model.reverse.circuit.circuit, folder, "circuit")
    save_circuit(compiled.isa, folder, "isa")
    compiled.device.save(folder / SNAPSHOT)
    atomic_write_json(folder / "device.json", compiled.summary(SNAPSHOT))
    save_module(folder, model, model.config())
    return folder


def from_pretrained(folder: str | Path, *, device: str | Path | Device | None = None, engine: str | None = None) -> QDM:
    """Read a model; on another device (compiled anew) or engine if asked.

    Args:
        folder: what `save_pretrained` wrote.
        device: name, path of a snapshot, or Device; None: the saved snapshot.
        engine: ``"ideal"`` or ``"noisy"``; None: as saved.

    Raises:
        DamagedFileError: the folder holds no whole model, or its parts do not fit each other.
        UnknownNameError, InvalidInputError: a device or engine that does not exist or does not fit.
    """
    folder = Path(folder)
    state, config = load_module_state(folder)
    try:
        parts: dict[str, Any] = dict(config)
        kind = MODELS[parts.pop("model")]
        reverse = ReverseConfig.from_dict(parts.pop("reverse"))
        forward = ForwardConfig.from_dict(parts.pop("forward"))
        extra: dict[str, Any] = {}
        if issubclass(kind, LatentQDM):
            extra["autoencoder"] = LatentAutoencoder(AutoencoderConfig.from_dict(parts.pop("autoencoder")))
        elif issubclass(kind, AmplitudeQDM):
            extra["image_shape"] = parts.pop("image_shape")
        model: QDM = kind(reverse, forward, device=Device.load(folder / SNAPSHOT), **extra)
        if load_circuit(folder / "circuit.qpy") != model.reverse.circuit.circuit:
            raise DamagedFileError(f"{folder / 'circuit.qpy'} is not the circuit that config.json describes")
        model.load_state_dict(state)
    except DamagedFileError:
        raise
    except (QhwError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedFileError(f"{folder} does not hold a whole quantum diffusion model ({error!r})") from error
    if device is not None or engine is not None:
        target = device if device is None or isinstance(device, Device) else Device.load(device)
        model = model.on(device=target, engine=engine)
    return model.eval()
