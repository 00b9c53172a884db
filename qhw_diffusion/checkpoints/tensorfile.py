"""Tensors and their description in one safetensors file with a checksum, and trained modules saved as such files.

A saved module is a folder in the style of diffusers: `model.safetensors` and, for people, `config.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import is_pruned

from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.runs.files import atomic_write_bytes, atomic_write_json

FORMAT = "qhw-tensors"
FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any], *, kind: str) -> Path:
    """Write tensors and their description into one safetensors file, atomically.

    Args:
        path: the file; its folder is made if it does not exist.
        tensors: by name, of any shapes and dtypes.
        meta: the description, of JSON types.
        kind: what the file is ("checkpoint", "model"); `read_tensors` checks it.

    Returns:
        The path.

    Raises:
        InvalidInputError: a value that is no tensor, or a description that JSON cannot hold.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(f"{name!r} is {type(tensor).__name__}, not a tensor; put plain values into meta")
    # clones: safetensors refuses tensors that share memory (tied weights)
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        description = json.dumps(meta)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"meta of {Path(path).name} cannot be written as JSON ({error})") from error
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "kind": kind,
        "meta": description,
        "sha256": _checksum(plain, description),
    }
    return atomic_write_bytes(path, _ordered(save(plain, header)))


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and description that `write_tensors` wrote.

    Args:
        path: the file.
        kind: what it must be.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is truncated, edited, of another kind or of another format version.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{file} is not a readable safetensors file ({error}); it may be truncated") from error
    if header.get("format") != FORMAT or header.get("kind") != kind:
        raise DamagedFileError(
            f"{file} is not a {kind} of this package (format {header.get('format')!r}, kind {header.get('kind')!r})"
        )
    if header.get("format_version") != str(FORMAT_VERSION):
        raise DamagedFileError(
            f"{file} has format version {header.get('format_version')}, this package reads {FORMAT_VERSION}; "
            "use the package version that wrote it"
        )
    if header.get("sha256") != _checksum(tensors, header.get("meta", "")):
        raise DamagedFileError(f"{file}: the checksum does not fit the contents; the file was damaged or edited")
    return tensors, json.loads(header["meta"])


def save_module(folder: str | os.PathLike[str], module: nn.Module, config: dict[str, Any]) -> Path:
    """Write a module's state and its configuration.

    The configuration also stands in the header of the weights file, which is what loading reads: the two can never
    disagree, even if writing stopped between the files. `config.json` is there for people.

    Args:
        folder: where to.
        module: whose `state_dict` is written.
        config: what makes the module again, of JSON types.

    Returns:
        The folder.

    Raises:
        InvalidInputError: a module with parametrizations or pruning of torch, whose state is not that of its class.
    """
    path = Path(folder)
    if any(is_parametrized(part) for part in module.modules()) or is_pruned(module):
        raise InvalidInputError(
            f"this {type(module).__name__} has parametrizations or pruning of torch, which is not saved; make them "
            "permanent first: torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove"
        )
    write_tensors(path / WEIGHTS, dict(module.state_dict()), config, kind="model")
    atomic_write_json(path / CONFIG, config)
    return path


def load_module_state(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and configuration that `save_module` wrote.

    Raises:
        DamagedFileError: the folder holds no such model, or its weights file is damaged.
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

    Args:
        module: what gets them.
        state: tensors by name.
        frozen: parameters that take no gradient, all others do; None leaves that as it is.

    Raises:
        RuntimeError: names or shapes that are not the module's.
    """
    module.load_state_dict(dict(state), assign=True)
    if frozen is not None:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)


def check_format(folder: str | os.PathLike[str], given: Any, *known: int) -> None:
    """Check the format version of a saved folder.

    Args:
        folder: the folder, for the message.
        given: the version it states.
        known: versions that can be read.

    Raises:
        DamagedFileError: another version.
    """
    if given not in known:
        raise DamagedFileError(
            f"{folder} has format version {given!r}, this package reads {' and '.join(map(str, known))}; use the "
            "package version that wrote it"
        )


def _ordered(data: bytes) -> bytes:
    """The same file with its header's metadata in order.

    safetensors writes it in random order, so that equal contents would give unequal files.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned to 8 bytes and allows spaces
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _checksum(tensors: dict[str, Tensor], description: str) -> str:
    digest = hashlib.sha256(description.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
