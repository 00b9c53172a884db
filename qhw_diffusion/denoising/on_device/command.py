"""`qhw evaluate denoising RUN --device … --shots …`: cost, one job, comparison, report."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.denoising.command import KIND as DENOISER
from qhw_diffusion.denoising.on_device.evaluation import (
    KIND,
    EvaluationConfig,
    Measured,
    Predicted,
    Prepared,
    check_images,
    load_denoiser,
    measure,
    prepare,
    primitive_of,
    purpose_of,
    results_of,
    with_predictions,
)
from qhw_diffusion.denoising.on_device.report import render_evaluation, share_name
from qhw_diffusion.denoising.quotient import Quotient
from qhw_diffusion.diffusion import Classifier, accuracy, evaluate_samples, load_dataset
from qhw_diffusion.on_device.access import AccessConfig, at_device, open_access
from qhw_diffusion.on_device.filed import spent_so_far
from qhw_diffusion.on_device.receipt import run_name
from qhw_diffusion.runs import Place, RunFolder, atomic_write_json

IMAGES = 32
# Below this many images a Fréchet distance says more about their number than about them
_MIN_FD_IMAGES = 100
_QUICK_QUBITS = 9


def denoise_on_device(
    run: Path,
    access_config: AccessConfig,
    place: Place,
    *,
    images: int = IMAGES,
    seed: int = 0,
    primitive: str | None = None,
    evaluation_classifier: str | None = None,
) -> str:
    """Draw images with a trained denoiser on a device, compare them with what was predicted, and write the report.

    Args:
        run: run folder of the denoiser.
        access_config: how circuits get to the device.
        place: folder of the evaluation; its name stands for the run in the ledger.
        images: a circuit each.
        seed: of the starts x_T.
        primitive: "estimator" or "sampler"; None for the one that fits the model, and if that is the Sampler, a line
            says so.
        evaluation_classifier: its folder; None for the one shipped for the data set.

    Returns:
        The text for the terminal.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        QhwError: what the errors of the runner mean is in errors.py.
    """
    one_thread()
    place.check(KIND)
    chosen = primitive_of(load_denoiser(run), primitive)
    asked = EvaluationConfig.through(access_config, run, images=images, seed=seed, primitive=chosen)
    judge = _Judge(run, evaluation_classifier)  # what is missing is told before anything is paid
    prepared = prepare(asked, place.out, resume=place.resume, overwrite=place.overwrite, command=place.command)
    with prepared.folder as folder:
        with open_access(access_config, run_name(folder, asked.device)) as access:
            access.require_cap()
            if primitive is None and chosen == "sampler":
                print(
                    "by a Sampler: this model keeps its outcomes, and an Estimator gives no outcome records", flush=True
                )
            if prepared.sampler is None:
                cost = access.cost(prepared.compiled, asked.images)
            else:
                pubs = [pub for pub, _ in prepared.pubs(access.sampler("estimate"))]
                cost = access.sampling_cost(pubs, prepared.compiled.device)
            print(access.cost_text(cost), flush=True)
            width = len(prepared.compiled.physical_qubits)
            if not access.paid and width > _QUICK_QUBITS:
                print(
                    f"{width} qubits with noise are simulated here: minutes for each image, four times as many for "
                    "every further qubit; a model of fewer steps or ancillas takes less",
                    flush=True,
                )
            with at_device(folder, access):
                measured = measure(prepared, access)
                folder.begin()
            # charges are stated later
            measured = Measured(measured.denoised, access.receipt(purpose_of(prepared)), measured.outcomes)
            paid, spent = access.paid, spent_so_far(access)
        if measured.outcomes is not None:  # only now it is known of which histories the images are
            prepared = with_predictions(prepared, measured.outcomes)
        judged = judge(prepared, measured)
        atomic_write_json(place.out / "results.json", results_of(prepared, measured, judged))
        command = folder.manifest["command"] or place.command
        report = render_evaluation(prepared, measured, judged, mode=access_config.mode, paid=paid, command=command)
        folder.tell(spent)
    return _text(prepared, measured, report)


class _Judge:
    """The evaluation classifier on the images of the device and of every prediction."""

    def __init__(self, run: Path, evaluation_classifier: str | None) -> None:
        config = RunFolder.open(run, kind=DENOISER).config
        self.classifier = Classifier.load(evaluation_classifier or config["data"], "evaluation")
        self.heldout = load_dataset(config["data"], "heldout", config["data_root"])

    def __call__(self, prepared: Prepared, measured: Measured) -> dict[str, dict[str, float]]:
        found = measured.denoised.images
        assert found is not None
        ok = measured.denoised.read.resolved
        if not bool(ok.any()):
            return {}
        every = {f"on {prepared.compiled.device.name}": found.images}
        every |= {each.name: each.images for each in prepared.predictions}
        return {name: self._values(images[ok].float(), prepared.labels, ok) for name, images in every.items()}

    def _values(self, images: Tensor, labels: Tensor | None, ok: Tensor) -> dict[str, float]:
        given = torch.zeros(len(images), dtype=torch.long) if labels is None else labels[ok]
        names = (["accuracy"] if labels is not None else []) + (["fd", "kd"] if len(images) >= _MIN_FD_IMAGES else [])
        if names == ["accuracy"]:
            return {"accuracy": accuracy(self.classifier, images, given)}
        if not names:
            return {}
        values = evaluate_samples(images, given, self.classifier, self.heldout)
        return {name: values[name] for name in names}


def _deviation(read: Quotient, predicted: Predicted) -> str:
    """The standard error of the mean success probability, and how many of them it is off; nothing if unknown.

    Shots of different images are independent. A calibration that they share is not, so under mitigation the true error
    of the mean is somewhat larger.
    """
    error = float(read.success_errors.square().sum().sqrt()) / len(read.success)
    if not 0 < error < float("inf"):
        return ""
    return f" ± {error:.2%} ({float((read.success - predicted.success).mean()) / error:+.1f} standard errors)"


def _text(prepared: Prepared, measured: Measured, report: Path) -> str:
    read, first = measured.denoised.read, prepared.predictions[0]
    checks = [check for check in check_images(prepared, measured) if check.distances[0] == check.distances[0]]
    seconds = measured.receipt.qpu_seconds
    lines = [
        f"jobs: {measured.receipt.jobs_text}" + (f", {seconds:.1f} QPU s" if seconds else ""),
        f"{share_name(prepared)} {float(read.success.mean()):.2%}{_deviation(read, first)} measured, "
        f"{float(first.success.mean()):.2%} predicted ({first.name})",
    ]
    if len(checks) < len(read.success):
        lines.append(f"{len(read.success) - len(checks)} images have a {share_name(prepared)} not told from 0")
    for index, each in enumerate(prepared.predictions):
        if checks:
            mean = sum(check.distances[index] for check in checks) / len(checks)
            alone = sum(check.expected_distance for check in checks) / len(checks)
            lines.append(f"total variation distance an image to {each.name}: {mean:.3f} "
                         f"({alone:.3f} from the error bars alone)")  # fmt: skip
    if prepared.asked.mitigation:
        lines.append("(the predictions with noise are those of values without mitigation)")
    return "\n".join([*lines, f"report: {report}"])
