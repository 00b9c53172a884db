"""One training loop for all quantum diffusion models: step by step from t = T down, or all steps together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.checkpoints import restore_checkpoint, save_checkpoint
from qhw_diffusion.config import Config, check_finite
from qhw_diffusion.denoising.config import with_present_names
from qhw_diffusion.denoising.ensembles import KERNELS, SIMILARITIES, mmd_by_label, wasserstein
from qhw_diffusion.denoising.losses import hilbert_schmidt, infidelity, trace_distance
from qhw_diffusion.denoising.models import QDM
from qhw_diffusion.denoising.reverse import check_labels
from qhw_diffusion.denoising.states import as_density
from qhw_diffusion.errors import InvalidInputError, UnknownNameError
from qhw_diffusion.execution.evolution import Branches
from qhw_diffusion.runs import RunFolder, StopRequest, progress

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
class TrainConfig(Config):
    """How a quantum diffusion model is trained."""

    loss: str = "infidelity"
    """Distance that is trained: pairwise on (x_{t−1}, x_t) of one path (infidelity, trace_distance, hilbert_schmidt),
    or of ensembles (mmd, wasserstein)."""
    mode: str = "greedy"
    """Order of training: greedy (one step after the other from t = T down) or joint (all steps together; an ensemble
    loss then compares what comes out at t = 0 with the data)."""
    iterations: int = 200
    """Updates, per step (greedy) or in all (joint)."""
    batch_size: int = 64
    """Samples per update; per label where an ensemble loss has labels."""
    targets: int = 64
    """Data per update that an ensemble loss compares with, per label."""
    buffer_size: int = 0
    """Size per label of the sample buffers of a greedy training on ensembles: samples that enter a step, and data they
    are compared with, drawn once for the step, which is much faster; 0 draws new ones at every update."""
    kernels: tuple[str | float, ...] = ("fidelity",)
    """Kernels of the MMD, added up: fidelity, or the width of a Gaussian kernel."""
    similarity: str = "fidelity"
    """Similarity that ensemble losses compare states by: fidelity, superfidelity, or measured (|amplitudes| alone)."""
    learning_rate: float = 0.02
    """Learning rate of Adam; falls to zero by a cosine (in every stage)."""
    probability_weight: float = 0.0
    """Weight of −log(probability) of what is post-selected in the loss; it keeps success affordable."""
    max_norm: float = 1.0
    """Norm that gradients are scaled down to."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of data order, noise and outcomes."""

    def __post_init__(self) -> None:
        """Check the fields."""
        check_finite(self)
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
        if self.buffer_size < 0 or (self.buffer_size and (self.mode != "greedy" or self.loss not in ENSEMBLE)):
            raise InvalidInputError(
                f"buffer_size is {self.buffer_size}; allowed: 0, or more with mode='greedy' and an ensemble loss"
            )
        finite = all(map(math.isfinite, (self.learning_rate, self.max_norm, self.probability_weight)))
        if not (finite and self.learning_rate > 0 and self.max_norm > 0 and self.probability_weight >= 0):
            raise InvalidInputError(
                f"learning_rate is {self.learning_rate}, max_norm {self.max_norm} and probability_weight "
                f"{self.probability_weight}; allowed: positive numbers, and 0 for the last"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; also reads the names of earlier versions (`config.RENAMED`).

        Raises:
            UnknownNameError: an entry that is no field.
            InvalidInputError: `values` is no mapping, or a value does not fit its field.
        """
        return super().from_dict(with_present_names("TrainConfig", values))


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
        data: what the model's `encode` takes: images [N, C, H, W] in [−1, 1], or states [N, d] or [N, d, d].
        config: loss, order and size of the training.
        labels: int64 [N] from 0 on, for a conditioned model.
        run: run folder to log and save checkpoints to.
        resume: go on from the run folder's checkpoint.
        on_update: called after every update with its number and metrics.

    Returns:
        The metrics of every update: "losses/train", "losses/gradient_norm", "charts/step" (t, 0 for all steps) and
        "charts/probability" (mean probability of what was kept).

    Raises:
        InvalidInputError: data or labels that do not fit the model, or a greedy training of steps that share weights.
        RunFolderError, DamagedFileError: no checkpoint to resume from, or one of another model.
    """
    return train_task(TrainingTask(model, data, labels, config), run=run, resume=resume, on_update=on_update)


def train_task(
    task: TrainingTask,
    *,
    run: RunFolder | None = None,
    resume: bool = False,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
    also: Callable[[], Mapping[str, float]] | None = None,
) -> History:
    """`train_qdm` of batches and losses that are made already; arguments, result and errors as there.

    also: further metrics, asked for at the end of each update.
    """
    model, config = task.model, task.config
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
    stopping = run.interruptible() if run is not None else nullcontext(StopRequest())
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
            if also is not None:
                metrics |= also()
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
    """Check that a model, data and settings fit, without training.

    Args:
        model: with its forward process and its weights.
        data: what the model's `encode` takes.
        config: settings of the training.
        labels: int64 [N], for a conditioned model.

    Raises:
        InvalidInputError: as `train_qdm` would.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MixedStateWarning)  # the training gives it
        TrainingTask(model, data, labels, config)


class TrainingTask:
    """Batches and losses of one training.

    Args:
        model: with its forward process and its weights.
        data: what the model's `encode` takes.
        labels: int64 [N], for a conditioned model.
        config: loss, order and size of the training.

    Raises:
        InvalidInputError: data, labels or settings that do not fit the model.
    """

    def __init__(self, model: QDM, data: Tensor, labels: Tensor | None, config: TrainConfig) -> None:
        reverse = model.reverse.config
        self.model, self.config, self.states = model, config, model.encode(data)
        self.conditioned = reverse.n_labels > 1
        if self.conditioned != (labels is not None):
            raise InvalidInputError(
                "this model is conditioned: give labels" if self.conditioned else "this model takes no labels"
            )
        self.labels = check_labels(labels, len(self.states), reverse.n_labels)
        if config.mode == "greedy" and reverse.weight_sharing != "per_step":
            raise InvalidInputError(
                f"mode='greedy' trains one step after the other, but weight_sharing={reverse.weight_sharing!r}: use "
                "mode='joint'"
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
        self.buffers = SampleBuffers(model, self.states, self.groups, config.buffer_size, config.seed)

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
        return self.with_probability(loss, kept.probabilities)

    def _ensemble(self, stage: int, generator: torch.Generator) -> tuple[Tensor, float]:
        c, reverse = self.config, self.model.reverse
        labels = torch.arange(len(self.groups)).repeat_interleave(c.batch_size)
        given = labels if self.conditioned else None
        if stage:  # the steps before are trained: their samples go in, every outcome of this step comes out
            entered, before = self.buffers.samples(stage, c.batch_size, generator)
            branches, weights = _kept(reverse.config.kind, reverse.step(entered, stage, given, before))
            states, probabilities = branches.states, branches.probabilities
        else:  # outcomes are drawn; importance weights of value 1 carry the gradient of their probabilities
            start = self.model.forward_process.prior(len(labels), self.model.dim, generator)
            trajectory = reverse.run(start, given, generator)
            states, probabilities = trajectory.states[None], trajectory.probability[None]
            drawn = reverse.config.kind == "measured"
            weights = trajectory.importance[None] if drawn else torch.ones_like(probabilities)
        target = self.buffers.targets(stage, c.targets, generator)
        made = states.flatten(0, 1)
        wanted = torch.arange(len(self.groups)).repeat_interleave(c.targets)
        loss = self.distance(made, labels.repeat(len(states)), _like(target, made), wanted, weights.flatten())
        if reverse.config.kind == "measured":
            return loss, float(probabilities.detach().mean())
        return self.with_probability(loss, probabilities)

    def distance(self, made: Tensor, labels: Tensor, target: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
        """Mean over labels of the distance of the two ensembles."""
        c = self.config
        if c.loss == "mmd":
            return mmd_by_label(made, target, labels, wanted, weights, kernels=c.kernels, similarity=c.similarity)
        parts = []
        for y in range(len(self.groups)):
            mine, theirs = labels == y, wanted == y
            parts.append(wasserstein(made[mine], target[theirs], weights[mine], similarity=c.similarity))
        return torch.stack(parts).mean()

    def with_probability(self, loss: Tensor, probabilities: Tensor) -> tuple[Tensor, float]:
        """The loss with the term of the success probabilities [...], and their mean."""
        if self.config.probability_weight and self.model.reverse.config.kind == "postselected":
            loss = loss - self.config.probability_weight * probabilities.clamp_min(1e-12).log().mean()
        return loss, float(probabilities.detach().mean())


# states, and the outcomes of the step before
_Samples = tuple[Tensor, Tensor | None]


class SampleBuffers:
    """Samples that enter a step of a greedy training on ensembles, and its targets: data noised to the step's end.

    They are new at every update, or drawn from a buffer that is filled once for each step. The steps before are trained
    and do not change, so a buffer costs their circuits once for a step, not at every update. QuDDPM's public code
    (arXiv 2310.05866) does the same, with as many samples as it uses at a time.

    Args:
        model: with its forward process.
        states: data [N, d] or [N, d, d].
        groups: indices of the data of each label.
        size: samples and targets for a label in the buffers; 0: new ones at every update.
        seed: of the buffers. They depend on it, the step and the weights of the steps before, on nothing else, so a
            resumed training has the same ones.
    """

    def __init__(self, model: QDM, states: Tensor, groups: list[Tensor], size: int, seed: int) -> None:
        self.model, self.states, self.groups, self.size, self.seed = model, states, groups, size, seed
        self._stage = -1
        self._samples: _Samples = (states, None)
        self._targets = states

    def samples(self, stage: int, count: int, generator: torch.Generator) -> _Samples:
        """`count` states a label, in the labels' order, and the outcomes of the step before (None at t = T)."""
        if not self.size:
            return self._run(stage, count, generator)
        self._fill(stage)
        index = self._index(count, generator)
        states, before = self._samples
        return states[index], None if before is None else before[index]

    def targets(self, stage: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` data a label, in the labels' order, at t = stage − 1; at t = 0 for stage 0 (all steps)."""
        if not (self.size and stage):
            return self._noised(stage, count, generator)
        self._fill(stage)
        return self._targets[self._index(count, generator)]

    def _fill(self, stage: int) -> None:
        if stage == self._stage:
            return
        seed = int(np.random.SeedSequence([self.seed, stage]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        self._samples = self._run(stage, self.size, generator)
        self._targets = self._noised(stage, self.size, generator)
        self._stage = stage

    def _run(self, stage: int, count: int, generator: torch.Generator) -> _Samples:
        labels = torch.arange(len(self.groups)).repeat_interleave(count)
        start = self.model.forward_process.prior(len(labels), self.model.dim, generator)
        with torch.no_grad():
            trajectory = self.model.reverse.run(start, labels, generator, stop=stage)
        return trajectory.states, trajectory.outcomes[:, -1] if trajectory.outcomes.shape[1] else None

    def _noised(self, stage: int, count: int, generator: torch.Generator) -> Tensor:
        index = [group[torch.randint(len(group), (count,), generator=generator)] for group in self.groups]
        target = self.states[torch.cat(index)]
        return self.model.forward_process.noised(target, stage - 1, generator) if stage > 1 else target

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        """Members of a buffer, `count` a label."""
        index = torch.randint(self.size, (len(self.groups), count), generator=generator)
        return (index + self.size * torch.arange(len(self.groups))[:, None]).flatten()


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
    save_checkpoint(
        run, {"reverse": model.reverse, "optimizer": optimizer, "generator": generator}, {"updates": updates}
    )


def _restore(run: RunFolder, model: QDM, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
    """Puts a checkpoint back; returns the number of updates done."""
    parts = {"reverse": model.reverse, "optimizer": optimizer, "generator": generator}
    return int(restore_checkpoint(run, parts)[0]["updates"])
