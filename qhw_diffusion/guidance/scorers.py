"""Scorers: what the confidence entry of the state and the reward look through.

The built-in scorer is the data set's reward classifier. A user's own is an object, a class or a function, passed to
`train_guidance(..., scorer=...)` or named as ``module:name`` in `GuidanceConfig.scorer`. The evaluation classifier is
refused here: what training looks through must not be what the result is measured with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qhw_diffusion.diffusion import Classifier, check_fit
from qhw_diffusion.errors import InvalidInputError, QhwError
from qhw_diffusion.extensions import is_extension, load_extension, raised_text
from qhw_diffusion.guidance.config import BUILT_IN_SCORER, OBJECT, check_scorer_text

_SMALLEST = 1e-7
_CHECKED_IMAGES = 8


@runtime_checkable
class ProbabilityScorer(Protocol):
    """Tells how likely each image shows what its label asks for. `features` is needed by the distribution term only.

    A method ``features(images)``, [B, C, H, W] → [B, F], may be left out where no reward term compares features.
    """

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        """Probability of the label, [B] in [0, 1], of images [B, C, H, W] in [−1, 1] with labels int64 [B]."""
        ...


@runtime_checkable
class ClassifierScorer(Protocol):
    """A classifier over all labels, as the reward classifiers that come with the package are."""

    def logits(self, x: Tensor, /) -> Tensor:
        """[B, K] of images [B, C, H, W] in [−1, 1]."""
        ...


Scorer = ProbabilityScorer | ClassifierScorer
"""Either kind. The probability of a label is the softmax of the logits where a scorer offers these."""


@dataclass(frozen=True)
class Score:
    """What a scorer says of B images and their labels.

    Attributes:
        probability: p(y | image), [B].
        log_probability: log p(y | image), [B].
        confidence: the softened probability, [B]: of logits divided by the temperature.
    """

    probability: Tensor
    log_probability: Tensor
    confidence: Tensor


class FunctionScorer:
    """A plain function ``f(images, labels) -> [B]`` as a scorer without features."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function, self.name = function, getattr(function, "__name__", type(function).__name__)

    def probability(self, images: Tensor, labels: Tensor) -> Tensor:
        """What the function returns."""
        return self.function(images, labels)


def scorer_name(scorer: Any) -> str:
    """The name of a scorer in messages and run folders: its `name` or that of its class."""
    name = getattr(scorer, "name", None)
    return name if isinstance(name, str) and name else type(scorer).__name__


def scorer_text(scorer: Any) -> str:
    """What `GuidanceConfig.scorer` records of a scorer that was passed as an object."""
    return BUILT_IN_SCORER if isinstance(scorer, Classifier) else f"{OBJECT}{scorer_name(scorer)}"


def as_scorer(given: Any) -> Scorer:
    """A scorer from an object with `probability` or `logits`, a class of such objects, or a function.

    Raises:
        InvalidInputError: something else, or a classifier whose role is not "reward".
    """
    if inspect.isclass(given):
        given = given()
    role = getattr(given, "role", "reward")
    if role != "reward":
        raise InvalidInputError(
            f"training looks through the reward classifier, got role {role!r}; the evaluation classifier must stay "
            "unseen"
        )
    if isinstance(given, (ClassifierScorer, ProbabilityScorer)):
        return given
    if callable(given):
        return FunctionScorer(given)
    raise InvalidInputError(
        f"a {type(given).__name__} is no scorer; needed is an object with probability(images, labels) -> [B] or "
        "logits(images) -> [B, K], or a function (images, labels) -> [B]"
    )


def scorer_of(text: str, dataset: str, *, given: Any = None) -> Scorer:
    """The scorer that a configuration names.

    Args:
        text: ``"classifier"`` (the reward classifier of the data set) or ``module:name`` / ``file.py:name``.
        dataset: data set whose reward classifier is loaded.
        given: an object that takes the place of what `text` names.

    Raises:
        InvalidInputError: what is named cannot be loaded or is no scorer.
        UnknownNameError: no such built-in scorer.
    """
    if given is not None:
        return as_scorer(given)
    check_scorer_text(text)
    if text == BUILT_IN_SCORER:
        return Classifier.load(dataset, role="reward")
    if text.startswith(OBJECT):
        raise InvalidInputError(
            f"the scorer {text.removeprefix(OBJECT)!r} was passed as an object in Python; pass it again: scorer=…"
        )
    return as_scorer(load_extension(text, what="scorer"))


