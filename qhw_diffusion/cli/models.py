"""The models that guidance works with: `qhw train backbone`, `autoencoder`, `classifier`, `pipeline` and others.

And what they make at constant guidance scales: `qhw evaluate backbone` and `pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, Repeated, changed
from qhw_diffusion.denoising.hybrid import HybridConfig
from qhw_diffusion.diffusion import AutoencoderConfig, BackboneConfig, ClassifierConfig
from qhw_diffusion.diffusion.text_to_image import PromptClassifierConfig, TextToImageConfig
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.runs.place import Place

if TYPE_CHECKING:
    from qhw_diffusion.runs import RunFolder


def _backbone(given: Mapping[str, Any], data_root: Path | None) -> BackboneConfig:
    of = {"autoencoder": given["autoencoder"]} if given.get("autoencoder") else {}
    kind: type[BackboneConfig] = HybridConfig if given.get("bottleneck") else BackboneConfig
    own = {f.name for f in fields(HybridConfig)} - {f.name for f in fields(BackboneConfig)}
    if kind is BackboneConfig:
        given = {name: value for name, value in given.items() if name != "bottleneck"}
        if alone := sorted(own & given.keys()):
            raise InvalidInputError(
                f"--{alone[0].replace('_', '-')} is for a backbone with a bottleneck: add --bottleneck quantum"
            )
    recipe = kind.for_dataset(given.get("dataset", "digits"), data_root=data_root, **of)
    return changed(recipe, given)  # type: ignore[no-any-return]


def _classifier(given: Mapping[str, Any], data_root: Path | None) -> ClassifierConfig:
    recipe = ClassifierConfig.for_dataset(
        given.get("dataset", "digits"), given.get("role", "reward"), data_root=data_root
    )
    return changed(recipe, given)  # type: ignore[no-any-return]


def _prompt_classifier(given: Mapping[str, Any]) -> PromptClassifierConfig:
    return changed(PromptClassifierConfig.for_role(given.get("role", "reward")), given)  # type: ignore[no-any-return]


def train_backbone(
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    data_root: Path | None = None,
    config: Annotated[HybridConfig, FromFlags(_backbone, rename={"dataset": "data"})] = HybridConfig(),  # noqa: B008
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/backbone")),  # noqa: B008
) -> int:
    """Train a diffusion backbone.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        data_root: folder of the data set as torchvision lays it out (MNIST/, FashionMNIST/, cifar-10-batches-py/, …);
            for "imagefolder" a folder or tar archive of train/CLASS/ and test/CLASS/.
        config: architecture and recipe; the defaults shown are those for digits.
        place: run folder to write.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.denoising.hybrid import HybridBackbone
    from qhw_diffusion.diffusion import Backbone, load_dataset
    from qhw_diffusion.diffusion import train_backbone as train
    from qhw_diffusion.diffusion.quality import picture
    from qhw_diffusion.runs import logging_to

    one_thread()
    data = load_dataset(config.dataset, "train", data_root)  # before the folder: without data, no run
    with logging_to(logger), place.open("backbone", config.to_dict()) as run:
        make = HybridBackbone if isinstance(config, HybridConfig) else Backbone
        backbone = train(config, run, dataset=data, make=make, resume=place.goes_on(run))
        run.tell({}, {"charts/samples": lambda: picture(backbone)})
    loss = backbone.history[-1]["loss"]
    print(f"{backbone.n_parameters:,} parameters, loss {loss:.4f}; use it with --backbone {place.out}")
    return 0


def _autoencoder(given: Mapping[str, Any], data_root: Path | None) -> AutoencoderConfig:
    recipe = AutoencoderConfig.for_dataset(given.get("dataset", "cifar10"), data_root=data_root)
    return changed(recipe, given)  # type: ignore[no-any-return]


