"""`qhw fine-tune RUN --device …`: cost, updates, and the policy before and after on the same starts."""

from __future__ import annotations

import os
from typing import Any

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.experiment import p_text
from qhw_diffusion.experiment.statistics import interval_cell, mean_interval, paired_test
from qhw_diffusion.guidance import QuantumPolicy, TrainedPolicy, rollout
from qhw_diffusion.guidance.command import MODELS_FILE
from qhw_diffusion.guidance.config import ModelConfig
from qhw_diffusion.guidance.evaluation import (
    EVALUATION_SEED,
    Models,
    draw_initial_noise,
    load_models,
    sample_and_measure,
)
from qhw_diffusion.guidance.on_device.fine_tune import (
    Work,
    fine_tune,
    keep_result,
    prepare_fine_tune,
    work_of,
)
from qhw_diffusion.guidance.on_device.settings import FineTuneConfig
from qhw_diffusion.guidance.ppo import History
from qhw_diffusion.guidance.training import KIND
from qhw_diffusion.on_device.access import at_device, open_access
from qhw_diffusion.on_device.filed import spent_by, spent_so_far, spent_text, work_text
from qhw_diffusion.on_device.receipt import run_name
from qhw_diffusion.on_device.settings import AccessConfig, ComparisonConfig
from qhw_diffusion.runs import Place, RunFolder, evaluation_metrics, progress, read_json

METRICS = ("energy", "fd", "accuracy", "return")


def fine_tune_run(
    asked: FineTuneConfig, access_config: AccessConfig, place: Place, comparison: ComparisonConfig
) -> str:
    """Train a policy on a device for a few updates, and compare it with itself before.

    Args:
        asked: the policy and what decides the numbers.
        access_config: how circuits get to the device.
        place: run folder to write; its name stands for the run in the ledger.
        comparison: seeds and images of the comparison.

    Returns:
        The text for the terminal.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with a checkpoint.
        QhwError: what the errors of the runner mean is in errors.py.
    """
    one_thread()
    out = place.out
    if os.path.realpath(out) == os.path.realpath(asked.run):
        raise InvalidInputError("--out is the folder of the policy itself; choose another one")
    place.check(KIND)
    run, trained, original = prepare_fine_tune(
        asked, out, command=place.command, resume=place.resume, overwrite=place.overwrite
    )
    with run:
        with open_access(access_config, run_name(run, asked.device)) as access:
            access.require_cap()
            models = load_models(ModelConfig.from_dict(read_json(out / MODELS_FILE)))
            work = work_of(asked, original.layer.compiled, trained.config.n_steps)
            print(work_text(access, original.layer.compiled, _parts(work)), flush=True)
            with at_device(run, access):
                actor, history = fine_tune(
                    asked, run, trained, original, models, access,
                    resume=place.resume, on_update=_say, also=lambda: spent_so_far(access),
                )  # fmt: skip
            spent, told = spent_by(access), spent_so_far(access)
        if len(history) < asked.updates:
            raise KeyboardInterrupt
        seeds, images = comparison.seeds, comparison.images
        values = compare(trained, original, actor, models, seeds=seeds, images=images)
        record = {
            **spent, "work": work.__dict__, "seeds": seeds, "images": images, "history": history, "values": values
        }  # fmt: skip
        keep_result(run, actor, record)
        run.tell(told | evaluation_metrics(values))
    return _text(asked, run, history, record)


def compare(
    trained: TrainedPolicy, before: QuantumPolicy, after: QuantumPolicy, models: Models, *, seeds: int, images: int
) -> dict[str, dict[str, list[float]]]:
    """The evaluation's distances and accuracy, and the reward side's return, of both policies, one a seed, same starts.

    Both on the noisy simulation of the device's snapshot; the constant of the base scale goes with them.
    """
    config = trained.config
    players: dict[str, Any] = {config.base_name: None, "before": before, "after": after}
    values: dict[str, dict[str, list[float]]] = {name: {m: [] for m in METRICS} for name in players}
    with progress(total=seeds * len(players), desc="before and after", unit="run") as bar:
        for seed in range(seeds):
            labels, noise = draw_initial_noise(models.backbone, models.heldout, images, EVALUATION_SEED + seed)
            base = rollout(models.backbone, config, labels, noise, None).images
            for name, player in players.items():
                sampled = sample_and_measure(
                    models, config, player, labels, noise, reward=trained.reward, reference=base
                )
                assert sampled.judged is not None
                row = {**sampled.judged, "return": sampled.reward_side["return"]}
                for metric in METRICS:
                    values[name][metric].append(row[metric])
                bar.update(1)
    return values


def _parts(work: Work) -> dict[str, tuple[int, int]]:
    return {"rollouts": work.rollout, "values in gradient steps": work.values, "gradients": work.gradients}


def _say(update: int, metrics: dict[str, float]) -> None:
    print(
        f"update {update + 1}: mean episode reward {metrics['charts/episodic_return']:.3f}, |ΔCFG| "
        f"{metrics['charts/delta_g_abs']:.3f}, circuit gradient {metrics['gradients/circuit']:.3g}",
        flush=True,
    )


def _text(asked: FineTuneConfig, run: RunFolder, history: History, record: dict[str, Any]) -> str:
    values = record["values"]
    lines = [
        spent_text(asked, record),
        f"before and after on the same starts, noise of {asked.device} simulated: {record['seeds']} seeds × "
        f"{record['images']} images",
        f"{'':<20} {'energy [95 %]':>24} {'FD [95 %]':>26} {'accuracy':>9} {'reward [95 %]':>24}",
    ]
    for name, metrics in values.items():
        energy, fd, reward = (interval_cell(metrics.get(key, ()), 3) for key in ("energy", "fd", "return"))
        accuracy = mean_interval(metrics["accuracy"]).mean
        lines.append(f"{name:<20} {energy:>24} {fd:>26} {accuracy:>9.1%} {reward:>24}")
    if record["seeds"] >= 2:
        for metric, name in (("energy", "energy"), ("fd", "FD"), ("return", "reward")):
            if metric not in values["after"]:  # a record of an earlier version
                continue
            test = paired_test(values["after"][metric], values["before"][metric])
            d = test.difference
            lines.append(f"after minus before, {name}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], {p_text(test.t_p)}")
    lines.append(f"saved in {run.path}; on the device: qhw evaluate guidance {run.path} --device … --shots …")
    return "\n".join(lines)
