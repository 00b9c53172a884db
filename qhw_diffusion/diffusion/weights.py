"""A trained backbone or classifier on disk: `model.safetensors` + `config.json` in one folder, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.diffusion.datasets import DATASETS
from qhw_diffusion.errors import DamagedFileError, MissingDataError
from qhw_diffusion.extensions import is_extension
from qhw_diffusion.runs import atomic_write_json

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHIPPED = Path(__file__).parent / "checkpoints"
PRECISIONS = ("float32", "bfloat16")
"""Number formats of the matrix products and convolutions of a training."""


def half_arithmetic(precision: str) -> torch.autocast:
    """Context in which matrix products and convolutions are computed in bfloat16 if `precision` says so."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def model_folder(path: str | Path, kind: str) -> Path:
    """The folder that holds a model: `path` itself, or `path/model` when `path` is a run folder.

    Args:
        path: the folder, or the name of a data set for which nothing is shipped, of which the message tells.
        kind: what the model is ("backbone"), for the message.

    Raises:
        MissingDataError: neither holds a model.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / WEIGHTS).is_file():
            return folder
    ending = f"-{kind.split()[0]}"  # folders are named DATA-backbone, DATA-reward, …
    shipped = ", ".join(sorted(p.name.removesuffix(ending) for p in SHIPPED.glob(f"*{ending}")))
    if str(path) in DATASETS or is_extension(str(path)):
        raise MissingDataError(
            f"no {kind} comes with the package for data set {str(path)!r} (but for {shipped}): train one on it and "
            "name its run folder"
        )
    raise MissingDataError(
        f"no {kind} in {path}: need {WEIGHTS} there (or in its `model` folder); shipped for: {shipped}"
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
