"""Evaluation of policies and schedules: the models and images it needs, and what both sides measure on samples."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from qhw_diffusion.diffusion import (
    Backbone,
    Classifier,
    Denoiser,
    ImageDataset,
    PipelineDenoiser,
    accuracy,
    check_fit,
    check_prompts,
    evaluate_samples,
    frechet_distance,
    image_features,
    kernel_distance,
    latent_shape_of,
    load_dataset,
    load_pipeline,
    read_prompts,
)
from qhw_diffusion.diffusion.metrics import once
from qhw_diffusion.diffusion.pipeline import PROMPTS_FILE, pipeline_folder
from qhw_diffusion.diffusion.sampler import dtype_of
from qhw_diffusion.diffusion.text_to_image.images import NAME as COLOURED_DIGITS
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.extensions import is_extension, load_extension
from qhw_diffusion.guidance import GuidanceConfig, PolicyOrSchedule, Reward, RewardConfig, Rollout, mean_return, rollout
from qhw_diffusion.guidance.config import BUILT_IN_SCORER, ModelConfig
from qhw_diffusion.guidance.rewards import Distribution
from qhw_diffusion.guidance.scorers import (
    ClassifierScorer,
    FunctionScorer,
    ProbabilityScorer,
    Scorer,
    check_scorer,
    check_scorer_fit,
    score,
    scorer_for,
    scorer_of,
)

_CHOICE_SEED = 31
_WITNESS_IMAGES = 2000
EVALUATION_SEED = 1_000_000  # seed k of an evaluation is this + k: far from those of trainings and choices


class NoImages:
    """Stands where a pipeline has no real images of its prompts: what asks for them is refused."""

    split = "train"

    def __init__(self, denoiser: Denoiser) -> None:
        self.name, self.image_shape, self.n_classes = denoiser.name, denoiser.image_shape, denoiser.n_classes

    @property
    def images(self) -> Tensor:
        """None."""
        raise InvalidInputError(
            f"there are no real images of the prompts of pipeline {self.name!r} to compare with, as the distribution "
            "term does (and every study): set its weight to 0 and reward the scorer's confidence or a term of your own "
            "(--reward-distribution 0 --reward-confidence 1), or name a data set whose label i shows prompt i (--data)"
            f"{_shipped(self.name, 'data', 'coloured_digits')}"
        )

    @property
    def labels(self) -> Tensor:
        """None."""
        return self.images


@dataclass(frozen=True, eq=False)
class Models:
    """Denoiser, classifiers and images.

    Attributes:
        config: what was asked for.
        backbone: the backbone, or a pipeline over its table of prompts.
        reward: the reward classifier; a pipeline may have none, and is rewarded by a scorer then.
        train: images of the reward side (`NoImages` where a pipeline has none).
        heldout: images of the evaluation (`NoImages` where a pipeline has none).
    """

    config: ModelConfig
    backbone: Any
    reward: Any
    train: Any
    heldout: Any

    def scorer(self, text: str) -> Scorer:
        """What rewards and states look through, by the name of the configuration.

        Raises:
            InvalidInputError: the built-in one, of a pipeline that has no reward classifier; one that cannot be loaded.
        """
        if text == BUILT_IN_SCORER and self.reward is None:
            raise InvalidInputError(
                f"pipeline {self.backbone.name!r} has no reward classifier: name a scorer that tells how well images "
                "show their prompts (--scorer module:name or file.py:name), or a classifier of the prompts "
                f"(--reward-classifier FOLDER){_shipped(self.backbone.name, 'scorer', 'scorers:reward')}"
            )
        found: Scorer = self.reward if text == BUILT_IN_SCORER else scorer_of(text, self.backbone.name)
        return scorer_for(found, self.backbone)

    @cached_property
    def evaluation_classifier(self) -> Any:
        """The evaluation (held-out) classifier, loaded when it is first asked for: a training needs none.

        With a pipeline it may be any scorer.

        Raises:
            MissingDataError: it is not there.
            InvalidInputError: it does not fit the data, or a pipeline has none.
        """
        named = self.config.evaluation_classifier
        if self.config.pipeline is not None and (named is None or is_extension(named)):
            return _evaluation_scorer(named, self.backbone)
        found = Classifier.load(named or self.config.data, role="evaluation")
        check_fit(evaluation_classifier=found, heldout_images=self.heldout)
        return found

    @cached_property
    def heldout_features(self) -> Tensor:
        """Held-out images in the evaluation classifier's features."""
        return image_features(self.evaluation_classifier, self.heldout.images)


def _shipped(pipeline: str, flag: str, name: str) -> str:
    """What a message says of the part that comes with the package's own pipeline; empty for others."""
    own = "qhw_diffusion.diffusion.text_to_image"
    colon = "." if ":" in name else ":"
    return f"; the one of {pipeline} is --{flag} {own}{colon}{name}" if pipeline == COLOURED_DIGITS else ""


