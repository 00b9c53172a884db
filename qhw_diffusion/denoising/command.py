"""One quantum denoiser: `qhw train denoising` and `qhw evaluate denoising`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from qhw_diffusion.checkpoints import one_thread
from qhw_diffusion.config import Config
from qhw_diffusion.denoising import (
    AmplitudeQDM,
    AutoencoderConfig,
    ForwardConfig,
    LatentAutoencoder,
    LatentQDM,
    ReverseConfig,
    TrainConfig,
    check_qdm_training,
    from_pretrained,
    haar_states,
    save_pretrained,
    train_autoencoder,
    train_qdm,
)
from qhw_diffusion.denoising.states import qubits_for
from qhw_diffusion.diffusion import Classifier, ImageDataset, evaluate_samples, load_dataset, real_floor
from qhw_diffusion.diffusion.datasets import image_shape_of
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.runs import (
    Place,
    RunFolder,
    atomic_write_bytes,
    atomic_write_json,
    check_writable,
    evaluation_metrics,
)

KIND = "denoiser"
MODELS = ("latent", "amplitude")
# Defaults of a training, here and in the denoising study.
REVERSE = ReverseConfig(n_qubits=3, n_steps=4, depth=8, ancillas=1, conditioning="angles", n_labels=10)
TRAIN = TrainConfig("mmd", "joint", iterations=500, batch_size=12, targets=48, kernels=("fidelity", 0.3, 0.1),
                    similarity="measured", learning_rate=0.03, probability_weight=0.002)  # fmt: skip


@dataclass(frozen=True)
class DenoiserTraining(Config):
    """Everything that decides one training of a quantum denoiser."""

    model: str = "latent"
    """Model: latent (in the latent space of an autoencoder) or amplitude (pixels as amplitudes)."""
    data: str = "digits"
    """Data set: digits, mnist16 or another built-in name, module:name or file.py:name."""
    data_root: str | None = None
    """Folder of the data set, in torchvision's layout; digits need none."""
    autoencoder_steps: int = AutoencoderConfig().steps
    """Updates of the autoencoder."""
    reverse: ReverseConfig = REVERSE
    """Reverse process; its number of labels is that of the data set, or one without conditioning."""
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    """Forward process."""
    train: TrainConfig = TRAIN
    """Training; its seed is that of the reverse process."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UnknownNameError.of("model", self.model, MODELS)
        object.__setattr__(self, "train", replace(self.train, seed=self.reverse.seed))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Config.from_dict`; InvalidInputError for the settings of a fine-tuning, which hold more."""
        if isinstance(values, Mapping) and "fine_tune" in values:
            raise InvalidInputError(
                "these are the settings of a fine-tuning on a device: go on with it by qhw fine-tune … --resume, or "
                "train in another folder"
            )
        return super().from_dict(values)

    @classmethod
    def amplitude(cls, data: str = "digits", data_root: str | None = None) -> DenoiserTraining:
        """Defaults of the model of pixels: a qubit for every halving of them.

        On pixels, training by magnitudes alone failed: they are compared by fidelity.
        """
        base = cls(model="amplitude", data=data, data_root=data_root)
        qubits = qubits_for(image_shape_of(data, data_root))
        return base.replace(
            reverse=replace(base.reverse, n_qubits=qubits), train=replace(base.train, similarity="fidelity")
        )


def train_denoiser(training: DenoiserTraining, place: Place) -> str:
    """Train a quantum denoiser, and before it the autoencoder whose latents it works on.

    Args:
        training: everything that decides it.
        place: run folder to write.

    Returns:
        The text to print.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with a checkpoint.
    """
    one_thread()
    place.check(KIND)
    reverse, forward, settings = training.reverse, training.forward, training.train
    data, heldout = (load_dataset(training.data, split, training.data_root) for split in ("train", "heldout"))
    latent = training.model == "latent"
    shape = AutoencoderConfig(data.image_shape, reverse.n_qubits, steps=training.autoencoder_steps)
    # whatever does not fit is told before there is a folder
    model: AmplitudeQDM = (
        LatentQDM(reverse, forward, autoencoder=LatentAutoencoder(shape))
        if latent
        else AmplitudeQDM(reverse, forward, image_shape=data.image_shape)
    )
    labels = data.labels if reverse.n_labels > 1 else None
    check_qdm_training(model, data.images, settings, labels=labels)
    with place.open(KIND, training.to_dict(), read=_read) as run:
        if latent:
            model = LatentQDM(reverse, forward, autoencoder=_autoencoder(run, shape, data, heldout))
            run.begin()  # the autoencoder is worth going on with
        history = train_qdm(model, data.images, settings, labels=labels, run=run, resume=place.goes_on(run))
        if len(history) < settings.iterations * (reverse.n_steps if settings.mode == "greedy" else 1):
            raise KeyboardInterrupt
        save_pretrained(model, run.path / "model")
        run.tell({}, {"charts/samples": lambda: _samples(model)})
    return (
        f"{model.reverse.n_parameters:,} parameters, loss {history[-1]['losses/train']:.4f}; "
        f"saved in {run.path}; evaluate it with: qhw evaluate denoising {run.path}"
    )


