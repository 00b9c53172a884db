"""A trained denoiser draws images on a device: one broadcast job, one circuit an image, by an Estimator or a Sampler.

    config.json  manifest.json  model/ (the denoiser)  circuit/ (the whole reverse process, compiled; the snapshot)
    circuit.json                what `read_compiled` needs besides, and of a Sampler the names of its circuits' angles
    starts.safetensors          starts x_T, labels, and the angles sent
    jobs.json                   whenever the run stops: what is known of its jobs (`hardware.provenance.record`)
    results.json  report.html   at the end

The folder holds its own copies of the model, the compiled circuit and the angles, so that an evaluation that goes on
tomorrow asks for the same circuits as today, and finds them in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from qiskit.circuit import Parameter
from qiskit.quantum_info import SparsePauliOp
from torch import Tensor

from qhw_diffusion.checkpoints import read_tensors, write_tensors
from qhw_diffusion.circuits import load_circuit, save_circuit
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
from qhw_diffusion.denoising.on_device.predictions import (
    Predicted,
    check_histories,
    predictions_of,
    record_predictions_of,
)
from qhw_diffusion.denoising.on_device.sampler import DenoiserSampler
from qhw_diffusion.denoising.readout import check_resolvable
from qhw_diffusion.denoising.saving import from_pretrained, save_pretrained
from qhw_diffusion.devices import Device
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, reason_of
from qhw_diffusion.execution import CompiledCircuit, Estimate, SamplerEngine
from qhw_diffusion.execution.engine import rows_of
from qhw_diffusion.execution.measurement import z_signs
from qhw_diffusion.execution.records import measured_at_end
from qhw_diffusion.execution.saving import read_compiled, write_compiled
from qhw_diffusion.hardware.service import SamplerPub
from qhw_diffusion.mitigation import check_strategies, strategies_of
from qhw_diffusion.mitigation.strategy import Need
from qhw_diffusion.on_device.receipt import Access, Receipt, run_name
from qhw_diffusion.on_device.settings import OnDeviceConfig, check_drawn
from qhw_diffusion.runs import RunFolder, atomic_write_json, check_place, read_json

KIND = "device-denoising"
CIRCUIT, CIRCUIT_FILE, STARTS, PURPOSE = "circuit", "circuit.json", "starts.safetensors", "images"
# More would not fit into memory, as images or as parameters
MOST_IMAGES = 100_000
# Files of a Sampler's circuits, by label
_SAMPLED = "sampled-{label}"


@dataclass(frozen=True)
class EvaluationConfig(OnDeviceConfig):
    """What decides the numbers of an evaluation on a device; it goes on with exactly these."""

    images: int = 32
    """Images: rows of the job."""
    seed: int = 0
    """Seed of the starts x_T."""
    primitive: Literal["estimator", "sampler"] = "estimator"
    """What reads the circuits: an Estimator (expectation values) or a Sampler (outcome records of single shots)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.primitive not in ("estimator", "sampler"):
            raise InvalidInputError(f"primitive is {self.primitive!r}; allowed: estimator, sampler")
        for flag, given in (("resilience_level", self.resilience_level), ("mitigation", self.mitigation)):
            if self.primitive == "sampler" and given:
                raise InvalidInputError(
                    f"{flag} {given} corrects expectation values, and a Sampler reads single shots: leave it out, or "
                    "take the Estimator (primitive estimator), which post-selected and reset models run by"
                )
        check_drawn(self.images, self.seed, MOST_IMAGES)


@dataclass(frozen=True)
class Prepared:
    """An evaluation's folder, opened: everything it needs that does not change any more.

    Attributes:
        folder: the run folder.
        asked: its settings.
        model: the denoiser.
        compiled: its circuit on the device: deferred, or by a Sampler that of one label.
        starts: x_T, [B, d] or [B, d, d].
        labels: int64 [B], or None without conditioning.
        rows: [B, inputs + weights] angles that are sent.
        predictions: with the device's noise first, then without any; none for a model that keeps its outcomes until
            they are known (`with_predictions`).
        sampler: the circuits of a Sampler; None for an Estimator.
    """

    folder: RunFolder
    asked: EvaluationConfig
    model: AmplitudeQDM
    compiled: CompiledCircuit
    starts: Tensor
    labels: Tensor | None
    rows: Tensor
    predictions: tuple[Predicted, ...]
    sampler: DenoiserSampler | None = None

    @property
    def keeps_outcomes(self) -> bool:
        """Whether every image belongs to an outcome history of its own."""
        return self.model.reverse.config.kind == "measured"

    def pubs(self, engine: SamplerEngine) -> list[tuple[SamplerPub, Tensor]]:
        """What a Sampler is sent, with the numbers of the images in each."""
        assert self.sampler is not None
        return self.sampler.pubs(engine, self.starts, self.labels, values=self.rows.numpy())