def scorer_for(scorer: Scorer, denoiser: Any) -> Scorer:
    """The scorer for the images of a denoiser.

    A text-to-image model has `prompts`, and its labels are rows of that table: a scorer with a method
    ``for_prompts(prompts)``, which gives a scorer for the labels of a table, is asked for the one of its table. Any
    other scorer is given the labels as they are.

    Raises:
        InvalidInputError: `for_prompts` raises, or gives something that is no scorer.
    """
    prompts, bind = getattr(denoiser, "prompts", None), getattr(scorer, "for_prompts", None)
    if prompts is None or not callable(bind):
        return scorer
    try:
        return as_scorer(bind(prompts))
    except QhwError:
        raise
    except Exception as error:
        raise InvalidInputError(f"scorer {scorer_name(scorer)!r}: for_prompts raises {raised_text(error)}") from error


def score(scorer: Scorer, images: Tensor, labels: Tensor, temperature: float = 1.0) -> Score:
    """What the scorer says of images [B, C, H, W] with labels int64 [B].

    The softened confidence of a scorer without logits is σ(log(p / (1 − p)) / temperature): what two logits give.

    Raises:
        InvalidInputError: the scorer raises, or returns something else than finite numbers [B] in [0, 1].
    """
    rows = labels[:, None]
    if isinstance(scorer, Classifier):  # checks its own input
        logits = scorer.logits(images)
    elif isinstance(scorer, ClassifierScorer):
        logits = _called(scorer, "logits", images)
        if logits.ndim != 2 or len(logits) != len(images) or int(labels.max()) >= logits.shape[1]:
            raise _wrong(scorer, "logits", logits, f"[{len(images)}, K] with K > {int(labels.max())}")
    else:
        probability = _called(scorer, "probability", images, labels)
        if tuple(probability.shape) != (len(images),):
            raise _wrong(scorer, "probability", probability, f"[{len(images)}]")
        low, high = float(probability.min()), float(probability.max())
        if low < 0 or high > 1:
            raise InvalidInputError(
                f"scorer {scorer_name(scorer)!r}: probability returned numbers from {low:.4g} to {high:.4g}, "
                "wanted: within [0, 1]"
            )
        probability = probability.to(images)
        inside = probability.clamp(_SMALLEST, 1.0 - _SMALLEST)
        return Score(probability, probability.clamp_min(_SMALLEST).log(), (inside.logit() / temperature).sigmoid())
    return Score(
        logits.softmax(1).gather(1, rows).squeeze(1),
        logits.log_softmax(1).gather(1, rows).squeeze(1),
        (logits / temperature).softmax(1).gather(1, rows).squeeze(1),
    )


def features(scorer: Scorer, images: Tensor) -> Tensor:
    """The scorer's features [B, F] of images [B, C, H, W].

    Raises:
        InvalidInputError: the scorer has none, raises, or returns something else.
    """
    if not hasattr(scorer, "features"):
        raise InvalidInputError(
            f"scorer {scorer_name(scorer)!r} has no features(images) -> [B, F], which the distribution term compares; "
            "add the method, or set the weight distribution to 0"
        )
    if isinstance(scorer, Classifier):
        return scorer.features(images)
    values = _called(scorer, "features", images)
    if values.ndim != 2 or len(values) != len(images):
        raise _wrong(scorer, "features", values, f"[{len(images)}, F]")
    return values


def feature_maps(text: str, scorer: Scorer) -> list[Callable[[Tensor], list[Tensor]]]:
    """What `RewardConfig.distribution_features` names: functions of images [B, C, H, W] → feature sets [B, F] each.

    Args:
        text: "classifier", "layers", "pixels", the folder of a reward classifier, ``module:name`` or ``file.py:name``;
            several joined by ``+``.
        scorer: whose features and layers are meant.

    Raises:
        InvalidInputError: what is named cannot be loaded, is an evaluation classifier, or has no features.
    """
    return [_feature_map(part, scorer) for part in text.split("+")]