def _samples(model: AmplitudeQDM) -> bytes:
    """A PNG: ten labels in columns, or whatever the model has."""
    from qhw_diffusion.experiment.page import png
    from qhw_diffusion.experiment.plots import sample_grids

    n_labels = model.reverse.config.n_labels
    labels = torch.arange(40) % n_labels if n_labels > 1 else None
    with torch.no_grad():
        chain = model.sample(40, torch.Generator().manual_seed(0), labels)
        return png(sample_grids({"": model.images(chain.states).numpy()}))


def _read(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of a folder, also of an earlier version, by the names of today."""
    return DenoiserTraining.from_dict(saved).to_dict()


def _autoencoder(
    run: RunFolder, shape: AutoencoderConfig, data: ImageDataset, heldout: ImageDataset
) -> LatentAutoencoder:
    """The run's autoencoder, trained unless it is there."""
    target = run.path / "autoencoder"
    if not target.is_dir():
        aside = run.path / ".autoencoder.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        train_autoencoder(shape, data, heldout).save(aside)
        aside.rename(target)
    return LatentAutoencoder.load(target)


def evaluate_denoiser(
    folder: str | Path,
    *,
    device: str | None = None,
    engine: str | None = None,
    shots: int | None = None,
    images: int = 500,
    seed: int = 0,
    evaluation_classifier: str | None = None,
) -> str:
    """Sample a trained denoiser and let the evaluation classifier measure; returns a text.

    Numbers and a picture of samples go into RUN/evaluations/. device, engine: where it runs, if not where it was
    trained; shots: of each image, None for exact probabilities; evaluation_classifier: its folder, None for the one
    shipped for the data set.

    Raises InvalidInputError for too few images or shots, and where post-selection leaves too few of them.
    """
    from qhw_diffusion.experiment.page import png
    from qhw_diffusion.experiment.plots import sample_grids  # matplotlib takes half a second

    one_thread()
    if images < 20 or (shots is not None and shots < 1):
        raise InvalidInputError(f"at least 20 images and 1 shot are needed, not {images} and {shots}")
    run = RunFolder.open(folder, kind=KIND)
    with run.whole():
        model = from_pretrained(run.path / "model", device=device, engine=engine)
    assert isinstance(model, AmplitudeQDM)
    train, heldout = (
        load_dataset(run.config["data"], split, run.config["data_root"]) for split in ("train", "heldout")
    )
    classifier = Classifier.load(evaluation_classifier or run.config["data"], "evaluation")
    config = model.reverse.config
    where = f"{config.device}-{config.engine}" + (f"-{shots}shots" if shots else "") + f"-seed{seed}"
    stem = run.path / "evaluations" / where.replace("/", "_")
    check_writable(stem.with_name(stem.name + ".json"))  # before the work
    conditioned = model.reverse.config.n_labels > 1
    labels, generator = torch.arange(images) % train.n_classes, torch.Generator().manual_seed(seed)
    chain = model.sample(images, generator, labels if conditioned else None)
    made = model.images(chain.states) if shots is None else model.measured_images(chain, shots, generator)
    noise = model.decode(haar_states(images, model.dim, generator).abs())
    # without labels nothing was asked for: what is measured by label means nothing then
    kept = ("fd", "kd", "accuracy", "diversity") if conditioned else ("fd", "kd")
    values = {name: {k: v for k, v in evaluate_samples(found, labels, classifier, heldout).items()
                     if k in kept}
              for name, found in (("samples", made), ("circuit bypassed", noise))}  # fmt: skip
    floor = real_floor(classifier, train, heldout, min(images, len(train)), seed=seed)
    values["real training images (floor)"] = {k: floor[k] for k in kept}
    # of passing every post-selection, or of the outcome history an image belongs to: the share of shots that counts
    share = float(chain.probability.mean()) if config.kind in ("postselected", "measured") else None
    summary = {"device": config.device, "engine": config.engine, "shots": shots, "images": images, "seed": seed}
    atomic_write_json(stem.with_name(stem.name + ".json"), {**summary, "share_of_shots": share, "values": values})
    picture = png(sample_grids({where: made[:40].numpy()}, rows=2 if images < 40 else 4), 144)
    file = atomic_write_bytes(stem.with_name(stem.name + ".png"), picture)
    told = evaluation_metrics({f"{where}/{name}": found for name, found in values.items()})
    if share is not None:
        told[f"evaluation/{where}/share_of_shots"] = share
    with run:
        run.tell(told, {f"evaluation/{where}": lambda: picture})
    lines = [f"{config.device}, {config.engine}, {f'{shots} shots an image' if shots else 'exact probabilities'}; "
             f"{images} images; FD in the evaluation classifier's features, against held-out images",
             f"{'images':<32} {'FD':>9}" + f" {'accuracy':>9}" * conditioned]  # fmt: skip
    for name, found in values.items():
        lines.append(f"{name:<32} {found['fd']:>9.2f}" + (f" {found['accuracy']:>9.1%}" if conditioned else ""))
    if share is not None and config.kind == "postselected":
        lines.append(f"success probability of all {config.n_steps} post-selections together: {share:.2%}")
    elif share is not None:
        lines.append(f"probability that an image's record of {config.n_steps} outcomes comes up again: {share:.2%}")
    return "\n".join([*lines, f"saved: {file} and .json"])
