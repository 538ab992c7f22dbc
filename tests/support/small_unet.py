"""A U-Net of two levels, small enough to be measured, and its settings."""

import torch
from diffusers import UNet2DConditionModel

SMALL = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}


def small_unet(device):
    with torch.device(device):
        return UNet2DConditionModel.from_config({**SMALL, "in_channels": 8}).train()