def _evaluation_scorer(named: str | None, denoiser: Denoiser) -> Scorer:
    """A scorer that judges a pipeline's images; unlike that of a training it may be of role "evaluation"."""
    if named is None:
        raise InvalidInputError(
            f"pipeline {denoiser.name!r} has no evaluation classifier: name a scorer that the training did not look "
            "through (--evaluation-classifier module:name or file.py:name)"
            f"{_shipped(denoiser.name, 'evaluation-classifier', 'scorers:evaluation')}"
        )
    given = load_extension(named, what="evaluation scorer")
    made = given() if inspect.isclass(given) else given
    if not isinstance(made, ClassifierScorer | ProbabilityScorer):
        if not callable(made):
            raise InvalidInputError(f"evaluation scorer {named!r} is a {type(made).__name__}, which scores nothing")
        made = FunctionScorer(made)
    prompts = getattr(denoiser, "prompts", ())
    bound: Scorer = made.for_prompts(prompts) if hasattr(made, "for_prompts") else made
    check_scorer_fit(pipeline=denoiser, evaluation_scorer=bound)
    check_scorer(bound, denoiser.image_shape, denoiser.n_classes, device=denoiser.alphas_cumprod.device)
    return bound


def load_models(config: ModelConfig, *, evaluates: bool = True) -> Models:
    """Load everything that `config` names.

    Args:
        config: names and folders.
        evaluates: whether the evaluation classifier is needed; a training does without.

    Raises:
        MissingDataError: something is not there.
        InvalidInputError: the parts do not fit each other, or a pipeline's table holds less than two prompts.
    """
    if config.pipeline is not None:
        models = _pipeline_models(config)
    else:
        backbone = Backbone.load(config.backbone or config.data)
        reward = Classifier.load(config.reward_classifier or config.data, role="reward")
        train = load_dataset(config.data, "train", config.data_root)
        heldout = load_dataset(config.data, "heldout", config.data_root)
        check_fit(data_set=train, backbone=backbone, reward_classifier=reward, heldout_images=heldout)
        models = Models(config, backbone, reward, _at_most(train, config.reference_images), heldout)
    if evaluates:
        _ = models.evaluation_classifier  # now, not after the work
    return models


def _at_most(data: ImageDataset, count: int) -> ImageDataset:
    """A fixed random choice of so many of the images."""
    if len(data) <= count:
        return data
    return data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(_CHOICE_SEED))[:count])


def _pipeline_models(config: ModelConfig) -> Models:
    """A pipeline with its table of prompts; classifier and images where they are named."""
    assert config.pipeline is not None
    prompts = table_of_prompts(config)
    pipeline = load_pipeline(config.pipeline)
    check_prompts(pipeline.tokenizer, prompts)
    denoiser = PipelineDenoiser(pipeline, prompts, name=config.pipeline, batch=config.pipeline_batch)
    reward = None if config.reward_classifier is None else Classifier.load(config.reward_classifier, role="reward")
    train: Any = NoImages(denoiser)
    heldout: Any = train
    if config.images_of_prompts:
        train, heldout = (
            load_dataset(config.data, split, config.data_root, prompts=prompts) for split in ("train", "heldout")
        )
        train = _at_most(train, config.reference_images)
    parts = {} if reward is None else {"reward_classifier": reward}
    check_fit(pipeline=denoiser, data_set=train, heldout_images=heldout, **parts)
    return Models(config, denoiser, reward, train, heldout)


def table_of_prompts(config: ModelConfig) -> tuple[str, ...]:
    """The prompts that the labels of a pipeline stand for.

    Raises:
        InvalidInputError: no file is named and the pipeline's folder holds none, or there are less than two prompts.
        MissingDataError: no such file or pipeline.
    """
    assert config.pipeline is not None
    file: Any = config.prompts or pipeline_folder(config.pipeline) / PROMPTS_FILE
    if config.prompts is None and not pipeline_folder(config.pipeline).joinpath(PROMPTS_FILE).exists():
        raise InvalidInputError(
            f"the pipeline {config.pipeline} brings no table of prompts: give a text file with one prompt a line "
            "(--prompts FILE)"
        )
    prompts = _own_table(file) if is_extension(file) else read_prompts(file)
    if len(set(prompts)) < 2:
        raise InvalidInputError(
            f"{file} holds one prompt, {prompts[0]!r}: a policy is trained on two or more, so that it does not learn "
            "one picture; write one prompt a line"
        )
    return prompts


def _own_table(text: str) -> tuple[str, ...]:
    given = load_extension(text, what="table of prompts")
    if (
        not isinstance(given, tuple | list)
        or not given
        or not all(isinstance(one, str) and one.strip() for one in given)
    ):
        raise InvalidInputError(f"table of prompts {text!r} is no list of texts, one for each prompt")
    return tuple(given)


