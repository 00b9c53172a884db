"""One training loop for all quantum diffusion models: step by step from t = T down, or all steps together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.denoising.ensembles import KERNELS, SIMILARITIES, mmd_by_label, wasserstein
from qhw_diffusion.denoising.entering import Entering
from qhw_diffusion.denoising.losses import hilbert_schmidt, infidelity, trace_distance
from qhw_diffusion.denoising.models import QDM
from qhw_diffusion.denoising.reverse import check_labels
from qhw_diffusion.denoising.states import as_density
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, UnknownNameError
from qhw_diffusion.execution.evolution import Branches
from qhw_diffusion.runs import (
    RunFolder,
    StopRequest,
    interruptible,
    pack_generator,
    pack_optimizer,
    progress,
    settings_from_dict,
    unpack_generator,
    unpack_optimizer,
)

PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "infidelity": infidelity,
    "trace_distance": trace_distance,
    "hilbert_schmidt": hilbert_schmidt,
}
ENSEMBLE = ("mmd", "wasserstein")
MODES = ("greedy", "joint")
History = list[dict[str, float]]


class MixedStateWarning(UserWarning):
    """Unitary reverse steps are trained on mixed states, which they cannot purify."""


@dataclass(frozen=True)
class TrainConfig:
    """How a quantum diffusion model is trained.

    Attributes:
        loss: pairwise on (x_{t−1}, x_t) of one path: ``"infidelity"``, ``"trace_distance"``, ``"hilbert_schmidt"``; on
            ensembles: ``"mmd"``, ``"wasserstein"``.
        mode: ``"greedy"``: one step after the other from t = T down, each with `iterations` updates. ``"joint"``: all
            steps together; an ensemble loss then compares what comes out at t = 0 with the data.
        iterations: updates, a step (greedy) or in all (joint).
        batch_size: samples an update; per label where an ensemble loss has labels.
        targets: data an update that an ensemble loss compares with, per label.
        pool: greedy, ensemble losses: samples that enter a step and data they are compared with are taken from this
            many (per label), drawn once for the step, which is much faster. 0 draws new ones at every update.
        kernels: of the MMD, added up: "fidelity", or a number for the Gaussian kernel of that width.
        similarity: what ensemble losses compare by: "fidelity", "superfidelity", or "measured" (|amplitudes| alone).
        learning_rate: of Adam; falls to zero by a cosine (in every stage).
        probability_weight: weight of −log(probability) of what is post-selected, which keeps success affordable.
        max_norm: gradients are scaled down to this norm.
        checkpoint_every: updates between checkpoints.
        seed: of data order, noise and outcomes.
    """

    loss: str = "infidelity"
    mode: str = "greedy"
    iterations: int = 200
    batch_size: int = 64
    targets: int = 64
    pool: int = 0
    kernels: tuple[str | float, ...] = ("fidelity",)
    similarity: str = "fidelity"
    learning_rate: float = 0.02
    probability_weight: float = 0.0
    max_norm: float = 1.0
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, given, allowed in (
            ("loss", self.loss, (*PAIRED, *ENSEMBLE)),
            ("mode", self.mode, MODES),
            ("similarity", self.similarity, tuple(SIMILARITIES)),
        ):
            if given not in allowed:
                raise UnknownNameError.of(kind, str(given), allowed)
        for kernel in self.kernels:
            if isinstance(kernel, str) and kernel != KERNELS[0]:
                raise UnknownNameError.of("kernel", kernel, [KERNELS[0], "or the width of a Gaussian kernel"])
        if min(self.iterations, self.checkpoint_every) < 1 or min(self.batch_size, self.targets) < 2:
            raise InvalidInputError("iterations and checkpoint_every are 1 or more, batch_size and targets 2 or more")
        if self.pool < 0 or (self.pool and (self.mode != "greedy" or self.loss not in ENSEMBLE)):
            raise InvalidInputError(f"pool is {self.pool}; allowed: 0, or more with mode='greedy' and an ensemble loss")
        if not (self.learning_rate > 0 and self.max_norm > 0 and self.probability_weight >= 0):
            raise InvalidInputError("learning_rate and max_norm are positive, probability_weight is not negative")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """Reads what `dataclasses.asdict` wrote. Raises InvalidInputError on unknown entries."""
        return settings_from_dict(cls, data, "training settings")


def train_qdm(
    model: QDM,
    data: Tensor,
    config: TrainConfig,
    *,
    labels: Tensor | None = None,
    run: RunFolder | None = None,
    resume: bool = False,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> History:
    """Train `model` in place on states or images; returns the metrics of every update.

    With a run folder: metrics to metrics.jsonl and TensorBoard, a checkpoint every `checkpoint_every` updates, and
    after Ctrl-C, which ends the loop at the next update; `resume` goes on bit for bit.

    Args:
        model: with its forward process and its weights.
        data: what the model's `encode` takes.
        labels: [N] int64, for a conditioned model.

    Raises:
        InvalidInputError: data or labels that do not fit the model, or a greedy training of steps that share weights.
        RunFolderError, DamagedFileError: no checkpoint to resume from, or one of another model.
    """
    task = _Task(model, data, labels, config)
    stages = list(range(model.reverse.config.n_steps, 0, -1)) if config.mode == "greedy" else [0]
    total = len(stages) * config.iterations
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(model.reverse.parameters())
    done: int = 0
    history: History = []
    if resume:
        if run is None:
            raise InvalidInputError("resume=True needs the run folder to resume from")
        done = _restore(run, model, optimizer, generator)
        history = [{k: v for k, v in row.items() if k != "step"} for row in run.metrics() if row["step"] < done]
        run.truncate_metrics(done)
    stopping = interruptible() if run is not None else nullcontext(StopRequest())
    with progress(total=total, initial=done, desc="denoiser", unit="update") as bar, stopping as stop:
        for update in range(done, total):
            stage, within = stages[update // config.iterations], update % config.iterations
            if within == 0 and update:  # a step of its own, with moments of its own
                optimizer = torch.optim.Adam(model.reverse.parameters())
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * within / config.iterations)) / 2
            optimizer.zero_grad(set_to_none=False)
            loss, probability = task.loss(stage, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(model.reverse.parameters(), config.max_norm)
            optimizer.step()
            metrics = {
                "losses/train": float(loss.detach()),
                "losses/gradient_norm": float(norm),
                "charts/step": float(stage),
                "charts/probability": probability,
            }
            history.append(metrics)
            last = update + 1 == total or stop.requested  # read once: what ends the loop has been saved
            if run is not None:
                run.log(update, metrics)
                if (update + 1) % config.checkpoint_every == 0 or last:
                    _save(run, model, optimizer, generator, update + 1)
            if on_update is not None:
                on_update(update, metrics)
            bar.update(1)
            if last:
                break
    return history


def check_qdm_training(model: QDM, data: Tensor, config: TrainConfig, *, labels: Tensor | None = None) -> None:
    """Raises what `train_qdm` would for a model, data and settings that do not fit, before anything is trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixedStateWarning)  # the training gives it
        _Task(model, data, labels, config)


