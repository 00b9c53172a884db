"""The fine-tuning study: denoisers trained under one calibration, tuned on a device with another.

    model   a latent denoiser of digits, trained under the noise of the device's snapshot
    day     the device drifted (`devices.drifted`): updates on it with the surrogate gradient and with SPSA, values
            sampled under its noise; the same updates simulated under the old calibration; the same and many updates
            with exact values and exact gradients under the new one (the oracle); and no updates. The first seeds also
            by `qhw fine-tune`'s own way: runner, ledger, Aer

All are compared under the new calibration's exact noise, deferred circuit, on the same starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.denoising.command import REVERSE, TRAIN, DenoiserTraining, train_denoiser
from qhw_diffusion.denoising.models import AmplitudeQDM
from qhw_diffusion.denoising.on_device.evaluation import compiled_for, load_denoiser
from qhw_diffusion.denoising.on_device.fine_tune import (
    DeviceTask,
    Values,
    device_loss,
    prepare_tuning,
    tune,
    work_of,
)
from qhw_diffusion.denoising.on_device.fine_tune_command import compare
from qhw_diffusion.denoising.on_device.settings import DenoiserTuningConfig
from qhw_diffusion.denoising.training import TrainConfig, train_qdm, train_task
from qhw_diffusion.devices import Device, drifted
from qhw_diffusion.diffusion import Classifier, ImageDataset, evaluate_samples, load_dataset
from qhw_diffusion.execution import CompiledCircuit, Noisy, Shots, Usage
from qhw_diffusion.execution.cost import qpu_cost
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.on_device.access import AccessConfig, open_access
from qhw_diffusion.on_device.receipt import run_name
from qhw_diffusion.runs import Place
from qhw_diffusion.studies.tuning.page import page

GRADIENTS = ("surrogate", "spsa")
BY_AER = "surrogate by Aer"


@dataclass(frozen=True)
class TuningStudyConfig(Config):
    """Denoisers trained under one calibration, tuned on a device with another."""

    device: str = "fake_marrakesh"
    """Device whose snapshot the denoisers are trained under."""
    worse: tuple[float, ...] = (1.0, 3.0)
    """Days: the factor that all errors of the drifted device have in common."""
    spread: float = 0.5
    """Standard deviation of the logarithm of each value's own factor."""
    n_steps: int = 2
    """Steps of the denoiser."""
    depth: int = REVERSE.depth
    """Layers of a step."""
    iterations: int = TRAIN.iterations
    """Updates of the training."""
    shots: int = 4096
    """Shots per circuit on the device."""
    updates: int = 10
    """Updates on the device, and of the controls."""
    many: int = 200
    """Updates of the oracle and of the simulated control that have as many as they like."""
    learning_rate: float = 0.01
    """Learning rate of all of them."""
    images: int = 500
    """Images of a comparison."""
    starts: int = 3
    """Comparisons, each from starts of its own, averaged for each seed."""
    by_aer: int = 1
    """Seeds whose surrogate updates are made by runner, ledger and Aer as well."""
    seeds: int = 6
    """Seeds: of the denoiser, its training, the drift, and the updates."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_whole(self, "n_steps", "depth", "iterations", "shots", "updates", "many", "starts", "seeds")
        check_whole(self, "images", least=20)
        check_whole(self, "by_aer", least=0)
        require(len(self.worse) >= 1 and min(self.worse) > 0, f"worse must be positive numbers, got {self.worse}")
        require(self.spread >= 0, f"spread is {self.spread}; allowed: numbers from 0")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; allowed: positive numbers")


QUICK = TuningStudyConfig(worse=(3.0,), iterations=20, updates=2, many=4, images=100, starts=1, by_aer=0, seeds=2)


def cells(config: TuningStudyConfig) -> list[Cell]:
    """One denoiser a seed, and one cell a day and seed."""
    found = []
    rows = 4.0 ** (config.n_steps - 2)
    for seed in range(config.seeds):
        model = f"model-seed{seed}"
        seconds = 10 + 0.02 * config.iterations * config.n_steps
        found.append(Cell(model, {"part": "model", "seed": seed}, (), seconds, f"denoiser, seed {seed}"))
        for worse in config.worse:
            parameters = {"part": "day", "worse": worse, "seed": seed}
            work = 20 + rows * (0.1 * config.many + 0.5 * config.updates + 0.01 * config.images * config.starts)
            found.append(Cell(f"day{worse:g}-seed{seed}", parameters, (model,), work, f"day ×{worse:g}, seed {seed}"))
    return found


def run_cell(config: TuningStudyConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    seed = cell["seed"]
    if cell["part"] == "model":
        return train_model(config, seed, folder)
    return {"rows": day(config, cell["worse"], seed, folder)}


def train_model(config: TuningStudyConfig, seed: int, folder: Path) -> dict[str, float]:
    """Train the denoiser of a seed, and measure it under the calibration it was trained under."""
    out = model_folder(folder, seed)
    training = DenoiserTraining(
        reverse=REVERSE.replace(
            n_steps=config.n_steps, depth=config.depth, device=config.device, engine="noisy", seed=seed
        ),
        train=TRAIN.replace(iterations=config.iterations),
    )
    train_denoiser(training, Place(out, resume=out.exists()))
    model, (classifier, heldout) = load_denoiser(out), judges()
    compiled = compiled_for(model, Device.load(config.device))
    found = compare(
        {"model": model}, compiled, classifier, heldout, seeds=config.starts, images=config.images
    )  # fmt: skip
    # what the decoder can do at most: training images through the autoencoder, without any denoiser
    data = load_dataset("digits", "train", None)
    images, labels = data.images[: config.images], data.labels[: config.images]
    best = evaluate_samples(model.decode(model.encode(images).abs()), labels, classifier, heldout)
    return {**means(found["model"]), "decoder_energy": best["energy"], "decoder_fd": best["fd"]}


def day(config: TuningStudyConfig, worse: float, seed: int, folder: Path) -> list[dict[str, Any]]:
    """All that is done with the denoiser of a seed on one day."""
    name = f"day{worse:g}-seed{seed}"
    device = drifted(Device.load(config.device), seed=seed, spread=config.spread, worse=worse)
    file = device.save(folder / "days" / f"{name}.json.gz")
    asked = {
        gradient: DenoiserTuningConfig(
            run=str(model_folder(folder, seed)),
            device=str(file),
            shots=config.shots,
            gradient=gradient,
            updates=config.updates,
            learning_rate=config.learning_rate,
            seed=seed,
            ledger=str(folder / "ledger" / name),
        )
        for gradient in GRADIENTS
    }
    setup = Setup.of(asked["surrogate"], device)
    players, costs = {"none": setup.model()}, {}
    for gradient, each in asked.items():
        players[gradient], costs[gradient] = sampled_updates(setup, each)
    players |= controls(config, setup)
    if seed < config.by_aer:
        players[BY_AER] = aer_updates(asked["surrogate"], folder / "tuned" / name)
    classifier, heldout = judges()
    found = compare(players, setup.compiled, classifier, heldout, seeds=config.starts, images=config.images)
    return [{"variant": key, **means(values), **costs.get(key, {})} for key, values in found.items()]


@dataclass(frozen=True)
class Setup:
    """What all updates of one denoiser on one day share: run folder, circuit, data, settings of the updates."""

    run: str
    compiled: CompiledCircuit
    data: ImageDataset
    settings: TrainConfig

    @classmethod
    def of(cls, asked: DenoiserTuningConfig, device: Device) -> Setup:
        """As `qhw fine-tune` would have it."""
        data = load_dataset("digits", "train", None)
        model = load_denoiser(asked.run)
        settings, _ = device_loss(TRAIN, asked)
        return cls(asked.run, compiled_for(model, device), data, settings)

    def model(self) -> AmplitudeQDM:
        """The denoiser as it was trained."""
        return load_denoiser(self.run)

    def task(self, values: Values | None = None, *, shots: int | None = None, iterations: int = 0) -> DeviceTask:
        """A training of it; `iterations` where they are not those of the settings."""
        settings = self.settings.replace(iterations=iterations or self.settings.iterations)
        return DeviceTask(self.model(), self.data.images, self.data.labels, settings, values, shots)


def sampled_updates(setup: Setup, asked: DenoiserTuningConfig) -> tuple[AmplitudeQDM, dict[str, float]]:
    """Updates on values sampled under the day's noise; the denoiser, and circuits and QPU seconds as announced."""
    task, engine, circuits = setup.task(shots=asked.shots), Shots(asked.shots, seed=asked.seed), [0]

    def count(usage: Usage) -> None:
        circuits[0] += usage.circuits

    def ask(update: int, metrics: Mapping[str, float] | None = None) -> None:
        method = asked.method(update)
        task.values = lambda inputs, weights: method(engine, setup.compiled, inputs, weights, count)

    ask(0)
    train_task(task, on_update=lambda update, metrics: ask(update + 1))
    work = work_of(asked, setup.compiled, task.config, len(task.groups))
    told = [qpu_cost(engine, setup.compiled, rows, shots=asked.shots, calls=calls) for rows, calls in work.values()]
    assert isinstance(task.model, AmplitudeQDM)
    return task.model, {"circuits": circuits[0], "qpu_seconds": sum(cost.seconds for cost in told)}


