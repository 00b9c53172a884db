"""The pieces of work of a denoising study; each reads the study's folder and leaves one result there.

    autoencoder/                the latent space (where there is one)
    trainings/<arm>-seed<k>/    a run folder with model/
    evaluations/<row>-seed<k>.json, .safetensors   numbers; some images, and the reverse process of some

The linear map is tuned on the reward classifier and the training images; the judge, which sees held-out images, only
measures.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.checkpoints import load_module_state, read_tensors, save_module, write_tensors
from qhw_diffusion.denoising import (
    AmplitudeQDM,
    AutoencoderConfig,
    LatentAutoencoder,
    LatentQDM,
    LinearMap,
    as_density,
    haar_states,
    infidelity,
    sample_counts,
    save_pretrained,
    train_autoencoder,
    train_qdm,
)
from qhw_diffusion.denoising.readout import kept_shots
from qhw_diffusion.denoising.states import qubits_for
from qhw_diffusion.diffusion import (
    Classifier,
    ImageDataset,
    evaluate_samples,
    frechet_distance,
    image_features,
    load_dataset,
)
from qhw_diffusion.runs import RunFolder, atomic_folder, atomic_write_json
from qhw_diffusion.studies.denoising_settings import RIVALS, DenoisingStudyConfig

KIND = "denoising-study"
TRAINING = "denoising"
EVALUATION_SEED, TUNING_SEED = 3_000_000, 4_000_000
KEPT_IMAGES = 40
RANKS, POWERS = (1, 2, 3, 4, 6, 8, 16, 64), (1.0, 1.5, 2.0)


def training_folder(root: Path, arm: str, seed: int) -> Path:
    """Run folder of one training."""
    return root / "trainings" / f"{arm}-seed{seed}"


def evaluation_file(root: Path, row: str, seed: int) -> Path:
    """Result of one row on one seed; its samples have the same name with the ending .safetensors."""
    return root / "evaluations" / f"{row}-seed{seed}.json"


class Context:
    """Data, classifiers and (trained once) the autoencoder of a study."""

    def __init__(self, root: Path, config: DenoisingStudyConfig | None = None) -> None:
        """config: of a study that has no folder yet."""
        self.root = root
        self.config = c = config or DenoisingStudyConfig.from_dict(RunFolder.open(root, kind=KIND).config)
        self.train, self.heldout = (self._split(split) for split in ("train", "heldout"))
        self.judge = Classifier.load(c.data, "judge")
        self.reward = Classifier.load(c.data, "reward")
        self.autoencoder: LatentAutoencoder | None = None
        if config is None and c.latent_qubits and (root / "autoencoder").is_dir():
            self.autoencoder = LatentAutoencoder.load(root / "autoencoder")
        self.n_qubits = c.latent_qubits or qubits_for(self.train.image_shape)

    def _split(self, split: str) -> ImageDataset:
        """The classes in use, renumbered from 0 on."""
        data = load_dataset(self.config.data, split, self.config.data_root)
        wanted = torch.tensor(self.config.labels)
        kept = data.subset(torch.nonzero(torch.isin(data.labels, wanted))[:, 0])
        places = (kept.labels[:, None] == wanted).long().argmax(1)
        return ImageDataset(kept.images, places, data.name, split, len(wanted))

    def model(self, arm: str, seed: int) -> AmplitudeQDM:
        """The untrained model of an arm."""
        reverse = self.config.reverse(arm, seed, self.n_qubits)
        model = (
            AmplitudeQDM(reverse, self.config.forward, image_shape=self.train.image_shape)
            if self.autoencoder is None
            else LatentQDM(reverse, self.config.forward, autoencoder=self.autoencoder)
        )
        return model.with_reverse(RIVALS[arm](model, seed)) if arm in RIVALS else model

    def original(self, labels: Tensor) -> Tensor:
        """Labels 0 … C − 1 of the study → those of the data set, which the classifiers know."""
        return torch.tensor(self.config.labels)[labels]


@lru_cache(maxsize=1)
def context(root: str) -> Context:
    """The study in this folder, loaded once per process."""
    return Context(Path(root))


def make_autoencoder(root: str) -> None:
    """Train the latent space on the training images."""
    c, here = context(root).config, context(root)
    settings = AutoencoderConfig(
        image_shape=here.train.image_shape, latent_qubits=c.latent_qubits, steps=c.autoencoder_steps
    )
    aside = Path(root) / ".autoencoder.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    train_autoencoder(settings, here.train, here.heldout).save(aside)
    aside.rename(Path(root) / "autoencoder")
    context.cache_clear()


def training_done(root: Path, arm: str, seed: int) -> bool:
    """Whether this training has run to its end."""
    return (training_folder(root, arm, seed) / "model").is_dir()


def train_arm(root: str, arm: str, seed: int) -> None:
    """One training in its run folder; an unfinished one goes on from its checkpoint. KeyboardInterrupt on Ctrl-C."""
    here = context(root)
    model: Any = here.model(arm, seed)
    if arm == "noise":
        model = load_trained(root, "postselected", seed).on(device=here.config.device, engine="noisy")
    settings, folder = here.config.training(arm, seed), training_folder(Path(root), arm, seed)
    resume = folder.exists() and RunFolder.open(folder, kind=TRAINING).has_checkpoint
    if folder.exists() and not resume:
        shutil.rmtree(folder)  # stopped before its first checkpoint: nothing in it to keep
    given = {"arm": arm, "seed": seed, "study": here.config.to_dict()}
    command = f"study denoising: {arm}, seed {seed}"
    run = RunFolder.open(folder, kind=TRAINING) if resume else None
    with run or RunFolder.create(folder, kind=TRAINING, config=given, command=command) as run:
        history = train_qdm(model, here.train.images, settings, labels=here.train.labels, run=run, resume=resume)
        if len(history) < settings.iterations:
            raise KeyboardInterrupt
        if arm in RIVALS:
            with atomic_folder(run.path / "model") as aside:
                save_module(aside, model.reverse, {"arm": arm})
        else:
            save_pretrained(model, run.path / "model")


def load_trained(root: str, arm: str, seed: int) -> AmplitudeQDM:
    """A trained model of the study, ideal or under noise as it was trained."""
    here = context(root)
    model = here.model(arm, seed)
    state, _ = load_module_state(training_folder(Path(root), arm, seed) / "model")
    (model.reverse if arm in RIVALS else model).load_state_dict(state)
    return model.on(device=here.config.device, engine="noisy") if arm == "noise" else model


def evaluate_row(root: str, row: str, seed: int) -> None:
    """One row on one seed: the judge's numbers, success probability, infidelity, some images."""
    here = context(root)
    c = here.config
    arm, _, how = row.partition("@")
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
    labels = torch.arange(c.eval_images) % len(c.labels)
    model: AmplitudeQDM = here.model("frozen" if arm == "frozen" else "postselected", seed)
    success: Tensor | None = None
    record: Tensor | None = None  # where outcomes are kept: an image is one record of them
    path: tuple[Tensor, ...] = ()
    extra: dict[str, Any] = {}
    if arm == "bypass":
        states = haar_states(c.eval_images, model.dim, generator)
    elif arm in ("linear", "linear1"):
        states, success, extra = _linear(here, model, arm, labels, generator)
    else:
        if arm != "frozen":
            model = load_trained(root, arm, seed)
        if how.startswith("noisy") and arm != "noise":
            model = model.on(device=c.device, engine="noisy")
        chain = model.sample(c.eval_images, generator, labels, keep_path=True)
        states, path = chain.states, chain.path
        if model.reverse.config.kind == "postselected" and arm != "classical":
            success = chain.probability
        if model.reverse.config.kind == "measured":
            record = chain.probability
        extra = {"parameters": model.reverse.n_parameters}
    probabilities = model.reverse.outcome_probabilities(states)
    if how.endswith("shots"):
        share = success if record is None else record
        kept = torch.full((len(labels),), c.shots) if share is None else kept_shots(share, c.shots, generator)
        extra["kept_shots"] = float(kept.double().mean())
        extra["lost_images"] = int((kept == 0).sum())
        kept = kept.clamp_min(1)  # an image without a single shot is counted as one of a single shot
        probabilities = sample_counts(probabilities, kept, generator) / kept[:, None]
    images = model.decode(probabilities.float().sqrt())
    measured = evaluate_samples(images, here.original(labels), here.judge, _original(here))
    result: dict[str, Any] = {
        "row": row,
        "seed": seed,
        "n_images": c.eval_images,
        **measured,
        "success": None if success is None else float(success.mean()),
        "record": None if record is None else float(record.mean()),
        "infidelity": _infidelity(here, model, states, labels),
        "visible": _visible_infidelity(here, model, probabilities, labels),
        **extra,
    }
    if path and how == "" and arm in ("postselected", "measured", "feedforward", "reconstruction"):
        result |= _by_step(here, model, path, labels, generator)
    kept_tensors = {"images": _bytes(images[:KEPT_IMAGES]), "labels": labels[:KEPT_IMAGES]}
    if path:
        steps = [model.images(s[: len(c.labels)]) for s in path]
        kept_tensors["path"] = _bytes(torch.stack(steps))  # [T + 1, C, channels, H, W]
    target = evaluation_file(Path(root), row, seed)
    write_tensors(target.with_suffix(".safetensors"), kept_tensors, {"row": row}, kind="samples")
    atomic_write_json(target, result)