def train_autoencoder(
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    data_root: Path | None = None,
    config: Annotated[AutoencoderConfig, FromFlags(_autoencoder, rename={"dataset": "data"})] = AutoencoderConfig(),  # noqa: B008
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/autoencoder")),  # noqa: B008
) -> int:
    """Train the autoencoder of a latent diffusion model.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        data_root: folder of the data set as torchvision lays it out (cifar-10-batches-py/, …); for "imagefolder" a
            folder or tar archive of train/CLASS/ and test/CLASS/.
        config: architecture and recipe; the defaults shown are those for CIFAR-10.
        place: run folder to write.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion import Classifier, load_dataset, psnr
    from qhw_diffusion.diffusion import train_autoencoder as train
    from qhw_diffusion.runs import logging_to

    one_thread()
    asked = config.classifier and config.feature_weight
    classifier = Classifier.load(config.classifier, "reward") if asked else None  # before the folder, as the data
    data, heldout = (load_dataset(config.dataset, split, data_root) for split in ("train", "heldout"))
    with logging_to(logger), place.open("autoencoder", config.to_dict()) as run:
        autoencoder = train(config, run, dataset=data, classifier=classifier, resume=place.goes_on(run))
    some = heldout.images[:: max(1, len(heldout) // 1000)]
    error = psnr(autoencoder.reconstruct(some), some)
    print(f"{autoencoder.n_parameters:,} parameters, {error:.2f} dB on held-out images; saved in {place.out}")
    return 0


def train_classifier(
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    data_root: Path | None = None,
    config: Annotated[ClassifierConfig, FromFlags(_classifier, rename={"dataset": "data"})] = ClassifierConfig(),  # noqa: B008
    place: Annotated[Place, FromFlags(skip=("command", "resume"))] = Place(Path("runs/classifier")),  # noqa: B008
) -> int:
    """Train a reward classifier or an evaluation classifier.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        data_root: folder of the data set as torchvision lays it out (MNIST/, FashionMNIST/, cifar-10-batches-py/, …);
            for "imagefolder" a folder or tar archive of train/CLASS/ and test/CLASS/.
        config: architecture and recipe; the defaults shown are those of the reward classifier for digits.
        place: run folder to write.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion import load_dataset
    from qhw_diffusion.diffusion import train_classifier as train
    from qhw_diffusion.runs import logging_to

    one_thread()
    data, heldout = (load_dataset(config.dataset, split, data_root) for split in ("train", "heldout"))
    with logging_to(logger), place.open("classifier", config.to_dict()) as run:
        classifier = train(config, run, dataset=data, heldout=heldout)
    print(f"{config.role}: {classifier.accuracy:.2%} of the held-out images right; saved in {place.out}")
    return 0


def _run_to_tell(logger: tuple[str, ...], model: Path, kind: str) -> RunFolder | None:
    """The run folder that holds a model, whose loggers are told what it makes; None where nothing is to be logged."""
    from qhw_diffusion.runs import RunFolder

    if set(logger) <= {"none"}:
        return None
    try:
        return RunFolder.open(model.parent, kind=kind)
    except RunFolderError as error:
        raise RunFolderError(
            f"--logger is for run folders of `qhw train {kind}`, in whose run it goes on, and {model} is not of one: "
            "leave --logger out"
        ) from error


