"""Measures the miniature's networks on held-out scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.corpus import Corpus, build_corpus

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from ip2p_lib.filtering import ClipScorer


def held_out(n: int, processes: int = 1) -> Corpus:
    """The first ``n`` held-out edits, instructions in held-out phrasings."""
    return build_corpus(HELD_OUT, n, wording="held-out", processes=processes)


@torch.no_grad()
def retrieval(clip: ClipScorer, images: Tensor, captions: list[str]) -> float:
    """Share of pictures whose own caption is the nearest of all captions.

    Args:
        clip: the judge.
        images: (n, 3, H, W) in [-1, 1].
        captions: n captions.
    """
    seen = torch.cat([clip.embed_images(part) for part in images.split(256)])
    read = torch.cat(
        [clip.embed_texts(captions[i : i + 256]) for i in range(0, len(captions), 256)]
    )
    nearest = (seen @ read.T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device)
    return float((nearest == own).float().mean())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 64) -> Tensor:
    """Encode (mode) and decode: (n, 3, H, W) in [-1, 1] to the same."""
    parts = [
        vae.decode(vae.encode(part).latent_dist.mode()).sample
        for part in images.split(batch)
    ]
    return torch.cat(parts).clamp(-1, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean peak signal-to-noise ratio of pictures in [-1, 1], decibels."""
    error = ((a - b) / 2).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * error.log10()).mean())
