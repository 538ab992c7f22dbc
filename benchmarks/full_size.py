"""Networks of Stable Diffusion 1.5's size with random weights, for speed benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion


def full_size(tokenizer: Any, device: str) -> StableDiffusion:
    """Make networks of SD 1.5's size with random weights, and a given tokenizer."""
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
    )
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    parts = (CLIPTextModel(config), vae, unet)
    half = torch.bfloat16 if device == "cuda" else torch.float32
    text, vae, unet = (part.to(device, half).eval() for part in parts)
    unet.to(memory_format=torch.channels_last)
    return StableDiffusion(tokenizer, text, vae, unet, Schedule.scaled_linear())