@dataclass(frozen=True)
class Measured:
    """What came back.

    Attributes:
        denoised: ⟨P Z^s⟩, of a Sampler by its counts, and what they say of the images.
        receipt: of the jobs.
        outcomes: int64 [B, T], the histories of the images, where a Sampler kept them; None else.
    """

    denoised: Denoised
    receipt: Receipt = field(default_factory=Receipt)
    outcomes: Tensor | None = None


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
        InvalidInputError: a model that keeps outcomes for an Estimator, or that the device is too small for or lacks
            something for; a strategy that cannot treat the circuit; a success probability, or a probability of an
            outcome history, that the shots do not resolve: the message says how many it takes.
    """
    if resume:
        folder = RunFolder.open(out, kind=KIND)
        folder.require_settings({"evaluation": asked.to_dict()}, read=_completed)
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


def _completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of a folder, also of an earlier version."""
    return {"evaluation": EvaluationConfig.from_dict(saved["evaluation"]).to_dict()}


def primitive_of(model: AmplitudeQDM, asked: str | None = None) -> Literal["estimator", "sampler"]:
    """The primitive asked for, or the one that fits the model: a Sampler where outcomes are kept.

    Raises:
        InvalidInputError: there is no such primitive.
    """
    if asked is None:
        return "sampler" if model.reverse.config.kind == "measured" else "estimator"
    if asked not in ("estimator", "sampler"):
        raise InvalidInputError(f"primitive is {asked!r}; allowed: estimator, sampler")
    return "sampler" if asked == "sampler" else "estimator"


def shown_circuit(sampler: DenoiserSampler, labels: Tensor | None) -> CompiledCircuit:
    """A Sampler's circuit as a `CompiledCircuit`, for layouts and costs: of the labels the one with the most gates.

    Measurements at the end are left out, as they are of an Estimator's circuit.
    """
    circuit = max((circuit for circuit, _ in sampler.compiled(labels).values()), key=lambda c: c.num_nonlocal_gates())
    isa = circuit
    if measured_at_end(circuit) is not None:
        isa = circuit.copy_empty_like()
        for instruction in circuit.data:
            if instruction.operation.name != "measure":
                isa.append(instruction)
    used = {circuit.find_bit(q).index for i in circuit.data if i.operation.name != "barrier" for q in i.qubits}
    qubits = tuple(sorted(used))
    string = SparsePauliOp.from_sparse_list([("Z", [qubits[0]], 1.0)], circuit.num_qubits)
    seed, level = sampler.model.reverse.config.seed, sampler.optimization_level
    return CompiledCircuit(isa, sampler.device, tuple(isa.parameters), (), (string,), qubits, seed, level)


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
    sampler: DenoiserSampler | None = None


def _made(asked: EvaluationConfig, device: Device | None) -> _Made:
    """All of it from the denoiser's run folder; refused here what cannot run."""
    model = load_denoiser(asked.run)
    device = device or Device.load(asked.device)
    n_labels = model.reverse.config.n_labels
    labels = torch.arange(asked.images) % n_labels if n_labels > 1 else None
    starts = model.forward_process.prior(asked.images, model.dim, torch.Generator().manual_seed(asked.seed))
    if asked.primitive == "sampler":
        return _made_sampled(asked, model, device, starts, labels)
    compiled = compiled_for(model, device, asked.mitigation)
    rows = rows_of(deferred_inputs(model, starts, labels), deferred_weights(model).double())
    predictions = predictions_of(model, compiled, starts, labels, rows)
    check_resolvable(predictions[0].success.clamp(max=1), asked.shots, model.dim)
    return _Made(model, compiled, starts, labels, rows, tuple(predictions))


def _made_sampled(
    asked: EvaluationConfig, model: AmplitudeQDM, device: Device, starts: Tensor, labels: Tensor | None
) -> _Made:
    sampler = DenoiserSampler(model, device)
    compiled = shown_circuit(sampler, labels)
    rows = torch.from_numpy(sampler.values(starts, labels))
    if model.reverse.config.kind == "measured":
        check_histories(sampler, starts, labels, asked.shots, asked.seed)
        return _Made(model, compiled, starts, labels, rows, (), sampler)
    predictions = record_predictions_of(sampler, compiled, starts, labels, rows)
    check_resolvable(predictions[0].success.clamp(max=1), asked.shots, model.dim)
    return _Made(model, compiled, starts, labels, rows, tuple(predictions), sampler)


