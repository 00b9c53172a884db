"""`qhw train denoising` and `qhw evaluate denoising`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, changed
from qhw_diffusion.denoising.command import DenoiserTraining
from qhw_diffusion.runs.place import Place


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
        place: run folder to write.
        training: settings of the training; with --resume those of the folder.
    """
    from qhw_diffusion.denoising.command import train_denoiser

    print(train_denoiser(training, place))
    return 0


def evaluate_denoising(
    run: Positional[Path],
    *,
    device: str | None = None,
    engine: str | None = None,
    shots: int | None = None,
    images: int = 500,
    seed: int = 0,
    evaluation_classifier: str | None = None,
) -> int:
    """Sample a trained denoiser, on another device or engine or with finite shots if asked.

    Args:
        run: run folder of `qhw train denoising`.
        device: device to run the circuit on; without it the one it was trained for.
        engine: ideal or noisy; without it the one it was trained on.
        shots: shots per image; without it exact probabilities.
        images: images to sample.
        seed: seed of noise, outcomes and shots.
        evaluation_classifier: folder of the evaluation classifier; without it the one shipped for the data set.
    """
    from qhw_diffusion.denoising.command import evaluate_denoiser

    how = {"device": device, "engine": engine, "shots": shots, "images": images, "seed": seed}
    print(evaluate_denoiser(run, **how, evaluation_classifier=evaluation_classifier))  # type: ignore[arg-type]
    return 0
