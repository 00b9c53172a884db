"""`qhw train guidance`: the training of a guidance policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from qhw_diffusion.cli.flags import FromFlags, Repeated, changed
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.config import GuidanceConfig, GuidanceTraining
from qhw_diffusion.runs.place import Place


def _training(given: Mapping[str, Any], place: Place) -> GuidanceTraining:
    from qhw_diffusion.guidance.command import saved_training

    saved = saved_training(place)
    method = given.get("method", saved.method if saved is not None else "ppo")
    for other, prefix in (("ppo", ""), ("pathwise", "pathwise-")):
        if method != other and given.get(other):
            flags = ", ".join(f"--{prefix}{name.replace('_', '-')}" for name in given[other])
            ours = ", whose settings are --pathwise-…" if method == "pathwise" else ""
            raise InvalidInputError(f"{flags}: for --method {other}; the method is {method}{ours}")
    if saved is None and given.get("guidance", {}).get("base_schedule"):
        given = {**given, "guidance": _around(given["guidance"])}
    pipeline = given.get("models", {}).get("pipeline")
    if saved is None and pipeline is not None:
        return _on_pipeline(given, pipeline)
    # a scale given by hand needs no sweep; neither does a run that had its sweep
    if saved is not None or "g0" in given.get("guidance", {}):
        given = {**given, "sweep_images": 0}
    return changed(saved or GuidanceTraining(), given)  # type: ignore[no-any-return]


def _around(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the range around g0 or a base schedule, whose mean is g0, where they are not given."""
    schedule = guidance.get("base_schedule", ())
    g0 = guidance["g0"] if "g0" in guidance else sum(schedule) / len(schedule)
    limit = guidance.get("action_limit", GuidanceConfig.action_limit)
    return {**GuidanceConfig.around(g0, limit, schedule), **guidance}


def _on_pipeline(given: Mapping[str, Any], pipeline: str) -> GuidanceTraining:
    """The training on a pipeline: the base scale is the user's, and the range of scales lies around it."""
    guidance = given.get("guidance", {})
    if "g0" not in guidance:
        raise InvalidInputError(
            "a training on a pipeline needs the base guidance scale, which no sweep finds without real images: give "
            "--g0 (Stable Diffusion's own is 7.5), or --base-schedule"
        )
    given = {**given, "guidance": _around(guidance)}
    return changed(GuidanceTraining.for_pipeline(pipeline), given)  # type: ignore[no-any-return]


def train_guidance(
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    place: Annotated[Place, FromFlags(skip=("command",))] = Place(Path("runs/guidance")),  # noqa: B008
    training: Annotated[
        GuidanceTraining,
        FromFlags(
            _training,
            skip=("models.evaluation_classifier", "guidance.dataset", "guidance.state_centre", "guidance.state_width"),
            rename={"policy.kind": "policy"},
            prefix={"reward": "reward", "pathwise": "pathwise"},
        ),
    ] = GuidanceTraining(),  # noqa: B008
) -> int:
    """Train a guidance policy.

    On a data set, or on a text-to-image pipeline: --pipeline, --prompts, --scorer and --g0, and a reward that needs no
    real images (--reward-distribution 0 --reward-confidence 1).

    Args:
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        place: run folder to write.
        training: settings of the training; with --resume those of the folder.
    """
    from qhw_diffusion.guidance.command import train_policy
    from qhw_diffusion.runs import logging_to

    with logging_to(logger):
        train_policy(training, place)
    return 0
