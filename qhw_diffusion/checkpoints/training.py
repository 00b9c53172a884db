"""Checkpoints of a training: everything that changes during it as tensors and JSON, so that it resumes bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from qhw_diffusion.checkpoints.tensorfile import read_tensors, write_tensors
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, RunFolderError
from qhw_diffusion.runs.folder import CHECKPOINT, RunFolder

Parts = Mapping[str, Any]


def save_checkpoint(run: RunFolder, parts: Parts, meta: Mapping[str, Any]) -> Path:
    """Replace the checkpoint of a run in one atomic step; the old one stays until then. With it the run has begun.

    Args:
        run: the run folder.
        parts: what changes during the training, by name. A module, or another object with `state_dict` and
            `load_state_dict`, and a mapping of tensors become tensors ``name.key``; an optimizer too, and its settings
            an entry ``name`` of the description; a tensor and a random generator (torch, NumPy) a tensor ``name``.
        meta: what else to know on resuming (updates done), of JSON types.

    Returns:
        The file.

    Raises:
        InvalidInputError: a part that is none of these, two of one name, or values that cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    description = dict(meta)
    for name, part in parts.items():
        packed: Mapping[str, Tensor]
        if isinstance(part, Tensor):
            packed = {name: part}
        elif isinstance(part, torch.Generator | np.random.Generator):
            packed = {name: pack_generator(part)}
        elif isinstance(part, Optimizer):
            packed, settings = pack_optimizer(part, f"{name}.")
            if name in description:
                raise InvalidInputError(f"the checkpoint's description has {name!r} already; name the optimizer else")
            description[name] = settings
        elif isinstance(part, Mapping) or hasattr(part, "state_dict"):
            state = part if isinstance(part, Mapping) else part.state_dict()
            packed = {f"{name}.{key}": value for key, value in state.items()}
        else:
            raise InvalidInputError(
                f"part {name!r} of the checkpoint is a {type(part).__name__}; allowed: modules, optimizers, random "
                "generators, tensors, mappings of tensors, and objects with state_dict and load_state_dict"
            )
        if twice := tensors.keys() & packed.keys():
            raise InvalidInputError(f"two parts of the checkpoint have tensors named {', '.join(sorted(twice))}")
        tensors.update(packed)
    file = write_tensors(run.path / CHECKPOINT, tensors, description, kind="checkpoint")
    run.begin()
    return file


