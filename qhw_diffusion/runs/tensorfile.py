"""Tensors and their description in ONE safetensors file, with a checksum: what was read is what was written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qhw_diffusion.errors import DamagedFileError, InvalidInputError
from qhw_diffusion.runs.files import atomic_write_bytes

FORMAT = "qhw-tensors"
FORMAT_VERSION = 1


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], meta: dict[str, Any], *, kind: str) -> Path:
    """Write named tensors (any shapes and dtypes) and JSON-able `meta` atomically as safetensors.

    `kind` ("checkpoint", "model") is checked on reading. Raises InvalidInputError for values that cannot be stored.
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
    """Read what `write_tensors` wrote. Raises DamagedFileError on anything else (missing is FileNotFoundError)."""
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


def _ordered(data: bytes) -> bytes:
    """The same file with its header's metadata in order: safetensors writes it in random order, so that equal contents
    would give unequal files."""
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
