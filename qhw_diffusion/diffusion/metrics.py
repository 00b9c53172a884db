"""Distances between sets of images, in the features of a named classifier. All take features [N, F], not images.

None of them is the published FID: that one needs Inception weights. A number from here is always "Fréchet distance in
the judge's features", comparable only with numbers from the same judge at the same N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidInputError
from .checks import check_labels


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), unbiased covariances, float64. Symmetric, ≥ 0; biased upwards at
    small N, so compare only at equal N and with the real-vs-real floor.

    Args:
        features_a, features_b: [N, F] and [M, F], at least two rows each.

    Raises:
        InvalidInputError: shapes that do not fit, or entries that are not finite.
    """
    a, b = _pair(features_a, features_b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of Â B̂ᵀ, where Σ = ÂᵀÂ: no square root of a singular matrix
    root_a = (a - mean_a) / (len(a) - 1) ** 0.5
    root_b = (b - mean_b) / (len(b) - 1) ** 0.5
    factor_a, factor_b = torch.linalg.qr(root_a).R, torch.linalg.qr(root_b).R
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, distance.item())


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of KID, k(x, y) = (x·y / F + 1)³ (Bińkowski et al. 2018, arXiv 1801.01401); → [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased MMD² under `polynomial_kernel`, over all rows (KID without subsets); may be slightly negative.

    Unbiased for independent draws. A set whose classes are exactly balanced is no such draw, and lowers the value by
    about 1/N times the kernel's excess within classes: compare with the floor at the same N, not with zero.

    Args:
        features_a, features_b: [N, F] and [M, F], at least two rows each.
    """
    a, b = _pair(features_a, features_b)
    within_a, within_b = _mean_off_diagonal(polynomial_kernel(a, a)), _mean_off_diagonal(polynomial_kernel(b, b))
    return (within_a + within_b - 2 * polynomial_kernel(a, b).mean()).item()


def mmd_witness(features_generated: Tensor, features_real: Tensor) -> Tensor:
    """The kernel-MMD witness of each generated image between the real and the generated set, [N_generated].

    w_i = mean_j k(x_i, r_j) − mean_{j≠i} k(x_i, x_j) with `polynomial_kernel` (Gretton et al. 2012, JMLR 13, §2.3).
    Positive where real images are denser than generated ones. As a reward per image it lowers the kernel distance:
    with the other images held fixed, ∇_{x_i} MMD² = −(2/N) ∇_{x_i} w_i for the unbiased MMD² of `kernel_distance`; and
    MMD² = kr − kg − 2 mean_i w_i, with kr and kg the mean kernel between distinct real and distinct generated images.
    Differentiable in `features_generated`.

    Args:
        features_generated: [N, F], at least two rows.
        features_real: [M, F], at least two rows.
    """
    _check_pair(features_generated, features_real)
    n = len(features_generated)
    to_real = polynomial_kernel(features_generated, features_real).mean(1)
    among = polynomial_kernel(features_generated, features_generated)
    return to_real - (among.sum(1) - among.diagonal()) / (n - 1)


def diversity(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of one class, averaged over the classes that have two or more images.

    Args:
        features: [N, F].
        labels: int64 [N].

    Raises:
        InvalidInputError: no class has two images.
    """
    if features.ndim != 2:
        raise InvalidInputError(f"features are {tuple(features.shape)}, need [N, F]")
    check_labels(labels, None, len(features))
    per_class = []
    for label in labels.unique():
        rows = features[labels == label].double()
        if len(rows) > 1:
            per_class.append(torch.pdist(rows).mean())
    if not per_class:
        raise InvalidInputError("no class has two images: diversity within a class needs a pair")
    return torch.stack(per_class).mean().item()


def precision_recall(features_generated: Tensor, features_real: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall) by k-nearest-neighbour balls (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Precision: share of generated images inside the ball of some real image, whose radius is the distance to its k-th
    nearest real neighbour. Recall: the same with the roles exchanged.

    Args:
        features_generated, features_real: [N, F] and [M, F], more than k rows each.
        k: neighbours; the paper's 3.
    """
    generated, real = _pair(features_generated, features_real)
    if k < 1 or min(len(generated), len(real)) <= k:
        raise InvalidInputError(f"k = {k} needs more than {k} rows in both sets, got {len(generated)} and {len(real)}")
    between = torch.cdist(generated, real)
    # the nearest entry of a row of cdist(x, x) is the image itself: the k-th neighbour is entry k + 1
    radius_real = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    radius_generated = torch.cdist(generated, generated).kthvalue(k + 1, dim=1).values
    precision = (between <= radius_real.unsqueeze(0)).any(1).double().mean().item()
    recall = (between <= radius_generated.unsqueeze(1)).any(0).double().mean().item()
    return precision, recall


def _mean_off_diagonal(square: Tensor) -> Tensor:
    n = len(square)
    return (square.sum() - square.diagonal().sum()) / (n * (n - 1))


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    _check_pair(a, b)
    return a.detach().double(), b.detach().double()


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InvalidInputError(
            f"features are {tuple(a.shape)} and {tuple(b.shape)}: need [N, F] and [M, F] with N, M ≥ 2 and one F"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InvalidInputError("features hold NaN or infinite entries")
