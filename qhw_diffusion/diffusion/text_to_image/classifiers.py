"""The two classifiers of the coloured digits, each with a head for digit, colour and ground; one never meets training.

Role "reward" (three stages of plain convolutions) is trained on the digits and combinations that the pipeline is
trained on. Role "evaluation" (four residual stages, another seed) is trained on all combinations of digits by other
writers, the 397 that neither the pipeline nor the reward classifier has seen; it measures and never gives rewards. The
accuracy of both is that on the 200 digits that nothing is trained on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.checks import check_labels, check_pixels
from qhw_diffusion.diffusion.classifiers import ARCHITECTURES, ROLES, SavedClassifier, classifier_body
from qhw_diffusion.diffusion.loop import rate_factor
from qhw_diffusion.diffusion.text_to_image.images import NAME, SIDE, coloured_digits, draw, writers
from qhw_diffusion.diffusion.text_to_image.prompts import (
    ATTRIBUTE_TABLE,
    ATTRIBUTES,
    N_VALUES,
    PROMPTS,
    TRAINED,
    attributes_of,
)
from qhw_diffusion.diffusion.weights import SHIPPED, half_precision, load_model, model_folder
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, QhwError, UnknownNameError
from qhw_diffusion.runs import RunFolder, progress

_LOG_EVERY = 50
_BATCH = 512


@dataclass(frozen=True)
class PromptClassifierConfig(Config):
    """Architecture and training recipe of one classifier of the coloured digits. `for_role` gives that of a role."""

    role: str = "reward"
    """Role: "reward" or "evaluation" (held-out); it also decides which digits and combinations are trained on."""
    architecture: str = "plain"
    """Architecture: "plain" or "residual"."""
    width: int = 12
    """Channels of the first stage; each further stage doubles them."""
    n_features: int = 64
    """Number of features before the heads."""
    steps: int = 1000
    """Training steps of AdamW."""
    batch_size: int = 64
    """Images per training step, each drawn anew."""
    learning_rate: float = 3e-3
    """Learning rate after the warm-up; a cosine decay takes it to zero."""
    weight_decay: float = 0.02
    """AdamW's decoupled weight decay."""
    warmup: int = 50
    """Steps of linear warm-up."""
    noise: float = 0.3
    """Augmentation: largest standard deviation of Gaussian noise, drawn uniformly per image from 0 on."""
    seed: int = 101
    """Seed of the initial weights and the images."""

    def __post_init__(self) -> None:
        check_finite(self)
        for kind, given, allowed in (("role", self.role, ROLES), ("architecture", self.architecture, ARCHITECTURES)):
            if given not in allowed:
                raise UnknownNameError.of(kind, given, allowed)
        check_whole(self, "width", "n_features", "steps", "batch_size")
        check_whole(self, "warmup", "seed", least=0)
        require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        require(self.noise >= 0, f"noise must not be negative, got {self.noise}")

    @classmethod
    def for_role(cls, role: str = "reward", **changes: Any) -> Self:
        """The recipe of a role, with `changes`.

        Raises:
            UnknownNameError: no such role.
        """
        of_role: dict[str, Any] = {}
        if role == "evaluation":
            of_role = {"architecture": "residual", "width": 10, "seed": 202}
        return cls(**{"role": role, **of_role, **changes})


