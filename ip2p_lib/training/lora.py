"""Train the editor's U-Net by LoRA, for GPUs too small for full training (3.2; ours).

The paper trains all 860 M weights. Here the attention layers get matrices of low rank
(see ``diffusion.lora``), and the widened first convolution is trained as a whole: its
new weights start at zero, so that otherwise nothing of the image could be seen.

    unet = add_editor_lora(widen_conv_in(unet), rank=16)   # then ``train.start``
    save_lora(unet, "runs/adapter", base)                  # some MB
    unet = load_editor_lora(text_to_image_unet, "runs/adapter", base)
    merge_editor_lora(unet).save_pretrained(...)           # a stock U-Net
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ip2p_lib.diffusion.lora import add_lora, load_lora, lora_layers, merge_lora
from ip2p_lib.training.surgery import widen_conv_in

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from ip2p_lib.config import Source

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_editor_lora(
    unet: UNet2DConditionModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    all_layers: bool = False,
    frozen: torch.dtype | None = None,
    run_seed: int = 0,
) -> UNet2DConditionModel:
    """Freeze a widened U-Net but for ``conv_in``, and add LoRA matrices to train.

    Args:
        unet: from ``widen_conv_in``; changed in place.
        rank: of the matrices.
        alpha: their product is scaled by alpha / rank; None is by 1.
        all_layers: on all linear layers and convolutions, not on attention alone.
        frozen: data type of the frozen weights, such as the autocast's; it halves their
            memory and rounds them once. None leaves them as they are.
        run_seed: determines the matrices.
    Returns:
        ``unet``, which computes what it did before.
    Raises:
        ValueError: the U-Net was not widened, or as ``add_lora``.
    """
    if unet.config.in_channels == unet.config.out_channels:
        raise ValueError(
            "This U-Net takes no input image yet: pass it through widen_conv_in first."
        )
    if frozen is not None:
        nn.Module.to(unet, dtype=frozen)
    targets = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "conv_in"
    ]
    return add_lora(
        unet,
        rank=rank,
        alpha=alpha or rank,
        targets=targets if all_layers else ATTENTION,
        modules_to_save=["conv_in"],
        run_seed=run_seed,
    )


def load_editor_lora(
    unet: UNet2DConditionModel, folder: str | Path, base: str | Path | Source
) -> UNet2DConditionModel:
    """Widen a text-to-image U-Net and put a trained adapter onto it.

    Args:
        unet: the one that was trained, not widened; it stays as it is.
        folder: written by ``save_lora``.
        base: what ``unet`` was loaded from.
    Returns:
        A new U-Net with LoRA, to be trained further, used or merged.
    Raises:
        FileNotFoundError, ValueError: as ``load_lora`` and ``widen_conv_in``.
    """
    return load_lora(widen_conv_in(unet), folder, base)


def merge_editor_lora(unet: Any) -> UNet2DConditionModel:
    """Add the LoRA matrices to the weights, in float32: a stock 8-channel U-Net.

    Args:
        unet: from ``add_editor_lora`` or ``load_editor_lora``; changed in place.
    Returns:
        ``unet``, all of which may be trained.
    Raises:
        ValueError: it has no LoRA.
    """
    if lora_layers(unet):
        nn.Module.to(unet, dtype=torch.float32)
    return merge_lora(unet)
