"""One walk for both pictures of N pairs, with attention shared on the way (3.1.2).

Two kinds of sharing stand side by side and may be combined: self-attention for a share
p of the steps, which is the released InstructPix2Pix code's (``prompt_to_prompt``), and
cross-attention by words for a share tau (``cross_attention``), which is the original's.
The original shares self-attention too, but only of small maps and of the conditional
half; p means the same here with and without words, so that the two can be compared.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib.diffusion.sampler_steps import advance, begin, step_table
from ip2p_lib.diffusion.samplers import Denoiser, Schedule, StepNoise, sample
from ip2p_lib.rendering.cross_attention import WordControl, keep_outside, word_control
from ip2p_lib.rendering.shared_attention import Sharing, is_active, sharing, source_rows
from ip2p_lib.rendering.word_edits import Plan

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
    plan: Plan | None = None,
) -> Tensor:
    """Walk to the end: (2N, C, h, w) latents, all first pictures first.

    Args:
        unet: what ``denoise`` asks, in rows [u0 | u1 | c0 | c1].
        denoise: of the 2N latents.
        noise: (2N, C, h, w) by step, equal for both pictures; -1 is the beginning.
        schedule, steps, sampler: as in ``diffusion.trajectory``.
        p: (N,) float64, share of steps with shared self-attention.
        plan: what to do with words, or None for plain cross-attention.
    """
    x = noise(-1)
    height, width = x.shape[-2:]
    with ExitStack() as stack:
        shared = stack.enter_context(sharing(unet)) if p.any() else None
        words = None
        if plan:
            control = word_control(unet, plan, steps, (height, width))
            words = stack.enter_context(control)
        told = _told(denoise, p, steps, shared, words, x.device)
        if words and plan and plan.blends:
            return _blended(words, told, noise, schedule, steps, sampler)
        return sample(sampler, told, x, schedule, steps, step_noise=noise)


def _blended(
    words: WordControl,
    denoise: Denoiser,
    noise: StepNoise,
    schedule: Schedule,
    steps: int,
    sampler: str,
) -> Tensor:
    """A walk that puts picture 0 back outside the words' places, after every step.

    So does Algorithm 1 of Hertz et al. A sampler that remembers its last prediction is
    given the first picture's there: what a mask keeps has walked as picture 0 did.
    """
    table = step_table(schedule, steps, sampler)
    x = x0 = begin(noise(-1), table, sampler)
    height, width = x.shape[-2:]
    for i, numbers in enumerate(table.to(x.device)):
        rows = numbers.expand(len(x), -1)
        z = noise(i) if sampler == "euler_ancestral" else None
        x, x0 = advance(x, denoise(x, rows[:, 0].to(x.dtype)), x0, z, rows)
        mask = words.mask((height, width))
        x, x0 = keep_outside(mask, x), keep_outside(mask, x0)
    return x


def _told(
    denoise: Denoiser,
    p: Tensor,
    steps: int,
    shared: Sharing | None,
    words: WordControl | None,
    device: torch.device,
) -> Denoiser:
    """``denoise``, which is called once a step, in order, told what to share in it."""
    # All steps' row indices go to the device at once; none is waited for later.
    sources = torch.stack([source_rows(is_active(p, i, steps)) for i in range(steps)])
    by_step = iter(enumerate(sources.to(device)))

    def tell(x: Tensor, t: Tensor) -> Tensor:
        """Set what this step shares, then predict; called once a step, in order."""
        step, source = next(by_step)
        if shared:
            shared.source = source
        if words:
            words.begin(step)
        return denoise(x, t)

    return tell
