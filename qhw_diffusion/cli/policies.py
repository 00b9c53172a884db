"""What is done with what was trained: `qhw evaluate guidance`, `qhw fine-tune` (denoisers too), `qhw distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, Repeated, changed
from qhw_diffusion.cli.options import access_given, required_access
from qhw_diffusion.denoising.on_device.settings import DenoiserTuningConfig
from qhw_diffusion.errors import InvalidInputError, RunFolderError
from qhw_diffusion.guidance.on_device.settings import FineTuneConfig
from qhw_diffusion.on_device.settings import AccessConfig, ComparisonConfig, TuningConfig
from qhw_diffusion.runs.place import Place, beside

T = TypeVar("T", bound=TuningConfig)
_NAMED = "its name stands for the run in the ledger; without it"
_ROLLOUT = {
    "out": f"Folder of the rollout on a device; {_NAMED} RUN-DEVICE.",
    "resume": "Go on with the rollout in the folder, at any step.",
}
_TUNED = {
    "out": f"Run folder to write; {_NAMED} RUN-tuned-DEVICE.",
    "resume": "Go on with the run in the folder, at any job.",
}
_DISTILLED = {
    "out": "Run folder to write; without it RUN-lookup or RUN-network.",
    "resume": "Go on with the measured table in the folder.",
}


def _beside(given: Mapping[str, Any], run: Path, ending: str) -> Place:
    return changed(Place(given["out"] if "out" in given else beside(run, ending)), given)  # type: ignore[no-any-return]


def _rollout_place(given: Mapping[str, Any], run: Path, access: AccessConfig | None) -> Place | None:
    if access is None:
        if given:
            flag = next(iter(given)).replace("_", "-")
            raise InvalidInputError(f"--{flag} is for a run on a device, and so needs --shots and --device")
        return None
    return _beside(given, run, f"-{Path(access.device).name}")


def evaluate_guidance(
    run: Positional[Path],
    *,
    device: str | None = None,
    engine: str | None = None,
    evaluation_classifier: str | None = None,
    data_root: str | None = None,
    seeds: int | None = None,
    images: int | None = None,
    schedule_iterations: int | None = None,
    seed: int = 0,
    logger: Annotated[tuple[str, ...], Repeated] = ("none",),
    access: Annotated[AccessConfig | None, FromFlags(access_given, skip=("device",))] = None,
    place: Annotated[Place | None, FromFlags(_rollout_place, skip=("command",), help=_ROLLOUT)] = None,
) -> int:
    """Evaluate a trained policy: simulated, or with --shots on a device.

    On a device there is one job per DDIM step; the rollout can go on at any step, and ends in a report.

    Args:
        run: run folder of `qhw train guidance`.
        device: device to run the policy on; without it the one it was trained for.
        engine: simulated engine: ideal, noisy or `shots[:N][:seed=S][:ideal]` (ideal: shots without noise), mitigated:
            shots:4096+readout+zne:linear:1,3; without it the one the policy was trained on.
        evaluation_classifier: folder of the evaluation classifier; without it the one shipped for the data set.
        data_root: folder of the data set; without it that of the run.
        seeds: evaluation seeds of the simulated evaluation; without it 5.
        images: images per seed (simulated; without it 500), or images in all (on a device; without it 32).
        schedule_iterations: updates of the free schedule that is trained to compare with, and kept in the run's folder
            (simulated; 0: none; without it 30, and none for a pipeline).
        seed: seed of labels and starting noise on a device.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        access: run on a device, with --device and --shots.
        place: folder of the rollout on a device.
    """
    from qhw_diffusion.runs import logging_to

    if access is None or place is None:
        from qhw_diffusion.checkpoints import one_thread
        from qhw_diffusion.guidance.command import evaluate_run

        one_thread()
        with logging_to(logger):
            found = evaluate_run(
                run,
                device=device,
                engine=engine,
                evaluation_classifier=evaluation_classifier,
                data_root=data_root,
                seeds=5 if seeds is None else seeds,
                images=500 if images is None else images,
                schedule_iterations=schedule_iterations,
            )
        print(found)
        return 0
    from qhw_diffusion.guidance.on_device.rollout_command import IMAGES, rollout_on_device

    if engine is not None:
        raise InvalidInputError("--engine is for the simulated evaluation; with --shots the device is the engine")
    if schedule_iterations is not None:
        raise InvalidInputError("--schedule-iterations is for the simulated evaluation; on a device leave it out")
    if seeds is not None:
        raise InvalidInputError("--seeds is for the simulated evaluation; on a device give --images and --seed")
    with logging_to(logger):
        found = rollout_on_device(
            run,
            access,
            place,
            images=IMAGES if images is None else images,
            seed=seed,
            evaluation_classifier=evaluation_classifier,
            data_root=data_root,
        )
    print(found)
    return 0


def _fine_tune_place(given: Mapping[str, Any], run: Path, access: AccessConfig) -> Place:
    return _beside(given, run, f"-tuned-{Path(access.device).name}")


_COMMON = ("run", "device", "shots", "gradient", "updates", "seed", "resilience_level", "mitigation", "ledger")
_TUNABLE = {"guidance": "policies", "denoiser": "denoisers"}


def _kind(run: Path) -> str:
    """Kind of what is fine-tuned; a folder without one is left to the command to refuse."""
    from qhw_diffusion.runs import read_json

    try:
        kind = str(read_json(run / "manifest.json").get("kind"))
    except OSError:
        return "guidance"
    if kind not in _TUNABLE:
        raise RunFolderError(
            f"{run} is a run of kind {kind!r}; `qhw fine-tune` takes run folders of quantum policies (`qhw train "
            "guidance`) and of denoisers (`qhw train denoising`)"
        )
    return kind


def _tuning(given: Mapping[str, Any], run: Path, access: AccessConfig) -> TuningConfig:
    return TuningConfig.through(access, run, **given)


def _of_kind(kind: str, made: type[T], given: Mapping[str, Any], run: Path, tuning: TuningConfig) -> T | None:
    """The settings of one kind of run; None where the run is of another, whose flags these are not."""
    if _kind(run) == kind:
        return made(**tuning.to_dict(), **given)
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InvalidInputError(f"{flags}: for {_TUNABLE[kind]}; {run} is one of {_TUNABLE[_kind(run)]}")
    return None


def _policy_tuning(given: Mapping[str, Any], run: Path, tuning: TuningConfig) -> FineTuneConfig | None:
    return _of_kind("guidance", FineTuneConfig, given, run, tuning)


def _denoiser_tuning(given: Mapping[str, Any], run: Path, tuning: TuningConfig) -> DenoiserTuningConfig | None:
    return _of_kind("denoiser", DenoiserTuningConfig, given, run, tuning)


def fine_tune(
    run: Positional[Path],
    *,
    logger: Annotated[tuple[str, ...], Repeated] = ("tensorboard",),
    access: Annotated[AccessConfig, FromFlags(required_access)],
    place: Annotated[Place, FromFlags(_fine_tune_place, skip=("command",), help=_TUNED)],
    tuning: Annotated[
        TuningConfig,
        FromFlags(_tuning, skip=("run", "device", "shots", "resilience_level", "mitigation", "ledger")),
    ],
    policy: Annotated[FineTuneConfig | None, FromFlags(_policy_tuning, skip=_COMMON)] = None,
    denoiser: Annotated[DenoiserTuningConfig | None, FromFlags(_denoiser_tuning, skip=_COMMON)] = None,
    comparison: Annotated[ComparisonConfig, FromFlags(prefix={"": "compare"})] = ComparisonConfig(),  # noqa: B008
) -> int:
    """Train a policy or a denoiser on a device for a few updates, and compare it with itself before.

    Args:
        run: run folder of `qhw train guidance` with a quantum policy, or of `qhw train denoising` with a post-selected
            or reset denoiser.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        access: how circuits get to the device.
        place: run folder to write.
        tuning: updates on the device.
        policy: updates of a policy, by PPO.
        denoiser: updates of a denoiser, by the loss it was trained with or what a device gives of it.
        comparison: evaluation before and after.
    """
    from qhw_diffusion.runs import logging_to

    with logging_to(logger):
        if denoiser is not None:
            from qhw_diffusion.denoising.on_device.fine_tune_command import tune_denoiser

            print(tune_denoiser(denoiser, access, place, comparison))
            return 0
        assert policy is not None
        from qhw_diffusion.guidance.on_device.fine_tune_command import fine_tune_run

        print(fine_tune_run(policy, access, place, comparison))
    return 0


def _distilled_place(given: Mapping[str, Any], run: Path, into: str) -> Place:
    return _beside(given, run, f"-{into}")


def distill(
    run: Positional[Path],
    *,
    into: Literal["lookup", "network"] = "lookup",
    device: str | None = None,
    engine: str | None = None,
    evaluation_classifier: str | None = None,
    data_root: str | None = None,
    seeds: int = 5,
    images: int = 500,
    logger: Annotated[tuple[str, ...], Repeated] = ("none",),
    access: Annotated[AccessConfig | None, FromFlags(access_given, skip=("device",))] = None,
    place: Annotated[Place, FromFlags(_distilled_place, skip=("command",), help=_DISTILLED)],
) -> int:
    """Turn a quantum policy into a table or a small network, and measure what is lost.

    With --shots the table of a lookup is measured on --device, by one job.

    Args:
        run: run folder of `qhw train guidance` with a quantum policy.
        into: form of the result: lookup (the circuit evaluated once on a grid of angles, exact in between) or network
            (an MLP fitted to it).
        device: device the original is evaluated on; without it the one it was trained for.
        engine: engine the original is evaluated on, such as noisy or shots:4096; without it the one it was trained on.
        evaluation_classifier: folder of the evaluation classifier; without it the one shipped for the data set.
        data_root: folder of the data set; without it that of the run.
        seeds: seeds of the comparison of images.
        images: images per seed.
        logger: where numbers and pictures go besides the folder: tensorboard, wandb, mlflow, none, or a class of your
            own, module:name or file.py:name; given several times, to each.
        access: table of a lookup measured on --device by one job, with --shots.
        place: run folder to write.
    """
    from qhw_diffusion.guidance.on_device.distillation import Distillation, distil_policy
    from qhw_diffusion.runs import logging_to

    asked = Distillation(
        run=run,
        out=place.out,
        form=into,
        device=device,
        engine=engine,
        evaluation_classifier=evaluation_classifier,
        data_root=data_root,
        seeds=seeds,
        images=images,
    )
    with logging_to(logger):
        print(distil_policy(asked, access, place))
    return 0