class PromptClassifier(SavedClassifier):
    """A convolutional classifier of digit, colour and ground, and by them of the prompts of a table.

    Frozen and in evaluation mode when loaded. Attributes: `config`, `role`, `name`, `image_shape`, `prompts` (the
    table), `n_classes` (its length), `n_features`, `accuracy` (held-out, by attribute and "all"; empty before
    training), `provenance`.
    """

    kind = "prompt classifier"
    table: Tensor
    _others: Tensor

    def __init__(self, config: PromptClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.role = config.role
        self.name = NAME
        self.image_shape = (3, SIDE, SIDE)
        self.n_features = config.n_features
        self.accuracy: dict[str, float] = {}
        self.provenance: dict[str, Any] = {}
        self.body = classifier_body(config.architecture, self.image_shape, config.width, config.n_features)
        self.heads = nn.ModuleList(nn.Linear(config.n_features, n) for n in N_VALUES)
        self._use(PROMPTS)

    def _use(self, prompts: Sequence[str]) -> None:
        rows = attributes_of(prompts)
        places = (rows[:, 0] * N_VALUES[1] + rows[:, 1]) * N_VALUES[2] + rows[:, 2]
        if len(places.unique()) < len(places):
            raise InvalidInputError("the table holds a prompt twice; each prompt is one class")
        others = torch.ones(math.prod(N_VALUES), dtype=torch.bool)
        others[places] = False
        self.prompts, self.n_classes = tuple(prompts), len(prompts)
        device = next(self.parameters()).device
        self.register_buffer("table", places.to(device), persistent=False)
        self.register_buffer("_others", others.nonzero().squeeze(1).to(device), persistent=False)

    def for_prompts(self, prompts: Sequence[str]) -> PromptClassifier:
        """The same classifier over another table: label i asks for prompts[i]. The weights are shared.

        Raises:
            InvalidInputError: a prompt that is none of the coloured digits, or one twice.
        """
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other._use(prompts)
        return other

    def features(self, x: Tensor) -> Tensor:
        """Activations before the heads, [B, n_features], of images [B, 3, 32, 32] in [−1, 1]; differentiable."""
        check_pixels(x, self.image_shape, next(self.parameters()).dtype)
        output: Tensor = self.body(x)
        return output

    def attribute_logits(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of digit [B, 10], colour [B, 6] and ground [B, 6] of images [B, 3, 32, 32]; differentiable."""
        features = self.features(x)
        digit, colour, ground = (head(features) for head in self.heads)
        return digit, colour, ground

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, K + 1] of images [B, 3, 32, 32]: of the table's K prompts, and of none of them; differentiable.

        The softmax of a prompt is the probability that digit, colour and ground are all three right, that is, the
        product of the three heads' probabilities; that of the last entry is the rest.
        """
        digit, colour, ground = (logits.log_softmax(1) for logits in self.attribute_logits(x))
        joint = (digit[:, :, None, None] + colour[:, None, :, None] + ground[:, None, None, :]).flatten(1)
        return torch.cat([joint[:, self.table], joint[:, self._others].logsumexp(1, keepdim=True)], 1)

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        """Probability [B] that digit, colour and ground are those of the labels, int64 [B]; differentiable."""
        return self.logits(images).softmax(1).gather(1, labels[:, None]).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """As `logits`."""
        return self.logits(x)

    @classmethod
    def load(cls, name_or_path: str | Path, role: str) -> PromptClassifier:
        """A trained classifier over all prompts, frozen and in evaluation mode.

        Args:
            name_or_path: "coloured-digits" for the shipped one, or a run folder or model folder.
            role: "reward" or "evaluation".

        Raises:
            UnknownNameError: a role that does not exist.
            MissingDataError: no such folder.
            InvalidInputError: the folder holds the classifier of the other role.
            DamagedFileError: the folder's files cannot be read as a classifier.
        """
        if role not in ROLES:
            raise UnknownNameError.of("role", role, ROLES)
        shipped = str(name_or_path) == NAME
        folder = SHIPPED / f"{NAME}-{role}" if shipped else model_folder(name_or_path, f"{role} {cls.kind}")
        state, saved = load_model(folder, cls.kind)
        try:
            classifier = cls(PromptClassifierConfig.from_dict(saved["config"]))
            classifier.load_state_dict(state)
            classifier.accuracy = dict(saved["accuracy"])
            classifier.provenance = dict(saved["provenance"])
        except (KeyError, TypeError, RuntimeError, QhwError) as error:
            raise DamagedFileError(f"weights and configuration in {folder} do not fit ({error})") from error
        return classifier.frozen_as(role, folder)


@torch.no_grad()
def attribute_hits(classifier: PromptClassifier, images: Tensor, wanted: Tensor) -> Tensor:
    """Which attributes of images [N, 3, 32, 32] the classifier finds as wanted (int64 [N, 3]): bool [N, 3]."""
    check_labels(wanted[:, 0], N_VALUES[0], len(images))
    found = [
        torch.stack([logits.argmax(1) for logits in classifier.attribute_logits(batch)], 1)
        for batch in images.split(_BATCH)
    ]
    return torch.cat(found) == wanted


def attribute_accuracy(classifier: PromptClassifier, images: Tensor, wanted: Tensor) -> dict[str, float]:
    """Share of images [N, 3, 32, 32] with digit, colour, ground, and "all" three, as wanted (int64 [N, 3])."""
    hits = attribute_hits(classifier, images, wanted)
    shares = {name: hits[:, i].double().mean().item() for i, name in enumerate(ATTRIBUTES)}
    return shares | {"all": hits.all(1).double().mean().item()}


def train_prompt_classifier(config: PromptClassifierConfig, run: RunFolder | None = None) -> PromptClassifier:
    """Train a classifier of the coloured digits; returns it frozen, in evaluation mode.

    Cross-entropies of the three heads, summed; AdamW; every image drawn anew and noised. What is trained on depends on
    the role (see the top of this module). The same configuration gives the same weights bit for bit on one machine.

    Args:
        config: architecture and recipe.
        run: where to log "losses/classifier" and "charts/accuracy", and to write `model/`.
    """
    which, labels = ("train", TRAINED) if config.role == "reward" else ("evaluation", torch.arange(len(PROMPTS)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = PromptClassifier(config)
    generator = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    recent: list[float] = []
    classifier.train()
    with progress(total=config.steps, desc=f"{config.role} classifier {NAME}") as bar:
        for step in range(config.steps):
            rate = config.learning_rate * rate_factor(step, config.steps, config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = labels[torch.randint(len(labels), (config.batch_size,), generator=generator)]
            wanted = ATTRIBUTE_TABLE[chosen]
            images = draw(wanted, generator, which)
            sigma = torch.rand(len(images), 1, 1, 1, generator=generator) * config.noise
            images = images + sigma * torch.randn(images.shape, generator=generator)
            heads = zip(classifier.attribute_logits(images), wanted.unbind(1), strict=True)
            loss = torch.stack([nn.functional.cross_entropy(logits, target) for logits, target in heads]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            recent.append(loss.item())
            bar.update()
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == config.steps:
                mean = sum(recent) / len(recent)
                recent.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
                if run is not None:
                    run.log(step + 1, {"losses/classifier": mean, "charts/learning_rate": rate})
    classifier.load_state_dict({k: v.float() for k, v in half_precision(classifier.state_dict()).items()})
    classifier.eval().requires_grad_(False)
    heldout = coloured_digits("heldout", prompts=PROMPTS)
    classifier.accuracy = attribute_accuracy(classifier, heldout.images, ATTRIBUTE_TABLE[heldout.labels])
    classifier.provenance = {
        "writers": which,
        "data_fingerprint": writers(which).fingerprint,
        "n_digits": len(writers(which)),
        "n_prompts": len(labels),
        "heldout_fingerprint": heldout.fingerprint,
        "torch": torch.__version__,
    }
    if run is not None:
        run.log(config.steps, {"charts/accuracy": classifier.accuracy["all"]})
        classifier.save(Path(run.path) / "model")
    return classifier
