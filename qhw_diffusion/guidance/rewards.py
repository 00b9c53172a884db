"""Reward terms and the reward, their weighted sum.

A term looks at one step of B samples (`StepView`) and gives one number per sample, larger is better. The built-in terms
are in `REWARD_TERMS`. A user's own is an object with `name`, `per_step` and a call, a class of such objects, or a
function, passed in Python (`train_guidance(..., terms=[(0.5, term)])`, `Reward([(0.5, term)], scorer)`) or named in
`RewardConfig.extra` as ``0.5*module:name``.

All terms look through the scorer (the reward classifier unless told otherwise). The evaluation classifier never enters
here: a classifier that is optimised against can be fooled, so evaluation uses another one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from qhw_diffusion.diffusion import Lpips, check_every_class, check_labels, polynomial_kernel
from qhw_diffusion.errors import InvalidInputError, MissingDependencyError, QhwError, UnknownNameError
from qhw_diffusion.extensions import load_extension, raised_text
from qhw_diffusion.guidance.config import KERNELS, OBJECT, STEPWISE_KINDS, RewardConfig
from qhw_diffusion.guidance.scorers import Score, Scorer, check_scorer_fit, device_of, dtype_of, feature_maps, score

if TYPE_CHECKING:
    from qhw_diffusion.diffusion import ImageDataset

# Real images whose features are computed at a time: of larger data sets all would not fit into memory
EMBEDDED_TOGETHER = 4096


@dataclass(frozen=True)
class StepView:
    """What a reward term sees of one step of B samples.

    Attributes:
        last: whether the episode ends here.
        x0: estimate x̂₀ of the images after the step, [B, C, H, W] in [−1, 1]; after the last step the images.
        x0_previous: the estimate before the step, [B, C, H, W].
        labels: what the images are to show, int64 [B].
        action: ΔCFG as applied (clipped), [B].
        scorer: the scorer, for terms that ask it for more than `score` tells (features, say).
        reference: images of the base scale from the same labels and noise, [B, C, H, W], where they are known.
        known_scores: scores of `x0_previous` and `x0` where the caller has them already.
    """

    last: bool
    x0: Tensor
    x0_previous: Tensor
    labels: Tensor
    action: Tensor
    scorer: Scorer
    reference: Tensor | None = None
    known_scores: tuple[Score | None, Score | None] = (None, None)

    @cached_property
    def score(self) -> Score:
        """Probability of the labels after the step, by the scorer."""
        return self.known_scores[1] or score(self.scorer, self.x0, self.labels)

    @cached_property
    def score_previous(self) -> Score:
        """Probability of the labels before the step, by the scorer."""
        return self.known_scores[0] or score(self.scorer, self.x0_previous, self.labels)


class RewardTerm(Protocol):
    """A named term of the reward.

    Attributes:
        name: how the log, the reports and messages call it.
        per_step: True: called after every step, the values of an episode add up. False: called at the last step
            only, when `x0` holds the final images.

    A term that compares the images of a batch with each other also has ``smallest_batch(n_classes)``, the fewest
    environments it can work with.
    """

    name: str
    per_step: bool

    def __call__(self, step: StepView) -> Tensor:
        """The term of each sample, floats [B], larger is better."""
        ...


class Confidence:
    """R_cls = log p(y | image) by the scorer, of the final images (arXiv 2509.14163)."""

    name = "confidence"
    per_step = False

    def __call__(self, step: StepView) -> Tensor:
        """Log probability of the label, [B]."""
        return step.score.log_probability


class StepwiseImprovement:
    """R_step: what x̂₀ gained in this step (arXiv 2509.14163); the terms of an episode add up to last minus first.

    "ssim" and "lpips" need something to be similar to, and a generated image has no partner; here it is the class's
    mean training image, so they read "more like the class", nothing finer.

    Args:
        kind: "confidence" (Δp(y | x̂₀) by the scorer), "ssim" or "lpips".
        references: one image per class, [K, C, H, W]; needed for "ssim" and "lpips".
        distance: LPIPS network with trained weights, images [N, C, H, W] in [−1, 1] twice → [N]; needed for "lpips".
    """

    name = "stepwise"
    per_step = True

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
        """The gain of this step, [B]."""
        if self.kind == "confidence":
            return step.score.probability - step.score_previous.probability
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
    per_step = True

    def __call__(self, step: StepView) -> Tensor:
        """−a², [B]."""
        return -step.action.square()


class TotalVariation:
    """−TV(x̂₀): mean absolute difference of neighbouring pixels (vertical plus horizontal)."""

    name = "total_variation"
    per_step = True

    def __call__(self, step: StepView) -> Tensor:
        """−TV, [B]."""
        vertical = step.x0.diff(dim=-2).abs().flatten(1).mean(1)
        horizontal = step.x0.diff(dim=-1).abs().flatten(1).mean(1)
        return -(vertical + horizontal)


class Distribution:
    """The kernel-MMD witness of each final image between the real and the generated batch.

    w(x) = mean_j k(x, real_j) − mean_{j≠x} k(x, generated_j) in the scorer's features (Gretton et al. 2012):
    raising its mean lowers the unbiased kernel distance MMD² to the real images, and an image earns nothing by looking
    like the others.

    by_class: only images of the same label are compared, that is, the kernel is k(x, x')·[y = y'] and MMD² (averaged
    over the generated labels) is between the *joint* distributions of image and label. Guidance trades variety within
    a class for clear labels; the joint distance sees that, the marginal one mostly sees which labels were drawn.

    kernel: "distance" is k = −‖x − y‖ on features standardised by the real ones, whose MMD² is the energy distance
    (Sejdinovic et al. 2013, arXiv 1207.6076); "polynomial" is that of KID on the features as they are, which weighs
    their length above all and ranks constants quite unlike the Fréchet distance does.

    features: what images are compared in (`RewardConfig.distribution_features`). With several sets the kernel is their
    mean, each divided by the root of its number of features.

    The term of a sample is (w − base)/scale plus one number for the whole batch. The base is the witness, among the
    same other images, of the image that the base scale g0 makes of the same label and noise, where that is known (else
    0). Which image a sampler makes is mostly decided by the noise; the base takes that part out and, as it does not
    depend on the sample's own actions, leaves the expected policy gradient as it is. The batch's number makes the mean
    what it should say: `gain`, by how much the batch is nearer to the real images than that of g0. (The mean of
    w − base alone is lower by half the distance between the two batches, since every image is compared with a batch
    that moved along; it can fall while the images get better.) It is the same for all samples and tells none apart.
    """

    name = "distribution"
    per_step = False

    def __init__(
        self,
        scorer: Scorer,
        real: ImageDataset,
        *,
        by_class: bool = True,
        kernel: str = "distance",
        features: str = "classifier",
        offset: float = 0.0,
        scale: float = 1.0,
        device: torch.device | None = None,
        oracle: bool = False,
    ) -> None:
        """Embed the real images.

        Args:
            scorer: whose features are compared.
            real: the training split.
            by_class: whether images of the same label only are compared.
            kernel: "distance" or "polynomial".
            features: what is compared; see `RewardConfig.distribution_features`.
            offset: MMD² of the base scale, for steps without a reference.
            scale: unit of the term.
            device: where the images to come lie; None: where the scorer's parameters do.
            oracle: compare with the evaluation's own features, to tell how much there is to win (`headroom`). A reward
                that trains or chooses does not take such a term.

        Raises:
            UnknownNameError: another kernel.
            InvalidInputError: a scorer without features or for other images, fewer than two real images (of a class),
                the evaluation classifier or held-out images without `oracle`.
        """
        seen = getattr(scorer, "role", "reward") == "evaluation" or real.split == "heldout"
        if seen and not oracle:
            raise InvalidInputError(
                "the distribution term looks through the reward classifier at training images; the evaluation "
                "classifier and the held-out images must stay unseen (only an oracle, reported as such, sees them)"
            )
        self.oracle = oracle
        if kernel not in KERNELS:
            raise UnknownNameError.of("distribution kernel", kernel, KERNELS)
        if not scale > 0:
            raise InvalidInputError(f"scale must be positive, got {scale}")
        check_scorer_fit(reward_classifier=scorer, data_set=real)
        self._n_classes = real.n_classes
        device = device or device_of(scorer)
        images, self._real_labels = real.images.to(device, dtype_of(scorer)), real.labels.to(device)
        sizes = self._real_labels.bincount(minlength=real.n_classes) if by_class else torch.tensor([len(images)])
        few = (sizes < 2).nonzero().flatten().tolist()
        if few:
            which = f" of every class; data set {real.name!r} has fewer of class {', '.join(map(str, few))}"
            raise InvalidInputError(f"the distribution term needs two real images{which if by_class else ''}")
        self.scorer, self.by_class, self.kernel = scorer, by_class, kernel
        self.offset, self.scale = offset, scale
        self._maps = feature_maps(features, scorer)
        with torch.no_grad():
            parts = [[v for mapped in self._maps for v in mapped(part)] for part in images.split(EMBEDDED_TOGETHER)]
            sets = [torch.cat(of_a_map) for of_a_map in zip(*parts, strict=True)]
            self._sizes = [values.shape[1] for values in sets]
            embedded = torch.cat(sets, 1)
            self._shift, self._width = torch.zeros((), device=device), torch.ones((), device=device)
            if kernel == "distance":
                # a feature that is (nearly) dead on real images must not outweigh all others where it fires
                deviations = [values.std(0) for values in sets]
                self._shift = embedded.mean(0)
                self._width = torch.cat([d.clamp_min(0.1 * float(d.mean())) for d in deviations])
            self._real = (embedded - self._shift) / self._width
        self._real_rows: Tensor | None = None

    def embed(self, images: Tensor) -> Tensor:
        """The features the kernel works on, [B, F]; differentiable in the images."""
        sets = [values for mapped in self._maps for values in mapped(images)]
        return (torch.cat(sets, 1) - self._shift) / self._width

    @classmethod
    def from_config(
        cls, config: RewardConfig, scorer: Scorer, real: ImageDataset, *, device: torch.device | None = None
    ) -> Distribution:
        """The term that a configuration describes; with offset 0 and scale 1 where they are not measured yet."""
        return cls(
            scorer,
            real,
            by_class=config.distribution_by_class,
            kernel=config.distribution_kernel,
            features=config.distribution_features,
            offset=config.distribution_offset or 0.0,
            scale=config.distribution_scale or 1.0,
            device=device,
        )

    def smallest_batch(self, n_classes: int) -> int:
        """Fewest images that can be compared with each other: two, of every class with `by_class`."""
        return 2 * n_classes if self.by_class else 2

    def _k(self, x: Tensor, y: Tensor) -> Tensor:
        if len(self._sizes) == 1:
            return -torch.cdist(x, y) if self.kernel == "distance" else polynomial_kernel(x, y)
        parts = zip(x.split(self._sizes, 1), y.split(self._sizes, 1), strict=True)
        if self.kernel == "polynomial":
            return torch.stack([polynomial_kernel(a, b) for a, b in parts]).mean(0)
        return -torch.stack([torch.cdist(a, b) / a.shape[1] ** 0.5 for a, b in parts]).mean(0)

    def _pairs(self, labels: Tensor, others: Tensor) -> Tensor:
        if self.by_class:
            return (labels[:, None] == others[None, :]).float()
        return torch.ones(len(labels), len(others), device=labels.device)

    def _generated_pairs(self, labels: Tensor) -> Tensor:
        pairs = self._pairs(labels, labels).fill_diagonal_(0.0)
        alone = labels[pairs.sum(1) == 0].unique().tolist()
        if alone:
            who = f" of the same label, and of {len(labels)} images one alone has label" if self.by_class else ", and"
            which = " and label ".join(map(str, alone)) if self.by_class else "there is one"
            raise InvalidInputError(
                f"the distribution term compares images of a batch with each other{who} {which}: take at least "
                f"{self.smallest_batch(self._n_classes)} environments or images, more where labels are drawn at random"
            )
        return pairs

    def witness_at(self, points: Tensor, generated: Tensor, labels: Tensor) -> Tensor:
        """Witness of embedded points [B, F], each put in the place of the generated one of its row, [B]."""
        check_labels(labels, self._n_classes, len(points))
        real_pairs, pairs = self._pairs(labels, self._real_labels), self._generated_pairs(labels)
        to_real = (self._k(points, self._real) * real_pairs).sum(1) / real_pairs.sum(1)
        return to_real - (self._k(points, generated) * pairs).sum(1) / pairs.sum(1)

    def witness(self, images: Tensor, labels: Tensor) -> Tensor:
        """Witness w of each image, [B].

        Raises:
            InvalidInputError: an image without another one to compare it with, or labels that are none of the data
                set's.
        """
        own = self.embed(images)
        return self.witness_at(own, own, labels)

    @torch.no_grad()
    def distance(self, images: Tensor, labels: Tensor) -> float:
        """Unbiased MMD² between images and real images; by class, the mean over the labels given.

        It can be slightly negative.

        Raises:
            InvalidInputError: as `witness`.
        """
        return float(self.embedded_distance(self.embed(images), labels))

    def embedded_distance(self, own: Tensor, labels: Tensor) -> Tensor:
        """As `distance`, of embedded images [B, F], as a scalar tensor; differentiable."""
        check_labels(labels, self._n_classes, len(own))
        pairs, real_pairs = self._generated_pairs(labels), self._pairs(labels, self._real_labels)
        generated = (self._k(own, own) * pairs).sum(1) / pairs.sum(1)
        cross = (self._k(own, self._real) * real_pairs).sum(1) / real_pairs.sum(1)
        among_real = (real_pairs * self._among_real()).sum(1) / real_pairs.sum(1)
        return (generated + among_real - 2.0 * cross).mean()

    def gain(self, images: Tensor, reference: Tensor, labels: Tensor) -> float:
        """How much nearer to the real images `images` are than `reference` (of the base scale).

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
        """The same term with offset and scale measured.

        Args:
            base: images of the base scale, [B, C, H, W].
            random: images of random actions from the same labels and noise, [B, C, H, W].
            labels: int64 [B].

        Returns:
            The term whose scale is the standard deviation of w − base under random actions.
        """
        other = copy.copy(self)
        own = self.embed(random)
        difference = self.witness_at(own, own, labels) - self.witness_at(self.embed(base), own, labels)
        other.offset, other.scale = self.distance(base, labels), float(difference.std())
        return other

    def __call__(self, step: StepView) -> Tensor:
        """Values (w − base)/scale plus the batch's number, [B]."""
        own = self.embed(step.x0)
        shares = self.witness_at(own, own, step.labels)
        at_base: float | Tensor = self.offset
        if step.reference is not None:
            reference = self.embed(step.reference)
            shares = shares - self.witness_at(reference, own, step.labels)
            at_base = self.embedded_distance(reference, step.labels)
        gain = (at_base - self.embedded_distance(own, step.labels)) / 2.0
        # what tells the samples apart has the mean 0, and so has its gradient
        return ((shares - shares.mean()).detach() + gain) / self.scale


