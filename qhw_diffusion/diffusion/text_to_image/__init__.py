"""An embedded text-to-image model: coloured digits from prompts, a `StableDiffusionPipeline` of 2 million weights."""

from __future__ import annotations

from qhw_diffusion.diffusion.pipeline import check_prompts, unknown_words
from qhw_diffusion.diffusion.text_to_image.classifiers import (
    PromptClassifier,
    PromptClassifierConfig,
    attribute_accuracy,
    train_prompt_classifier,
)
from qhw_diffusion.diffusion.text_to_image.evaluation import (
    PromptJudge,
    PromptMeasures,
    sample_prompts,
    sweep_constants,
)
from qhw_diffusion.diffusion.text_to_image.images import NAME, WRITERS, coloured_digits, draw, writers
from qhw_diffusion.diffusion.text_to_image.pipeline import (
    TextToImageConfig,
    build_pipeline,
    build_tokenizer,
    save_pipeline,
)
from qhw_diffusion.diffusion.text_to_image.prompts import (
    ATTRIBUTE_TABLE,
    ATTRIBUTES,
    COLOURS,
    DIGITS,
    HELD_OUT,
    N_VALUES,
    PROMPTS,
    TEN,
    TRAINED,
    attributes_of,
    prompt,
)
from qhw_diffusion.diffusion.text_to_image.training import train_text_to_image

__all__ = [
    "ATTRIBUTES",
    "ATTRIBUTE_TABLE",
    "COLOURS",
    "DIGITS",
    "HELD_OUT",
    "NAME",
    "N_VALUES",
    "PROMPTS",
    "TEN",
    "TRAINED",
    "WRITERS",
    "PromptClassifier",
    "PromptClassifierConfig",
    "PromptJudge",
    "PromptMeasures",
    "TextToImageConfig",
    "attribute_accuracy",
    "attributes_of",
    "build_pipeline",
    "build_tokenizer",
    "check_prompts",
    "coloured_digits",
    "draw",
    "prompt",
    "sample_prompts",
    "save_pipeline",
    "sweep_constants",
    "train_prompt_classifier",
    "train_text_to_image",
    "unknown_words",
    "writers",
]
