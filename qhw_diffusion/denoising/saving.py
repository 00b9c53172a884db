"""Quantum diffusion models on disk, diffusers style: weights, configuration, circuit and device in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qhw_diffusion.checkpoints import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.circuits import load_circuit
from qhw_diffusion.denoising.autoencoder import AutoencoderConfig, LatentAutoencoder
from qhw_diffusion.denoising.config import RENAMED_WEIGHTS, ReverseConfig
from qhw_diffusion.denoising.device_noise import DeviceNoise
from qhw_diffusion.denoising.forward import ForwardProcess
from qhw_diffusion.denoising.models import MODELS, QDM, AmplitudeQDM, ForwardConfig, LatentQDM
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, reason_of
from qhw_diffusion.execution import Engine
from qhw_diffusion.execution.saving import SNAPSHOT, read_compiled, same_circuit, write_compiled
from qhw_diffusion.runs import atomic_folder

FORWARD_SNAPSHOT = "forward.snapshot.json.gz"
# In format 1 the circuit was compiled anew on loading, and the forward process was always on its device. Formats 1 and
# 2 have settings and weights under the old names of `config.RENAMED` and `RENAMED_WEIGHTS`, and no own ansätze.
FORMAT = 3


def save_pretrained(model: QDM, folder: str | Path) -> Path:
    """Write a model into a folder; `from_pretrained` reads it.

    It holds model.safetensors and config.json, one step's circuit (circuit.qpy, circuit.qasm), the ISA circuit
    (isa.qpy, isa.qasm), device.json (layout, cost, provenance) and the snapshot it was compiled with. A new folder is
    whole or not there: it is never half a model.

    Args:
        model: one of the package's models, also with an ansatz of one's own.
        folder: where to.

    Returns:
        The folder.

    Raises:
        InvalidInputError: what `from_pretrained` could not make again: a model or a part of one of somebody's own, an
            own ansatz without a name (see `circuits.ansatz_text`), or a model whose circuit was replaced by a classical
            network (save its weights with save_module). Nothing is written then.
    """
    if not isinstance(model.reverse, ReverseProcess):
        raise InvalidInputError(
            f"only models with a circuit are saved here; this one has a {type(model.reverse).__name__} in its place: "
            "use qhw_diffusion.runs.save_module(folder, model.reverse, {}) for its weights"
        )
    if MODELS.get(model.kind) is not type(model) or type(model.reverse) is not ReverseProcess:
        raise InvalidInputError(
            f"a {type(model).__name__} with a {type(model.reverse).__name__} is none of the package's models, which "
            "from_pretrained makes again; use qhw_diffusion.runs.save_module(folder, model, {}) for its weights"
        )
    with atomic_folder(folder) as aside:
        config = {"format": FORMAT, **model.config(), "frozen": frozen_parameters(model)}
        config["compiled"] = write_compiled(model.reverse.compiled, aside)
        if isinstance(model.forward_process, DeviceNoise):
            model.forward_process.device.save(aside / FORWARD_SNAPSHOT)
            config["forward_device"] = model.forward_process.device.snapshot.fingerprint
        if isinstance(model, LatentQDM):
            config["autoencoder_trained"] = [model.autoencoder.report, model.autoencoder.provenance]
        save_module(aside, model, config)
        if lost := _lost(model, aside):
            raise InvalidInputError(
                f"this {type(model).__name__} would come back with another {lost}: it was replaced by one that its "
                "settings do not describe; use qhw_diffusion.runs.save_module(folder, model, {}) for its weights"
            )
    return Path(folder)


def from_pretrained(
    folder: str | Path, *, device: str | Path | Device | None = None, engine: str | Engine | None = None
) -> QDM:
    """Read a model; on another device (compiled anew) or engine if asked.

    The circuit is the saved one. A function that the settings name as the ansatz is neither needed nor called.

    Args:
        folder: what `save_pretrained` wrote.
        device: name, path of a snapshot, or Device; None: the saved snapshot.
        engine: ``"ideal"`` or ``"noisy"``; None: as saved.

    Raises:
        DamagedFileError: the folder holds no whole model, its parts do not fit each other, or it is of another format
            version.
        UnknownNameError, InvalidInputError: a device or engine that does not exist or does not fit.
    """
    folder = Path(folder)
    state, config = load_module_state(folder)
    try:
        model = _build(folder, config)
        put_state(model, state, _frozen(config))
    except DamagedFileError:
        raise
    except (QhwError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DamagedFileError(
            f"{folder} does not hold a whole quantum diffusion model ({reason_of(error)})"
        ) from error
    if device is not None or engine is not None:
        target = device if device is None or isinstance(device, Device) else Device.load(device)
        model = model.on(device=target, engine=engine)
    return model.eval()


def _build(folder: Path, config: Mapping[str, Any]) -> QDM:
    version = config.get("format", 1)
    check_format(folder, version, 1, 2, FORMAT)
    kind = MODELS[config["model"]]
    settings, forward = ReverseConfig.from_dict(config["reverse"]), ForwardConfig.from_dict(config["forward"])
    forward_device = None
    if version == 1:
        reverse = ReverseProcess(settings, device=Device.load(folder / SNAPSHOT))
        if load_circuit(folder / "circuit.qpy") != reverse.circuit.circuit:
            raise DamagedFileError(f"{folder / 'circuit.qpy'} is not the circuit that config.json describes")
    else:
        reverse = ReverseProcess(settings, compiled=read_compiled(folder, config["compiled"]))
        if forward.kind == "device":
            forward_device = Device.load(folder / FORWARD_SNAPSHOT)
            if forward_device.snapshot.fingerprint != config["forward_device"]:
                raise DamagedFileError(f"{folder / FORWARD_SNAPSHOT} is not the file that was saved with the model")
    extra: dict[str, Any] = {}
    if issubclass(kind, LatentQDM):
        extra["autoencoder"] = LatentAutoencoder(AutoencoderConfig.from_dict(config["autoencoder"]))
        report, provenance = config.get("autoencoder_trained", ({}, {}))
        extra["autoencoder"].report, extra["autoencoder"].provenance = dict(report), dict(provenance)
    elif issubclass(kind, AmplitudeQDM):
        extra["image_shape"] = config["image_shape"]
    return kind(reverse, forward, device=forward_device, **extra)


def _frozen(config: Mapping[str, Any]) -> list[str] | None:
    """Names of the frozen parameters, as they are called today."""
    if config.get("frozen") is None:
        return None
    parts = [name.rpartition(".") for name in config["frozen"]]
    return [f"{module}{dot}{RENAMED_WEIGHTS.get(last, last)}" for module, dot, last in parts]


def _lost(model: QDM, folder: Path) -> str:
    """What would come back different from what was written; empty if nothing."""
    try:
        again = from_pretrained(folder)
    except DamagedFileError as error:
        return f"network or circuit ({error})"
    one, other = model.reverse, again.reverse
    evolutions = [(e.compiled is r.compiled, e.data, e.measured, e.engine) for r in (one, other) for e in [r.evolution]]
    if not same_circuit(one.circuit.circuit, other.circuit.circuit) or evolutions[0] != evolutions[1]:
        return "circuit"
    if not same_circuit(one.compiled.logical, other.circuit.circuit):
        return "compiled circuit"
    if not _same_forward(model.forward_process, again.forward_process):
        return "forward process"
    return "" if repr(again) == repr(model) else "network"


def _same_forward(one: ForwardProcess, other: ForwardProcess) -> bool:
    made = ("circuit", "maps", "fixed_point")  # from the rest
    settings = [{k: v for k, v in vars(each).items() if k not in made} for each in (one, other)]
    return type(one) is type(other) and settings[0] == settings[1]