class FunctionTerm:
    """A plain function ``f(step) -> [B]`` as a reward term; with an attribute ``per_step = True`` one of every step."""

    def __init__(self, function: Callable[[StepView], Tensor]) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.per_step = bool(getattr(function, "per_step", False))

    def __call__(self, step: StepView) -> Tensor:
        """What the function returns."""
        return self.function(step)


def as_term(given: Any) -> RewardTerm:
    """A reward term from an object with a `name`, a class of such objects, or a function.

    Raises:
        InvalidInputError: something else, or the name of a built-in term.
    """
    if isinstance(given, _BUILT_IN):
        return given
    if inspect.isclass(given):
        given = given()
    if not callable(given):
        raise InvalidInputError(
            f"a {type(given).__name__} is no reward term; needed is an object with name, per_step and a call, or a "
            "function: (step: StepView) -> floats [B]"
        )
    term: RewardTerm = given if isinstance(getattr(given, "name", None), str) else FunctionTerm(given)
    if term.name in REWARD_TERMS:
        raise InvalidInputError(f"reward term {term.name!r} has the name of a built-in one; give it another name")
    if not isinstance(getattr(term, "per_step", None), bool):
        raise InvalidInputError(
            f"reward term {term.name!r} does not say when it acts: per_step = True (after every step) or False (on "
            "the final images)"
        )
    return term


