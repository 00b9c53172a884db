"""The pictures that are compared: sampled by guidance runs from the same noise, or read from folders of PNGs."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.diffusion import Classifier, image_features
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError
from qhw_diffusion.guidance import load_policy, rollout
from qhw_diffusion.guidance.command import models_of
from qhw_diffusion.guidance.evaluation import (
    EVALUATION_SEED,
    Models,
    NoImages,
    draw_initial_noise,
    load_models,
    table_of_prompts,
)
from qhw_diffusion.guidance.scorers import score
from qhw_diffusion.guidance.training import is_run
from qhw_diffusion.runs import read_json

CONSTANT = "g="
"""What stands before the number of a constant guidance scale that is named in place of a run."""
SAMPLES = "guidance.json"
"""What `qhw sample` says of its pictures, in their folder."""
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = (
    "T-shirt",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_DIGITS = tuple(f"the digit {k}" for k in range(10))
CLASSES = {
    "digits": _DIGITS,
    "mnist16": _DIGITS,
    "mnist28": _DIGITS,
    "fashion16": _FASHION,
    "fashion28": _FASHION,
    "cifar10": _CIFAR10,
}
"""What people are told that a picture of a class is to show, by data set."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What K runs made of the same N starting points.

    Attributes:
        runs: name of each run.
        images: [K, N, C, H, W] in [−1, 1]; images[:, n] show the same, from the same noise.
        texts: what the pictures n are to show, N of them; empty where nobody knows.
        known: real pictures [M, C, H, W] for training and attention checks, pictures of the runs where there are none.
        known_texts: what these show, as `texts`.
        known_are: where they are from, in words.
        metrics: metric of single pictures → values [K, N].
        notes: what a reader of the results must know.
    """

    runs: tuple[str, ...]
    images: Tensor
    texts: tuple[str, ...]
    known: Tensor
    known_texts: tuple[str, ...]
    known_are: str
    metrics: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def pictures_of(runs: Sequence[str], n: int, *, seed: int, known: int, classes: Sequence[str] = ()) -> Pictures:
    """Pictures of runs or folders.

    Args:
        runs: two or more: run folders of `qhw train guidance` on the same models, and among them constants as "g=2.5";
            or folders of PNGs with the same names, such as those of `qhw sample`.
        n: pictures of each.
        seed: of the initial noise and labels; of the choice among more PNGs.
        known: pictures for training and attention checks.
        classes: what a picture of each class shows; without them those of the data set.

    Raises:
        InvalidInputError: runs that cannot be compared.
        MissingDataError: no such folder.
    """
    if len(runs) < 2:
        raise InvalidInputError(f"two or more runs are compared, got {', '.join(runs) or 'none'}")
    if len({_name(run) for run in runs}) < len(runs):
        raise InvalidInputError(f"the runs need different names, got {', '.join(runs)}")
    folders = [Path(run) for run in runs if not run.startswith(CONSTANT)]
    for folder in folders:
        if not folder.is_dir():
            raise MissingDataError(f"there is no folder {folder}; name run folders of qhw train guidance, or of PNGs")
    trained = [is_run(folder) for folder in folders]
    if folders and all(trained):
        return _sampled(runs, folders, n, seed, known, classes)
    if any(trained) or len(folders) < len(runs):
        raise InvalidInputError(
            f"{', '.join(runs)} cannot be compared: give run folders and constants such as {CONSTANT}2.5, with one run "
            "folder at least, or folders of PNGs alone"
        )
    if classes:
        raise InvalidInputError("--classes names the classes of a data set; pictures of folders have none")
    return _read(folders, n, seed, known)


def _name(run: str) -> str:
    return run if run.startswith(CONSTANT) else Path(run).resolve().name


# -- guidance runs -----------------------------------------------------------------------------------------------------


def _sampled(
    runs: Sequence[str], folders: Sequence[Path], n: int, seed: int, known: int, classes: Sequence[str]
) -> Pictures:
    constants = {run: _constant(run) for run in runs if run.startswith(CONSTANT)}
    trained = {str(folder): load_policy(folder) for folder in folders}
    configs = [models_of(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        for part in ("data", "backbone", "pipeline"):
            one, other = getattr(configs[0], part), getattr(config, part)
            if one != other:
                raise InvalidInputError(
                    f"{folders[0]} has {part} {one} and {folder} {other}: pictures from the same noise need the same "
                    "model"
                )
        if config.pipeline is not None and table_of_prompts(config) != table_of_prompts(configs[0]):
            raise InvalidInputError(f"{folders[0]} and {folder} have different prompts: their labels mean other things")
    models = load_models(configs[0], evaluates=False)
    labels, noise = draw_initial_noise(models.backbone, models.heldout, n, EVALUATION_SEED + seed)
    texts = _texts(models, classes)
    first = trained[str(folders[0])]
    made, notes = [], []
    for run in runs:
        player = trained.get(str(Path(run)), first)
        acts = constants.get(run, player.policy)
        scorer = None
        if run not in constants and player.config.confidence_entry:
            scorer = models.scorer(player.config.scorer)
        made.append(rollout(models.backbone, player.config, labels, noise, acts, scorer=scorer).images.cpu())
    steps = {run: one.config.n_steps for run, one in trained.items()}
    if len(set(steps.values())) > 1:
        notes.append("The runs take different numbers of steps: " + ", ".join(f"{r} {s}" for r, s in steps.items()))
    images, labels = torch.stack(made).clamp(-1, 1), labels.cpu()
    metrics = {}
    try:
        metrics = _measured(models, images, labels)
    except (InvalidInputError, MissingDataError) as error:  # a pipeline without an evaluation scorer
        notes.append(f"No evaluation classifier, and so no confidence: {error}")
    shown = [texts[int(label)] for label in labels] if texts else []
    generator = torch.Generator().manual_seed(seed)
    if isinstance(models.heldout, NoImages):
        rows = _rows(n, known, generator)
        return Pictures(tuple(map(_name, runs)), images, tuple(shown), images[0, rows],
                        tuple(shown[k] for k in rows) if shown else (), "pictures of the first run", metrics,
                        tuple(notes))  # fmt: skip
    rows = _rows(len(models.heldout), known, generator)
    real_texts = tuple(texts[int(models.heldout.labels[k])] for k in rows) if texts else ()
    return Pictures(tuple(map(_name, runs)), images, tuple(shown), models.heldout.images[rows].cpu(), real_texts,
                    "real (held-out) pictures", metrics, tuple(notes))  # fmt: skip


def _constant(text: str) -> float:
    try:
        value = float(text.removeprefix(CONSTANT))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInputError(f"{text!r} names no constant guidance scale; write {CONSTANT}2.5")
    return value


def _texts(models: Models, classes: Sequence[str]) -> tuple[str, ...]:
    """What a picture of each label is to show; empty where nobody knows."""
    n = models.backbone.n_classes
    if classes and len(classes) != n:
        raise InvalidInputError(f"--classes names {len(classes)} classes, the model has {n}")
    if not classes and models.config.pipeline is not None:
        return tuple(models.backbone.prompts)
    return tuple(classes) or CLASSES.get(models.config.data, ())


@torch.no_grad()
def _measured(models: Models, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Metrics of single pictures, [K, N] each, by the evaluation classifier, which no training saw."""
    judge = models.evaluation_classifier
    found = {"confidence": torch.stack([score(judge, some, labels).probability for some in images])}
    if isinstance(judge, Classifier) and not isinstance(models.heldout, NoImages):
        real, real_labels = models.heldout_features, models.heldout.labels
        other = labels[:, None] != real_labels[None]
        distances = [torch.cdist(image_features(judge, some), real).masked_fill(other, math.inf) for some in images]
        found["feature distance"] = torch.stack([distance.min(1).values for distance in distances])
    return found


