"""Reward terms, each a function of one step returning one number per sample, to be *maximised*; summed with weights.

All terms look through the **reward** classifier only. The judge never enters here: a classifier that is optimised
against can be fooled, so evaluation uses another one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qhw_diffusion.diffusion import Lpips, check_every_class, check_fit, check_labels, polynomial_kernel
from qhw_diffusion.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from qhw_diffusion.guidance.config import KERNELS, STEPWISE_KINDS, RewardConfig

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import Classifier, ImageDataset


@dataclass(frozen=True)
class StepView:
    """What a reward term sees of one step of B samples.

    last: whether the episode ends here; x0, x0_previous: x̂₀ after and before the step, [B, C, H, W] (after the last
    step x0 is the image); logits, logits_previous: the reward classifier's on them, [B, K]; labels: int64 [B];
    action: ΔCFG as applied (clipped), [B]; reference: images of the base scale from the same starting points,
    [B, C, H, W], where they are known.
    """

    last: bool
    x0: Tensor
    x0_previous: Tensor
    logits: Tensor
    logits_previous: Tensor
    labels: Tensor
    action: Tensor
    reference: Tensor | None = None


class RewardTerm(Protocol):
    """A named term; calling it gives [B], larger is better."""

    name: str

    def __call__(self, step: StepView) -> Tensor: ...


class Confidence:
    """R_cls = log p(y | x̂₀) of the reward classifier at the last step, 0 before (arXiv 2509.14163)."""

    name = "confidence"

    def __call__(self, step: StepView) -> Tensor:
        if not step.last:
            return torch.zeros_like(step.action)
        return step.logits.log_softmax(1).gather(1, step.labels[:, None]).squeeze(1)


class StepwiseImprovement:
    """R_step: what x̂₀ gained in this step (arXiv 2509.14163); the terms of an episode add up to last minus first.

    kind "confidence": Δp(y | x̂₀). "ssim" and "lpips" need something to be similar to, and a generated image has no
    partner; here it is the class's mean training image, so they read "more like the class", nothing finer.
    distance: the LPIPS network (images [N, C, H, W] in [−1, 1] twice → [N]); needed for "lpips", with real weights.
    """

    name = "stepwise"

    def __init__(
        self,
        kind: str = "confidence",
        *,
        references: Tensor | None = None,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if kind not in STEPWISE_KINDS:
            raise UnknownNameError.of("stepwise kind", kind, STEPWISE_KINDS)
        if kind != "confidence" and references is None:
            raise InvalidInputError(f"kind {kind!r} needs references, one image per class [K, C, H, W]")
        if kind == "lpips" and distance is None:
            raise MissingDependencyError(
                "the LPIPS term needs an LPIPS network with trained weights: name a safetensors file of SqueezeNet 1.1 "
                "(--reward-lpips-weights FILE, RewardConfig(lpips_weights=…)), or pass distance=… in Python; a network "
                "without trained weights does not measure perception"
            )
        self.kind, self.references, self.distance = kind, references, distance

    def __call__(self, step: StepView) -> Tensor:
        if self.kind == "confidence":
            rows = step.labels[:, None]
            gain = step.logits.softmax(1).gather(1, rows) - step.logits_previous.softmax(1).gather(1, rows)
            return gain.squeeze(1)
        assert self.references is not None
        reference = self.references.to(step.x0)[step.labels]
        if self.kind == "ssim":
            return ssim(step.x0, reference) - ssim(step.x0_previous, reference)
        assert self.distance is not None
        before, after = self.distance(step.x0_previous, reference), self.distance(step.x0, reference)
        return (before - after).reshape(-1)


class ActionPenalty:
    """−‖a_t‖² of the applied ΔCFG."""

    name = "action_penalty"

    def __call__(self, step: StepView) -> Tensor:
        return -step.action.square()


class TotalVariation:
    """−TV(x̂₀): mean absolute difference of neighbouring pixels (vertical plus horizontal)."""

    name = "total_variation"

    def __call__(self, step: StepView) -> Tensor:
        vertical = step.x0.diff(dim=-2).abs().flatten(1).mean(1)
        horizontal = step.x0.diff(dim=-1).abs().flatten(1).mean(1)
        return -(vertical + horizontal)


class Distribution:
    """The kernel-MMD witness of each final image between the real and the generated batch, 0 before the last step.

    w(x) = mean_j k(x, real_j) − mean_{j≠x} k(x, generated_j) in the reward classifier's features (Gretton et al. 2012):
    raising its mean lowers the unbiased kernel distance MMD² to the real images, and an image earns nothing by looking
    like the others.

    by_class: only images of the same label are compared, that is, the kernel is k(x, x')·[y = y'] and MMD² (averaged
    over the generated labels) is between the *joint* distributions of image and label. Guidance trades variety within
    a class for clear labels; the joint distance sees that, the marginal one mostly sees which labels were drawn.

    kernel: "distance" is k = −‖x − y‖ on features standardised by the real ones, whose MMD² is the energy distance
    (Sejdinovic et al. 2013, arXiv 1207.6076); "polynomial" is that of KID on the features as they are, which weighs
    their length above all and ranks constants quite unlike the Fréchet distance does.

    The term of a sample is (w − base)/scale plus one number for the whole batch. The base is the witness, among the
    same other images, of the image that the base scale g0 makes of the same starting point, where that is known (else
    0). Which image a sampler makes is mostly decided by the noise; the base takes that part out and, as it does not
    depend on the sample's own actions, leaves the expected policy gradient as it is. The batch's number makes the mean
    what it should say: `gain`, by how much the batch is nearer to the real images than that of g0. (The mean of
    w − base alone is lower by half the distance between the two batches, since every image is compared with a batch
    that moved along; it can fall while the images get better.) It is the same for all samples and tells none apart.
    """

    name = "distribution"

    def __init__(
        self,
        classifier: Classifier,
        real: ImageDataset,
        *,
        by_class: bool = True,
        kernel: str = "distance",
        offset: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        """real: the training split; offset: MMD² of the base scale, for steps without a reference; scale: unit."""
        if kernel not in KERNELS:
            raise UnknownNameError.of("distribution kernel", kernel, KERNELS)
        if not scale > 0:
            raise InvalidInputError(f"scale must be positive, got {scale}")
        check_fit(reward_classifier=classifier, data_set=real)
        self._n_classes = real.n_classes
        device = next(classifier.parameters()).device
        images, self._real_labels = real.images.to(device), real.labels.to(device)
        sizes = self._real_labels.bincount(minlength=real.n_classes) if by_class else torch.tensor([len(images)])
        few = (sizes < 2).nonzero().flatten().tolist()
        if few:
            which = f" of every class; data set {real.name!r} has fewer of class {', '.join(map(str, few))}"
            raise InvalidInputError(f"the distribution term needs two real images{which if by_class else ''}")
        self.classifier, self.by_class, self.kernel = classifier, by_class, kernel
        self.offset, self.scale = offset, scale
        self._shift, self._width = torch.zeros((), device=device), torch.ones((), device=device)
        if kernel == "distance":
            with torch.no_grad():
                features = classifier.features(images)
            deviation = features.std(0)
            # a feature that is (nearly) dead on real images must not outweigh all others where it fires
            self._shift, self._width = features.mean(0), deviation.clamp_min(0.1 * float(deviation.mean()))
        self._real = self.embed(images)
        self._real_rows: Tensor | None = None

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """The features the kernel works on, [B, F]."""
        return (self.classifier.features(images) - self._shift) / self._width

    def _k(self, x: Tensor, y: Tensor) -> Tensor:
        return -torch.cdist(x, y) if self.kernel == "distance" else polynomial_kernel(x, y)

    def _pairs(self, labels: Tensor, others: Tensor) -> Tensor:
        if self.by_class:
            return (labels[:, None] == others[None, :]).float()
        return torch.ones(len(labels), len(others), device=labels.device)

    def _generated_pairs(self, labels: Tensor) -> Tensor:
        pairs = self._pairs(labels, labels).fill_diagonal_(0.0)
        if bool((pairs.sum(1) == 0).any()):
            raise InvalidInputError(
                f"the distribution term compares images of a batch with each other: {len(labels)} images hold a label "
                f"that no other one has; use at least {2 * self._n_classes if self.by_class else 2} "
                f"environments"
            )
        return pairs

    def witness_at(self, points: Tensor, generated: Tensor, labels: Tensor) -> Tensor:
        """w of embedded points [B, F], each put in the place of the generated one of its row, [B]."""
        check_labels(labels, self._n_classes, len(points))
        real_pairs, pairs = self._pairs(labels, self._real_labels), self._generated_pairs(labels)
        to_real = (self._k(points, self._real) * real_pairs).sum(1) / real_pairs.sum(1)
        return to_real - (self._k(points, generated) * pairs).sum(1) / pairs.sum(1)

    def witness(self, images: Tensor, labels: Tensor) -> Tensor:
        """w of each image, [B]. Raises InvalidInputError for an image without another one to compare it with, and for
        labels that are none of the data set's.
        """
        own = self.embed(images)
        return self.witness_at(own, own, labels)

    def distance(self, images: Tensor, labels: Tensor) -> float:
        """Unbiased MMD² between images and real images (can be slightly negative); by class, the mean over the labels
        given. Raises InvalidInputError as `witness`.
        """
        check_labels(labels, self._n_classes, len(images))
        own, pairs, real_pairs = (
            self.embed(images),
            self._generated_pairs(labels),
            self._pairs(labels, self._real_labels),
        )
        generated = (self._k(own, own) * pairs).sum(1) / pairs.sum(1)
        cross = (self._k(own, self._real) * real_pairs).sum(1) / real_pairs.sum(1)
        among_real = (real_pairs * self._among_real()).sum(1) / real_pairs.sum(1)
        return float((generated + among_real - 2.0 * cross).mean())

    def gain(self, images: Tensor, reference: Tensor, labels: Tensor) -> float:
        """How much nearer to the real images `images` are than `reference` (of the base scale, same starting points).

        In the units of the term: (MMD²(reference) − MMD²(images)) / (2 · scale). The mean of the term, and the
        objective whose slope its differences between samples are.
        """
        return (self.distance(reference, labels) - self.distance(images, labels)) / (2.0 * self.scale)

    def _among_real(self) -> Tensor:
        """Mean kernel of each real image with the other ones (of its class), [N]; computed once."""
        if self._real_rows is None:
            pairs = self._pairs(self._real_labels, self._real_labels).fill_diagonal_(0.0)
            self._real_rows = (self._k(self._real, self._real) * pairs).sum(1) / pairs.sum(1)
        return self._real_rows

    def calibrated(self, base: Tensor, random: Tensor, labels: Tensor) -> Distribution:
        """The same term with offset and scale measured: images [B, C, H, W] of the base scale and of random actions,
        from the same starting points. The scale is the standard deviation of w − base under random actions.
        """
        other = copy.copy(self)
        own = self.embed(random)
        difference = self.witness_at(own, own, labels) - self.witness_at(self.embed(base), own, labels)
        other.offset, other.scale = self.distance(base, labels), float(difference.std())
        return other

    def __call__(self, step: StepView) -> Tensor:
        if not step.last:
            return torch.zeros_like(step.action)
        own = self.embed(step.x0)
        shares = self.witness_at(own, own, step.labels)
        at_base = self.offset
        if step.reference is not None:
            shares = shares - self.witness_at(self.embed(step.reference), own, step.labels)
            at_base = self.distance(step.reference, step.labels)
        gain = (at_base - self.distance(step.x0, step.labels)) / 2.0
        return (shares - shares.mean() + gain) / self.scale


class Reward:
    """Weighted sum of terms; each term's weighted share is logged on its own, and the shares add up to the reward."""

    def __init__(self, terms: Sequence[tuple[float, RewardTerm]], classifier: Classifier) -> None:
        """classifier: the reward classifier, which is also the proxy of the state's confidence entry."""
        for _, term in terms:
            if isinstance(term, Distribution):
                check_fit(reward_classifier=classifier, classifier_of_the_distribution_term=term.classifier)
        names = [term.name for _, term in terms]
        if not terms or len(set(names)) != len(names):
            raise InvalidInputError(f"a reward needs terms with different names, got {names}")
        self.terms, self.classifier = tuple(terms), classifier

    @classmethod
    def from_config(
        cls,
        config: RewardConfig,
        classifier: Classifier,
        real: ImageDataset,
        *,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Reward:
        """Terms with a positive weight.

        real: the *training* split; distance: LPIPS network, for kind "lpips", in place of the one that
        `config.lpips_weights` names.
        Raises InvalidInputError when `real` is of other images or classes than the classifier, or lacks a class;
        MissingDependencyError for kind "lpips" without either, or without the package lpips; MissingDataError or
        DamagedFileError for a file of weights that is not there or not such a file.
        """
        check_fit(reward_classifier=classifier, data_set=real)
        terms: list[tuple[float, RewardTerm]] = []
        if config.confidence:
            terms.append((config.confidence, Confidence()))
        if config.stepwise:
            kind = config.stepwise_kind
            means = class_means(real) if kind != "confidence" else None
            if distance is None and config.lpips_weights is not None:
                distance = Lpips(config.lpips_weights)
            terms.append((config.stepwise, StepwiseImprovement(kind, references=means, distance=distance)))
        if config.action_penalty:
            terms.append((config.action_penalty, ActionPenalty()))
        if config.total_variation:
            terms.append((config.total_variation, TotalVariation()))
        if config.distribution:
            term = Distribution(
                classifier,
                real,
                by_class=config.distribution_by_class,
                kernel=config.distribution_kernel,
                offset=config.distribution_offset or 0.0,
                scale=config.distribution_scale or 1.0,
            )
            terms.append((config.distribution, term))
        return cls(terms, classifier)

    @torch.no_grad()
    def __call__(self, step: StepView) -> tuple[Tensor, dict[str, Tensor]]:
        """Reward [B] and each term's weighted share [B]."""
        shares = {term.name: weight * term(step) for weight, term in self.terms}
        total = torch.stack(list(shares.values())).sum(0)
        return total, shares

    @property
    def distribution(self) -> Distribution | None:
        """The distribution term, if there is one."""
        return next((term for _, term in self.terms if isinstance(term, Distribution)), None)

    def smallest_batch(self, n_classes: int) -> int:
        """Fewest environments the terms can work with: the distribution term compares images with each other."""
        term = self.distribution
        return 1 if term is None else 2 * n_classes if term.by_class else 2


def class_means(data: ImageDataset) -> Tensor:
    """Mean image of each class, [K, C, H, W]. Raises InvalidInputError for a class without images."""
    check_every_class(data.labels, data.n_classes, data.name, "a mean image of each class")
    return torch.stack([data.images[data.labels == k].mean(0) for k in range(data.n_classes)])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image pair (Wang et al. 2004), [B, C, H, W] in [−1, 1] twice → [B].

    A uniform window of 7×7 pixels, since the usual Gaussian one does not fit into 8×8 images.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # here: importing it takes seconds

    scores = structural_similarity_index_measure(
        a, b, data_range=2.0, gaussian_kernel=False, kernel_size=7, reduction="none"
    )
    assert isinstance(scores, Tensor)
    return scores