class Reward:
    """Weighted sum of terms; each term's weighted share is logged on its own, and the shares add up to the reward."""

    def __init__(self, terms: Sequence[tuple[float, Any]], scorer: Scorer, *, oracle: bool = False) -> None:
        """Take the terms.

        Args:
            terms: pairs of a weight and a term (see `as_term`).
            scorer: what the terms, and the confidence entry of the state, look through.
            oracle: whether a term may look through the evaluation's own features; for `headroom` alone.

        Raises:
            InvalidInputError: no terms, two of one name, something that is no term, a distribution term of another
                scorer's images, or an oracle's.
        """
        self.terms: tuple[tuple[float, RewardTerm], ...] = tuple((weight, as_term(term)) for weight, term in terms)
        self.scorer = scorer
        for _, term in self.terms:
            if isinstance(term, Distribution):
                if term.oracle and not oracle:
                    raise InvalidInputError("a reward that trains or chooses does not take the term of an oracle")
                check_scorer_fit(reward_classifier=scorer, classifier_of_the_distribution_term=term.scorer)
        names = [term.name for _, term in self.terms]
        if not names or len(set(names)) != len(names):
            raise InvalidInputError(f"a reward needs terms with different names, got {names}")

    @classmethod
    def from_config(
        cls,
        config: RewardConfig,
        scorer: Scorer,
        real: ImageDataset,
        *,
        objects: Sequence[Any] = (),
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: torch.device | None = None,
    ) -> Reward:
        """The reward that a configuration describes: its terms with a positive weight.

        Args:
            config: weights and settings of the built-in terms, names of others (`RewardConfig.extra`).
            scorer: what the terms look through.
            real: the *training* split.
            objects: terms that were passed as objects in Python, which `config.extra` has as ``object:name``.
            distance: LPIPS network for the stepwise term of kind "lpips", in place of `config.lpips_weights`.
            device: where the images to come lie; None: where the scorer's parameters do.

        Raises:
            InvalidInputError: `real` is of other images or classes than the scorer, or lacks a class; no term but the
                action penalty; an own term that cannot be loaded.
            MissingDependencyError: stepwise kind "lpips" without a network, or without the package lpips.
            MissingDataError, DamagedFileError: a file of weights that is not there or not such a file.
        """
        check_scorer_fit(reward_classifier=scorer, data_set=real)
        parts = _Parts(config, scorer, real, distance, device)
        terms: list[tuple[float, Any]] = [
            (weight, make(parts)) for name, make in REWARD_TERMS.items() if (weight := getattr(config, name))
        ]
        own = {term.name: term for term in map(as_term, objects)}
        for weight, text in config.extra_terms():
            terms.append((weight, _named_term(text, own)))
        if own:
            raise InvalidInputError(f"the reward's configuration does not name the term {', '.join(own)}")
        if all(term.name == ActionPenalty.name for _, term in terms):
            raise InvalidInputError(
                "a reward needs at least one term besides the action penalty with a positive weight: "
                f"{', '.join(name for name in REWARD_TERMS if name != ActionPenalty.name)}, or one of your own"
            )
        return cls(terms, scorer)

    def __call__(self, step: StepView) -> tuple[Tensor, dict[str, Tensor]]:
        """Reward [B] and each term's weighted share [B]."""
        shares = {term.name: weight * term_values(term, step) for weight, term in self.terms}
        total = torch.stack(list(shares.values())).sum(0)
        return total, shares

    @torch.no_grad()
    def check(self, image_shape: tuple[int, int, int], n_classes: int, *, device: torch.device | None = None) -> None:
        """Call every term that is not built in on a few random images, at the last step and before it.

        Args:
            image_shape: (C, H, W).
            n_classes: number of labels.
            device: where the images lie.

        Raises:
            InvalidInputError: a term raises or returns something else than finite floats [B]; the message names it.
        """
        batch = max(4, self.smallest_batch(n_classes))
        generator = torch.Generator().manual_seed(0)
        before, after, base = (
            (2.0 * torch.rand((batch, *image_shape), generator=generator) - 1.0).to(device) for _ in range(3)
        )
        labels, action = (torch.arange(batch) % n_classes).to(device), torch.linspace(-1.0, 1.0, batch).to(device)
        for _, term in self.terms:
            if not isinstance(term, _BUILT_IN):
                for last in (False, True):
                    reference = base if last else None
                    term_values(term, StepView(last, after, before, labels, action, self.scorer, reference))

    @property
    def distribution(self) -> Distribution | None:
        """The distribution term, if there is one."""
        return next((term for _, term in self.terms if isinstance(term, Distribution)), None)

    def smallest_batch(self, n_classes: int) -> int:
        """Fewest environments the terms can work with."""
        return max([1, *(term.smallest_batch(n_classes) for _, term in self.terms if hasattr(term, "smallest_batch"))])


