"""A trained denoiser draws images on a device: one broadcast job, one circuit an image.

    config.json  manifest.json  model/ (the denoiser)  circuit/ (the whole reverse process, compiled; the snapshot)
    circuit.json                what `read_compiled` needs besides
    starts.safetensors          starts x_T, labels, and the angles sent
    jobs.json                   whenever the run stops: what is known of its jobs (`hardware.provenance.record`)
    results.json  report.html   at the end

The folder holds its own copies of the model, the compiled circuit and the angles, so that an evaluation that goes on
tomorrow asks for the same circuits as today, and finds them in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.config import Config
from qhw_diffusion.denoising.command import KIND as DENOISER
from qhw_diffusion.denoising.deferred import (
    Denoised,
    compile_deferred,
    deferred_inputs,
    deferred_weights,
    denoised,
    plain_shots,
)
from qhw_diffusion.denoising.models import AmplitudeQDM
from qhw_diffusion.denoising.quotient import quotient_of
from qhw_diffusion.denoising.readout import check_resolvable
from qhw_diffusion.denoising.saving import from_pretrained, save_pretrained
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MemoryBudgetError
from qhw_diffusion.execution import CompiledCircuit, Noisy
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.execution.saving import read_compiled, write_compiled
from qhw_diffusion.mitigation import check_strategies, strategies_of
from qhw_diffusion.mitigation.strategy import Need
from qhw_diffusion.on_device.receipt import Access, Receipt, run_name
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, read_json

KIND = "device-denoising"
CIRCUIT, CIRCUIT_FILE, STARTS, PURPOSE = "circuit", "circuit.json", "starts.safetensors", "images"
# More would not fit into memory, as images or as parameters
MOST_IMAGES = 100_000
# Qubits of a circuit that is predicted by density matrices of all of it
_MOST_TOGETHER = 8


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """What decides the numbers of an evaluation on a device; it goes on with exactly these."""

    run: str
    """Run folder of the trained denoiser."""
    device: str
    """Device the circuits run on."""
    shots: int
    """Shots of each circuit."""
    images: int = 32
    """Images: rows of the job."""
    seed: int = 0
    """Seed of the starts x_T."""
    resilience_level: int | None = None
    """Resilience level of the runtime client; None leaves it to the engine."""
    mitigation: str = ""
    """Strategies of `qhw_diffusion.mitigation`, such as "readout+zne"."""
    ledger: str = ""
    """Folder of the ledger that holds the jobs."""

    def __post_init__(self) -> None:
        strategies_of(self.mitigation)  # a mistyped strategy is told now
        for name in ("shots", "images"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}; allowed: whole numbers from 1")
        if self.images > MOST_IMAGES:
            raise InvalidInputError(f"images is {self.images}; allowed: up to {MOST_IMAGES:,}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise InvalidInputError(f"seed is {self.seed!r}; allowed: whole numbers of 64 bits")


@dataclass(frozen=True)
class Predicted:
    """What a simulation says of the same starts.

    Attributes:
        name: of the simulation, for tables.
        probabilities: [B, d], of the outcomes of the shots that pass, as they are read.
        success: [B].
        images: [B, C, H, W].
    """

    name: str
    probabilities: Tensor
    success: Tensor
    images: Tensor


@dataclass(frozen=True)
class Prepared:
    """An evaluation's folder, opened: everything it needs that does not change any more.

    Attributes:
        folder: the run folder.
        asked: its settings.
        model: the denoiser.
        compiled: its deferred circuit on the device.
        starts: x_T, [B, d] or [B, d, d].
        labels: int64 [B], or None without conditioning.
        rows: [B, inputs + weights] angles that are sent.
        predictions: with the device's noise first, then without any.
    """

    folder: RunFolder
    asked: EvaluationConfig
    model: AmplitudeQDM
    compiled: CompiledCircuit
    starts: Tensor
    labels: Tensor | None
    rows: Tensor
    predictions: tuple[Predicted, ...]


@dataclass(frozen=True)
class Measured:
    """What came back: ⟨P Z^s⟩ and what they say of the images; the jobs' receipt."""

    denoised: Denoised
    receipt: Receipt = field(default_factory=Receipt)


