"""The denoising study: configuration, cells, and what each of them measures.

    autoencoder     the latent space, where there is one
    training        one variant (`page.VARIANTS`) on one seed, in a run folder of its own in trainings/
    real            real images as they are, and sent through encoder and decoder
    evaluation      one row of the table (`DenoisingConfig.rows`) on one seed; some of its images in samples/

The linear map in closed form is tuned on the reward classifier and the training images; the evaluation classifier,
which sees held-out images, only measures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_module_state, save_module, write_tensors
from qhw_diffusion.config import Config, check_whole, require
from qhw_diffusion.denoising import (
    QDM,
    RECONSTRUCTION,
    AmplitudeQDM,
    AutoencoderConfig,
    ForwardConfig,
    LatentAutoencoder,
    LatentQDM,
    LinearMap,
    ReverseConfig,
    ReverseProcess,
    TrainConfig,
    check_qdm_training,
    haar_states,
    sample_counts,
    save_pretrained,
    train_autoencoder,
    train_qdm,
)
from qhw_diffusion.denoising.baselines import ClassicalProcess, LinearProcess
from qhw_diffusion.denoising.command import MODELS, REVERSE, TRAIN
from qhw_diffusion.denoising.deferred import compile_deferred
from qhw_diffusion.denoising.readout import kept_shots
from qhw_diffusion.denoising.states import qubits_for
from qhw_diffusion.denoising.training import History
from qhw_diffusion.diffusion import (
    Classifier,
    ImageDataset,
    evaluate_samples,
    frechet_distance,
    image_features,
    load_dataset,
)
from qhw_diffusion.diffusion.datasets import image_shape_of
from qhw_diffusion.errors import UnknownNameError
from qhw_diffusion.experiment import Cell, Study
from qhw_diffusion.runs import RunFolder, atomic_folder
from qhw_diffusion.studies.denoising.measures import average_infidelity, measured_on_device, visible_infidelity
from qhw_diffusion.studies.denoising.page import (
    CONTROLS,
    EVALUATION_SEED,
    PRIMITIVES,
    TUNING_SEED,
    VARIANTS,
    page,
    sample_file,
)

# Trained by the same loop with no circuit in them.
BASELINES = {"contraction": LinearProcess, "classical": ClassicalProcess}
# Trained on from the post-selected weights, all for as long: with the device's noise, another device's, and without.
FURTHER = ("noise", "othernoise", "longer")
TRAINING = "denoising"
KEPT_IMAGES = 40
RANKS, POWERS = (1, 2, 3, 4, 6, 8, 16, 64), (1.0, 1.5, 2.0)
# Settings of nested configurations that the study itself decides.
DECIDED = {
    "reverse": ("kind", "feed_forward", "weight_sharing", "conditioning", "hypernetwork_width", "device", "engine",
                "seed"),
    "forward": ("kind", "complex", "strength", "seconds"),
    "train": ("loss", "mode", "buffer_size", "seed"),
}  # fmt: skip


@dataclass(frozen=True)
class DenoisingConfig(Config):
    """Quantum denoisers against controls: ideal, with the noise of a device, and with finite shots."""

    data: str = "digits"
    """Data set: digits, mnist16 or another built-in one."""
    data_root: str | None = None
    """Folder of the data set, in torchvision's layout."""
    classes: tuple[int, ...] = ()
    """Labels in use, in order; none for all ten."""
    variants: tuple[str, ...] = ("postselected", "measured", "feedforward", "noise", "contraction", "classical")
    """What is trained: postselected, measured, feedforward, noise, othernoise, longer, reconstruction, contraction,
    classical."""
    model: str = "latent"
    """Where states live: latent (the latent space of an autoencoder) or amplitude (pixels as amplitudes)."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    """Autoencoder of the latent space."""
    reverse: ReverseConfig = REVERSE
    """Reverse process of the post-selected variant, from which the others are derived."""
    measured_ancillas: int = 2
    """Ancillas of the variants that keep their outcomes."""
    forward: ForwardConfig = field(default_factory=ForwardConfig)
    """Forward process: complex Gaussian noise on amplitudes."""
    train: TrainConfig = TRAIN
    """Training of every variant: all steps together, on the ensembles that come out."""
    noise_iterations: int = 60
    """Further updates of the variants noise, othernoise and longer, which start from the post-selected weights."""
    device: str = "fake_marrakesh"
    """Fake device or snapshot of the rows with noise."""
    other_device: str = "fake_torino"
    """Fake device or snapshot under whose noise the variant othernoise is trained: the wrong calibration."""
    primitives: tuple[str, ...] = ()
    """How rows on the device measure the whole reverse process as one circuit: estimator, estimator-readout, sampler;
    none for no such rows."""
    evaluation_classifier: str | None = None
    """Folder of the evaluation classifier; without it the one shipped for the data set."""
    reward_classifier: str | None = None
    """Folder of the reward classifier, which tunes the linear map; without it the one shipped for the data set."""
    eval_images: int = 600
    """Images per row and seed."""
    shots: int = 4096
    """Shots per image in the rows with shots; post-selection, or the image's outcome history, leaves a share."""
    seeds: int = 5
    """Number of seeds; a seed is one training of everything and one evaluation."""

    def __post_init__(self) -> None:
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        allowed = f"allowed: {', '.join(VARIANTS)}, each once, with postselected among them"
        fits = not unknown and "postselected" in self.variants and len(set(self.variants)) == len(self.variants)
        require(fits, f"variants are {self.variants}; {allowed}")
        require(
            len(set(self.classes)) == len(self.classes) and all(0 <= y <= 9 for y in self.classes),
            f"classes are {self.classes}; allowed: different labels from 0 to 9, or none for all",
        )
        told = [how for how in self.primitives if how not in PRIMITIVES]
        once = len(set(self.primitives)) == len(self.primitives)
        require(not told and once, f"primitives are {self.primitives}; allowed: {', '.join(PRIMITIVES)}, each once")
        many = len(self.classes) != 1
        require(many, "classes has one label; a conditioned model needs two or more (or none for all ten)")
        if self.model not in MODELS:
            raise UnknownNameError.of("model", self.model, MODELS)
        check_whole(self, "measured_ancillas", "noise_iterations", "shots", "seeds")
        check_whole(self, "eval_images", least=20)
        for part, defaults in (("reverse", REVERSE), ("forward", ForwardConfig()), ("train", TRAIN)):
            for name in DECIDED[part]:
                given, decided = getattr(getattr(self, part), name), getattr(defaults, name)
                require(given == decided, f"{part}.{name} is {given!r}; this study decides it: {decided!r}")
        shape = image_shape_of(self.data)
        require(
            self.autoencoder.image_shape in (shape, AutoencoderConfig().image_shape),
            f"autoencoder.image_shape is {self.autoencoder.image_shape}; images of {self.data} are {shape}",
        )
        object.__setattr__(self, "autoencoder", self.autoencoder.replace(image_shape=shape))
        n_qubits = self.autoencoder.latent_qubits if self.model == "latent" else qubits_for(shape)
        object.__setattr__(self, "reverse", self.reverse.replace(n_qubits=n_qubits, n_labels=len(self.labels)))
        if "reconstruction" in self.variants:
            require(
                (self.model, n_qubits, len(self.labels)) == ("latent", 3, 10),
                "the reconstruction is a model of ten classes in a latent space of three qubits",
            )

    @property
    def labels(self) -> tuple[int, ...]:
        """The classes in use."""
        return self.classes or tuple(range(10))

    def reverse_of(self, variant: str, seed: int) -> ReverseConfig:
        """Reverse process of a variant, or of the control "frozen"."""
        if variant == "reconstruction":
            return RECONSTRUCTION.replace(seed=seed)
        kept = variant in ("measured", "feedforward")
        return self.reverse.replace(
            kind="measured" if kept else "postselected",
            ancillas=self.measured_ancillas if kept else self.reverse.ancillas,
            feed_forward=variant == "feedforward",
            init_scale=3.0 if variant == "frozen" else self.reverse.init_scale,
            seed=seed,
        )

    def training_of(self, variant: str, seed: int) -> TrainConfig:
        """Training of a variant; those of `FURTHER` go on from trained weights, with smaller steps."""
        if variant not in FURTHER:
            return self.train.replace(seed=seed)
        return self.train.replace(
            iterations=self.noise_iterations,
            learning_rate=self.train.learning_rate / 3,
            similarity="superfidelity"
            if self.train.similarity == "fidelity" and variant != "longer"
            else self.train.similarity,
            seed=seed,
        )

    def rows(self) -> list[str]:
        """Rows of the table, ``variant`` or ``variant@how``: noisy, shots, noisy-shots, or one of `PRIMITIVES`."""
        found = ["postselected", "postselected@noisy", "postselected@shots", "postselected@noisy-shots"]
        if "longer" in self.variants:
            found += ["longer", "longer@noisy"]
        if "noise" in self.variants:
            found += ["noise@noisy", "noise@noisy-shots"]
        if "othernoise" in self.variants:
            found.append("othernoise@noisy")
        run = [v for v in ("postselected", *FURTHER) if v in self.variants]
        found += [f"{variant}@{how}" for how in self.primitives for variant in run]
        for variant in ("measured", "feedforward"):
            if variant in self.variants:
                found += [variant, f"{variant}@noisy", f"{variant}@shots"]
        return [*found, *(v for v in ("reconstruction", *BASELINES) if v in self.variants), *CONTROLS]


