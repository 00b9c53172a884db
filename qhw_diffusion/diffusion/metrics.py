"""Metrics of generated images: distances between sets in a classifier's features, and similarities of pairs.

None of the distances is the published FID: that one needs Inception's features (`Inception`, where its weights are
given). Without them a number from here is always "Fréchet distance in the features of this evaluation classifier",
comparable only with numbers from the same classifier at the same N.

PSNR, SSIM and LPIPS compare *pairs*, so they mean something only where a pairing does: the same starting noise and
label sampled twice, under two policies or two engines (ideal against noisy), or with few steps against many. A
generated image paired with a real image of the same class is **not** one of them: nothing says that the two should
agree pixel by pixel, and the number is that of `paired_floor`, whatever the generator does.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from qhw_diffusion.diffusion.checks import check_fit, check_images, check_labels
from qhw_diffusion.diffusion.classifiers import Classifier, accuracy
from qhw_diffusion.diffusion.datasets import ImageDataset
from qhw_diffusion.errors import DamagedFileError, InvalidInputError, MissingDataError, MissingDependencyError

METRICS = ("energy", "fd", "kd", "accuracy", "diversity", "precision", "recall")
"""Keys of `evaluate_samples`."""
_BATCH = 512
_MAX_PAIRWISE = 2000  # kd, precision and recall build N×M matrices
_SUBSET_SEED = 0
_SSIM_WINDOW = 7
_INCEPTION, _INCEPTION_BATCH = "6726825d", 50
_LPIPS_SIDE = 64  # LPIPS-squeeze fails below 28 pixels

T = TypeVar("T")
_KNOWN: MutableMapping[Tensor, tuple[int, dict[str, Any]]] = WeakTensorKeyDictionary()


def once(features: Tensor, what: str, compute: Callable[[], T]) -> T:
    """What follows from a set of features alone, computed once as long as the set exists and is not changed.

    Real images are compared with again and again, and are many: with few generated ones, most of the work is among the
    real ones.

    Args:
        features: the set.
        what: name of what follows from it.
        compute: makes it; must not keep `features` or a view of it, which would then exist for ever.
    """
    if features.is_inference():  # it does not count its changes
        return compute()
    version, known = _KNOWN.get(features, (features._version, {}))
    if version != features._version:
        known = {}
    _KNOWN[features] = (features._version, known)
    if what not in known:
        known[what] = compute()
    found: T = known[what]
    return found


# -- all metrics at once ---------------------------------------------------------------------------------------------


def evaluate_samples(
    x: Tensor,
    labels: Tensor,
    evaluation_classifier: Classifier,
    real: ImageDataset,
    *,
    real_features: Tensor | None = None,
) -> dict[str, float]:
    """Every metric of generated images, against real ones, in the evaluation classifier's features.

    The keys (`METRICS`): "energy" class-conditional energy distance, which the distribution term of the guidance reward
    lowers in another network's features · "fd" Fréchet distance · "kd" kernel distance · "accuracy" share the
    classifier gives the wanted label · "diversity" mean distance within a class · "precision", "recall" by
    3-nearest-neighbour balls. "energy" and "fd" use all images; "kd", "precision" and "recall" at most 2,000 of each
    set (a fixed random choice of the real ones, the first of the generated ones). Ask for labels in the proportions of
    `real`: a different mix of classes shows in "fd".

    Args:
        x: [N, C, H, W] in [−1, 1], more than three.
        labels: int64 [N], the labels asked for.
        evaluation_classifier: the classifier of role "evaluation" (held-out).
        real: the held-out split.
        real_features: `image_features(evaluation_classifier, real.images)`, when it was computed before.

    Raises:
        InvalidInputError: the reward classifier given for the evaluation classifier, parts that do not fit each other,
            images that are not finite and in [−1, 1], labels that are no labels of the classifier.
    """
    role = getattr(evaluation_classifier, "role", "evaluation")
    if role != "evaluation":
        raise InvalidInputError(f"the {role} classifier must not evaluate: load the one of role 'evaluation'")
    check_fit(evaluation_classifier=evaluation_classifier, data_set=real)
    check_images(x)
    check_labels(labels, evaluation_classifier.n_classes, len(x))
    if len(x) < 4:
        raise InvalidInputError(f"{len(x)} images, need N ≥ 4")
    generated = image_features(evaluation_classifier, x)
    reference = image_features(evaluation_classifier, real.images) if real_features is None else real_features
    chosen = torch.randperm(len(reference), generator=torch.Generator().manual_seed(_SUBSET_SEED))[:_MAX_PAIRWISE]
    few_generated, few_real = generated[:_MAX_PAIRWISE], once(reference, "few", lambda: reference[chosen])
    precision, recall = precision_recall(few_generated, few_real)
    return {
        "energy": class_energy_distance(generated, labels, reference, real.labels),
        "fd": frechet_distance(generated, reference),
        "kd": kernel_distance(few_generated, few_real),
        "accuracy": accuracy(evaluation_classifier, x, labels),
        "diversity": diversity(generated, labels),
        "precision": precision,
        "recall": recall,
    }


def real_floor(
    evaluation_classifier: Classifier,
    train: ImageDataset,
    heldout: ImageDataset,
    n: int,
    *,
    seed: int = 0,
    heldout_features: Tensor | None = None,
) -> dict[str, float]:
    """The metrics of `n` real training images (without replacement) against the held-out split: the floor at that N.

    A generator at or below the floor of "fd" and "kd" cannot be told from the training data by that metric. The
    classifier has seen half of the training split, so its accuracy here is an upper bound.

    Args:
        evaluation_classifier: the classifier of role "evaluation" (held-out).
        train: the training split.
        heldout: the held-out split.
        n: number of images, the N of the generated set it is compared with; at most the size of `train`.
        seed: of the choice of training images.
        heldout_features: `image_features(evaluation_classifier, heldout.images)`, when it was computed before.
    """
    check_fit(evaluation_classifier=evaluation_classifier, training_images=train, heldout_images=heldout)
    if not 4 <= n <= len(train):
        raise InvalidInputError(f"n is {n}, must be in 4 … {len(train)}, the size of the training split")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n]
    images, labels = train.images[chosen], train.labels[chosen]
    return evaluate_samples(images, labels, evaluation_classifier, heldout, real_features=heldout_features)


@torch.no_grad()
def image_features(classifier: Any, images: Tensor, *, batch: int = _BATCH) -> Tensor:
    """A classifier's `features` [N, F] of any number of images [N, C, H, W], computed in batches."""
    return torch.cat([classifier.features(part) for part in images.split(batch)])


