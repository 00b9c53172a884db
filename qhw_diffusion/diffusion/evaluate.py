"""All metrics of a set of generated images at once, and the same numbers for real images: the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .checks import check_fit, check_images, check_labels
from .classifiers import Classifier, accuracy
from .datasets import ImageDataset
from .metrics import diversity, frechet_distance, kernel_distance, precision_recall

METRICS = ("fd", "kd", "accuracy", "diversity", "precision", "recall")
_BATCH = 512
_MAX_PAIRWISE = 2000  # kd, precision and recall build N×M matrices
_SUBSET_SEED = 0


def evaluate_samples(
    x: Tensor, labels: Tensor, judge: Classifier, real: ImageDataset, *, real_features: Tensor | None = None
) -> dict[str, float]:
    """Every metric of generated images, against real ones, in the judge's features.

    The keys (`METRICS`): "fd" Fréchet distance · "kd" kernel distance · "accuracy" share the judge gives the wanted
    label · "diversity" mean distance within a class · "precision", "recall" by 3-nearest-neighbour balls. "fd" uses
    all images; "kd", "precision" and "recall" at most 2,000 of each set (a fixed random choice of the real ones, the
    first of the generated ones). Ask for labels in the proportions of `real`: a different mix of classes shows in "fd".

    Args:
        x: [N, C, H, W] in [−1, 1], more than three.
        labels: int64 [N], the labels asked for.
        judge: the classifier of role "judge".
        real: the held-out split.
        real_features: `image_features(judge, real.images)`, when it was computed before.

    Raises:
        InvalidInputError: the reward's classifier given as judge, parts that do not fit each other, images that are not
            finite and in [−1, 1], labels that are no labels of the judge.
    """
    if judge.role != "judge":
        raise InvalidInputError(f"the {judge.role} classifier must not judge: load the one of role 'judge'")
    check_fit(judge=judge, data_set=real)
    check_images(x)
    check_labels(labels, judge.n_classes, len(x))
    if len(x) < 4:
        raise InvalidInputError(f"{len(x)} images, need N ≥ 4")
    generated = image_features(judge, x)
    reference = image_features(judge, real.images) if real_features is None else real_features
    chosen = torch.randperm(len(reference), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:_MAX_PAIRWISE]
    few_generated, few_real = generated[:_MAX_PAIRWISE], reference[chosen]
    precision, recall = precision_recall(few_generated, few_real)
    return {
        "fd": frechet_distance(generated, reference),
        "kd": kernel_distance(few_generated, few_real),
        "accuracy": accuracy(judge, x, labels),
        "diversity": diversity(generated, labels),
        "precision": precision,
        "recall": recall,
    }


def real_floor(
    judge: Classifier, train: ImageDataset, heldout: ImageDataset, n: int, *, seed: int = 0
) -> dict[str, float]:
    """The metrics of `n` real training images (without replacement) against the held-out split: the floor at that N.

    A generator at or below the floor of "fd" and "kd" cannot be told from the training data by that metric. The judge
    has seen half of the training split, so its accuracy here is an upper bound.

    Args:
        judge: the classifier of role "judge".
        train, heldout: the two splits.
        n: number of images, the N of the generated set it is compared with; at most the size of `train`.
        seed: of the choice of training images.
    """
    check_fit(judge=judge, training_images=train, heldout_images=heldout)
    if not 4 <= n <= len(train):
        raise InvalidInputError(f"n is {n}, must be in 4 … {len(train)}, the size of the training split")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
    return evaluate_samples(train.images[chosen], train.labels[chosen], judge, heldout)


@torch.no_grad()
def image_features(classifier: Classifier, images: Tensor) -> Tensor:
    """Features [N, F] of any number of images [N, C, H, W], computed in batches."""
    return torch.cat([classifier.features(batch) for batch in images.split(_BATCH)])