def demo_config(*, quick: bool = False) -> DenoisingConfig:
    """Settings of the demo: the study's own with one variant less; `quick`: two seeds and less of everything."""
    demo = DenoisingConfig(
        variants=("postselected", "feedforward", "noise", "contraction", "classical"), eval_images=400
    )
    if not quick:
        return demo
    return demo.replace(
        seeds=2,
        train=demo.train.replace(iterations=150),
        noise_iterations=20,
        autoencoder=demo.autoencoder.replace(steps=800),
        eval_images=200,
    )


# Seconds of an update with the default settings, one core.
UPDATE_SECONDS = {"postselected": 0.026, "measured": 0.036, "feedforward": 0.058, "noise": 0.08,
                  "othernoise": 0.08, "longer": 0.026, "reconstruction": 0.26,
                  "contraction": 0.01, "classical": 0.012}  # fmt: skip


def cells(config: DenoisingConfig) -> list[Cell]:
    """The latent space; per seed every training and every row; real images."""
    first = ("autoencoder",) if config.model == "latent" else ()
    found = [Cell("autoencoder", {"part": "autoencoder"}, seconds=config.autoencoder.steps / 150)] if first else []
    size = config.train.batch_size / 12 * len(config.labels) / 10 * config.reverse.n_steps / 4
    for seed in range(config.seeds):
        for variant in config.variants:
            needs = (f"training-postselected-seed{seed}",) if variant in FURTHER else first
            seconds = UPDATE_SECONDS[variant] * size * config.training_of(variant, seed).iterations
            parameters = {"part": "training", "variant": variant, "seed": seed}
            label = f"training {variant}, seed {seed}"
            found.append(Cell(f"training-{variant}-seed{seed}", parameters, needs, seconds, label))
        for row in config.rows():
            variant = row.partition("@")[0]
            needs = (f"training-{variant}-seed{seed}",) if variant in config.variants else first
            parameters = {"part": "evaluation", "row": row, "seed": seed}
            how = row.partition("@")[2]
            seconds = 1 + config.eval_images * (0.01 if how in PRIMITIVES else 0.005 if "noisy" in how else 0.002)
            found.append(Cell(f"evaluation-{row}-seed{seed}", parameters, needs, seconds, f"{row}, seed {seed}"))
    return [*found, Cell("real", {"part": "real"}, first, 1 + config.seeds, "real images")]


