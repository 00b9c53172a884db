"""Tensors on disk: checkpoints of trainings, and saved modules. Nothing is ever unpickled."""

from __future__ import annotations

from qhw_diffusion.checkpoints.tensorfile import (
    check_format,
    frozen_parameters,
    load_module_state,
    put_state,
    read_tensors,
    save_module,
    write_tensors,
)
from qhw_diffusion.checkpoints.training import (
    load_checkpoint,
    one_thread,
    pack_generator,
    pack_optimizer,
    restore_checkpoint,
    save_checkpoint,
    unpack_generator,
    unpack_optimizer,
)

__all__ = [
    "check_format",
    "frozen_parameters",
    "load_checkpoint",
    "load_module_state",
    "one_thread",
    "pack_generator",
    "pack_optimizer",
    "put_state",
    "read_tensors",
    "restore_checkpoint",
    "save_checkpoint",
    "save_module",
    "unpack_generator",
    "unpack_optimizer",
    "write_tensors",
]
