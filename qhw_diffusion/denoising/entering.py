"""What a step of a greedy training on ensembles works with: samples that enter it, and data noised to its end."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qhw_diffusion.denoising.models import QDM

Entered = tuple[Tensor, Tensor | None]


class Entering:
    """Samples entering a step and its targets, new at every update or from a pool drawn once for each step.

    The steps before are trained and do not change, so a pool costs their circuits once for a step, not at every
    update. QuDDPM's public code (arXiv 2310.05866) does the same, with as many samples as it uses at a time.

    Args:
        model: with its forward process.
        states: data [N, d] or [N, d, d].
        groups: indices of the data of each label.
        pool: samples and targets for a label; 0: new ones at every update.
        seed: of the pools. A pool depends on it, the step and the weights of the steps before, on nothing else, so a
            resumed training has the same one.
    """

    def __init__(self, model: QDM, states: Tensor, groups: list[Tensor], pool: int, seed: int) -> None:
        self.model, self.states, self.groups, self.size, self.seed = model, states, groups, pool, seed
        self._stage = -1
        self._samples: Entered = (states, None)
        self._targets = states

    def samples(self, stage: int, count: int, generator: torch.Generator) -> Entered:
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

    def _run(self, stage: int, count: int, generator: torch.Generator) -> Entered:
        labels = torch.arange(len(self.groups)).repeat_interleave(count)
        start = self.model.forward_process.prior(len(labels), self.model.dim, generator)
        with torch.no_grad():
            chain = self.model.reverse.run(start, labels, generator, stop=stage)
        return chain.states, chain.outcomes[:, -1] if chain.outcomes.shape[1] else None

    def _noised(self, stage: int, count: int, generator: torch.Generator) -> Tensor:
        index = [group[torch.randint(len(group), (count,), generator=generator)] for group in self.groups]
        target = self.states[torch.cat(index)]
        return self.model.forward_process.noised(target, stage - 1, generator) if stage > 1 else target

    def _index(self, count: int, generator: torch.Generator) -> Tensor:
        """Members of a pool, `count` a label."""
        index = torch.randint(self.size, (len(self.groups), count), generator=generator)
        return (index + self.size * torch.arange(len(self.groups))[:, None]).flatten()
