"""The text-to-image model of the coloured digits: a small Stable Diffusion pipeline with a vocabulary of its own.

It is made of the classes that Stable Diffusion 1.x is made of (`StableDiffusionPipeline` with `CLIPTokenizer`,
`CLIPTextModel`, `UNet2DConditionModel`, `AutoencoderKL` and `DDIMScheduler`) and saved in diffusers' folder format, so
whatever drives it drives Stable Diffusion too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qhw_diffusion.config import Config, check_finite, check_whole, require
from qhw_diffusion.diffusion.pipeline import PROMPTS_FILE, check_transformers, quiet
from qhw_diffusion.diffusion.text_to_image.images import SIDE
from qhw_diffusion.diffusion.text_to_image.prompts import HELD_OUT, PROMPTS, TRAINED, WORDS
from qhw_diffusion.errors import InvalidInputError
from qhw_diffusion.runs.files import atomic_folder, atomic_write_json, atomic_write_text

RECIPE = "recipe.json"
"""File of a trained pipeline's folder that holds its configuration and provenance; diffusers does not read it."""
HELD_OUT_FILE = "held-out-prompts.txt"
"""File of a trained pipeline's folder: prompts that it was not trained on, one a line, beside `PROMPTS_FILE`."""
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class TextToImageConfig(Config):
    """Architecture and training recipe of the text-to-image model of the coloured digits."""

    autoencoder_channels: tuple[int, ...] = (16, 32, 48)
    """Channels of the autoencoder's resolution levels, the finest first; each after the first halves the image."""
    latent_channels: int = 4
    """Channels of the latents."""
    channels: tuple[int, ...] = (48, 80)
    """Channels of the U-Net's resolution levels, the finest first; each after the first halves the latents."""
    cross_attention: tuple[bool, ...] = (False, True)
    """One flag per level of the U-Net: attention to the prompt there (the middle block always has it)."""
    layers_per_block: int = 1
    """Residual blocks per level on the way down (one more on the way up), of autoencoder and U-Net."""
    attention_heads: int = 4
    """Attention heads, of the U-Net and of the text encoder."""
    norm_groups: int = 8
    """Groups of the group norms; divides all channels."""
    text_width: int = 64
    """Width of the text encoder."""
    text_layers: int = 2
    """Layers of the text encoder."""
    max_tokens: int = 12
    """Tokens of a prompt, its start and end included; what is longer is cut."""
    prediction_type: str = "v_prediction"
    """Target of the U-Net: "v_prediction" or "epsilon"."""
    n_train_timesteps: int = 1000
    """Noise levels the U-Net is trained on."""
    autoencoder_steps: int = 800
    """Training steps of the autoencoder, which comes first."""
    autoencoder_learning_rate: float = 2e-3
    """Learning rate of the autoencoder after the warm-up; a cosine decay takes it to zero."""
    autoencoder_batch_size: int = 32
    """Images per training step of the autoencoder."""
    kl_weight: float = 1e-4
    """Weight of the latents' divergence from a standard normal distribution, beside a pixel's mean squared error."""
    latents_per_prompt: int = 160
    """Images of each trained prompt that are drawn and encoded once, for the U-Net to be trained on."""
    steps: int = 6000
    """Training steps of the U-Net and the text encoder, which are trained together."""
    learning_rate: float = 1e-3
    """Learning rate of U-Net and text encoder after the warm-up; a cosine decay takes it to zero."""
    batch_size: int = 64
    """Images per training step of U-Net and text encoder."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    warmup: int = 100
    """Steps of linear warm-up."""
    prompt_dropout: float = 0.1
    """Share of training prompts replaced by the empty one (Ho & Salimans 2022, arXiv 2207.12598)."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is kept; ramped up as
    min(ema_decay, (1 + step) / (10 + step))."""
    log_every: int = 50
    """Steps between two entries of the loss history, each the mean over the steps since the last."""
    seed: int = 0
    """Seed of the initial weights, the images and the noise."""

    def __post_init__(self) -> None:
        check_finite(self)
        check_whole(self, "latent_channels", "layers_per_block", "attention_heads", "norm_groups", "text_width")
        check_whole(self, "text_layers", "n_train_timesteps", "latents_per_prompt")
        check_whole(self, "autoencoder_steps", "autoencoder_batch_size", "steps", "batch_size", "log_every")
        check_whole(self, "warmup", "seed", least=0)
        longest = max(len(text.split()) for text in PROMPTS) + 2
        check_whole(self, "max_tokens", least=longest)
        for name in ("autoencoder_channels", "channels"):
            levels = getattr(self, name)
            whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in levels)
            require(bool(levels) and whole, f"{name} names one whole number from 1 per level, got {levels}")
            uneven = [c for c in levels if c % self.norm_groups]
            require(not uneven, f"norm_groups {self.norm_groups} does not divide all of {name} {levels}")
        require(
            len(self.cross_attention) == len(self.channels),
            f"cross_attention {self.cross_attention} and channels {self.channels} differ in length",
        )
        halvings = len(self.autoencoder_channels) + len(self.channels) - 2
        require(2**halvings <= SIDE, f"{halvings} halvings leave less than a pixel of {SIDE}×{SIDE} images")
        for width in (self.text_width, *self.channels):
            require(
                width % self.attention_heads == 0, f"attention_heads {self.attention_heads} does not divide {width}"
            )
        if self.prediction_type not in ("v_prediction", "epsilon"):
            raise InvalidInputError(f'prediction_type is "v_prediction" or "epsilon", got {self.prediction_type!r}')
        require(0 <= self.prompt_dropout < 1 and 0 <= self.ema_decay < 1, "prompt_dropout, ema_decay are in [0, 1)")
        require(self.learning_rate > 0 < self.autoencoder_learning_rate, "learning rates must be positive")
        require(self.kl_weight >= 0, f"kl_weight must not be negative, got {self.kl_weight}")

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return int(SIDE // 2 ** (len(self.autoencoder_channels) - 1))


def build_pipeline(config: TextToImageConfig) -> Any:
    """The untrained pipeline of a configuration; its initial weights are drawn from torch's global generator.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    check_transformers()
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer(WORDS, config.max_tokens)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        projection_dim=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.attention_heads,
        max_position_embeddings=config.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    n_levels = len(config.autoencoder_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.latent_channels,
        sample_size=SIDE,
        block_out_channels=config.autoencoder_channels,
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
    )
    crossed = config.cross_attention
    unet = UNet2DConditionModel(
        sample_size=config.latent_side,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed),
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)),
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.attention_heads,  # diffusers' name for the number of heads
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=config.n_train_timesteps,
        # Stable Diffusion's schedule, ending at 4·10⁻⁵ of the signal's power instead of 5·10⁻³: in latents of 8×8 the
        # ground's colour would still be seen there, and sampling, which starts from noise alone, would get it wrong
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.025,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # what StableDiffusionPipeline wants to see; trailing spacing does not use it
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tokenizer(words: Sequence[str], max_tokens: int) -> Any:
    """A `CLIPTokenizer` for which each of these words is one token.

    It is a byte-pair encoding, as CLIP's: a word's token is reached by merging its letters from the left, so the
    vocabulary holds the pieces too. Its entry `init_kwargs["words"]`, which is saved with it, tells the words it knows.

    Raises:
        MissingDependencyError: transformers is not installed.
        InvalidInputError: a word that the merges of others break into pieces.
    """
    check_transformers()
    from transformers import CLIPTokenizer

    tokens = {_START: None, _END: None, **{f"{word}</w>": None for word in words}}
    merges: dict[tuple[str, str], None] = {}
    # the longest first: a short word's merges would else take letters out of the middle of a longer one
    for word in sorted(words, key=len, reverse=True):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        tokens.update(dict.fromkeys(letters))
        piece = letters[0]
        for letter in letters[1:]:
            merges[piece, letter] = None
            piece += letter
            tokens[piece] = None
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_tokens, words=list(words))
    for word in words:
        if len(tokenizer(word).input_ids) != 3:
            raise InvalidInputError(
                f"the merges of other words break {word!r} into pieces: no vocabulary of these words"
            )
    return tokenizer


def save_pipeline(pipeline: Any, folder: str | Path, recipe: dict[str, Any]) -> None:
    """Write a pipeline in diffusers' folder format, with its recipe and table of prompts.

    U-Net and autoencoder are written in half precision. The text encoder is not: transformers reads a model in the
    precision of its file, diffusers in float32, and the two would not fit each other.

    Args:
        pipeline: what to write; its weights are rounded to half precision.
        folder: where to.
        recipe: configuration and provenance, of JSON types.
    """
    with atomic_folder(folder) as aside:
        halved = (pipeline.unet, pipeline.vae)
        for part in halved:
            part.half()
        try:
            with quiet():
                pipeline.save_pretrained(aside)
        finally:
            for part in halved:
                part.float()
        for file, labels in ((PROMPTS_FILE, TRAINED), (HELD_OUT_FILE, HELD_OUT)):
            atomic_write_text(aside / file, "".join(f"{PROMPTS[label]}\n" for label in labels.tolist()))
        atomic_write_json(aside / RECIPE, recipe)