def aer_updates(asked: DenoiserTuningConfig, out: Path) -> AmplitudeQDM:
    """The same by runner, ledger and Aer: what `qhw fine-tune` does."""
    tuning = prepare_tuning(asked, out, resume=out.exists())
    access_config = AccessConfig(asked.device, asked.shots, ledger=asked.ledger)
    with tuning.folder, open_access(access_config, run_name(tuning.folder, asked.device)) as access:
        return tune(tuning, access, resume=True)[0]


def controls(config: TuningStudyConfig, setup: Setup) -> dict[str, AmplitudeQDM]:
    """Updates under the old calibration; updates with exact values and gradients under the new one."""
    noisy = Noisy()
    found: dict[str, AmplitudeQDM] = {}
    for ending, count in (("", config.updates), (" many", config.many)):
        simulated = setup.model()
        settings = setup.settings.replace(iterations=count)
        train_qdm(simulated, setup.data.images, settings, labels=setup.data.labels)
        task = setup.task(lambda inputs, weights: noisy.expectation(setup.compiled, inputs, weights), iterations=count)
        train_task(task)
        assert isinstance(task.model, AmplitudeQDM)
        found |= {f"simulated{ending}": simulated, f"oracle{ending}": task.model}
    return found


def means(values: Mapping[str, list[float]]) -> dict[str, float]:
    """Each metric's mean over the comparisons."""
    return {key: sum(each) / len(each) for key, each in values.items()}


def judges() -> tuple[Classifier, Any]:
    """The evaluation classifier of the digits, and held-out images."""
    return Classifier.load("digits", "evaluation"), load_dataset("digits", "heldout", None)


def model_folder(folder: Path, seed: int) -> Path:
    """Run folder of a seed's denoiser."""
    return folder / "models" / f"seed{seed}"


STUDY = Study(
    "tuning",
    "Fine-tuning denoisers on a device that has drifted",
    TuningStudyConfig,
    cells,
    run_cell,
    page,
    summary="denoisers trained under one calibration, tuned on a device with another",
    row_parameters=("variant",),
    quick=QUICK,
)