def term_values(term: RewardTerm, step: StepView) -> Tensor:
    """What a term gives for one step, [B]; zeros before the last step for a term of the final images.

    Raises:
        InvalidInputError: an own term raises or returns something else than finite floats [B]; the message names it.
    """
    if not (term.per_step or step.last):
        return torch.zeros_like(step.action)
    if isinstance(term, _BUILT_IN):
        return term(step)
    wanted = f"a tensor of finite floats [{len(step.labels)}], one per sample"
    try:
        values = term(step)
    except QhwError:
        raise
    except Exception as error:
        raise InvalidInputError(f"reward term {term.name!r} raises {raised_text(error)}; wanted: {wanted}") from error
    if not isinstance(values, Tensor) or values.shape != step.action.shape or not values.is_floating_point():
        given = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InvalidInputError(f"reward term {term.name!r} returned {given}; wanted: {wanted}")
    if not bool(values.isfinite().all()):
        raise InvalidInputError(f"reward term {term.name!r} returned NaN or infinite numbers; wanted: {wanted}")
    return values.to(step.action)


@dataclass(frozen=True)
class _Parts:
    """What the built-in terms are made from."""

    config: RewardConfig
    scorer: Scorer
    real: ImageDataset
    distance: Callable[[Tensor, Tensor], Tensor] | None
    device: torch.device | None

    def stepwise(self) -> StepwiseImprovement:
        kind, distance = self.config.stepwise_kind, self.distance
        means = class_means(self.real) if kind != "confidence" else None
        if distance is None and self.config.lpips_weights is not None:
            distance = Lpips(self.config.lpips_weights)
        return StepwiseImprovement(kind, references=means, distance=distance)

    def distribution(self) -> Distribution:
        return Distribution.from_config(self.config, self.scorer, self.real, device=self.device)


