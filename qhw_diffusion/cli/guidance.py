"""`qhw train guidance`: the training of a guidance policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from qhw_diffusion.cli.flags import FromFlags, changed
from qhw_diffusion.guidance.config import GuidanceTraining
from qhw_diffusion.runs.place import Place


def _training(given: Mapping[str, Any], place: Place) -> GuidanceTraining:
    from qhw_diffusion.guidance.command import saved_training

    saved = saved_training(place)
    # a scale given by hand needs no sweep; neither does a run that had its sweep
    if saved is not None or "g0" in given.get("guidance", {}):
        given = {**given, "sweep_images": 0}
    return changed(saved or GuidanceTraining(), given)  # type: ignore[no-any-return]


def train_guidance(
    *,
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/guidance")),  # noqa: B008
    training: Annotated[
        GuidanceTraining,
        FromFlags(
            _training,
            skip=("models.evaluation_classifier", "guidance.dataset", "guidance.state_centre", "guidance.state_width"),
            rename={"policy.kind": "policy"},
            prefix={"reward": "reward"},
        ),
    ] = GuidanceTraining(),  # noqa: B008
) -> int:
    """Train a guidance policy.

    Args:
        place: run folder to write.
        training: settings of the training; with --resume those of the folder.
    """
    from qhw_diffusion.guidance.command import train_policy

    train_policy(training, place)
    return 0