def prepare(
    asked: EvaluationConfig,
    out: Path,
    *,
    resume: bool,
    overwrite: bool = False,
    command: str | None = None,
    device: Device | None = None,
) -> Prepared:
    """Make the evaluation's folder with its copies of model, circuit and angles, or open it to go on.

    Args:
        asked: what decides its numbers.
        out: the folder.
        resume: go on.
        overwrite: as in `RunFolder.create`.
        command: command line that the folder records.
        device: `asked.device`, when it is loaded already.

    Raises:
        RunFolderError: a folder in use, or started with other settings.
        InvalidInputError: a model that keeps outcomes or is wider than the device, a strategy that cannot treat the
            circuit, or a success probability that the shots do not resolve: the message says how many it takes.
    """
    if resume:
        folder = RunFolder.open(out, kind=KIND)
        folder.require_settings({"evaluation": asked.to_dict()})
        if (out / STARTS).exists():
            return _opened(asked, folder)
        return _opened(asked, folder, _fill(asked, out, _made(asked, device)))  # left before anything was sent
    check_place(out, kind=KIND, overwrite=overwrite)
    made = _made(asked, device)
    config = {"evaluation": asked.to_dict()}
    folder = RunFolder.create(out, kind=KIND, config=config, command=command, overwrite=overwrite)
    try:
        return _opened(asked, folder, _fill(asked, out, made))
    except BaseException:
        folder.discard()
        raise


def compiled_for(model: AmplitudeQDM, device: Device, mitigation: str = "") -> CompiledCircuit:
    """The deferred circuit on the device, scheduled if one of the strategies needs that; strategies are checked.

    Raises:
        InvalidInputError: what `compile_deferred` and `check_strategies` raise.
    """
    strategies = strategies_of(mitigation)
    scheduled = any(Need.SCHEDULE in strategy.needs for strategy in strategies)
    compiled = compile_deferred(model, device, scheduled=scheduled)
    check_strategies(strategies, compiled)
    return compiled


def load_denoiser(folder: str | Path) -> AmplitudeQDM:
    """The model in a run folder of `qhw train denoising`."""
    run = RunFolder.open(folder, kind=DENOISER)
    with run.whole():
        model = from_pretrained(run.path / "model")
    assert isinstance(model, AmplitudeQDM)
    return model


@dataclass(frozen=True)
class _Made:
    """What an evaluation sends and what it predicts, as in `Prepared`."""

    model: AmplitudeQDM
    compiled: CompiledCircuit
    starts: Tensor
    labels: Tensor | None
    rows: Tensor
    predictions: tuple[Predicted, ...]


def _made(asked: EvaluationConfig, device: Device | None) -> _Made:
    """All of it from the denoiser's run folder; refused here what cannot run."""
    model = load_denoiser(asked.run)
    compiled = compiled_for(model, device or Device.load(asked.device), asked.mitigation)
    n_labels = model.reverse.config.n_labels
    labels = torch.arange(asked.images) % n_labels if n_labels > 1 else None
    starts = model.forward_process.prior(asked.images, model.dim, torch.Generator().manual_seed(asked.seed))
    rows = rows_of(deferred_inputs(model, starts, labels), deferred_weights(model).double())
    predictions = predictions_of(model, compiled, starts, labels, rows)
    check_resolvable(predictions[0].success.clamp(max=1), asked.shots, model.dim)
    return _Made(model, compiled, starts, labels, rows, tuple(predictions))


def _fill(asked: EvaluationConfig, out: Path, made: _Made) -> tuple[Predicted, ...]:
    """Copies of what is sent; the starts come last and say that all is there. Returns the predictions."""
    save_pretrained(made.model, out / "model")
    (out / CIRCUIT).mkdir(exist_ok=True)
    atomic_write_json(out / CIRCUIT_FILE, write_compiled(made.compiled, out / CIRCUIT))
    tensors = {"starts": made.starts, "rows": made.rows} | ({} if made.labels is None else {"labels": made.labels})
    write_tensors(out / STARTS, tensors, {"seed": asked.seed}, kind="starts")
    return made.predictions


def _opened(asked: EvaluationConfig, folder: RunFolder, predictions: tuple[Predicted, ...] | None = None) -> Prepared:
    """The evaluation out of its folder's files."""
    out = folder.path
    model = from_pretrained(out / "model")
    assert isinstance(model, AmplitudeQDM)
    tensors, _ = read_tensors(out / STARTS, kind="starts")
    try:
        compiled = read_compiled(out / CIRCUIT, read_json(out / CIRCUIT_FILE))
        starts, rows, labels = tensors["starts"], tensors["rows"], tensors.get("labels")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{out} does not hold a whole evaluation of a denoiser ({error!r})") from error
    if predictions is None:
        predictions = tuple(predictions_of(model, compiled, starts, labels, rows))
    return Prepared(folder, asked, model, compiled, starts, labels, rows, predictions)


