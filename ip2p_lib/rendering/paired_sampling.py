"""Sample both images of N pairs in one batch, with shared attention (3.1.2).

Two kinds of attention-map injection may be combined: self-attention for a fraction p of
the steps, as in the released code, and cross-attention by words for a fraction tau. The
original Prompt-to-Prompt shares self-attention too, but only small maps and only in the
conditional half. Here p means the same with and without word edits.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib.diffusion.samplers import (
    Denoiser,
    StepNoise,
    initial_latent,
    sampler_coefficients,
    sampler_step,
)
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.rendering.cross_attention import blend_latents, edit_cross_attention
from ip2p_lib.rendering.shared_attention import (
    is_active,
    share_self_attention,
    source_rows,
)
from ip2p_lib.rendering.word_edits import EditTensors

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@torch.no_grad()
def sample_pairs(
    unet: UNet2DConditionModel,
    denoise: Denoiser,
    noise: StepNoise,
    schedule: Schedule,
    steps: int,
    sampler: str,
    p: Tensor,
    edits: EditTensors | None = None,
) -> Tensor:
    """Sample (2N, C, h, w) latents, all first images first (Hertz et al., Algorithm 1).

    Args:
        unet, denoise: denoiser of 2N latents that calls it in rows [u0 | u1 | c0 | c1].
        noise: (2N, C, h, w) by step, equal for both images; -1 is the initial one.
        schedule, steps, sampler: as in ``samplers.trajectory``.
        p: (N,) float64, fraction of steps with shared self-attention.
        edits: of cross-attention, or None for none.
    """
    coefficients = sampler_coefficients(schedule, steps, sampler)
    x = x0 = initial_latent(noise(-1), coefficients, sampler)
    size, on_device = (x.shape[-2], x.shape[-1]), coefficients.to(x)
    # Copied to the device once, so that no step waits for it.
    rows = [source_rows(is_active(p, i, steps)) for i in range(steps)]
    sources = torch.stack(rows).to(x.device)
    sharing = share_self_attention(unet) if p.any() else nullcontext()
    editing = edit_cross_attention(unet, edits, steps, size) if edits else nullcontext()
    with sharing as shared, editing as edited:
        for i in range(steps):
            if shared:
                shared.source = sources[i]
            if edited:
                edited.set_step(i)
            t = x.new_full(x.shape[:1], coefficients[i, 0].item())
            z = noise(i) if coefficients[i, 5] > 0 else None
            x, x0 = sampler_step(x, denoise(x, t), x0, z, on_device[i])
            if edited and edited.blend_tokens is not None:
                mask = edited.blend_mask(size)
                x, x0 = blend_latents(mask, x), blend_latents(mask, x0)
    return x
