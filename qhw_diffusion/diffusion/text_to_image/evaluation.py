"""What a text-to-image pipeline makes of the prompts of the coloured digits, at constant guidance scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion.datasets import ImageDataset
from qhw_diffusion.diffusion.metrics import diversity, frechet_distance, image_features
from qhw_diffusion.diffusion.text_to_image.classifiers import PromptClassifier, attribute_hits
from qhw_diffusion.diffusion.text_to_image.images import coloured_digits
from qhw_diffusion.diffusion.text_to_image.prompts import ATTRIBUTE_TABLE, ATTRIBUTES, HELD_OUT, PROMPTS
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.runs import progress

_BATCH = 100


@dataclass(frozen=True)
class PromptMeasures:
    """What the evaluation classifier finds in images of prompts.

    Attributes:
        hits: bool [N, 3]: which of digit, colour and ground are as asked for.
        labels: int64 [N], rows of the table of prompts.
        fd: Fréchet distance to the held-out images in the classifier's features.
        energy: energy distance to the held-out images of the same prompt, averaged over the prompts.
        diversity: mean distance between two images of one prompt in the features.
    """

    hits: Tensor
    labels: Tensor
    fd: float
    energy: float
    diversity: float

    def accuracy(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Share of the images (or of those a mask bool [N] chooses) with digit, colour, ground and "all" right."""
        hits = self.hits if chosen is None else self.hits[chosen]
        shares = {name: hits[:, i].double().mean().item() for i, name in enumerate(ATTRIBUTES)}
        return shares | {"all": hits.all(1).double().mean().item()}

    @property
    def held_out(self) -> Tensor:
        """Mask bool [N]: images of the combinations that were held out."""
        return torch.isin(self.labels, HELD_OUT)

    def summary(self) -> dict[str, Any]:
        """Every number, JSON types: over all prompts, trained and held-out ones, by digit, colour and ground."""
        wanted, right = ATTRIBUTE_TABLE[self.labels], self.hits.all(1).double()
        return {
            "accuracy": self.accuracy(),
            "accuracy_trained": self.accuracy(~self.held_out),
            "accuracy_held_out": self.accuracy(self.held_out),
            "accuracy_by": {
                name: [right[wanted[:, i] == value].mean().item() for value in wanted[:, i].unique().tolist()]
                for i, name in enumerate(ATTRIBUTES)
            },
            "accuracy_by_prompt": [right[self.labels == label].mean().item() for label in self.labels.unique()],
            "fd": self.fd,
            "energy": self.energy,
            "diversity": self.diversity,
        }


class PromptJudge:
    """The evaluation classifier with the held-out images it compares with, embedded once."""

    def __init__(self, classifier: PromptClassifier, real: ImageDataset | None = None) -> None:
        """Embed the real images.

        Args:
            classifier: that of role "evaluation", for all prompts.
            real: images of all prompts to compare with; default: the held-out ones.

        Raises:
            InvalidInputError: the reward classifier, or one for another table of prompts.
        """
        if classifier.role != "evaluation" or classifier.prompts != PROMPTS:
            raise InvalidInputError("the judge is the classifier of role 'evaluation', for all prompts")
        self.classifier = classifier
        real = coloured_digits("heldout", prompts=PROMPTS) if real is None else real
        self.real, self.real_labels = image_features(classifier, real.images), real.labels

    def __call__(self, images: Tensor, labels: Tensor) -> PromptMeasures:
        """What it finds in images [N, 3, 32, 32] of labels int64 [N], two or more of each."""
        found = image_features(self.classifier, images)
        return PromptMeasures(
            attribute_hits(self.classifier, images, ATTRIBUTE_TABLE[labels]),
            labels,
            frechet_distance(found, self.real),
            _energy_by_label(found, labels, self.real, self.real_labels),
            diversity(found, labels),
        )


def _energy_by_label(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """Unbiased energy distance within each label, averaged over the labels, on features standardised by the real ones.

    2 E‖x − r‖ − E‖x − x'‖ − E‖r − r'‖ (Székely & Rizzo 2013); may be slightly negative.
    """
    deviation = real.std(0)
    width = deviation.clamp_min(0.1 * float(deviation.mean()))  # as the reward's distribution term
    x, r = features / width, real / width
    values = []
    for label in labels.unique():
        own, other = x[labels == label], r[real_labels == label]
        if min(len(own), len(other)) < 2:
            raise InvalidInputError(f"label {int(label)} has fewer than two images to compare")
        values.append(2 * torch.cdist(own, other).mean() - torch.pdist(own).mean() - torch.pdist(other).mean())
    return torch.stack(values).mean().item()


@torch.no_grad()
def sample_prompts(pipeline: Any, prompts: Sequence[str], *, scale: float, steps: int, seed: int = 0) -> Tensor:
    """Images [N, 3, 32, 32] in [−1, 1] of prompts, made by the pipeline's own call.

    Args:
        pipeline: a `StableDiffusionPipeline`.
        prompts: N texts.
        scale: constant guidance scale; diffusers leaves guidance out at 1 and below.
        steps: sampling steps.
        seed: of the latents; image i has the same starting noise for every scale and number of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = [list(prompts[i : i + _BATCH]) for i in range(0, len(prompts), _BATCH)]
    made = [
        pipeline(batch, guidance_scale=scale, num_inference_steps=steps, generator=generator, output_type="pt").images
        for batch in batches
    ]
    return torch.cat(made).clamp(0, 1) * 2 - 1


def sweep_constants(
    pipeline: Any,
    judge: PromptJudge,
    *,
    scales: Sequence[float],
    steps: Sequence[int],
    per_prompt: int = 2,
    seed: int = 0,
) -> Iterator[tuple[int, float, PromptMeasures]]:
    """(steps, scale, measures) for each number of steps and each scale, `per_prompt` images of each prompt.

    Args:
        pipeline: a `StableDiffusionPipeline` of the coloured digits.
        judge: what measures.
        scales: constant guidance scales.
        steps: numbers of sampling steps.
        per_prompt: images of each prompt, two or more.
        seed: of the latents.
    """
    labels = torch.arange(len(PROMPTS)).repeat(per_prompt)
    texts = [PROMPTS[i] for i in labels.tolist()]
    for count, scale in progress([(count, scale) for count in steps for scale in scales], desc="sampling"):
        yield count, scale, judge(sample_prompts(pipeline, texts, scale=scale, steps=count, seed=seed), labels)