# -- distances between sets of features ------------------------------------------------------------------------------


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv 1706.08500).

    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), unbiased covariances, float64. Symmetric, ≥ 0; biased upwards at
    small N, so compare only at equal N and with the real-vs-real floor.

    Args:
        features_a: [N, F], at least two rows.
        features_b: [M, F], at least two rows.

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


def class_energy_distance(features_a: Tensor, labels_a: Tensor, features_b: Tensor, labels_b: Tensor) -> float:
    """Energy distance of each class of two labelled feature sets, averaged over the labels of the first.

    2 E|a − b| − E|a − a'| − E|b − b'| (Székely & Rizzo 2013) within each class, unbiased, on features standardised by
    the second set (the real images; a feature that is nearly dead there gets a tenth of the mean width). It sees both
    unclear labels and lost variety within a class; sets of one marginal distribution can be far apart. May be slightly
    negative. Classes with less than two images in either set are left out.

    Args:
        features_a: [N, F].
        labels_a: int64 [N].
        features_b: [M, F].
        labels_b: int64 [M].

    Raises:
        InvalidInputError: shapes that do not fit, entries that are not finite, or no class with two images in both.
    """
    a, b = _pair(features_a, features_b)
    check_labels(labels_a, None, len(a))
    check_labels(labels_b, None, len(b))
    labels_a, labels_b = labels_a.to(a.device), labels_b.to(b.device)
    deviation = b.std(0)
    width = deviation.clamp_min(0.1 * float(deviation.mean()))
    total, count = 0.0, 0
    for label in labels_a.unique():
        ours, real = a[labels_a == label] / width, b[labels_b == label] / width
        if min(len(ours), len(real)) < 2:
            continue
        within = torch.pdist(ours).mean() + torch.pdist(real).mean()
        total += len(ours) * float(2.0 * torch.cdist(ours, real).mean() - within)
        count += len(ours)
    if not count:
        raise InvalidInputError("no class has two images in both sets: the energy distance within a class needs pairs")
    return total / count


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of KID, k(x, y) = (x·y / F + 1)³ (Bińkowski et al. 2018, arXiv 1801.01401); → [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased MMD² under `polynomial_kernel`, over all rows (KID without subsets); may be slightly negative.

    Unbiased for independent draws. A set whose classes are exactly balanced is no such draw, and lowers the value by
    about 1/N times the kernel's excess within classes: compare with the floor at the same N, not with zero.

    Args:
        features_a: [N, F], at least two rows.
        features_b: [M, F], at least two rows.
    """
    a, b = _pair(features_a, features_b)
    within_a, within_b = (
        once(features, "kernel", lambda x=x: _mean_off_diagonal(polynomial_kernel(x, x)))  # type: ignore[misc]
        for features, x in ((features_a, a), (features_b, b))
    )
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
        features_generated: [N, F], more than k rows.
        features_real: [M, F], more than k rows.
        k: neighbours; the paper's 3.
    """
    generated, real = _pair(features_generated, features_real)
    if k < 1 or min(len(generated), len(real)) <= k:
        raise InvalidInputError(f"k = {k} needs more than {k} rows in both sets, got {len(generated)} and {len(real)}")
    between = torch.cdist(generated, real)
    # the nearest entry of a row of cdist(x, x) is the image itself: the k-th neighbour is entry k + 1
    radius_generated, radius_real = (
        once(features, f"radius {k}", lambda x=x: torch.cdist(x, x).kthvalue(k + 1, dim=1).values)  # type: ignore[misc]
        for features, x in ((features_generated, generated), (features_real, real))
    )
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


# -- similarities of pairs of images ---------------------------------------------------------------------------------


def paired_similarity(x: Tensor, reference: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """{"psnr", "ssim"} and, given a perceptual distance, {"lpips"}: means over the pairs (x_i, reference_i).

    "psnr" in dB, the mean over images, an image equal to its reference counted as 100 dB; "ssim" (Wang et al. 2004)
    with a uniform window of 7×7 pixels (mirrored borders), since the usual Gaussian one
    does not fit into 8×8 images; both on a range of 2.
    The top of this module says which pairings mean something.

    Args:
        x: [N, C, H, W] in [−1, 1].
        reference: the images they are paired with, [N, C, H, W] in [−1, 1].
        lpips: see `Lpips`.
    """
    if x.shape != reference.shape or x.ndim != 4 or len(x) == 0 or min(x.shape[2:]) < _SSIM_WINDOW:
        raise InvalidInputError(
            f"{tuple(x.shape)} and {tuple(reference.shape)}: need twice the same [N, C, H, W], "
            f"N ≥ 1, at least {_SSIM_WINDOW} pixels high and wide"
        )
    check_images(x)
    check_images(reference)
    # here, since importing it takes seconds
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    psnr = peak_signal_noise_ratio(x, reference, data_range=2.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(
        x, reference, data_range=2.0, gaussian_kernel=False, kernel_size=_SSIM_WINDOW, reduction="elementwise_mean"
    )
    result = {"psnr": psnr.clamp(max=100.0).mean().item(), "ssim": float(ssim)}  # type: ignore[arg-type]
    if lpips is not None:
        result["lpips"] = lpips(x, reference).mean().item()
    return result


def paired_floor(real: ImageDataset, n: int, *, seed: int = 0, lpips: Lpips | None = None) -> dict[str, float]:
    """`paired_similarity` of `n` random pairs of *different real images of one class*: what an unrelated pair scores.

    Args:
        real: a split with at least two images of some class.
        n: number of pairs.
        seed: of the choice.
        lpips: see `Lpips`.
    """
    if n < 1:
        raise InvalidInputError(f"n is {n}, must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    members = {int(c): (real.labels == c).nonzero().squeeze(1) for c in real.labels.unique()}
    usable = [c for c, rows in members.items() if len(rows) > 1]
    if not usable:
        raise InvalidInputError("no class has two images: a pair within a class needs them")
    for pick in torch.randint(len(usable), (n,), generator=generator).tolist():
        rows = members[usable[pick]]
        pair = rows[torch.randperm(len(rows), generator=generator)[:2]]
        first.append(pair[0])
        second.append(pair[1])
    return paired_similarity(real.images[torch.stack(first)], real.images[torch.stack(second)], lpips)


class Lpips:
    """LPIPS with the SqueezeNet backbone (Zhang et al. 2018, arXiv 1801.03924); needs its real weights.

    With a random backbone the number does not measure perception, so there is no default: the weights are given as a
    safetensors file with torchvision's SqueezeNet 1.1 names (`features.N.…` or `N.…`) or lpips' own (`slice…`). From
    the .pth that PyTorch distributes, once: `safetensors.torch.save_file(torch.load(pth, weights_only=True), path)`.
    """

    def __init__(self, weights: str | Path) -> None:
        """Load the weights.

        Args:
            weights: the safetensors file.

        Raises:
            MissingDependencyError: the package lpips is not installed.
            MissingDataError: there is no such file.
            DamagedFileError: it does not hold those weights.
        """
        try:
            import lpips
        except ImportError as error:
            raise MissingDependencyError("LPIPS needs the package lpips: pip install lpips") from error
        path = Path(weights)
        if not path.is_file():
            raise MissingDataError(f"no LPIPS backbone weights at {path}: give a safetensors file of SqueezeNet 1.1")
        try:
            state = load_tensors(path.read_bytes())
        except SafetensorError as error:
            raise DamagedFileError(f"{path} is not a safetensors file ({error})") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision in a deprecated way
            self._net: Any = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
        expected = self._net.net.state_dict()
        renamed = _lpips_names(state, list(expected))
        fits = set(renamed) == set(expected) and all(renamed[k].shape == v.shape for k, v in expected.items())
        if not fits:
            raise DamagedFileError(f"{path} does not hold the weights of SqueezeNet 1.1's features")
        self._net.net.load_state_dict(renamed)
        self._net.eval().requires_grad_(False)

    def __call__(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distances [N] of image pairs [N, C, H, W] in [−1, 1]; enlarged to 64 pixels when smaller.

        Raises:
            InvalidInputError: images that are neither grey nor of three colours.
        """
        if x.shape[1] not in (1, 3):
            raise InvalidInputError(f"LPIPS takes images of 1 or 3 channels, got {tuple(x.shape)}")
        pair = []
        for images in (x, reference):
            if min(images.shape[2:]) < _LPIPS_SIDE:
                images = torch.nn.functional.interpolate(images, size=_LPIPS_SIDE, mode="bilinear")
            pair.append(images.expand(-1, 3, -1, -1))
        distances: Tensor = self._net(*pair)
        return distances.flatten()


class Inception:
    """The network behind the published FID and KID (arXiv 1706.08500, 1801.01401); needs its real weights.

    These are those of the Inception network of 2015, not torchvision's: pt_inception-2015-12-05-6726825d.pth of
    github.com/mseitzer/pytorch-fid, the same that github.com/toshas/torch-fidelity fetches. With other weights the
    number is no FID, so a file is taken only if its SHA-256 begins as its name says.
    """

    def __init__(self, weights: str | Path) -> None:
        """Load the weights.

        Args:
            weights: the file.

        Raises:
            MissingDataError: there is no such file.
            InvalidInputError: another file.
            MissingDependencyError: the package torch-fidelity is not installed.
        """
        path = Path(weights)
        if not path.is_file():
            raise MissingDataError(f"no Inception weights at {path}: give pt_inception-2015-12-05-{_INCEPTION}.pth")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(_INCEPTION):
            raise InvalidInputError(
                f"{path} is not the network of the published FID: its SHA-256 begins with {found[:8]}, wanted is "
                f"{_INCEPTION} (pt_inception-2015-12-05-{_INCEPTION}.pth of github.com/mseitzer/pytorch-fid)"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingDependencyError(
                "Inception FID needs the package torch-fidelity: pip install torch-fidelity"
            ) from error
        # torch-fidelity unpickles what it is given, so it is given a file of nothing but tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "tensors.pth")
            self._net: Any = FeatureExtractorInceptionV3("inception", ["2048"], str(Path(folder) / "tensors.pth"))
        self._net.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Activations [N, 2048] of images [N, 1 or 3, H, W] in [−1, 1], rounded to 8 bits as published images are."""
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([self._net(batch)[0] for batch in pixels.split(_INCEPTION_BATCH)])


def _lpips_names(state: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """Rename torchvision's `features.N.…` and prefixed `….sliceK.N.…` to lpips' `sliceK.N.…`."""
    by_suffix = {name.split(".", 1)[1]: name for name in expected}  # "3.squeeze.weight" -> "slice2.3.squeeze.weight"
    renamed = {}
    for name, value in state.items():
        if name.startswith("classifier."):
            continue
        _, found, tail = name.partition("slice")
        suffix = tail.split(".", 1)[1] if found else name.removeprefix("features.")
        renamed[by_suffix.get(suffix, name)] = value
    return renamed