def draw_initial_noise(backbone: Denoiser, data: Any, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels int64 [n] in the proportions of `data`, and initial noise [n, *latent_shape]; order and noise by the seed.

    The counts of the labels are the same for every seed: which labels a set happens to hold would otherwise show in
    every distance between sets. Where there are no images, every label is drawn as often as the others.
    Raises InvalidInputError for a backbone of other images or classes than the data set.
    """
    check_fit(backbone=backbone, data_set=data)
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(data.n_classes) if isinstance(data, NoImages) else data.labels.sort().values
    places = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(own) / n).long()
    labels = own[places][torch.randperm(n, generator=generator)]
    noise = torch.randn((n, *latent_shape_of(backbone)), generator=generator)
    return labels.to(backbone.alphas_cumprod.device), noise.to(backbone.alphas_cumprod.device, dtype_of(backbone))


@dataclass(frozen=True)
class Sampled:
    """A rollout and the two sides' numbers: `reward_side` may choose, `judged` only reports (None when not asked)."""

    rollout: Rollout
    reward_side: dict[str, float]
    judged: dict[str, float] | None


@torch.no_grad()
def sample_and_measure(
    models: Models,
    config: GuidanceConfig,
    policy: PolicyOrSchedule,
    labels: Tensor,
    noise: Tensor,
    *,
    reward: RewardConfig,
    reference: Tensor | None = None,
    judged: bool = True,
    batch: int = 128,
) -> Sampled:
    """Sample with `policy` from labels [N] and initial noise [N, C, H, W], and measure.

    Reward side, by the reward classifier (of a pipeline that has none: by the scorer, if it has features and logits)
    against the training images where there are both: "distance", the unbiased
    kernel distance that the reward's distribution term lowers (schedules are chosen by it: everybody is tuned on one
    objective), "fd", "kd", "accuracy"; with a calibrated `reward` also "return", the mean episode reward, and
    "return/NAME", the share of every term in it (`guidance.mean_return`).
    reference: images of the base scale from the same initial noise; with them the distribution term is the gain over
    those images instead of over a stored mean. Judged: see `diffusion.evaluate_samples`; by a scorer in place of an
    evaluation classifier, "probability", its mean probability of the prompts.
    """
    scorer: Any = _scorer(models, config.scorer)
    calibrated = not reward.distribution or reward.distribution_scale is not None
    function = _reward_function(models, reward, config.scorer) if calibrated else None
    seen = scorer if config.confidence_entry else None
    played = rollout(models.backbone, config, labels, noise, policy, scorer=seen, reward=function, batch=batch)
    side: dict[str, float] = {}
    classifier: Any = scorer if models.reward is None else models.reward
    if compares(classifier) and not isinstance(models.train, NoImages):
        features, real = image_features(classifier, played.images), _train_features(models, classifier)
        rows = slice(0, _WITNESS_IMAGES)
        side = {
            "distance": _distribution(models, reward, classifier).distance(played.images[rows], labels[rows]),
            "fd": frechet_distance(features, real),
            "kd": kernel_distance(features[rows], once(real, "first", lambda: real[rows].clone())),
            "accuracy": accuracy(classifier, played.images, labels),
        }
    if function is not None:
        shares = mean_return(function, played, reference, images=_WITNESS_IMAGES)
        side |= {"return": sum(shares.values()), **{f"return/{name}": share for name, share in shares.items()}}
    return Sampled(played, side, _judged(models, played.images, labels, batch) if judged else None)


def _judged(models: Models, images: Tensor, labels: Tensor, batch: int) -> dict[str, float]:
    """The evaluation classifier's numbers; of a scorer its mean probability of the prompts."""
    judge = models.evaluation_classifier
    if compares(judge) and not isinstance(models.heldout, NoImages):
        return evaluate_samples(images, labels, judge, models.heldout, real_features=models.heldout_features)
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    told = [score(judge, some, wanted).probability for some, wanted in parts]
    return {"probability": float(torch.cat(told).mean())}


def compares(scorer: Any) -> bool:
    """Whether sets of images can be compared through a scorer: it has features, and logits of labels it numbers."""
    return all(hasattr(scorer, name) for name in ("features", "logits", "n_classes", "image_shape"))


@lru_cache(maxsize=2)
def _train_features(models: Models, classifier: Any) -> Tensor:
    return image_features(classifier, models.train.images)


@lru_cache(maxsize=2)
def _scorer(models: Models, text: str) -> Scorer:
    return models.scorer(text)


@lru_cache(maxsize=2)
def _distribution(models: Models, reward: RewardConfig, scorer: Any) -> Distribution:
    return Distribution.from_config(reward, scorer, models.train)


@lru_cache(maxsize=2)
def _reward_function(models: Models, reward: RewardConfig, scorer: str) -> Reward:
    # making it embeds thousands of training images
    return Reward.from_config(reward, _scorer(models, scorer), models.train)


def trajectory(played: Rollout) -> dict[str, Any]:
    """Mean and standard deviation of g over samples, per step, as JSON."""
    return {"g_mean": played.g.mean(1).tolist(), "g_std": played.g.std(1, correction=0).tolist()}
