"""`qhw fine-tune` of a denoiser: a few updates of its weights on what comes out of its circuit on a device.

    original/    the denoiser as it came;  circuit/, circuit.json: its deferred circuit, compiled, with the snapshot
    the rest     a run folder as `qhw train denoising` writes it, with fine_tuning.json (before and after) and jobs.json

The loop is that of the training (`training.train_task`); what differs is where p(x | kept) and the success probability
come from: ⟨P Z^s⟩ of the deferred circuit, one job an update, with gradients from a simulation of the device
(surrogate) or from the device as well (SPSA, parameter-shift). Jobs are filed under their update and the checkpoint is
replaced after every update, so a run that goes on repeats at most the update it was in, with paid results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_checkpoint
from qhw_diffusion.denoising.command import KIND, TRAIN, DenoiserTraining
from qhw_diffusion.denoising.deferred import deferred_angles, deferred_inputs, deferred_weights, shares_of
from qhw_diffusion.denoising.models import AmplitudeQDM
from qhw_diffusion.denoising.on_device.evaluation import (
    CIRCUIT,
    CIRCUIT_FILE,
    compiled_for,
    load_denoiser,
    predictions_of,
)
from qhw_diffusion.denoising.on_device.settings import DenoiserTuningConfig
from qhw_diffusion.denoising.readout import check_resolvable
from qhw_diffusion.denoising.reverse import ReverseProcess
from qhw_diffusion.denoising.saving import from_pretrained, save_pretrained
from qhw_diffusion.denoising.training import ENSEMBLE, History, TrainConfig, TrainingTask, train_task
from qhw_diffusion.devices import Device
from qhw_diffusion.diffusion import ImageDataset, load_dataset
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, reason_of
from qhw_diffusion.execution import CompiledCircuit
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.execution.saving import read_compiled, write_compiled
from qhw_diffusion.on_device.filed import FiledEngine, moved_rows
from qhw_diffusion.on_device.receipt import Access, run_name
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, read_json

ORIGINAL, RECORD, TUNED = "original", "fine_tuning.json", "fine_tune"
# Kept shots below which a success probability is within two standard errors of 0 (`quotient.TOLD_APART`)
_LEAST_KEPT = 4.0

# (inputs [B, I], weights [W]) → values [B, 2ⁿ] of the deferred circuit, connected to autograd
Values = Callable[[Tensor, Tensor], Tensor]


class DeviceTask(TrainingTask):
    """Batches and losses of a training on ⟨P Z^s⟩ of the deferred circuit.

    The draws are those of `TrainingTask` with the same settings: x_T, then targets.

    Args:
        model: post-selected or reset; its reverse process is trained.
        data: as for `TrainingTask`.
        labels: as for `TrainingTask`.
        config: from `device_loss`.
        values: where the values come from; may be replaced between updates.
        shots: of each circuit; None for exact values. Images whose success probability is not told from 0 by so many
            are left out of the loss.

    Raises:
        InvalidInputError: as `TrainingTask`.
    """

    def __init__(
        self,
        model: AmplitudeQDM,
        data: Tensor,
        labels: Tensor | None,
        config: TrainConfig,
        values: Values | None = None,
        shots: int | None = None,
    ) -> None:
        super().__init__(model, data, labels, config)
        self.values, self.shots = values, shots

    def loss(self, stage: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """Loss of one update, and the mean success probability."""
        c = self.config
        labels, start, target = self.batch(generator)
        assert self.values is not None
        dtype = self.model.reverse.weight.dtype
        inputs, weights = deferred_angles(self.model, start, labels if self.conditioned else None)
        values = self.values(inputs.to(dtype), weights.to(dtype)).to(dtype)
        success = values[:, 0]
        told = success > 0
        if self.shots is not None:
            told = success * self.shots >= _LEAST_KEPT * (1 - success).clamp_min(0.0)
        for y in range(len(self.groups)):
            if not bool(told[labels == y].any()):
                raise InvalidInputError(
                    f"no image of label {y} has a success probability that {self.shots} shots tell from 0: nothing of "
                    "it can be trained. Use more --shots"
                )
        # the shares add up to the success probability; a mitigated one may be negative, and is none then
        shares = shares_of(values).clamp_min(0.0)
        total = shares.sum(1, keepdim=True)
        p = torch.where(told[:, None], shares / torch.where(told[:, None], total, 1.0), 1 / shares.shape[1])
        # a density on the diagonal has these outcomes, and |amplitudes| √p
        made = torch.diag_embed(p).to(target.dtype)
        wanted = torch.arange(len(self.groups)).repeat_interleave(c.targets)
        loss, _ = self.with_probability(self.distance(made, labels, target, wanted, told.to(p.dtype)), success[told])
        return loss, float(success.detach().mean())

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Labels [B], starts x_T and targets of one update."""
        labels = torch.arange(len(self.groups)).repeat_interleave(self.config.batch_size)
        start = self.model.forward_process.prior(len(labels), self.model.dim, generator)
        return labels, start, self.buffers.targets(0, self.config.targets, generator)


