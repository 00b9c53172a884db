"""Diffusion models and their images: data sets, backbone, sampler, classifiers, metrics. Nothing quantum is in here."""

from __future__ import annotations

from qhw_diffusion.diffusion.backbone import Backbone, BackboneConfig, train_backbone
from qhw_diffusion.diffusion.checks import check_every_class, check_fit, check_labels
from qhw_diffusion.diffusion.classifiers import Classifier, ClassifierConfig, accuracy, train_classifier
from qhw_diffusion.diffusion.datasets import (
    DATASETS,
    ImageDataset,
    check_dataset_name,
    image_shape_of,
    load_dataset,
    n_classes_of,
)
from qhw_diffusion.diffusion.metrics import (
    METRICS,
    Lpips,
    diversity,
    evaluate_samples,
    frechet_distance,
    image_features,
    kernel_distance,
    mmd_witness,
    paired_floor,
    paired_similarity,
    polynomial_kernel,
    precision_recall,
    real_floor,
)
from qhw_diffusion.diffusion.sampler import SPACINGS, Denoiser, GuidedDDIM, check_denoiser, guided

__all__ = [
    "DATASETS",
    "METRICS",
    "SPACINGS",
    "Backbone",
    "BackboneConfig",
    "Classifier",
    "ClassifierConfig",
    "Denoiser",
    "GuidedDDIM",
    "ImageDataset",
    "Lpips",
    "accuracy",
    "check_dataset_name",
    "check_denoiser",
    "check_every_class",
    "check_fit",
    "check_labels",
    "diversity",
    "evaluate_samples",
    "frechet_distance",
    "guided",
    "image_features",
    "image_shape_of",
    "kernel_distance",
    "load_dataset",
    "mmd_witness",
    "n_classes_of",
    "paired_floor",
    "paired_similarity",
    "polynomial_kernel",
    "precision_recall",
    "real_floor",
    "train_backbone",
    "train_classifier",
]