def measure_floor(root: str) -> None:
    """What real images reach: training images as they are, and sent through encoder and decoder."""
    here = context(root)
    n, model = min(here.config.eval_images, len(here.train)), here.model("postselected", 0)
    rows: dict[str, list[dict[str, float]]] = {"real": [], "encoded": []}
    for seed in range(here.config.seeds):
        index = torch.randperm(len(here.train), generator=torch.Generator().manual_seed(seed))[:n]
        images, labels = here.train.images[index], here.original(here.train.labels[index])
        rows["real"].append(evaluate_samples(images, labels, here.judge, _original(here)))
        decoded = model.decode(model.encode(images).abs())
        rows["encoded"].append(evaluate_samples(decoded, labels, here.judge, _original(here)))
    atomic_write_json(Path(root) / "floor.json", {"n_images": n, **rows})


def read_samples(root: Path, row: str, seed: int) -> dict[str, Tensor]:
    """What was kept: "images" [≤ 40, C, H, W], maybe "path" [T + 1, labels, C, H, W], in [−1, 1]; and "labels"."""
    tensors, _ = read_tensors(evaluation_file(root, row, seed).with_suffix(".safetensors"), kind="samples")
    return {k: v if k == "labels" else v.float() / 127.5 - 1 for k, v in tensors.items()}


