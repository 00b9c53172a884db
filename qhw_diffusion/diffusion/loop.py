"""The optimisation that trainings of diffusion models share: averaged weights, checkpoints, bit-for-bit resuming."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qhw_diffusion.checkpoints import load_checkpoint, restore_checkpoint, save_checkpoint
from qhw_diffusion.diffusion.datasets import ImageDataset
from qhw_diffusion.diffusion.weights import half_precision
from qhw_diffusion.errors import DamagedFileError, RunFolderError
from qhw_diffusion.runs import RunFolder, StopRequest, progress

_CHECKPOINT_EVERY = 250


class Recipe(Protocol):
    """What the loop reads of a configuration."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def steps(self) -> int:
        """Training steps."""

    @property
    def learning_rate(self) -> float:
        """Learning rate after the warm-up."""

    @property
    def weight_decay(self) -> float:
        """AdamW's decoupled weight decay."""

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""

    @property
    def ema_decay(self) -> float:
        """Decay of the average of the weights."""

    @property
    def log_every(self) -> int:
        """Steps between two entries of the history."""

    @property
    def seed(self) -> int:
        """Seed of all draws."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types."""


class Optimisation:
    """One optimisation by AdamW: weights, their moving average, optimizer and random numbers.

    Attributes: `network` (what is trained), `average` (of its state), `generator` (of every draw), `step`, `recent`
    (losses since `interval_loss` was last asked for).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float,
        warmup: int,
        ema_decay: float,
        seed: int,
    ) -> None:
        """Nothing is trained yet; the arguments are those of `Recipe`."""
        self.network, self.step, self.steps = network.train(), 0, steps
        self.learning_rate, self.warmup, self.ema_decay = learning_rate, warmup, ema_decay
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = [p for p in network.parameters() if p.requires_grad]
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.weights, lr=learning_rate, weight_decay=weight_decay)
        self.recent: list[float] = []

    def batch_loss(self) -> Tensor:
        """Loss of a fresh batch, drawn with `generator`."""
        raise TypeError(f"{type(self).__name__} does not say what it minimises: define batch_loss")

    def one_step(self) -> None:
        """A step on a fresh batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor(self.step, self.steps, self.warmup)
        loss = self.batch_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self._update_average(min(self.ema_decay, (1 + self.step) / (10 + self.step)))
        self.recent.append(loss.item())
        self.step += 1

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        state = self.network.state_dict()
        torch._foreach_lerp_([self.average[k] for k in state], list(state.values()), 1 - decay)

    def interval_loss(self) -> float:
        """The mean loss since this was last asked for."""
        loss = sum(self.recent) / len(self.recent)
        self.recent.clear()
        return loss

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, rounded as they will be saved."""
        return {k: v.float() if v.is_floating_point() else v for k, v in half_precision(self.average).items()}

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "average": self.average,
            "weights": self.network,
            "optimizer": self.optimizer,
            "generator": self.generator,
        }


class Training(Optimisation):
    """Everything that changes from step to step of a training, so that it can be saved and put back.

    Attributes: those of `Optimisation`, `history` (list of {"step", "loss"}), `data`.
    """

    def __init__(
        self,
        config: Recipe,
        data: ImageDataset,
        network: nn.Module,
        loss: Callable[[Training], Tensor],
        parts: dict[str, str] | None = None,
    ) -> None:
        """Nothing is trained yet.

        Args:
            config: recipe.
            data: what is trained on.
            network: what is trained.
            loss: draws a batch with `generator` and returns its loss.
            parts: fingerprints of other networks that the loss depends on, by name; a run goes on only with the same.
        """
        super().__init__(
            network,
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            ema_decay=config.ema_decay,
            seed=config.seed + 1,
        )
        self.others = parts or {}
        self.config, self.data, self.loss = config, data, loss
        self.history: list[dict[str, float]] = []

    def batch_loss(self) -> Tensor:
        """The loss that the training was made with."""
        return self.loss(self)

    def run(self, kind: str, run: RunFolder | None, *, max_steps: int | None = None, resume: bool = False) -> None:
        """Train up to the last step of the recipe, or up to `max_steps`.

        Raises:
            RunFolderError: `resume` without a run, without a checkpoint in it, or with another configuration or data
                set.
            KeyboardInterrupt: after Ctrl-C, when the checkpoint has been saved.
        """
        config = self.config
        if resume:
            if run is None:
                raise RunFolderError("resume needs the run folder to resume from")
            self._restore(run)
        n_steps = config.steps if max_steps is None else min(max_steps, config.steps)
        guard = run.interruptible() if run is not None else nullcontext(StopRequest())
        with guard as stop, progress(total=n_steps, initial=self.step, desc=f"{kind} {config.dataset}") as bar:
            while self.step < n_steps:
                self.one_step()
                bar.update()
                if self.step % config.log_every == 0 or self.step == n_steps:
                    loss = self._close_interval()
                    bar.set_postfix(loss=f"{loss:.4f}")
                    if run is not None:
                        rate = self.optimizer.param_groups[0]["lr"]
                        run.log(self.step, {f"losses/{kind}": loss, "charts/learning_rate": rate})
                if run is not None and (stop.requested or self.step % _CHECKPOINT_EVERY == 0):
                    self._save(run)
                if stop.requested:
                    raise KeyboardInterrupt

    def provenance(self) -> dict[str, Any]:
        """What the weights come from, for the saved file."""
        import diffusers

        return {
            "data_fingerprint": self.data.fingerprint,
            "n_images": len(self.data),
            "trained_steps": self.step,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        }

    def _close_interval(self) -> float:
        """The mean loss since the last entry of the history, appended to it."""
        loss = self.interval_loss()
        self.history.append({"step": self.step, "loss": loss})
        return loss

    def _save(self, run: RunFolder) -> None:
        meta = {"step": self.step, "recent": self.recent, "history": self.history, **self._identity()}
        save_checkpoint(run, self.parts(), meta)

    def _restore(self, run: RunFolder) -> None:
        _, meta = load_checkpoint(run)
        for key, own in self._identity().items():
            given = meta.get(key)
            if given != own:
                raise RunFolderError(f"the checkpoint in {run.path} has {key} {given}, not {own}: not the same run")
        try:
            restore_checkpoint(run, self.parts())
            self.step, self.recent = int(meta["step"]), list(meta["recent"])
            self.history = list(meta["history"])
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"the checkpoint in {run.path} does not fit its configuration ({error})") from error
        run.truncate_metrics(self.step + 1)

    def _identity(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "data": self.data.fingerprint, **self.others}


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then a half cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * share))