def device_loss(trained: TrainConfig, asked: DenoiserTuningConfig) -> tuple[TrainConfig, str]:
    """The settings of the updates: of the loss a denoiser was trained by, what a device can give; and a sentence on it.

    A device gives the outcomes at t = 0 of all steps together: no phases, and no states between steps.
    """
    ensemble = trained.loss in ENSEMBLE
    base = trained if ensemble else trained.replace(
        loss="mmd", batch_size=TRAIN.batch_size, targets=TRAIN.targets, kernels=TRAIN.kernels
    )  # fmt: skip
    config = base.replace(
        mode="joint",
        similarity="measured",
        buffer_size=0,
        iterations=asked.updates,
        batch_size=asked.label_images or base.batch_size,
        learning_rate=asked.learning_rate,
        checkpoint_every=1,
        seed=asked.seed,
    )
    said = f"loss: {config.loss} of the outcomes at t = 0"
    if not ensemble:
        return config, (
            f"{said}, in place of {trained.loss}, which it was trained by and which compares states after single "
            "steps: a device gives none"
        )
    differs = []
    if trained.similarity != "measured":
        differs.append(f"compared by measured fidelity, not by {trained.similarity}: a device gives no phases")
    if trained.mode != "joint":
        differs.append("all steps together, not one after the other: a device gives no states between steps")
    return config, f"{said}, {'; '.join(differs) or 'the one it was trained by'}"


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning's folder, opened: everything it needs that does not change any more.

    Attributes:
        folder: the run folder.
        asked: its settings.
        original: the denoiser as it was trained.
        compiled: its deferred circuit on the device.
        config: settings of the updates.
        about_loss: a sentence on the loss.
        data: training images.
        labels: int64 [N], or None without conditioning.
    """

    folder: RunFolder
    asked: DenoiserTuningConfig
    original: AmplitudeQDM
    compiled: CompiledCircuit
    config: TrainConfig
    about_loss: str
    data: ImageDataset
    labels: Tensor | None

    @property
    def work(self) -> dict[str, tuple[int, int]]:
        """Part → (circuits of a job, how many such jobs), before mitigation."""
        return work_of(self.asked, self.compiled, self.config, self.original.reverse.config.n_labels)


def work_of(
    asked: DenoiserTuningConfig, compiled: CompiledCircuit, config: TrainConfig, n_labels: int
) -> dict[str, tuple[int, int]]:
    """Part → (circuits of a job, how many such jobs), before mitigation, of updates with these settings."""
    rows, moved = config.batch_size * n_labels, moved_rows(asked.gradient, compiled)
    return {"values": (rows, asked.updates)} | ({"gradients": (moved * rows, asked.updates)} if moved else {})


def prepare_tuning(
    asked: DenoiserTuningConfig,
    out: Path,
    *,
    resume: bool,
    overwrite: bool = False,
    command: str | None = None,
    device: Device | None = None,
) -> Tuning:
    """Make the run folder with its copies of denoiser and circuit, or open it to go on.

    Args:
        asked: what decides its numbers.
        out: the folder.
        resume: go on.
        overwrite: as in `RunFolder.create`.
        command: command line that the folder records.
        device: `asked.device`, when it is loaded already.

    Raises:
        RunFolderError: a folder in use, or started with other settings.
        InvalidInputError: a denoiser that keeps outcomes or is wider than the device, a strategy that cannot treat the
            circuit, or a success probability that the shots do not resolve.
    """
    if not resume:
        check_place(out, kind=KIND, overwrite=overwrite)
    source = RunFolder.open(asked.run, kind=KIND)
    training = DenoiserTraining.from_dict({k: v for k, v in source.config.items() if k != TUNED})
    config, about = device_loss(training.train, asked)
    settings = {**training.to_dict(), TUNED: asked.to_dict()}
    if resume:
        folder = RunFolder.open(out, kind=KIND)
        folder.require_settings(settings)
    data = load_dataset(training.data, "train", training.data_root)
    labels = data.labels if training.reverse.n_labels > 1 else None
    made = None
    if not (resume and (out / CIRCUIT_FILE).exists()):  # else a new folder, or one left before anything was sent
        model = load_denoiser(asked.run)
        if isinstance(model.reverse, ReverseProcess) and model.reverse.config.kind == "measured":
            raise InvalidInputError(
                "this model keeps the outcomes of its ancillas, and only post-selected and reset models can be tuned "
                "on a device: take such a one (qhw train denoising --kind postselected)"
            )
        made = model, compiled_for(model, device or Device.load(asked.device), asked.mitigation)
        _check(DeviceTask(model, data.images, labels, config), made[1], asked.shots)
    if not resume:
        folder = RunFolder.create(out, kind=KIND, config=settings, command=command, overwrite=overwrite)
    try:
        if made is not None:
            save_pretrained(made[0], out / ORIGINAL)
            (out / CIRCUIT).mkdir(exist_ok=True)
            atomic_write_json(out / CIRCUIT_FILE, write_compiled(made[1], out / CIRCUIT))
        original = from_pretrained(out / ORIGINAL)
        assert isinstance(original, AmplitudeQDM)
        try:
            compiled = read_compiled(out / CIRCUIT, read_json(out / CIRCUIT_FILE))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(
                f"{out} does not hold a whole fine-tuning of a denoiser ({reason_of(error)})"
            ) from error
    except BaseException:
        folder.discard()
        raise
    return Tuning(folder, asked, original, compiled, config, about, data, labels)


@torch.no_grad()
def _check(task: DeviceTask, compiled: CompiledCircuit, shots: int) -> None:
    """Refuse a success probability, predicted for the starts of the first update, that the shots do not resolve."""
    labels, start, _ = task.batch(torch.Generator().manual_seed(task.config.seed))
    given, model = labels if task.conditioned else None, task.model
    assert isinstance(model, AmplitudeQDM)
    rows = rows_of(deferred_inputs(model, start, given), deferred_weights(model).double())
    success = predictions_of(model, compiled, start, given, rows)[0].success.clamp(max=1)
    check_resolvable(success.mean()[None], shots, model.dim)  # rarer ones are left out, one by one


def tune(
    tuning: Tuning,
    access: Access,
    *,
    resume: bool,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
    also: Callable[[], Mapping[str, float]] | None = None,
) -> tuple[AmplitudeQDM, History]:
    """The updates; returns the tuned denoiser and the log. `on_update` and `also` as in `train_task`.

    After Ctrl-C fewer updates are in the log than asked for; the checkpoint has them.
    """
    folder, asked = tuning.folder, tuning.asked
    resume = resume and folder.has_checkpoint
    model = from_pretrained(folder.path / ORIGINAL)
    assert isinstance(model, AmplitudeQDM)
    task = DeviceTask(model, tuning.data.images, tuning.labels, tuning.config, shots=asked.shots)

    def ask(update: int) -> None:
        engine = FiledEngine(access, f"{run_name(folder, asked.device)} update {update + 1}")
        method = asked.method(update)
        task.values = lambda inputs, weights: method(engine, tuning.compiled, inputs, weights, lambda usage: None)

    def after(update: int, metrics: dict[str, float]) -> None:
        ask(update + 1)
        if on_update is not None:
            on_update(update, metrics)

    ask(int(load_checkpoint(folder)[1]["updates"]) if resume else 0)
    if not resume:
        folder.truncate_metrics(0)  # of an update that was cut short
    return model, train_task(task, run=folder, resume=resume, on_update=after, also=also)


def keep_tuned(folder: RunFolder, model: AmplitudeQDM, record: dict[str, Any]) -> None:
    """Write the tuned denoiser and fine_tuning.json into the run folder."""
    save_pretrained(model, folder.path / "model")
    atomic_write_json(folder.path / RECORD, record)
