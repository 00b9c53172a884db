"""A trained module on disk, diffusers style: a folder with `model.safetensors` and a readable `config.json`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qhw_diffusion.errors import DamagedFileError
from qhw_diffusion.runs.files import atomic_write_json
from qhw_diffusion.runs.tensorfile import read_tensors, write_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_module(folder: str | os.PathLike[str], module: nn.Module, config: dict[str, Any]) -> Path:
    """Write the module's state and its JSON-able `config`; returns the folder.

    The configuration also stands in the header of the weights file, which is what loading reads: the two can never
    disagree, even if writing stopped between the files. `config.json` is there for people.
    """
    path = Path(folder)
    write_tensors(path / WEIGHTS, dict(module.state_dict()), config, kind="model")
    atomic_write_json(path / CONFIG, config)
    return path


def load_module_state(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (state dict, config) that `save_module` wrote.

    Raises DamagedFileError when the folder holds no such model or its weights file is damaged.
    """
    path = Path(folder)
    try:
        return read_tensors(path / WEIGHTS, kind="model")
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} holds no saved model: {WEIGHTS} is missing") from error


def frozen_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that take no gradient, for `put_state`."""
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def put_state(module: nn.Module, state: Mapping[str, Tensor], frozen: Collection[str] | None = None) -> None:
    """Give a module the tensors of a state, each in its own dtype; they are taken, not copied.

    frozen: parameters that take no gradient, all others do; None leaves that as it is.

    Raises:
        RuntimeError: names or shapes that are not the module's.
    """
    module.load_state_dict(dict(state), assign=True)
    if frozen is not None:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)


def check_format(folder: str | os.PathLike[str], given: Any, *known: int) -> None:
    """Raise DamagedFileError unless the format version of what `folder` holds is one of those `known`."""
    if given not in known:
        raise DamagedFileError(
            f"{folder} has format version {given!r}, this package reads {' and '.join(map(str, known))}; use the "
            "package version that wrote it"
        )
