"""What a run was made with: versions, date, command, commit, platform."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import qhw_diffusion
from qhw_diffusion.masking import without_tokens

FORMAT_VERSION = 1

# everything whose version can change a number
PACKAGES = (
    "numpy", "llvmlite", "scipy", "torch", "torchvision", "safetensors", "qiskit", "qiskit-aer", "qiskit-ibm-runtime",
    "diffusers", "scikit-learn", "gymnasium",
)  # fmt: skip


def build_manifest(kind: str, command: str | None) -> dict[str, Any]:
    """The manifest of a run that starts now: JSON-able, times in UTC, `commit` None outside the project's own files."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "command": None if command is None else without_tokens(command),
        "qhw_diffusion": qhw_diffusion.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": dict(package_versions()),
        "executable": Path(sys.executable).name,
    }


@functools.cache  # a process keeps what it has loaded
def package_versions() -> Mapping[str, str]:
    """Installed versions of the libraries that results depend on; absent ones are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return MappingProxyType(versions)


@functools.cache
def _commit() -> str | None:
    root = Path(qhw_diffusion.__file__).resolve().parents[1]
    # an installed copy may lie inside somebody else's repository: then its commit would say nothing about us
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
