"""A trained model of this room on disk: `model.safetensors` + `config.json` in one folder, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import read_tensors, write_tensors
from ..errors import DamagedFileError, MissingDataError
from ..runs import atomic_write_json

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHIPPED = Path(__file__).parent / "checkpoints"


def model_folder(path: str | Path) -> Path:
    """The folder that holds the model: `path` itself, or `path/model` when `path` is a run folder.

    Raises:
        MissingDataError: neither holds a model.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / WEIGHTS).is_file():
            return folder
    raise MissingDataError(
        f"no model in {path}: need {WEIGHTS} there (or in its `model` folder); "
        f"shipped models: {', '.join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))}"
    )


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its floating-point entries rounded to half precision, as it will stand in the file."""
    return {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}


def save_model(folder: str | Path, state: dict[str, Tensor], kind: str, description: dict[str, Any]) -> None:
    """Write weights in half precision, with the description in the file's header and, for people, in config.json."""
    folder = Path(folder)
    description = {"format": FORMAT, "kind": kind, **description}
    write_tensors(folder / WEIGHTS, half_precision(state), description, kind="model")
    atomic_write_json(folder / CONFIG, description)


def load_model(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(state in float32, description) of a folder written by `save_model` with the same kind.

    Raises:
        DamagedFileError: unreadable, altered, of another kind or of another format version.
    """
    state, description = read_tensors(folder / WEIGHTS, kind="model")
    given = (description.get("format"), description.get("kind"))
    if given != (FORMAT, kind):
        raise DamagedFileError(
            f"{folder / WEIGHTS} is not a {kind} of format {FORMAT} (found format and kind {given}): train it again"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, description