def _linear(
    here: Context, model: AmplitudeQDM, arm: str, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Samples of the closed-form map; rank and power are tuned for the reward classifier's Fréchet distance."""
    data, best = model.encode(here.train.images), (float("inf"), 1, 1.0)
    real = image_features(here.reward, here.train.images)
    tuning = torch.Generator().manual_seed(TUNING_SEED)
    for power in POWERS if arm == "linear" else ():
        for rank in [r for r in RANKS if r <= model.dim]:
            tried = LinearMap.fit(data, here.train.labels, rank=rank, power=power)
            made = model.decode(tried.sample(labels, tuning).abs())
            best = min(best, (frechet_distance(image_features(here.reward, made), real), rank, power))
    _, rank, power = best
    chosen = LinearMap.fit(data, here.train.labels, rank=rank, power=power)
    success = torch.tensor([chosen.success_probability(int(y)) for y in labels])
    return chosen.sample(labels, generator), success, {"rank": rank, "power": power}


def _original(here: Context) -> ImageDataset:
    """The held-out split with the data set's own labels."""
    h = here.heldout
    return ImageDataset(h.images, here.original(h.labels), h.name, h.split, 10)


def _infidelity(here: Context, model: AmplitudeQDM, states: Tensor, labels: Tensor) -> float:
    """1 − F between the average state of what was made and of the training data, mean over labels."""
    data = model.encode(here.train.images)
    return _average_infidelity(states, labels, data, here.train.labels, len(here.config.labels))


def _visible_infidelity(here: Context, model: AmplitudeQDM, probabilities: Tensor, labels: Tensor) -> float:
    """1 − (Σ √(p q))² of the average outcome probabilities, made and of the training data, mean over labels."""
    data = model.encode(here.train.images).abs().square()
    return _visible(probabilities, labels, data, here.train.labels, len(here.config.labels))


def _by_step(
    here: Context, model: AmplitudeQDM, path: tuple[Tensor, ...], labels: Tensor, generator: torch.Generator
) -> dict[str, list[float]]:
    """As `_infidelity` and `_visible_infidelity`, of x_t against noised data at t, for t = T … 0."""
    data, n_steps, n_labels = model.encode(here.train.images), len(path) - 1, len(here.config.labels)
    whole, visible = [], []
    for index, states in enumerate(path):
        t = n_steps - index
        noised = model.forward_process.noised(data, t, generator)
        whole.append(_average_infidelity(states, labels, noised, here.train.labels, n_labels))
        seen, wanted = (model.reverse.outcome_probabilities(x) for x in (states, noised))
        visible.append(_visible(seen, labels, wanted, here.train.labels, n_labels))
    return {"infidelity_by_step": whole, "visible_by_step": visible}


def _average_infidelity(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor, n: int) -> float:
    parts = []
    for y in range(n):
        mine, theirs = (as_density(x).mean(0, keepdim=True) for x in (a[labels_a == y], b[labels_b == y]))
        parts.append(infidelity(mine.to(torch.complex128), theirs.to(torch.complex128)))
    return float(torch.cat(parts).mean())


def _visible(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor, n: int) -> float:
    means = [(a[labels_a == y].double().mean(0), b[labels_b == y].double().mean(0)) for y in range(n)]
    return float(torch.stack([1 - (mine * theirs).sqrt().sum() ** 2 for mine, theirs in means]).mean())


def _bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()