def run_cell(config: DenoisingConfig, cell: Cell, folder: Path) -> Mapping[str, Any]:
    """Do one cell (see the top of this file)."""
    here = context(config, folder)
    if cell["part"] == "autoencoder":
        return here.train_autoencoder()
    if cell["part"] == "training":
        return training(here, cell["variant"], cell["seed"])
    if cell["part"] == "real":
        return real_images(here)
    return evaluation(here, cell["row"], cell["seed"])


def check(config: DenoisingConfig) -> None:
    """Raises what loading the data and the device, and making and training every model would."""
    here = Context(config, Path())
    if config.model == "latent":
        here.autoencoder = LatentAutoencoder(config.autoencoder).eval()  # not trained, but of the right shape
    for variant in config.variants:
        device = config.other_device if variant == "othernoise" else config.device
        ReverseProcess(config.reverse_of(variant, 0).replace(device=device, engine="noisy"))
        model = here.as_trained(here.model(variant, 0), variant)
        if variant == "postselected" and config.primitives:
            compile_deferred(model, config.device)
        check_qdm_training(model, here.train.images, config.training_of(variant, 0), labels=here.train.labels)


def share_done(config: DenoisingConfig, cell: Cell, folder: Path) -> float:
    """Share of a training's updates that are done."""
    if cell["part"] != "training":
        return 0.0
    updates = config.training_of(cell["variant"], cell["seed"]).iterations
    return updates_done(training_folder(folder, cell["variant"], cell["seed"])) / updates


