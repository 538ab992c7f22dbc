"""Extra input channels for a pretrained U-Net (3.2), and LoRA to train it with less.

InstructPix2Pix concatenates the latents of noise and input image, so the first
convolution must take 8 channels instead of 4. Everything else, the bias of that
convolution included, stays as pretrained, and the new weights start at zero: before the
first training step the wider U-Net *is* the text-to-image model.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ip2p_lib.checks import check_whole
from ip2p_lib.diffusion.lora import add_lora

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def widen_conv_in(
    unet: UNet2DConditionModel, extra_channels: int = 4
) -> UNet2DConditionModel:
    """Copy a U-Net with ``extra_channels`` more input channels, whose weights are zero.

    The released code does the same in ``ddpm_edit.py``. ``diffusers``' training script
    forgets the bias, which starts training from a different model.

    Args:
        unet: a text-to-image U-Net; ValueError unless it takes as many channels as it
            predicts: it was widened before.
        extra_channels: channels of the condition latent, at least 1.
    Returns:
        A new U-Net; ``unet`` is not changed. It has the same weights, bias,
        dtype, device and ``requires_grad``; ``config.in_channels`` is updated.
    """
    channels = unet.config.in_channels
    check_whole("extra_channels", extra_channels)
    if channels != unet.config.out_channels:
        raise ValueError(
            f"This U-Net reads {channels} channels and predicts "
            f"{unet.config.out_channels}, so it was widened before: train it as it is."
        )
    wide = copy.deepcopy(unet)
    conv, old = wide.conv_in, unet.conv_in.weight  # (D, C, k, k); the bias stays
    zeros = old.new_zeros(old.shape[0], extra_channels, *old.shape[2:])
    weight = torch.cat((old.detach(), zeros), dim=1)
    conv.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    conv.in_channels += extra_channels
    # diffusers' from_config passes over what it believes was left at its default.
    defaults = set(getattr(wide.config, "_use_default_values", ())) - {"in_channels"}
    wide.register_to_config(
        in_channels=channels + extra_channels, _use_default_values=sorted(defaults)
    )
    return wide


def add_editor_lora(
    unet: UNet2DConditionModel,
    *,
    rank: int = 16,
    frozen: torch.dtype | None = None,
) -> UNet2DConditionModel:
    """Freeze a widened U-Net but for ``conv_in``; add LoRA to its attention layers.

    For GPUs too small for the paper's way, all 860 M weights. ``conv_in`` is trained as
    a whole: frozen, its new weights would ignore the image for good. ``diffusion.lora``
    merges, saves and loads the result. The matrices' product is not scaled; ``frozen``
    is the data type of the frozen weights. ``unet`` is changed in place and returned.
    """
    if unet.config.in_channels == unet.config.out_channels:
        raise ValueError("The U-Net takes no image: call widen_conv_in first.")
    if frozen is not None:
        nn.Module.to(unet, dtype=frozen)
    parts: dict[str, Any] = {"targets": ATTENTION, "modules_to_save": ["conv_in"]}
    return add_lora(unet, rank=rank, alpha=rank, **parts)
