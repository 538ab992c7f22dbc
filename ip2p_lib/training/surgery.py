"""Extra input channels for a pretrained U-Net (3.2).

InstructPix2Pix concatenates the latents of noise and input image, so the first
convolution must take 8 channels instead of 4. Everything else, the bias of that
convolution included, stays as pretrained, and the new weights start at zero: before the
first training step the wider U-Net *is* the text-to-image model.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def widen_conv_in(
    unet: UNet2DConditionModel, extra_channels: int = 4
) -> UNet2DConditionModel:
    """Copy a U-Net with ``extra_channels`` more input channels, whose weights are zero.

    The released code does the same in ``ddpm_edit.py``. ``diffusers``' training script
    forgets the bias, which starts training from a different model.

    Args:
        unet: a text-to-image U-Net, as many channels in as out.
        extra_channels: channels of the condition latent, at least 1.
    Returns:
        A new U-Net; ``unet`` is not changed. It has the same weights, bias,
        dtype, device and ``requires_grad``; ``config.in_channels`` is updated.
    Raises:
        ValueError: ``extra_channels`` is below 1, or the U-Net was widened before.
    """
    channels = unet.config.in_channels
    if extra_channels < 1:
        raise ValueError(f"extra_channels must be at least 1, not {extra_channels}.")
    if channels != unet.config.out_channels:
        raise ValueError(
            f"This U-Net reads {channels} channels and predicts "
            f"{unet.config.out_channels}, so it was widened before. Start from the "
            "text-to-image U-Net."
        )
    wide = copy.deepcopy(unet)
    wide.conv_in = _widen(wide.conv_in, extra_channels)
    # diffusers' from_config passes over what it believes was left at its default.
    defaults = set(getattr(wide.config, "_use_default_values", ())) - {"in_channels"}
    wide.register_to_config(
        in_channels=channels + extra_channels, _use_default_values=sorted(defaults)
    )
    return wide


def _widen(conv: nn.Conv2d, extra_channels: int) -> nn.Conv2d:
    """Append zero weights for new input channels; the bias has no input channels."""
    old = conv.weight
    zeros = old.new_zeros(old.shape[0], extra_channels, *old.shape[2:])
    weight = torch.cat((old.detach(), zeros), dim=1)
    conv.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    conv.in_channels += extra_channels
    return conv