class Context:
    """Data, classifiers and latent space of a study in its folder."""

    def __init__(self, config: DenoisingConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.train, self.heldout = (self._split(split) for split in ("train", "heldout"))
        self.evaluation_classifier = Classifier.load(config.evaluation_classifier or config.data, "evaluation")
        self.reward = Classifier.load(config.reward_classifier or config.data, "reward")

    def _split(self, split: str) -> ImageDataset:
        """The classes in use, renumbered from 0 on."""
        data = load_dataset(self.config.data, split, self.config.data_root)
        wanted = torch.tensor(self.config.labels)
        kept = data.subset(torch.nonzero(torch.isin(data.labels, wanted))[:, 0])
        places = (kept.labels[:, None] == wanted).long().argmax(1)
        return ImageDataset(kept.images, places, data.name, split, len(wanted))

    @cached_property
    def autoencoder(self) -> LatentAutoencoder | None:
        """The trained latent space; None where pixels are the amplitudes."""
        return LatentAutoencoder.load(self.folder / "autoencoder") if self.config.model == "latent" else None

    @cached_property
    def encoded(self) -> Tensor:
        """The training images as states of the data qubits, [N, d]; the same for all models."""
        return self.model("postselected", 0).encode(self.train.images)

    @cached_property
    def heldout_features(self) -> Tensor:
        """Features of the held-out images by the evaluation classifier."""
        return image_features(self.evaluation_classifier, self.heldout.images)

    @cached_property
    def reward_features(self) -> Tensor:
        """Features of the training images by the reward classifier."""
        return image_features(self.reward, self.train.images)

    def train_autoencoder(self) -> dict[str, Any]:
        """Train the latent space on the training images."""
        trained = train_autoencoder(self.config.autoencoder, self.train, self.heldout)
        with atomic_folder(self.folder / "autoencoder") as aside:
            trained.save(aside)
        return {"n_parameters": trained.n_parameters, **trained.report}

    def model(self, variant: str, seed: int) -> AmplitudeQDM:
        """The untrained model of a variant, or of the control "frozen"."""
        reverse = self.config.reverse_of(variant, seed)
        model = (
            AmplitudeQDM(reverse, self.config.forward, image_shape=self.train.image_shape)
            if self.autoencoder is None
            else LatentQDM(reverse, self.config.forward, autoencoder=self.autoencoder)
        )
        return model.with_reverse(BASELINES[variant](model, seed)) if variant in BASELINES else model

    def trained(self, variant: str, seed: int) -> AmplitudeQDM:
        """A trained model of the study, ideal or under the noise it was trained under."""
        model = self.model(variant, seed)
        state, _ = load_module_state(training_folder(self.folder, variant, seed) / "model")
        (model.reverse if variant in BASELINES else model).load_state_dict(state)
        return self.as_trained(model, variant)

    def as_trained(self, model: AmplitudeQDM, variant: str) -> AmplitudeQDM:
        """The model under the noise that the variant is trained under; as it is where there is none."""
        if variant == "othernoise":
            return model.on(device=self.config.other_device, engine="noisy")
        return self.under_noise(model) if variant == "noise" else model

    def under_noise(self, model: AmplitudeQDM) -> AmplitudeQDM:
        """The model on the noisy device."""
        return model.on(device=self.config.device, engine="noisy")

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """What the evaluation classifier says of images that were asked for by labels 0 … C − 1 of the study."""
        original, h = torch.tensor(self.config.labels), self.heldout
        real = ImageDataset(h.images, original[h.labels], h.name, h.split, 10)
        asked = original[labels]
        return evaluate_samples(images, asked, self.evaluation_classifier, real, real_features=self.heldout_features)


def context(config: DenoisingConfig, folder: Path) -> Context:
    """The study in this folder, loaded once per process."""
    return _context(json.dumps(config.to_dict()), folder)


@lru_cache(maxsize=1)
def _context(config: str, folder: Path) -> Context:
    return Context(DenoisingConfig.from_dict(json.loads(config)), folder)


def training_folder(folder: Path, variant: str, seed: int) -> Path:
    """Run folder of one training, which has the trained model in model/."""
    return folder / "trainings" / f"{variant}-seed{seed}"


def updates_done(path: Path) -> int:
    """Updates that a training in this run folder has logged."""
    log = path / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def train_in_folder(
    path: Path, model: QDM, data: Tensor, settings: TrainConfig, about: Mapping[str, Any], labels: Tensor | None = None
) -> History:
    """Train a model in a run folder of its own, in place; an unfinished training goes on from its checkpoint.

    Args:
        path: run folder; the trained model lies in its model/.
        model: untrained model.
        data: what the model's `encode` takes.
        settings: training settings.
        about: what the run folder records as its settings.
        labels: int64 [N], for a conditioned model.

    Returns:
        Metrics of every update.

    Raises:
        KeyboardInterrupt: Ctrl-C; the checkpoint is saved.
    """
    resume = path.exists() and RunFolder.open(path, kind=TRAINING).has_checkpoint
    if path.exists() and not resume:
        shutil.rmtree(path)  # stopped before its first checkpoint: nothing in it to keep
    run = RunFolder.open(path, kind=TRAINING) if resume else None
    with run or RunFolder.create(path, kind=TRAINING, config=dict(about)) as run:
        history = train_qdm(model, data, settings, labels=labels, run=run, resume=resume)
        stages = model.reverse.config.n_steps if settings.mode == "greedy" else 1
        if len(history) < stages * settings.iterations:
            raise KeyboardInterrupt
        if isinstance(model.reverse, ReverseProcess):
            save_pretrained(model, path / "model")
        else:
            with atomic_folder(path / "model") as aside:
                save_module(aside, model.reverse, dict(about))
    return history


def training(here: Context, variant: str, seed: int) -> dict[str, Any]:
    """Train a variant; loss and success probability of every update beside the numbers."""
    model = here.model(variant, seed)
    if variant in FURTHER:
        model = here.as_trained(here.trained("postselected", seed), variant)
    about = {"variant": variant, "seed": seed, "study": here.config.to_dict()}
    path, settings = training_folder(here.folder, variant, seed), here.config.training_of(variant, seed)
    history = train_in_folder(path, model, here.train.images, settings, about, here.train.labels)
    found: dict[str, Any] = {
        "n_parameters": model.reverse.n_parameters,
        "loss": history[-1]["losses/train"],
        "losses": [metrics["losses/train"] for metrics in history],
        "successes": [metrics["charts/probability"] for metrics in history],
    }
    return found if variant in BASELINES else {**found, "weights_per_step": len(model.reverse.circuit.weights)}


def evaluation(here: Context, row: str, seed: int) -> dict[str, Any]:
    """One row on one seed; some images, and the reverse process of a few, go to `page.sample_file`.

    Rows on the device (`PRIMITIVES`) measure the whole reverse process as one circuit, x_T's preparation included.

    The evaluation classifier's numbers; success: mean probability of passing every post-selection; history: mean
    probability of the image's own outcomes, where they are kept; infidelity, visible: see `page`; *_by_step: the same
    of x_t against noised data at t, for t = T … 0; kept_shots, lost_images: shots per image that count, and images
    without one.
    """
    c = here.config
    variant, _, how = row.partition("@")
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
    labels = torch.arange(c.eval_images) % len(c.labels)
    model = here.model("frozen" if variant == "frozen" else "postselected", seed)
    share: Tensor | None = None  # of the shots that count
    path: tuple[Tensor, ...] = ()
    found: dict[str, Any] = {"n_images": c.eval_images}
    if how in PRIMITIVES:
        starts = model.forward_process.prior(c.eval_images, model.dim, generator)  # those of the other rows
        probabilities, told = measured_on_device(c, here.trained(variant, seed), how, starts, labels, seed)
        images = model.decode(probabilities.float().sqrt())
        found |= {"n_parameters": model.reverse.n_parameters, **told, **here.measure(images, labels)}
        found["visible"] = visible_infidelity(
            probabilities, labels, here.encoded.abs().square(), here.train.labels, len(c.labels)
        )
        kept_images = {"images": _bytes(images[:KEPT_IMAGES]), "labels": labels[:KEPT_IMAGES]}
        keep_samples(sample_file(here.folder, row, seed), kept_images)
        return found
    if variant == "bypass":
        states = haar_states(c.eval_images, model.dim, generator)
        found["n_parameters"] = 0
    elif variant in ("linear", "linear1"):
        states, share, chosen = _linear(here, model, variant, labels, generator)
        found |= {"success": float(share.mean()), **chosen}
    else:
        if variant != "frozen":
            model = here.trained(variant, seed)
        if how.startswith("noisy") and variant != "noise":  # another device's noise is left for this one's
            model = here.under_noise(model)
        trajectory = model.sample(c.eval_images, generator, labels, keep_path=True)
        states, path = trajectory.states, trajectory.path
        if variant != "classical":
            share = trajectory.probability
            found["history" if model.reverse.config.kind == "measured" else "success"] = float(share.mean())
        found["n_parameters"] = model.reverse.n_parameters
    probabilities = model.reverse.outcome_probabilities(states)
    if how.endswith("shots"):
        kept = torch.full((len(labels),), c.shots) if share is None else kept_shots(share, c.shots, generator)
        found |= {"kept_shots": float(kept.double().mean()), "lost_images": int((kept == 0).sum())}
        kept = kept.clamp_min(1)  # an image without a single shot is counted as one of a single shot
        probabilities = sample_counts(probabilities, kept, generator) / kept[:, None]
    images = model.decode(probabilities.float().sqrt())
    data, n = here.encoded, len(c.labels)
    found |= here.measure(images, labels)
    found["infidelity"] = average_infidelity(states, labels, data, here.train.labels, n)
    found["visible"] = visible_infidelity(probabilities, labels, data.abs().square(), here.train.labels, n)
    if path and how == "" and variant in ("postselected", "measured", "feedforward", "reconstruction"):
        whole, visible = found["infidelity_by_step"], found["visible_by_step"] = [], []
        for t, at_t in zip(range(len(path) - 1, -1, -1), path, strict=True):
            noised = model.forward_process.noised(data, t, generator)
            whole.append(average_infidelity(at_t, labels, noised, here.train.labels, n))
            seen, wanted = (model.reverse.outcome_probabilities(x) for x in (at_t, noised))
            visible.append(visible_infidelity(seen, labels, wanted, here.train.labels, n))
    tensors = {"images": _bytes(images[:KEPT_IMAGES]), "labels": labels[:KEPT_IMAGES]}
    if path:
        tensors["path"] = _bytes(torch.stack([model.images(at_t[:n]) for at_t in path]))  # [T + 1, C, channels, H, W]
    keep_samples(sample_file(here.folder, row, seed), tensors)
    return found


def real_images(here: Context) -> dict[str, Any]:
    """What real images reach: training images as they are (real), and sent through encoder and decoder (encoded)."""
    n, model = min(here.config.eval_images, len(here.train)), here.model("postselected", 0)

    def through(images: Tensor) -> Tensor:
        return model.decode(model.encode(images).abs())

    rows = []
    for seed in range(here.config.seeds):
        index = torch.randperm(len(here.train), generator=torch.Generator().manual_seed(seed))[:n]
        images, labels = here.train.images[index], here.train.labels[index]
        for kind, shown in (("real", images), ("encoded", through(images))):
            rows.append({"kind": kind, "seed": seed, **here.measure(shown, labels)})
    count, wanted = len(here.config.labels), min(KEPT_IMAGES, here.config.eval_images)
    picked = [torch.nonzero(here.heldout.labels == k % count)[k // count, 0] for k in range(wanted)]
    heldout = here.heldout.images[torch.stack(picked)]
    keep_samples(sample_file(here.folder, "real", 0), {"images": _bytes(heldout), "encoded": _bytes(through(heldout))})
    return {"rows": rows}


def keep_samples(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write images that are shown on the page."""
    file.parent.mkdir(exist_ok=True)
    write_tensors(file, tensors, {}, kind="samples")


def _linear(
    here: Context, model: AmplitudeQDM, control: str, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Samples of the closed-form map; rank and power are tuned for the reward classifier's Fréchet distance."""
    data, best, real = here.encoded, (float("inf"), 1, 1.0), here.reward_features
    tuning = torch.Generator().manual_seed(TUNING_SEED)
    for power in POWERS if control == "linear" else ():
        for rank in [r for r in RANKS if r <= model.dim]:
            tried = LinearMap.fit(data, here.train.labels, rank=rank, power=power)
            made = model.decode(tried.sample(labels, tuning).abs())
            best = min(best, (frechet_distance(image_features(here.reward, made), real), rank, power))
    _, rank, power = best
    chosen = LinearMap.fit(data, here.train.labels, rank=rank, power=power)
    success = torch.tensor([chosen.success_probability(int(y)) for y in labels])
    return chosen.sample(labels, generator), success, {"rank": rank, "power": power}


def _bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()


STUDY = Study(
    name="denoising",
    title="A quantum circuit as the denoiser of a diffusion model",
    summary="train quantum denoisers and compare them with their controls, ideal, noisy and with finite shots",
    config=DenoisingConfig,
    cells=cells,
    run=run_cell,
    page=page,
    row_parameters=("kind",),
    quick=demo_config(quick=True),
    demo=demo_config(),
    check=check,
    share_done=share_done,
    # what follows from the data and the latent space has no flag either
    no_flags=("reverse.n_qubits", "reverse.n_labels", *(f"{part}.{n}" for part in DECIDED for n in DECIDED[part])),
    flag_prefixes={"autoencoder": "autoencoder", "forward": "forward"},
)
