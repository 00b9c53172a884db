"""`qhw train backbone` and `qhw train classifier`: the models that guidance works with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from qhw_diffusion.cli.flags import FromFlags, changed
from qhw_diffusion.diffusion import BackboneConfig, ClassifierConfig
from qhw_diffusion.runs.place import Place


def _backbone(given: Mapping[str, Any]) -> BackboneConfig:
    return changed(BackboneConfig.for_dataset(given.get("dataset", "digits")), given)  # type: ignore[no-any-return]


def _classifier(given: Mapping[str, Any]) -> ClassifierConfig:
    recipe = ClassifierConfig.for_dataset(given.get("dataset", "digits"), given.get("role", "reward"))
    return changed(recipe, given)  # type: ignore[no-any-return]


def train_backbone(
    config: Annotated[BackboneConfig, FromFlags(_backbone, rename={"dataset": "data"})] = BackboneConfig(),  # noqa: B008
    *,
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/backbone")),  # noqa: B008
    data_root: Path | None = None,
) -> int:
    """Train a diffusion backbone.

    Args:
        config: architecture and recipe; the defaults shown are those for digits.
        place: run folder to write.
        data_root: folder that holds MNIST/ or FashionMNIST/ (as torchvision).
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion import load_dataset
    from qhw_diffusion.diffusion import train_backbone as train

    one_thread()
    data = load_dataset(config.dataset, "train", data_root)  # before the folder: without data, no run
    with place.open("backbone", config.to_dict()) as run:
        backbone = train(config, run, dataset=data, resume=place.goes_on(run))
    loss = backbone.history[-1]["loss"]
    print(f"{backbone.n_parameters:,} parameters, loss {loss:.4f}; use it with --backbone {place.out}")
    return 0


def train_classifier(
    config: Annotated[ClassifierConfig, FromFlags(_classifier, rename={"dataset": "data"})] = ClassifierConfig(),  # noqa: B008
    *,
    place: Annotated[Place, FromFlags(skip=("command", "resume"))] = Place(Path("runs/classifier")),  # noqa: B008
    data_root: Path | None = None,
) -> int:
    """Train a reward classifier or an evaluation classifier.

    Args:
        config: architecture and recipe; the defaults shown are those of the reward classifier for digits.
        place: run folder to write.
        data_root: folder that holds MNIST/ or FashionMNIST/ (as torchvision).
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion import load_dataset
    from qhw_diffusion.diffusion import train_classifier as train

    one_thread()
    data, heldout = (load_dataset(config.dataset, split, data_root) for split in ("train", "heldout"))
    with place.open("classifier", config.to_dict()) as run:
        classifier = train(config, run, dataset=data, heldout=heldout)
    print(f"{config.role}: {classifier.accuracy:.2%} of the held-out images right; saved in {place.out}")
    return 0
