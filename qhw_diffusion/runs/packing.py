"""Optimizers and random generators as tensors + JSON, so that a resumed run continues bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from qhw_diffusion.errors import DamagedFileError, InvalidInputError


def pack_optimizer(optimizer: Optimizer, prefix: str = "optimizer.") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of any torch optimizer as ({prefix + "index.key": tensor}, JSON-able meta).

    The meta holds the parameter groups (learning rates and the like) and the state entries that are not tensors.
    Raises InvalidInputError when the optimizer holds something that is neither tensor nor plain value.
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

    Raises DamagedFileError when class, groups or shapes do not fit; the optimizer is then unchanged.
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
    """State of a random generator as a uint8 tensor [k]."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().clone()
    if isinstance(generator, np.random.Generator):
        text = json.dumps(generator.bit_generator.state, default=_plain)
        return torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).clone()
    raise InvalidInputError(f"{type(generator).__name__} is no torch.Generator and no numpy.random.Generator")


def unpack_generator(generator: torch.Generator | np.random.Generator, state: Tensor) -> None:
    """Put a packed state back, in place. Raises DamagedFileError when it is not a state of this kind of generator."""
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
