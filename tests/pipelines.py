"""Tiny random diffusers pipelines, built from configurations: nothing is downloaded, a sample takes milliseconds.

The networks are those of Stable Diffusion 1.x, of SDXL and of Stable Diffusion 3, a few thousand parameters wide. Their
weights are random and seeded, so two calls give the same pipeline.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

LATENT_SIZE = 8
"""Height and width of the latents."""
IMAGE_SIZE = 16
"""Height and width of the images: the VAE halves them."""
LENGTH = 16
"""Tokens of a prompt."""
ALPHAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise schedule of Stable Diffusion."""


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer whose tokens are the printable characters (one at the end of a word, one elsewhere)."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    characters = [c for c in string.printable if not c.isspace()]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def text_encoder(tokens: Any, *, width: int = 32, projection: bool = False, seed: int = 0) -> Any:
    """A random CLIP text encoder of `width` dimensions for a tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def autoencoder(*, seed: int = 1, **settings: Any) -> Any:
    """A random VAE: images [B, 3, 16, 16] to latents [B, 4, 8, 8]."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        norm_num_groups=8,
        **settings,
    ).eval()


def unet(*, width: int = 32, seed: int = 2, **settings: Any) -> Any:
    """A random U-Net with cross attention on `width` dimensions."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
        **settings,
    ).eval()


def scheduler(kind: str = "ddim", **settings: Any) -> Any:
    """A diffusers scheduler with Stable Diffusion's noise schedule.

    kind: "ddim", "euler", "dpm" (DPM-Solver++) or "pndm"; settings: its own, over the defaults that start at the
    noisiest level (timestep_spacing "trailing").
    """
    import diffusers

    made = {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        "euler": (diffusers.EulerDiscreteScheduler, {}),
        "dpm": (diffusers.DPMSolverMultistepScheduler, {}),
        "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    }
    cls, own = made[kind]
    return cls(**ALPHAS, **{"steps_offset": 1, "timestep_spacing": "trailing", **own, **settings})


def stable_diffusion(folder: Path, kind: str = "ddim", *, unet_settings: Any = None, **scheduler_settings: Any) -> Any:
    """A `StableDiffusionPipeline` in the style of Stable Diffusion 1.x: images [B, 3, 16, 16].

    Args:
        folder: an empty place for the tokenizer's files (a test's tmp_path).
        kind: see `scheduler`.
        unet_settings: further settings of the U-Net (dict).
        scheduler_settings: further settings of the scheduler, such as prediction_type.
    """
    from diffusers import StableDiffusionPipeline

    tokens = tokenizer(folder)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        unet=unet(**(unet_settings or {})),
        scheduler=scheduler(kind, **scheduler_settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def xl_unet(**settings: Any) -> Any:
    """A random U-Net in the style of SDXL, for two text encoders of width 32."""
    return unet(
        width=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        **settings,
    )


def sd3_transformer() -> Any:
    """A random transformer in the style of Stable Diffusion 3."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(3)
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=LATENT_SIZE,
    ).eval()


def stable_diffusion_xl(folder: Path, kind: str = "ddim") -> Any:
    """A `StableDiffusionXLPipeline`: images [B, 3, 16, 16]. Arguments as `stable_diffusion`."""
    from diffusers import StableDiffusionXLPipeline

    tokens = tokenizer(folder)
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(tokens),
        text_encoder_2=text_encoder(tokens, projection=True, seed=5),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=xl_unet(),
        scheduler=scheduler(kind),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_3(folder: Path) -> Any:
    """A `StableDiffusion3Pipeline` without a third text encoder: flow matching, images [B, 3, 16, 16]."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokens = tokenizer(folder)
    pipeline = StableDiffusion3Pipeline(
        transformer=sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=text_encoder(tokens, projection=True),
        tokenizer=tokens,
        text_encoder_2=text_encoder(tokens, projection=True, seed=5),
        tokenizer_2=tokens,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modular_xl(folder: Path, kind: str = "ddim", *, unet_settings: Any = None, **scheduler_settings: Any) -> Any:
    """A modular pipeline (`StableDiffusionXLModularPipeline`) in the style of SDXL, with all its blocks.

    `modular_xl(folder)(prompt="a", num_inference_steps=4, output="images", output_type="pt")` gives images. The guider
    is diffusers' `ClassifierFreeGuidance`; another one goes in with `update_components(guider=…)`. Arguments as
    `stable_diffusion`.
    """
    from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
        StableDiffusionXLAutoBlocks,
    )

    tokens = tokenizer(folder)
    first = text_encoder(tokens)
    second = text_encoder(tokens, projection=True, seed=5)
    network = xl_unet(**(unet_settings or {}))
    pipeline = StableDiffusionXLAutoBlocks().init_pipeline()
    pipeline.update_components(
        tokenizer=tokens,
        tokenizer_2=tokens,
        text_encoder=first,
        text_encoder_2=second,
        unet=network,
        vae=autoencoder(),
        scheduler=scheduler(kind, **scheduler_settings),
    )
    _quiet(pipeline._blocks)
    return pipeline


def modular_sd3(folder: Path) -> Any:
    """A modular pipeline in the style of Stable Diffusion 3: a transformer, flow matching, no third text encoder.

    Its blocks make unconditional embeddings only where they are given a negative_prompt, "" for none.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3AutoBlocks,
    )

    tokens = tokenizer(folder)
    pipeline = StableDiffusion3AutoBlocks().init_pipeline()
    pipeline.update_components(
        tokenizer=tokens,
        tokenizer_2=tokens,
        text_encoder=text_encoder(tokens, projection=True),
        text_encoder_2=text_encoder(tokens, projection=True, seed=5),
        transformer=sd3_transformer(),
        vae=autoencoder(shift_factor=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    _quiet(pipeline._blocks)
    return pipeline


def _quiet(blocks: Any) -> None:
    """No progress bars: the pipeline's own set_progress_bar_config reaches the outermost blocks only."""
    for block in getattr(blocks, "sub_blocks", {}).values():
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
        _quiet(block)