def _fill(asked: EvaluationConfig, out: Path, made: _Made) -> tuple[Predicted, ...]:
    """Copies of what is sent; the starts come last and say that all is there. Returns the predictions."""
    save_pretrained(made.model, out / "model")
    (out / CIRCUIT).mkdir(exist_ok=True)
    saved = write_compiled(made.compiled, out / CIRCUIT)
    if made.sampler is not None:
        saved["sampled"] = _write_sampled(made.sampler, made.labels, out / CIRCUIT)
    atomic_write_json(out / CIRCUIT_FILE, saved)
    tensors = {"starts": made.starts, "rows": made.rows} | ({} if made.labels is None else {"labels": made.labels})
    write_tensors(out / STARTS, tensors, {"seed": asked.seed}, kind="starts")
    return made.predictions


def _write_sampled(sampler: DenoiserSampler, labels: Tensor | None, folder: Path) -> dict[str, Any]:
    """The circuits of a Sampler as files; returns what `_read_sampled` needs besides."""
    circuits = sampler.compiled(labels)
    for label, (circuit, _) in circuits.items():
        save_circuit(circuit, folder, _SAMPLED.format(label=label))
    return {"way": sampler.way, "parameters": {str(y): [p.name for p in ps] for y, (_, ps) in circuits.items()}}


def _read_sampled(model: AmplitudeQDM, device: Device, saved: Mapping[str, Any], folder: Path) -> DenoiserSampler:
    circuits = {}
    for label, names in saved["parameters"].items():
        circuit = load_circuit(folder / f"{_SAMPLED.format(label=label)}.qpy")
        there = {parameter.name: parameter for parameter in circuit.parameters}
        circuits[int(label)] = circuit, tuple(there.get(name) or Parameter(name) for name in names)
    return DenoiserSampler(model, device, way=saved["way"], circuits=circuits)


def _opened(asked: EvaluationConfig, folder: RunFolder, predictions: tuple[Predicted, ...] | None = None) -> Prepared:
    """The evaluation out of its folder's files."""
    out = folder.path
    model = from_pretrained(out / "model")
    assert isinstance(model, AmplitudeQDM)
    tensors, _ = read_tensors(out / STARTS, kind="starts")
    try:
        saved = read_json(out / CIRCUIT_FILE)
        compiled = read_compiled(out / CIRCUIT, saved)
        sampler = None
        if asked.primitive == "sampler":
            sampler = _read_sampled(model, compiled.device, saved["sampled"], out / CIRCUIT)
        starts, rows, labels = tensors["starts"], tensors["rows"], tensors.get("labels")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{out} does not hold a whole evaluation of a denoiser ({reason_of(error)})") from error
    if predictions is None and sampler is None:
        predictions = tuple(predictions_of(model, compiled, starts, labels, rows))
    found = Prepared(folder, asked, model, compiled, starts, labels, rows, predictions or (), sampler)
    return with_predictions(found) if predictions is None and not found.keeps_outcomes else found


def with_predictions(prepared: Prepared, outcomes: Tensor | None = None) -> Prepared:
    """The evaluation with the predictions of a Sampler, where outcomes are kept of these histories [B, T]."""
    if prepared.sampler is None:
        return prepared
    made = record_predictions_of(
        prepared.sampler, prepared.compiled, prepared.starts, prepared.labels, prepared.rows, outcomes
    )
    return replace(prepared, predictions=tuple(made))


def purpose_of(prepared: Prepared) -> str:
    """What the ledger files the job under."""
    return f"{run_name(prepared.folder, prepared.asked.device)} {PURPOSE}"


def measure(prepared: Prepared, access: Access) -> Measured:
    """All images by one call of the device's engine, or out of the ledger what has run."""
    purpose = purpose_of(prepared)
    if prepared.sampler is not None:
        return _sampled(prepared, access.sampler(purpose), access.receipt, purpose)
    engine = access.engine(purpose)
    engine.check(prepared.compiled)
    estimate = engine.estimate(prepared.compiled, prepared.rows)
    found = denoised(prepared.model, estimate, plain_shots(engine, estimate))
    return Measured(found, access.receipt(purpose))


def _sampled(prepared: Prepared, engine: SamplerEngine, receipt: Callable[[str], Receipt], purpose: str) -> Measured:
    """By a Sampler: the share of the shots that belong to an image with x is what an Estimator calls q(x)."""
    sampler, kept = prepared.sampler, prepared.keeps_outcomes
    assert sampler is not None
    made = prepared.pubs(engine)
    sampled = engine.sample_many([pub for pub, _ in made])
    counts, outcomes, _ = sampler.count(made, sampled, leave_first=kept)
    shots = engine.shots - kept  # that which chose the history is not counted
    values = counts.double() / shots @ torch.from_numpy(z_signs(prepared.model.reverse.config.n_qubits)).T
    estimate = Estimate(values, torch.zeros_like(values))
    return Measured(denoised(prepared.model, estimate, shots), receipt(purpose), outcomes if kept else None)


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
        "way": "deferred" if prepared.sampler is None else prepared.sampler.way,
        "outcomes": None if measured.outcomes is None else measured.outcomes.tolist(),
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
