"""`qhw fine-tune RUN --device …` of a denoiser: cost, updates, and the denoiser before and after on the same starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.denoising.command import KIND
from qhw_diffusion.denoising.deferred import deferred_inputs, deferred_weights
from qhw_diffusion.denoising.models import AmplitudeQDM
from qhw_diffusion.denoising.on_device.evaluation import predictions_of
from qhw_diffusion.denoising.on_device.fine_tune import (
    ORIGINAL,
    Tuning,
    keep_tuned,
    prepare_tuning,
    tune,
)
from qhw_diffusion.denoising.on_device.settings import DenoiserTuningConfig
from qhw_diffusion.denoising.saving import from_pretrained
from qhw_diffusion.denoising.training import train_qdm
from qhw_diffusion.diffusion import Classifier, ImageDataset, evaluate_samples, load_dataset
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.experiment import p_text
from qhw_diffusion.experiment.statistics import interval_cell, paired_test
from qhw_diffusion.on_device.access import at_device, open_access
from qhw_diffusion.on_device.filed import spent_by, spent_so_far, spent_text, work_text
from qhw_diffusion.on_device.receipt import run_name
from qhw_diffusion.on_device.settings import AccessConfig, ComparisonConfig
from qhw_diffusion.runs import Place, RunFolder, evaluation_metrics, progress

# Names in the table: as it came (no updates), the same updates simulated where it was trained, updates on the device
BEFORE, SIMULATED, AFTER = "before", "simulated updates", "after"
# Seeds of the comparison's starts: none of a training
_FIRST_SEED = 10_000
_TITLES = {"energy": "energy", "fd": "FD", "accuracy": "accuracy", "success": "success probability"}
_DIGITS = {"energy": 3, "fd": 2, "accuracy": 3, "success": 4}
_WITHIN = {"accuracy": (0.0, 1.0), "success": (0.0, 1.0)}


def tune_denoiser(
    asked: DenoiserTuningConfig, access_config: AccessConfig, place: Place, comparison: ComparisonConfig
) -> str:
    """Train a denoiser on a device for a few updates, and compare it with itself before and with simulated updates.

    Args:
        asked: the denoiser and what decides the numbers.
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
        raise InvalidInputError("--out is the folder of the denoiser itself; choose another one")
    place.check(KIND)
    config = RunFolder.open(asked.run, kind=KIND).config
    classifier = Classifier.load(asked.evaluation_classifier or config["data"], "evaluation")
    heldout = load_dataset(config["data"], "heldout", config["data_root"])
    tuning = prepare_tuning(asked, out, command=place.command, resume=place.resume, overwrite=place.overwrite)
    with tuning.folder as run:
        with open_access(access_config, run_name(run, asked.device)) as access:
            access.require_cap()
            print(f"{work_text(access, tuning.compiled, tuning.work)}\n{tuning.about_loss}", flush=True)
            with at_device(run, access):
                tuned, history = tune(
                    tuning, access, resume=place.resume, on_update=_say, also=lambda: spent_so_far(access)
                )
            spent, told = spent_by(access), spent_so_far(access)
        if len(history) < asked.updates:
            raise KeyboardInterrupt
        players = {BEFORE: tuning.original, SIMULATED: simulated_updates(tuning), AFTER: tuned}
        seeds, images = comparison.seeds, comparison.images
        values = compare(players, tuning.compiled, classifier, heldout, seeds=seeds, images=images)
        record = {
            **spent,
            "work": tuning.work,
            "about_loss": tuning.about_loss,
            "seeds": seeds,
            "images": images,
            "history": history,
            "values": values,
            "tests": tests_of(values),
        }
        keep_tuned(run, tuned, record)
        run.tell(told | evaluation_metrics(values))
    return _text(tuning, record)


