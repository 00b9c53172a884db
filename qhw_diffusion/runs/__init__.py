"""Run folders: configuration, metrics log, checkpoints and resume, progress, manifest. One way for all that trains."""

from __future__ import annotations

from qhw_diffusion.runs.files import (
    atomic_folder,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    read_json,
)
from qhw_diffusion.runs.folder import RunFolder, check_place
from qhw_diffusion.runs.manifest import FORMAT_VERSION, build_manifest, package_versions
from qhw_diffusion.runs.modules import check_format, frozen_parameters, load_module_state, put_state, save_module
from qhw_diffusion.runs.packing import pack_generator, pack_optimizer, unpack_generator, unpack_optimizer
from qhw_diffusion.runs.progress import StopRequest, interruptible, progress, progress_enabled, stop_file
from qhw_diffusion.runs.settings import settings_from_dict
from qhw_diffusion.runs.tensorfile import read_tensors, write_tensors

__all__ = [
    "FORMAT_VERSION",
    "RunFolder",
    "StopRequest",
    "atomic_folder",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "build_manifest",
    "check_format",
    "check_place",
    "check_writable",
    "frozen_parameters",
    "interruptible",
    "load_module_state",
    "pack_generator",
    "pack_optimizer",
    "package_versions",
    "progress",
    "progress_enabled",
    "put_state",
    "read_json",
    "read_tensors",
    "save_module",
    "settings_from_dict",
    "stop_file",
    "unpack_generator",
    "unpack_optimizer",
    "write_tensors",
]
