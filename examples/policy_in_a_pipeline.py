"""A policy as the guider of a diffusers modular pipeline, saved and loaded as diffusers does.

The pipeline is a tiny random one of SDXL's own denoising blocks, made here from configurations: nothing is downloaded,
and its "prompts" are random embeddings. With a real one `tiny_pipeline` becomes
ModularPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0") and pipeline.load_components().
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
    StableDiffusionXLCoreDenoiseStep,
)
from diffusers.utils import logging

from qhw_diffusion.guidance import (
    GuidanceConfig,
    PolicyConfig,
    PolicyGuidance,
    PPOConfig,
    RewardConfig,
    train_guidance,
)


def tiny_pipeline() -> Any:
    """SDXL's denoising blocks around a random U-Net of 8×8 latents."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    pipeline = StableDiffusionXLCoreDenoiseStep().init_pipeline()
    pipeline.update_components(unet=unet.eval(), scheduler=DDIMScheduler(timestep_spacing="trailing"))
    return pipeline


def main() -> None:
    """Train a policy on digits for two updates, let it steer the pipeline, and load the guider again."""
    logging.set_verbosity_error()
    trained = train_guidance(
        GuidanceConfig(n_steps=6, spacing="trailing", noise_pool=40, confidence_entry=False),
        PPOConfig.short(num_iterations=2, num_envs=20, num_minibatches=2, update_epochs=1),
        RewardConfig(confidence=1.0),
        PolicyConfig(kind="mlp"),
    )
    pipeline = tiny_pipeline()
    guider = PolicyGuidance(trained, scheduler=pipeline.scheduler)
    embeddings = torch.randn(2, 2, 16, 64, generator=torch.Generator().manual_seed(1))
    pipeline.update_components(guider=guider)
    pipeline(
        prompt_embeds=embeddings[0],
        negative_prompt_embeds=torch.zeros_like(embeddings[0]),
        pooled_prompt_embeds=embeddings[1, :, 0, :32],
        negative_pooled_prompt_embeds=torch.zeros(2, 32),
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(2),
    )
    for image in range(2):
        print(f"image {image}: g =", " ".join(f"{g:.2f}" for g in guider.g[:, image].tolist()))
    guider.save_pretrained("my-guider")
    again = PolicyGuidance.from_pretrained("my-guider", scheduler=pipeline.scheduler)
    print("saved and loaded:", type(again).__name__)


if __name__ == "__main__":
    main()
