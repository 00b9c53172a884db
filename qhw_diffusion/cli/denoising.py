"""`qhw train denoising` and `qhw evaluate denoising`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, Repeated, changed
from qhw_diffusion.cli.options import required_access
from qhw_diffusion.denoising.command import DenoiserTraining
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.on_device.settings import AccessConfig
from qhw_diffusion.runs.place import Place, beside


def _training(given: Mapping[str, Any], place: Place) -> DenoiserTraining:
    from qhw_diffusion.denoising.command import KIND

    saved = place.saved(KIND)
    if saved is not None:
        base = DenoiserTraining.from_dict(saved)
    elif given.get("model") == "amplitude":
        base = DenoiserTraining.amplitude(given.get("data", "digits"), given.get("data_root"))
    else:
        base = DenoiserTraining()
    if saved is None or "conditioning" in given.get("reverse", {}):
        from qhw_diffusion.diffusion.datasets import n_classes_of

        reverse = given.get("reverse", {})
        classes = n_classes_of(given.get("data", base.data), given.get("data_root", base.data_root))
        labels = 1 if reverse.get("conditioning", base.reverse.conditioning) == "none" else classes
        given = {**given, "reverse": {**reverse, "n_labels": labels}}
    return changed(base, given)  # type: ignore[no-any-return]


def train_denoising(
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/denoising")),  # noqa: B008
    training: Annotated[
        DenoiserTraining,
        FromFlags(
            _training,
            skip=("reverse.n_labels", "forward.schedule_settings", "train.seed"),
            prefix={"forward": "forward"},
        ),
    ] = DenoiserTraining(),  # noqa: B008
) -> int:
    """Train a quantum denoiser.

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        place: run folder to write.
        training: settings of the training; with --resume those of the folder.
    """
    from qhw_diffusion.denoising.command import train_denoiser
    from qhw_diffusion.runs import logging_to

    with logging_to(logger):
        print(train_denoiser(training, place))
    return 0


_EVALUATION = {
    "out": "Folder of an evaluation on a device; its name stands for the run in the ledger; without it RUN-DEVICE.",
    "resume": "Go on with the evaluation in the folder, at its job.",
}


def _access(given: Mapping[str, Any], device: str | None, engine: str | None, shots: int | None) -> AccessConfig | None:
    """Access to a device for --device and --shots without --engine; everything else is simulated."""
    if device is None or shots is None or engine is not None or device == "ideal":
        _refuse(given)
        return None
    return required_access({**given, "device": device, "shots": shots})


def _device_place(given: Mapping[str, Any], run: Path, access: AccessConfig | None) -> Place | None:
    if access is None:
        _refuse(given)
        return None
    ending = f"-{Path(access.device).name}"
    return changed(Place(given["out"] if "out" in given else beside(run, ending)), given)  # type: ignore[no-any-return]


def _refuse(given: Mapping[str, Any]) -> None:
    """Refuse flags of a run on a device where everything is simulated."""
    if given:
        flag = next(iter(given)).replace("_", "-")
        raise InvalidInputError(f"--{flag} is for a run on a device, which needs --device and --shots and no --engine")


def evaluate_denoising(
    run: Positional[Path],
    *,
    device: str | None = None,
    engine: str | None = None,
    shots: int | None = None,
    images: int | None = None,
    seed: int = 0,
    primitive: Literal["estimator", "sampler"] | None = None,
    evaluation_classifier: str | None = None,
    logger: Annotated[tuple[str, ...], Repeated] = ("none",),
    access: Annotated[AccessConfig | None, FromFlags(_access, skip=("device", "shots"))] = None,
    place: Annotated[Place | None, FromFlags(_device_place, skip=("command",), help=_EVALUATION)] = None,
) -> int:
    """Sample a trained denoiser: simulated, or with --device and --shots on a device.

    On a device the whole reverse process is one circuit, all images are one job, and there is a report in the end.
    Models that keep their outcomes are read by a Sampler, others by an Estimator, or by a Sampler if asked. With
    --engine, also on another --device and with --shots, everything is simulated here.

    Args:
        run: run folder of `qhw train denoising`.
        device: device to run the circuit on; without it the one it was trained for.
        engine: simulated engine: ideal or noisy; without it the one it was trained on.
        shots: shots per image; simulated without it: exact probabilities.
        images: images to sample; without it 500 simulated, 32 on a device.
        seed: seed of noise, outcomes and shots.
        primitive: what reads the circuits on a device: estimator or sampler; without it the sampler for a model that
            keeps its outcomes, else the estimator.
        evaluation_classifier: folder of the evaluation classifier; without it the one shipped for the data set.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        access: run on a device, with --device and --shots and without --engine.
        place: folder of the evaluation on a device.
    """
    from qhw_diffusion.runs import logging_to

    if access is not None and place is not None:
        from qhw_diffusion.denoising.on_device.command import IMAGES, denoise_on_device

        with logging_to(logger):
            found = denoise_on_device(
                run,
                access,
                place,
                images=IMAGES if images is None else images,
                seed=seed,
                primitive=primitive,
                evaluation_classifier=evaluation_classifier,
            )
        print(found)
        return 0
    _refuse({"primitive": primitive} if primitive is not None else {})
    from qhw_diffusion.denoising.command import evaluate_denoiser

    with logging_to(logger):
        found = evaluate_denoiser(
            run,
            device=device,
            engine=engine,
            shots=shots,
            images=500 if images is None else images,
            seed=seed,
            evaluation_classifier=evaluation_classifier,
        )
    print(found)
    return 0
