"""Train the editor's U-Net by LoRA, for GPUs too small for full training (3.2; ours).

The paper trains all 860 M weights. Here the attention layers get matrices of low rank
(see ``diffusion.lora``), and the widened first convolution is trained as a whole: its
new weights start at zero, and frozen they would ignore the image for good.

    unet = add_editor_lora(widen_conv_in(unet), rank=16)   # then ``train.start``
    save_lora(unet, "runs/adapter", base)                  # some MB
    unet = load_lora(widen_conv_in(text_to_image_unet), "runs/adapter", base)
    merge_lora(unet).save_pretrained(...)                  # a stock U-Net
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ip2p_lib.diffusion.lora import add_lora

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_editor_lora(
    unet: UNet2DConditionModel,
    *,
    rank: int = 16,
    frozen: torch.dtype | None = None,
    run_seed: int = 0,
) -> UNet2DConditionModel:
    """Freeze a widened U-Net but for ``conv_in``; add LoRA to its attention layers.

    Args:
        unet: from ``widen_conv_in``; changed in place and returned.
        rank: of the matrices; their product is not scaled.
        frozen: data type of the frozen weights; half precision halves their memory.
        run_seed: determines the matrices.
    """
    if unet.config.in_channels == unet.config.out_channels:
        raise ValueError("The U-Net takes no image: call widen_conv_in first.")
    if frozen is not None:
        nn.Module.to(unet, dtype=frozen)
    return add_lora(
        unet,
        rank=rank,
        alpha=rank,
        targets=ATTENTION,
        modules_to_save=["conv_in"],
        run_seed=run_seed,
    )