def simulated_updates(tuning: Tuning) -> AmplitudeQDM:
    """The same updates (loss, starts, data, rates) in simulation, on the device and engine of the training."""
    model = from_pretrained(tuning.folder.path / ORIGINAL)
    assert isinstance(model, AmplitudeQDM)
    train_qdm(model, tuning.data.images, tuning.config, labels=tuning.labels)
    return model


@torch.no_grad()
def compare(
    players: Mapping[str, AmplitudeQDM],
    compiled: CompiledCircuit,
    classifier: Classifier,
    heldout: ImageDataset,
    *,
    seeds: int,
    images: int,
) -> dict[str, dict[str, list[float]]]:
    """Distances to held-out images and success probability of each denoiser, one a seed, on the same starts.

    All under the noise of the circuit's device, exact (`predictions_of`). Without labels there is no energy distance,
    which is one within a class, and no accuracy.
    """
    values: dict[str, dict[str, list[float]]] = {}
    with progress(total=seeds * len(players), desc="before and after", unit="run") as bar:
        for seed in range(seeds):
            for name, model in players.items():
                n_labels = model.reverse.config.n_labels
                labels = torch.arange(images) % n_labels
                given = labels if n_labels > 1 else None
                generator = torch.Generator().manual_seed(_FIRST_SEED + seed)
                starts = model.forward_process.prior(images, model.dim, generator)
                rows = rows_of(deferred_inputs(model, starts, given), deferred_weights(model).double())
                found = predictions_of(model, compiled, starts, given, rows)[0]
                judged = evaluate_samples(found.images.float(), labels, classifier, heldout)
                kept = ("energy", "fd", "accuracy") if n_labels > 1 else ("fd",)
                row = {key: judged[key] for key in kept} | {"success": float(found.success.mean())}
                for key, value in row.items():
                    values.setdefault(name, {}).setdefault(key, []).append(value)
                bar.update(1)
    return values


def tests_of(values: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Paired differences of what the device tuned to each control, with 95 % intervals and p; none of one seed."""
    after = values[AFTER]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in (BEFORE, SIMULATED):
        for key in after if len(after["fd"]) >= 2 else ():
            test = paired_test(after[key], values[name][key])
            d = test.difference
            row = {"mean": d.mean, "low": d.low, "high": d.high, "p": test.t_p}
            found.setdefault(name, {})[key] = row
    return found


def _say(update: int, metrics: dict[str, float]) -> None:
    print(
        f"update {update + 1}: loss {metrics['losses/train']:.4f}, gradient {metrics['losses/gradient_norm']:.3g}, "
        f"success probability {metrics['charts/probability']:.2%}",
        flush=True,
    )


def _text(tuning: Tuning, record: Mapping[str, Any]) -> str:
    asked, values = tuning.asked, record["values"]
    trained_on = tuning.original.reverse.config
    keys = list(values[AFTER])
    lines = [
        spent_text(asked, record),
        f"on the same starts, noise of {tuning.compiled.device.name} simulated: {record['seeds']} seeds × "
        f"{record['images']} images; {SIMULATED}: as many on {trained_on.device}, {trained_on.engine}",
        f"{'':<18}" + "".join(f"{_TITLES[key] + ' [95 %]':>30}" for key in keys),
    ]
    for name, metrics in values.items():
        cells = (interval_cell(metrics[key], _DIGITS[key], within=_WITHIN.get(key)) for key in keys)
        lines.append(f"{name:<18}" + "".join(f"{cell:>30}" for cell in cells))
    for name, tests in record["tests"].items():
        for key in (key for key in ("energy", "fd", "success") if key in tests):
            t = tests[key]
            lines.append(f"{AFTER} minus {name}, {_TITLES[key]}: {t['mean']:+.4f} [{t['low']:+.4f}, {t['high']:+.4f}], "
                         f"{p_text(t['p'])}")  # fmt: skip
    path = tuning.folder.path
    return "\n".join([*lines, f"saved in {path}; on the device: qhw evaluate denoising {path} --device … --shots …"])