@torch.no_grad()
def predictions_of(
    model: AmplitudeQDM, compiled: CompiledCircuit, starts: Tensor, labels: Tensor | None, rows: Tensor
) -> list[Predicted]:
    """The same starts simulated: with the noise of the device's calibration, and without any.

    With noise it is the whole circuit where it is small enough, preparation and layout included; else step by step,
    with a perfect start and each step on its own best qubits; left out where not even one step fits into memory.
    """
    device, found = compiled.device, []
    if device.has_noise and len(compiled.physical_qubits) <= _MOST_TOGETHER:
        estimate = Noisy().estimate(compiled, rows)
        read = quotient_of(estimate.values, estimate.std_errors)
        found.append(
            Predicted(
                f"simulated, noise of {device.name}",
                read.distribution,
                read.success,
                model.decode(read.magnitudes[0].float()),
            )
        )
    elif device.has_noise:
        try:
            noisy = model.on(device=device, engine="noisy")
            found.append(_stepwise(noisy, starts, labels, f"simulated step by step, noise of {device.name}"))
        except MemoryBudgetError:
            pass
    found.append(_stepwise(model.on(engine="ideal"), starts, labels, "simulated, no noise"))
    return found


def _stepwise(model: AmplitudeQDM, starts: Tensor, labels: Tensor | None, name: str) -> Predicted:
    chain = model.reverse.run(starts, labels)
    probabilities = model.reverse.outcome_probabilities(chain.states).double()
    return Predicted(name, probabilities, chain.probability.double(), model.images(chain.states))


def purpose_of(prepared: Prepared) -> str:
    """What the ledger files the job under."""
    return f"{run_name(prepared.folder, prepared.asked.device)} {PURPOSE}"


def measure(prepared: Prepared, access: Access) -> Measured:
    """All images by one call of the device's engine, or out of the ledger what has run."""
    purpose = purpose_of(prepared)
    engine = access.engine(purpose)
    engine.check(prepared.compiled)
    estimate = engine.estimate(prepared.compiled, prepared.rows)
    found = denoised(prepared.model, estimate, plain_shots(engine, estimate))
    return Measured(found, access.receipt(purpose))


# -- what it says ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageCheck:
    """One image, measured against predictions.

    Attributes:
        success: measured; nan-free.
        success_error: its standard error.
        kept: shots that passed, or as many as would have such errors.
        distances: total variation distance of its distribution to that of every prediction; NaN if not resolved.
        expected_distance: what the standard errors alone would give.
    """

    success: float
    success_error: float
    kept: float
    distances: tuple[float, ...]
    expected_distance: float


def check_images(prepared: Prepared, measured: Measured) -> list[ImageCheck]:
    """One check an image: ½ Σ |p − p'|, and for independent normal errors ½ Σ σ √(2/π) expected of them alone."""
    read = measured.denoised.read
    own, errors = read.distribution, read.probability_errors
    missing = ~read.resolved
    gaps = [
        (0.5 * (own - each.probabilities).abs().sum(1)).masked_fill(missing, torch.nan) for each in prepared.predictions
    ]
    expected = (0.5 * (2 / torch.pi) ** 0.5 * errors.sum(1)).masked_fill(missing, torch.nan)
    return [
        ImageCheck(
            float(read.success[b]),
            float(read.success_errors[b]),
            float(read.kept[b]),
            tuple(float(gap[b]) for gap in gaps),
            float(expected[b]),
        )
        for b in range(len(own))
    ]


def results_of(prepared: Prepared, measured: Measured, judged: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What results.json holds."""
    checks = check_images(prepared, measured)
    images = measured.denoised.images
    assert images is not None
    device = prepared.compiled.device
    return {
        "evaluation": prepared.asked.to_dict(),
        "device": prepared.compiled.summary(f"{CIRCUIT}/device.snapshot.json.gz"),
        "predicted_with": {"date": device.date, "snapshot": device.fingerprint},
        **measured.receipt.to_dict(),
        "predictions": [
            {"name": each.name, "success": each.success.tolist(), "probabilities": each.probabilities.tolist()}
            for each in prepared.predictions
        ],
        "measured": {
            "success": _plain(measured.denoised.read.success),
            "success_errors": _plain(measured.denoised.read.success_errors),
            "probabilities": _plain(measured.denoised.read.probabilities),
            "probability_errors": _plain(measured.denoised.read.probability_errors),
            "images": _plain(images.images),
            "pixel_errors": _plain(images.std_errors),
        },
        "labels": None if prepared.labels is None else prepared.labels.tolist(),
        "distances": [[_number(d) for d in check.distances] for check in checks],
        "expected_distances": [_number(check.expected_distance) for check in checks],
        "judged": {name: dict(values) for name, values in judged.items()},
    }


def _plain(values: Tensor) -> Any:
    """Nested lists of JSON numbers; None for what is NaN or infinite."""
    if values.ndim == 0:
        return _number(float(values))
    return [_plain(value) for value in values]


def _number(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