def evaluate_backbone(
    run: Positional[str],
    *,
    constants: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0),
    evaluation_classifier: str = "",
    data: str | None = None,
    data_root: Path | None = None,
    images: int = 1000,
    steps: int = 50,
    seed: int = 0,
    device: str | None = None,
    engine: str | None = None,
    picture: Path | None = None,
    logger: Annotated[tuple[str, ...], Repeated] = ("none",),
) -> int:
    """Sample a diffusion backbone at constant guidance scales, and measure the images.

    Args:
        run: run folder of `qhw train backbone`, or name of a shipped backbone.
        constants: guidance scales.
        evaluation_classifier: run folder of the evaluation classifier, or a file of published weights, as
            resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10; without it the one shipped for the data
            set.
        data: data set whose held-out images are compared with; without it the one the backbone was trained on.
        data_root: folder of the data set.
        images: images for each scale.
        steps: DDIM steps.
        seed: seed of the starting noise.
        device: device that the circuit of a backbone with one runs on; without it the one it was trained for.
        engine: ideal, noisy, shots:N, with mitigation; without it the one it was trained on.
        picture: PNG file to write, ten images of each class for each scale.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion.backbone import backbone_folder
    from qhw_diffusion.diffusion.quality import backbone_report, side_by_side
    from qhw_diffusion.runs import atomic_write_bytes, logging_to

    one_thread()
    with logging_to(logger):
        table, grids = backbone_report(
            run,
            evaluation_classifier,
            constants,
            data=data,
            data_root=data_root,
            n_images=images,
            n_steps=steps,
            seed=seed,
            device=device,
            engine=engine,
            run=_run_to_tell(logger, backbone_folder(run), "backbone"),
        )
    print(table)
    if picture is not None:
        atomic_write_bytes(picture, side_by_side(grids))
        print(f"images in {picture}")
    return 0


def train_pipeline(
    config: TextToImageConfig = TextToImageConfig(),  # noqa: B008
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/pipeline")),  # noqa: B008
) -> int:
    """Train the text-to-image model of the coloured digits.

    Its autoencoder comes first, then its U-Net and text encoder together.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        config: architecture and recipe; the defaults made the pipeline that comes with the package.
        place: run folder to write.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion.pipeline import check_transformers, load_pipeline
    from qhw_diffusion.diffusion.text_to_image import train_text_to_image
    from qhw_diffusion.diffusion.text_to_image.report import picture
    from qhw_diffusion.runs import logging_to

    one_thread()
    check_transformers()  # before the folder: without it, no run
    with logging_to(logger), place.open("pipeline", config.to_dict()) as run:
        train_text_to_image(config, run, resume=place.goes_on(run))
        drawn = {"charts/samples": lambda: picture(load_pipeline(run.path), scales=(1.0, 2.0, 4.0), steps=10, seed=0)}
        run.tell({}, drawn)
    print(f"saved in diffusers' format: StableDiffusionPipeline.from_pretrained({str(run.path / 'model')!r})")
    return 0


def train_prompt_classifier(
    config: Annotated[PromptClassifierConfig, FromFlags(_prompt_classifier)] = PromptClassifierConfig(),  # noqa: B008
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    place: Annotated[Place, FromFlags(skip=("command", "resume"))] = Place(Path("runs/prompt-classifier")),  # noqa: B008
) -> int:
    """Train a reward classifier or an evaluation classifier of the coloured digits.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        config: architecture and recipe; the defaults shown are those of the reward classifier.
        place: run folder to write.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion.text_to_image import train_prompt_classifier as train
    from qhw_diffusion.runs import logging_to

    one_thread()
    with logging_to(logger), place.open("prompt-classifier", config.to_dict()) as run:
        classifier = train(config, run)
    shares = ", ".join(f"{name} {share:.2%}" for name, share in classifier.accuracy.items())
    print(f"{config.role}: right on held-out images: {shares}; saved in {run.path}")
    return 0


def evaluate_pipeline(
    pipeline: Positional[str] = "coloured-digits",
    *,
    evaluation_classifier: str = "coloured-digits",
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
    steps: tuple[int, ...] = (10, 20),
    per_prompt: int = 2,
    seed: int = 0,
    out: Path = Path("runs/pipeline-evaluation"),
    logger: Annotated[tuple[str, ...], Repeated] = ("none",),
) -> int:
    """Measure the text-to-image model of the coloured digits at constant guidance scales.

    Prints a table; writes it with the accuracy by prompt (results.json), and a picture for each number of steps.

    Args:
        pipeline: coloured-digits, a run folder of `qhw train pipeline`, or a pipeline's folder.
        evaluation_classifier: coloured-digits, or a run folder of the evaluation classifier.
        scales: constant guidance scales; the pipeline leaves guidance out at 1 and below.
        steps: numbers of sampling steps.
        per_prompt: images of each of the 300 prompts, two or more.
        seed: seed of the starting noise.
        out: folder to write.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
    """
    from qhw_diffusion.checkpoints import one_thread
    from qhw_diffusion.diffusion.pipeline import pipeline_folder
    from qhw_diffusion.diffusion.text_to_image.report import evaluate
    from qhw_diffusion.runs import logging_to

    one_thread()
    with logging_to(logger):
        run = _run_to_tell(logger, pipeline_folder(pipeline), "pipeline")
        print(evaluate(pipeline, evaluation_classifier, scales, steps, per_prompt, seed, out, run))
    return 0
