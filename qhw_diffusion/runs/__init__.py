"""Run folders (configuration, metrics log, manifest), atomic files, progress on the terminal. Free of torch."""

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
from qhw_diffusion.runs.loggers import Logger, evaluation_metrics, logging_to
from qhw_diffusion.runs.manifest import FORMAT_VERSION, build_manifest, package_versions
from qhw_diffusion.runs.place import Place, beside
from qhw_diffusion.runs.progress import StopRequest, interruptible, progress, progress_enabled, stop_file

__all__ = [
    "FORMAT_VERSION",
    "Logger",
    "Place",
    "RunFolder",
    "StopRequest",
    "atomic_folder",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "beside",
    "build_manifest",
    "check_place",
    "check_writable",
    "evaluation_metrics",
    "interruptible",
    "logging_to",
    "package_versions",
    "progress",
    "progress_enabled",
    "read_json",
    "stop_file",
]
