"""What is done with a trained policy: `qhw evaluate guidance`, `qhw fine-tune`, `qhw distill`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from qhw_diffusion.cli.flags import FromFlags, changed
from qhw_diffusion.cli.options import access_given, required_access
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.guidance.on_device.settings import ComparisonConfig, FineTuneConfig
from qhw_diffusion.on_device.settings import AccessConfig
from qhw_diffusion.runs.place import Place, beside

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
    access: Annotated[AccessConfig | None, FromFlags(access_given, skip=("device",))] = None,
    place: Annotated[Place | None, FromFlags(_rollout_place, skip=("command",), help=_ROLLOUT)] = None,
) -> int:
    """Evaluate a trained policy: simulated, or with --shots on a device.

    On a device there is one job per DDIM step; the rollout can go on at any step, and ends in a report.

    Args:
        run: run folder of `qhw train guidance`.
        device: device to run the policy on; without it the one it was trained for.
        engine: simulated engine: ideal, noisy or shots[:N][:seed=S][:ideal] (ideal: shots without noise), mitigated:
            shots:4096+readout+zne:linear:1,3; without it the one the policy was trained on.
        evaluation_classifier: folder of the evaluation classifier; without it the one shipped for the data set.
        data_root: folder of the data set; without it that of the run.
        seeds: evaluation seeds of the simulated evaluation; without it 5.
        images: images per seed (simulated; without it 500), or images in all (on a device; without it 32).
        schedule_iterations: updates of the free schedule that is trained to compare with, and kept in the run's folder
            (simulated; 0: none; without it 30, and none for a pipeline).
        seed: seed of labels and starting noise on a device.
        access: run on a device, with --device and --shots.
        place: folder of the rollout on a device.
    """
    if access is None or place is None:
        from qhw_diffusion.checkpoints import one_thread
        from qhw_diffusion.guidance.command import evaluate_run

        one_thread()
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


def _fine_tuning(given: Mapping[str, Any], run: Path, access: AccessConfig) -> FineTuneConfig:
    return FineTuneConfig(
        run=str(run),
        device=access.device,
        shots=access.shots,
        resilience_level=access.resilience_level,
        mitigation=access.mitigation,
        ledger=access.ledger,
        **given,
    )


def fine_tune(
    run: Positional[Path],
    *,
    access: Annotated[AccessConfig, FromFlags(required_access)],
    place: Annotated[Place, FromFlags(_fine_tune_place, skip=("command",), help=_TUNED)],
    updates: Annotated[
        FineTuneConfig,
        FromFlags(_fine_tuning, skip=("run", "device", "shots", "resilience_level", "mitigation", "ledger")),
    ],
    comparison: Annotated[ComparisonConfig, FromFlags(prefix={"": "compare"})] = ComparisonConfig(),  # noqa: B008
) -> int:
    """Train a policy on a device for a few updates, and compare it with itself before.

    Args:
        run: run folder of `qhw train guidance` with a quantum policy.
        access: how circuits get to the device.
        place: run folder to write.
        updates: updates on the device.
        comparison: evaluation before and after.
    """
    from qhw_diffusion.guidance.on_device.fine_tune_command import fine_tune_run

    print(fine_tune_run(updates, access, place, comparison))
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
        access: table of a lookup measured on --device by one job, with --shots.
        place: run folder to write.
    """
    from qhw_diffusion.guidance.on_device.distillation import Distillation, distil_policy

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
    print(distil_policy(asked, access, place))
    return 0