def _feature_map(part: str, scorer: Scorer) -> Callable[[Tensor], list[Tensor]]:
    if part == "classifier":
        return lambda images: [features(scorer, images)]
    if part == "layers":
        return lambda images: layer_features(scorer, images)
    if part == "pixels":
        return lambda images: [images.flatten(1)]
    if not is_extension(part):
        classifier = Classifier.load(part, role="reward")
        return lambda images: [features(classifier, images)]
    own = load_extension(part, what="features")
    if inspect.isclass(own):
        own = own()
    if hasattr(own, "features"):
        network = as_scorer(own)
        return lambda images: [features(network, images)]
    if not callable(own):
        raise InvalidInputError(
            f"a {type(own).__name__} gives no features; needed is an object with features(images) -> [B, F] or a "
            "function (images) -> [B, F]"
        )
    return lambda images: [_checked_features(part, own(images), images)]


def _checked_features(name: str, values: Any, images: Tensor) -> Tensor:
    wrong = not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(images)
    if wrong or not values.is_floating_point():
        given = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InvalidInputError(f"features {name!r} are {given}, wanted: a tensor of floats [{len(images)}, F]")
    found: Tensor = values
    return found


def layer_features(scorer: Scorer, images: Tensor) -> list[Tensor]:
    """What a scorer's network holds after every pooling, and its features: [B, F] each.

    A scorer of a user's own tells it by a method ``layers(images)``, a list of [B, F].

    Raises:
        InvalidInputError: a scorer that has no layers to look at.
    """
    if hasattr(scorer, "layers"):
        return [_checked_features("layers", values, images) for values in scorer.layers(images)]
    body = getattr(scorer, "body", None)
    if not isinstance(body, nn.Sequential):
        raise InvalidInputError(
            f"scorer {scorer_name(scorer)!r} has no layers(images) -> list of [B, F], which the features 'layers' "
            "need; add the method, or take the features 'classifier' or 'pixels'"
        )
    found, values = [], images
    for module in body:
        values = module(values)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            found.append(values.flatten(1))
    return [*found, values]


@torch.no_grad()
def check_scorer(
    scorer: Scorer,
    image_shape: tuple[int, int, int],
    n_classes: int,
    *,
    device: torch.device | None = None,
    needs_features: bool = False,
) -> None:
    """Call a scorer on a few random images, so that one that does not work is refused before training.

    Args:
        scorer: what to call.
        image_shape: (C, H, W).
        n_classes: number of labels.
        device: where the images lie.
        needs_features: whether its features are called too.

    Raises:
        InvalidInputError: it does not fit the images, raises, or returns something else than it should.
    """
    generator = torch.Generator().manual_seed(0)
    images = (2.0 * torch.rand((_CHECKED_IMAGES, *image_shape), generator=generator) - 1.0).to(device)
    labels = (torch.arange(_CHECKED_IMAGES) * (n_classes - 1) // (_CHECKED_IMAGES - 1)).to(device)  # first to last
    score(scorer, images, labels)
    if needs_features:
        features(scorer, images)


def check_scorer_fit(**parts: Any) -> None:
    """Check that all parts take the same images and labels, as far as they say what they take (a scorer need not).

    Raises:
        InvalidInputError: image shape or number of classes differ (`diffusion.check_fit`).
    """
    known = {name: part for name, part in parts.items() if hasattr(part, "image_shape") and hasattr(part, "n_classes")}
    if known:
        check_fit(**known)


def device_of(scorer: Any) -> torch.device:
    """The device of a scorer's parameters; the CPU where it has none."""
    if isinstance(scorer, nn.Module):
        return next((p.device for p in scorer.parameters()), torch.device("cpu"))
    return torch.device("cpu")


def dtype_of(scorer: Any) -> torch.dtype:
    """The dtype of a scorer's parameters; float32 where it has none."""
    if isinstance(scorer, nn.Module):
        return next((p.dtype for p in scorer.parameters()), torch.float32)
    return torch.float32


def _called(scorer: Any, method: str, *arguments: Tensor) -> Tensor:
    try:
        values = getattr(scorer, method)(*arguments)
    except QhwError:
        raise
    except Exception as error:
        raise InvalidInputError(f"scorer {scorer_name(scorer)!r}: {method} raises {raised_text(error)}") from error
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise _wrong(scorer, method, values, "floats")
    if not bool(values.isfinite().all()):
        raise InvalidInputError(f"scorer {scorer_name(scorer)!r}: {method} returned NaN or infinite numbers")
    return values


def _wrong(scorer: Any, method: str, values: Any, wanted: str) -> InvalidInputError:
    given = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    return InvalidInputError(f"scorer {scorer_name(scorer)!r}: {method} returned {given}, wanted: a tensor of {wanted}")