_MAKERS: dict[type[RewardTerm], Callable[[_Parts], RewardTerm]] = {
    Confidence: lambda parts: Confidence(),
    StepwiseImprovement: _Parts.stepwise,
    ActionPenalty: lambda parts: ActionPenalty(),
    TotalVariation: lambda parts: TotalVariation(),
    Distribution: _Parts.distribution,
}
"""The built-in terms, and how each is made: the one list of them."""
_BUILT_IN = tuple(_MAKERS)
REWARD_TERMS = {term.name: make for term, make in _MAKERS.items()}
"""The built-in terms by name, which is also the name of their weight in `RewardConfig`."""


def _named_term(text: str, objects: dict[str, RewardTerm]) -> RewardTerm:
    """The term that an entry of `RewardConfig.extra` names; takes it out of `objects` if it is one of them."""
    if not text.startswith(OBJECT):
        return as_term(load_extension(text, what="reward term"))
    name = text.removeprefix(OBJECT)
    if name not in objects:
        raise InvalidInputError(
            f"the reward term {name!r} was passed as an object in Python; pass it again: terms=[(weight, term)] where "
            "the policy is trained, Reward.from_config(..., objects=[term]) where it is evaluated"
        )
    return objects.pop(name)


def class_means(data: ImageDataset) -> Tensor:
    """Mean image of each class, [K, C, H, W].

    Raises:
        InvalidInputError: a class without images.
    """
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
