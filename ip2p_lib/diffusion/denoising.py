"""From a U-Net and its conditionings to a ``Denoiser`` that any sampler can walk with.

``caption_denoiser`` serves text-to-image models (equation 2 of section 3.2.1),
``edit_denoiser`` the editor (equation 3). All branches of a step share one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.guidance import classifier_free, combine
from ip2p_lib.diffusion.samplers import Denoiser


def caption_denoiser(
    unet: Callable[..., Any], text: Tensor, null_text: Tensor, scale: float | Tensor
) -> Denoiser:
    """Predict noise guided by a caption, with two branches (section 3.2.1, equation 2).

    Args:
        unet: called as (4-channel sample, t, encoder_hidden_states=text).
        text: (B, L, D) captions.
        null_text: (1, L, D) the empty caption.
        scale: one for all or (B,); 1 follows the caption as trained.
    """
    text_rows = torch.cat([null_text.expand_as(text), text])

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = x.repeat(2, 1, 1, 1)
        e_uncond, e_cond = _predict(unet, rows, t.repeat(2), text_rows).chunk(2)
        return classifier_free(e_uncond, e_cond, scale)

    return denoise


def edit_denoiser(
    unet: Callable[..., Any],
    condition: Tensor,
    text: Tensor,
    null_text: Tensor,
    text_scale: Tensor,
    image_scale: Tensor,
) -> Denoiser:
    """Predict noise guided by image and instruction (section 3.2.1, equation 3).

    The branches are e(0, 0), e(c_I, 0) and e(c_I, c_T). As a sum, equation 3 gives them
    the weights 1 - s_I, s_I - s_T and s_T: a branch whose weight is zero for every
    picture is left out, which is exact and saves a third of the work.

    Args:
        unet: called as (8-channel sample, t, encoder_hidden_states=text).
        condition: (B, 4, h, w) c_I, the input's latent, unscaled.
        text: (B, L, D) c_T, the instructions.
        null_text: (1, L, D) the empty instruction.
        text_scale: (B,) s_T.
        image_scale: (B,) s_I.
    """
    weights = (1 - image_scale, image_scale - text_scale, text_scale)
    used = [bool(weight.any()) for weight in weights]
    null, no_image = null_text.expand_as(text), torch.zeros_like(condition)
    branches = [(no_image, null), (condition, null), (condition, text)]
    kept = [branch for branch, needed in zip(branches, used, strict=True) if needed]
    image_rows, text_rows = (torch.cat(rows) for rows in zip(*kept, strict=True))
    # A branch left out takes a neighbour's value, so that its terms cancel.
    source = [max(sum(used[: i + 1]) - 1, 0) for i in range(3)]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        x_rows = x.repeat(len(kept), 1, 1, 1)
        rows = torch.cat([x_rows, image_rows.to(x.dtype)], dim=1)
        found = _predict(unet, rows, t.repeat(len(kept)), text_rows).chunk(len(kept))
        e_uncond, e_image, e_full = (found[i] for i in source)
        return combine(e_uncond, e_image, e_full, text_scale, image_scale)

    return denoise


@torch.no_grad()
def _predict(
    unet: Callable[..., Any], rows: Tensor, t: Tensor, text_rows: Tensor
) -> Tensor:
    """Ask the U-Net in the precision of its text; the sampler keeps its own."""
    eps: Tensor = unet(
        rows.to(text_rows.dtype), t, encoder_hidden_states=text_rows, return_dict=False
    )[0]
    return eps.to(rows.dtype)