class _Task:
    """Batches and losses of one training."""

    def __init__(self, model: QDM, data: Tensor, labels: Tensor | None, config: TrainConfig) -> None:
        reverse = model.reverse.config
        self.model, self.config, self.states = model, config, model.encode(data)
        self.conditioned = reverse.n_labels > 1
        if self.conditioned != (labels is not None):
            raise InvalidInputError(
                "this model is conditioned: give labels" if self.conditioned else "this model takes no labels"
            )
        self.labels = check_labels(labels, len(self.states), reverse.n_labels)
        if config.mode == "greedy" and reverse.sharing != "separate":
            raise InvalidInputError(
                f"mode='greedy' trains one step after the other, but sharing={reverse.sharing!r}: use mode='joint'"
            )
        if config.loss in ENSEMBLE and config.mode == "joint" and reverse.kind == "unitary":
            raise InvalidInputError("a unitary process cannot change its ensemble's average: train it pairwise")
        if config.loss in PAIRED and reverse.feed_forward:
            raise InvalidInputError(
                f"loss={config.loss!r} compares single steps, which know no outcome of the step before: with "
                f"feed_forward train by {' or '.join(ENSEMBLE)}"
            )
        if reverse.kind == "unitary" and (model.forward_process.density or self.states.ndim == 3):
            warnings.warn(_why_not_pure(model.dim), MixedStateWarning, stacklevel=3)
        # data by label; one group if the model has none
        self.groups = [torch.nonzero(self.labels == y)[:, 0] for y in range(reverse.n_labels)]
        empty = [y for y, group in enumerate(self.groups) if len(group) == 0]
        if empty:
            raise InvalidInputError(f"no data for label {empty[0]}: every label of the model needs some")
        self.entering = Entering(model, self.states, self.groups, config.pool, config.seed)

    def loss(self, stage: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """Loss of one update and the mean probability of what was kept; stage t, or 0 for all steps."""
        if self.config.loss in PAIRED:
            steps = [stage] if stage else range(self.model.reverse.config.n_steps, 0, -1)
            parts = [self._paired(t, generator) for t in steps]
            probability = 1.0
            for _, p in parts:
                probability *= p
            return torch.stack([loss for loss, _ in parts]).mean(), probability
        return self._ensemble(stage, generator)

    def _paired(self, t: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """Mean over outcomes (as likely as they are) of the distance of x_{t−1} to what comes out of x_t."""
        index = torch.randint(len(self.states), (self.config.batch_size,), generator=generator)
        before, after = self.model.forward_process.pair(self.states[index], t, generator)
        branches = self.model.reverse.step(after, t, self.labels[index] if self.conditioned else None)
        kept, weights = _kept(self.model.reverse.config.kind, branches)
        distance = PAIRED[self.config.loss]
        values = torch.stack([distance(states, _like(before, states)) for states in kept.states])
        loss = (weights * values).sum(0).mean()
        return self._with_probability(loss, kept.probabilities)

    def _ensemble(self, stage: int, generator: torch.Generator) -> tuple[Tensor, float]:
        c, reverse = self.config, self.model.reverse
        labels = torch.arange(len(self.groups)).repeat_interleave(c.batch_size)
        given = labels if self.conditioned else None
        if stage:  # the steps before are trained: their samples go in, every outcome of this step comes out
            entered, before = self.entering.samples(stage, c.batch_size, generator)
            branches, weights = _kept(reverse.config.kind, reverse.step(entered, stage, given, before))
            states, probabilities = branches.states, branches.probabilities
        else:  # outcomes are drawn; importance weights of value 1 carry the gradient of their probabilities
            start = self.model.forward_process.prior(len(labels), self.model.dim, generator)
            chain = reverse.run(start, given, generator)
            states, probabilities = chain.states[None], chain.probability[None]
            drawn = reverse.config.kind == "measured"
            weights = chain.importance[None] if drawn else torch.ones_like(probabilities)
        target = self.entering.targets(stage, c.targets, generator)
        made = states.flatten(0, 1)
        wanted = torch.arange(len(self.groups)).repeat_interleave(c.targets)
        loss = self._distance(made, labels.repeat(len(states)), _like(target, made), wanted, weights.flatten())
        if reverse.config.kind == "measured":
            return loss, float(probabilities.detach().mean())
        return self._with_probability(loss, probabilities)

    def _distance(self, made: Tensor, labels: Tensor, target: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Mean over labels of the distance of the two ensembles."""
        c = self.config
        if c.loss == "mmd":
            return mmd_by_label(made, target, labels, wanted, weights, kernels=c.kernels, similarity=c.similarity)
        parts = []
        for y in range(len(self.groups)):
            mine, theirs = labels == y, wanted == y
            parts.append(wasserstein(made[mine], target[theirs], weights[mine], similarity=c.similarity))
        return torch.stack(parts).mean()

    def _with_probability(self, loss: Tensor, probabilities: Tensor) -> tuple[Tensor, float]:
        if self.config.probability_weight and self.model.reverse.config.kind == "postselected":
            loss = loss - self.config.probability_weight * probabilities.clamp_min(1e-12).log().mean()
        return loss, float(probabilities.detach().mean())


def _why_not_pure(dim: int) -> str:
    return (
        "a unitary reverse step keeps the eigenvalues of the mixed states it is trained on: its fidelity to a pure "
        "state stays below the largest of them, α_t + (1 − α_t)/d from a depolarised state ρ_t, and samples that start "
        f"from I/d stay at 1/d = {1 / dim:g}. Pure states take kind='measured', 'postselected' or 'reset'"
    )


def _kept(kind: str, branches: Branches) -> tuple[Branches, Tensor]:
    """The branches that go on, and their weights [K, B] in a loss."""
    if kind == "postselected":
        kept = Branches(branches.states[:1], branches.probabilities[:1])
        return kept, torch.ones_like(kept.probabilities)
    return branches, branches.probabilities


def _like(target: Tensor, states: Tensor) -> Tensor:
    """The target as density matrices where the states are."""
    return as_density(target) if states.ndim == 3 and target.ndim == 2 else target


def _save(
    run: RunFolder, model: QDM, optimizer: torch.optim.Optimizer, generator: torch.Generator, updates: int
) -> None:
    tensors, meta = pack_optimizer(optimizer)
    tensors |= {f"reverse.{name}": value for name, value in model.reverse.state_dict().items()}
    tensors["generator"] = pack_generator(generator)
    run.save_checkpoint(tensors, {"updates": updates, "optimizer": meta})


def _restore(run: RunFolder, model: QDM, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Puts a checkpoint back; returns the number of updates done."""
    tensors, meta = run.load_checkpoint()
    try:
        weights = {k.removeprefix("reverse."): v for k, v in tensors.items() if k.startswith("reverse.")}
        model.reverse.load_state_dict(weights)
        unpack_optimizer(optimizer, {k: v for k, v in tensors.items() if k.startswith("optimizer.")}, meta["optimizer"])
        unpack_generator(generator, tensors["generator"])
        return int(meta["updates"])
    except (RuntimeError, KeyError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"the checkpoint in {run.path} does not fit this model ({error})") from error