def _rows(available: int, wanted: int, generator: torch.Generator) -> list[int]:
    """So many rows at random, each as often as the others where there are too few."""
    rounds = -(-wanted // available)
    rows = torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])
    return [int(k) for k in rows[:wanted]]


# -- folders of PNGs ---------------------------------------------------------------------------------------------------


def _read(folders: Sequence[Path], n: int, seed: int, known: int) -> Pictures:
    names = [_files(folder) for folder in folders]
    for folder, found in zip(folders[1:], names[1:], strict=True):
        odd = sorted(set(names[0]) ^ set(found))
        if odd:
            raise InvalidInputError(
                f"{folders[0]} and {folder} hold different pictures ({', '.join(odd[:3])}{' …' * (len(odd) > 3)}): a "
                "pair is two files of the same name"
            )
    if len(names[0]) < n:
        raise InvalidInputError(f"{folders[0]} holds {len(names[0])} PNGs, {n} are asked for: give --images")
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(names[0][k] for k in torch.randperm(len(names[0]), generator=generator)[:n].tolist())
    texts = [_prompts(folder) for folder in folders]
    for name in chosen:
        if len({text.get(name) for text in texts}) > 1:
            raise InvalidInputError(f"{name} shows another prompt in one of the folders: a pair needs the same one")
    read = {folder / name: _picture(folder / name) for folder in folders for name in chosen}
    sizes = {tuple(one.shape[1:]): file for file, one in read.items()}
    if len(sizes) > 1:
        told = ", ".join(f"{file} of {width}×{height}" for (height, width), file in sizes.items())
        raise InvalidInputError(f"the pictures have different sizes: {told} pixels; scale or crop them first")
    images = torch.stack([torch.stack([read[folder / name] for name in chosen]) for folder in folders])
    shown = tuple(texts[0].get(name, "") for name in chosen)
    shown = shown if all(shown) else ()
    rows = _rows(n, known, generator)
    known_texts = tuple(shown[k] for k in rows) if shown else ()
    note = "Read from PNGs: no classifier, and so no confidence"
    return Pictures(tuple(map(_name, map(str, folders))), images, shown, images[0, rows], known_texts,
                    "pictures of the first folder", notes=(note,))  # fmt: skip


def _files(folder: Path) -> list[str]:
    names = sorted(file.name for file in folder.glob("*.png"))
    if (folder / SAMPLES).is_file():
        names = [name for name in names if name in _prompts(folder)]  # not the plot of the scales
    if not names:
        raise InvalidInputError(f"{folder} is no run folder of qhw train guidance and holds no PNGs")
    return names


def _prompts(folder: Path) -> dict[str, str]:
    """The prompt of each picture, as `qhw sample` has written it; empty for other folders."""
    if not (folder / SAMPLES).is_file():
        return {}
    try:
        return {str(one["file"]): str(one["prompt"]) for one in read_json(folder / SAMPLES)["images"]}
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{folder / SAMPLES} does not list pictures and prompts ({error})") from error


def _picture(file: Path) -> Tensor:
    """A PNG as float32 [3, H, W] in [−1, 1]."""
    from PIL import Image, UnidentifiedImageError

    try:
        pixels = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DamagedFileError(f"{file} is no readable picture ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def png(picture: Tensor) -> bytes:
    """A picture [C, H, W] in [−1, 1] as a PNG without any text in it."""
    from PIL import Image

    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
