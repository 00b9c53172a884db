"""Data sets, the diffusion backbone and its sampler, proxy classifiers, image metrics. Nothing quantum lives here."""

from __future__ import annotations

from .backbone import Backbone, BackboneConfig
from .backbone_training import train_backbone
from .checks import check_every_class, check_fit, check_labels
from .classifier_training import train_classifier
from .classifiers import Classifier, ClassifierConfig, accuracy
from .datasets import DATASETS, ImageDataset, load_dataset
from .evaluate import METRICS, evaluate_samples, image_features, real_floor
from .metrics import (
    diversity,
    frechet_distance,
    kernel_distance,
    mmd_witness,
    polynomial_kernel,
    precision_recall,
)
from .paired import Lpips, paired_floor, paired_similarity
from .sampler import GuidedDDIM, guided

__all__ = [
    "DATASETS",
    "METRICS",
    "Backbone",
    "BackboneConfig",
    "Classifier",
    "ClassifierConfig",
    "GuidedDDIM",
    "ImageDataset",
    "Lpips",
    "accuracy",
    "check_every_class",
    "check_fit",
    "check_labels",
    "diversity",
    "evaluate_samples",
    "frechet_distance",
    "guided",
    "image_features",
    "kernel_distance",
    "load_dataset",
    "mmd_witness",
    "paired_floor",
    "paired_similarity",
    "polynomial_kernel",
    "precision_recall",
    "real_floor",
    "train_backbone",
    "train_classifier",
]
