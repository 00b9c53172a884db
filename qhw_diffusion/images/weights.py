"""A model on disk: `model.safetensors` + `config.json` in one folder. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from ..errors import DamagedFileError, MissingDataError

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHIPPED = Path(__file__).parent / "checkpoints"


def model_folder(path: str | Path) -> Path:
    """The folder that holds the model: `path` itself, or `path/model` when `path` is a run folder.

    Raises:
        MissingDataError: neither holds both files.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
            return folder
    raise MissingDataError(
        f"no model in {path}: need {WEIGHTS} and {CONFIG} there (or in its `model` folder); "
        f"shipped models: {', '.join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))}"
    )


def save_model(folder: str | Path, state: dict[str, Tensor], config: dict[str, Any], *, half: bool = True) -> None:
    """Write weights (half precision by default) and configuration, each atomically; creates the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    _write(folder / WEIGHTS, tensors_to_bytes(tensors, metadata={"format": "pt"}))
    _write(folder / CONFIG, (json.dumps({"format": FORMAT, **config}, indent=1, sort_keys=True) + "\n").encode())


def load_model(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state in float32, configuration) of a folder written by `save_model` with configuration["kind"] == kind.

    Raises:
        DamagedFileError: unreadable, of another kind or of another format version.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = load_tensors((folder / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError, OSError) as error:  # JSON and Unicode errors are ValueErrors
        raise DamagedFileError(f"the model in {folder} cannot be read ({error}): fetch or train it again") from error
    given = (config.get("format"), config.get("kind")) if isinstance(config, dict) else None
    if given != (FORMAT, kind):
        raise DamagedFileError(
            f"{folder / CONFIG} is not a {kind} of format {FORMAT} (found format and kind {given}): train it again"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, config


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as out:
        out.write(data)
    os.chmod(out.name, 0o644)
    os.replace(out.name, path)