def load_checkpoint(run: RunFolder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and description of a run's last checkpoint, as they are in the file.

    Raises:
        RunFolderError: none was saved.
        DamagedFileError: the file is not what was written.
    """
    try:
        return read_tensors(run.path / CHECKPOINT, kind="checkpoint")
    except FileNotFoundError as error:
        raise RunFolderError(f"{run.path} has no checkpoint to resume from; start the run anew") from error


def restore_checkpoint(run: RunFolder, parts: Parts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put the last checkpoint of a run back into parts like those that were saved, in place.

    Args:
        run: the run folder.
        parts: as given to `save_checkpoint`, of the same names and shapes. Mappings of tensors and tensors are
            written into.

    Returns:
        The description, and for each part what its `load_state_dict` returned (None for those without).

    Raises:
        RunFolderError: none was saved.
        DamagedFileError: the file is damaged, or a part does not fit it; the parts may then hold a mixture.
    """
    tensors, description = load_checkpoint(run)
    returned: dict[str, Any] = {}
    try:
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            returned[name] = None
            if isinstance(part, Tensor):
                _put(part, tensors[name], name)
            elif isinstance(part, torch.Generator | np.random.Generator):
                unpack_generator(part, tensors[name])
            elif isinstance(part, Optimizer):
                unpack_optimizer(part, tensors, description[name], f"{name}.")
            elif isinstance(part, Mapping):
                for key, target in part.items():
                    _put(target, own[key], f"{name}.{key}")
            else:
                returned[name] = part.load_state_dict(own)
    except (RuntimeError, KeyError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"the checkpoint in {run.path} does not fit this training ({error})") from error
    return description, returned


def _put(target: Tensor, saved: Tensor, name: str) -> None:
    if target.shape != saved.shape:
        raise DamagedFileError(
            f"tensor {name!r} of the checkpoint has shape {tuple(saved.shape)}, here it is {tuple(target.shape)}; the "
            "checkpoint belongs to another configuration"
        )
    with torch.no_grad():
        target.copy_(saved)


def pack_optimizer(optimizer: Optimizer, prefix: str = "optimizer.") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of any torch optimizer.

    Returns:
        {prefix + "index.key": tensor}, and a description of JSON types: the parameter groups (learning rates and the
        like) and the entries of the state that are not tensors.

    Raises:
        InvalidInputError: the optimizer holds something that is neither a tensor nor a plain value.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{index}.{key}"] = value.detach().clone()
            else:
                values.setdefault(str(index), {})[key] = value
    meta = {"class": type(optimizer).__name__, "param_groups": state["param_groups"], "values": values}
    try:
        json.dumps(meta)
    except TypeError as error:
        raise InvalidInputError(f"{type(optimizer).__name__} has settings that JSON cannot hold ({error})") from error
    return tensors, meta


def unpack_optimizer(
    optimizer: Optimizer, tensors: dict[str, Tensor], meta: dict[str, Any], prefix: str = "optimizer."
) -> None:
    """Put a packed state back into an optimizer made for the same parameters.

    Args:
        optimizer: what gets it.
        tensors: from `pack_optimizer`; entries without the prefix are left alone.
        meta: the description beside them.
        prefix: of the optimizer's entries.

    Raises:
        DamagedFileError: class, groups or shapes do not fit; the optimizer is then unchanged.
    """
    try:
        saved_class, groups, values = meta["class"], meta["param_groups"], meta["values"]
        sizes = [len(group["params"]) for group in groups]
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"the saved optimizer state lacks {error}; the checkpoint is damaged") from error
    own_sizes = [len(group["params"]) for group in optimizer.param_groups]
    if saved_class != type(optimizer).__name__ or sizes != own_sizes:
        raise DamagedFileError(
            f"the saved optimizer is a {saved_class} with parameter groups of sizes {sizes}, this one a "
            f"{type(optimizer).__name__} with {own_sizes}; the checkpoint belongs to another configuration"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        index, _, key = name.removeprefix(prefix).partition(".")
        if not index.isdigit() or int(index) >= len(parameters) or not key:
            raise DamagedFileError(f"optimizer entry {name!r} names no parameter; the checkpoint is damaged")
        if tensor.dim() > 0 and tensor.shape != parameters[int(index)].shape:
            raise DamagedFileError(
                f"optimizer entry {name!r} has shape {tuple(tensor.shape)}, its parameter "
                f"{tuple(parameters[int(index)].shape)}; the checkpoint belongs to another model"
            )
        state.setdefault(int(index), {})[key] = tensor
    for saved_index, entries in values.items():
        state.setdefault(int(saved_index), {}).update(entries)
    # JSON turned tuples (betas) into lists: give each setting the type it has in this optimizer
    restored = [
        {key: tuple(value) if isinstance(own.get(key), tuple) else value for key, value in group.items()}
        for group, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def pack_generator(generator: torch.Generator | np.random.Generator) -> Tensor:
    """State of a random generator as a uint8 tensor [k].

    Raises:
        InvalidInputError: `generator` is none of torch or NumPy.
    """
    if isinstance(generator, torch.Generator):
        return generator.get_state().clone()
    if isinstance(generator, np.random.Generator):
        text = json.dumps(generator.bit_generator.state, default=_plain)
        return torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).clone()
    raise InvalidInputError(f"{type(generator).__name__} is no torch.Generator and no numpy.random.Generator")


def unpack_generator(generator: torch.Generator | np.random.Generator, state: Tensor) -> None:
    """Put a packed state back, in place.

    Raises:
        DamagedFileError: it is not a state of this kind of generator.
        InvalidInputError: `generator` is none of torch or NumPy.
    """
    try:
        if isinstance(generator, torch.Generator):
            generator.set_state(state.to(torch.uint8).cpu())
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = json.loads(state.numpy().tobytes().decode("utf-8"))
        else:
            raise InvalidInputError(f"{type(generator).__name__} is no torch.Generator and no numpy.random.Generator")
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise DamagedFileError(
            f"the saved generator state does not fit {type(generator).__name__} ({error})"
        ) from error


def _plain(value: Any) -> Any:
    # MT19937 keeps its state as an array; PCG64 (the default) uses plain integers
    return value.tolist() if hasattr(value, "tolist") else int(value)


def one_thread() -> None:
    """One torch thread: the fastest for small networks, and what reproducibility is promised for."""
    torch.set_num_threads(1)
