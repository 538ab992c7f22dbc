"""Paired rendering: two captions of a triplet as two matching pictures (3.1.2).

A triplet is attempted many times (``candidates``). All attempts are rendered here, and
CLIP chooses later. A batch of N candidates is one U-Net batch of 4N rows, in the
released code's order:

    [u0 | u1 | c0 | c1]     u: empty caption   c: own caption   0, 1: before, after

Rows are independent: batch size and order change a picture by rounding at most, and a
pair can be rendered again from its record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.diffusion.guidance import classifier_free
from ip2p_lib.diffusion.samplers import Denoiser, StepNoise, sample, timesteps
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.rendering.candidates import Candidate, Ranges, draw_candidates
from ip2p_lib.rendering.paired_sampling import sample_pairs
from ip2p_lib.rendering.word_edits import plan

__all__ = [
    "Candidate",
    "Ranges",
    "RenderedPair",
    "draw_candidates",
    "noise_key",
    "render",
    "render_images",
]


@dataclass
class RenderedPair:
    """A candidate and its pictures, (3, H, W) in [-1, 1] on the model's device."""

    candidate: Candidate
    before: Tensor
    after: Tensor


def render(
    backbone: Backbone,
    candidates: Sequence[Candidate],
    *,
    steps: int,
    batch_size: int,
    sampler: str = "euler_ancestral",
) -> Iterator[list[RenderedPair]]:
    """Render candidates in batches, sharing attention within each pair.

    Args:
        backbone: its ``unet`` may be compiled; every batch but the last has one shape.
        candidates: a caption is encoded once, if those of a triplet are together.
        steps: of the sampler; the released code takes 100.
        batch_size: candidates at once, four U-Net rows each.
        sampler: a key of ``diffusion.SAMPLERS``; the paper's is "euler_ancestral".
    Yields:
        One list of pairs a batch, in the order of ``candidates``.
    Raises:
        ValueError: p outside [0, 1], a batch size below 1, an unfit sampler or steps
            (see ``diffusion.timesteps``), a caption too long for the text encoder, or
            words that its captions do not have (see ``word_edits.plan``).
    """
    for candidate in candidates:
        if not 0 <= candidate.p <= 1:
            raise ValueError(f"p is a share of steps in [0, 1], not {candidate.p}.")
    timesteps(backbone.schedule, steps, sampler)
    known: dict[str, Tensor] = {}
    for batch in _batches(candidates, batch_size):
        drawn = [candidate.in_order() for candidate in batch]
        captions = [c.triplet.caption for c in drawn]
        edited = [c.triplet.edited_caption for c in drawn]
        text = encode_captions(backbone, [*captions, *edited], known)
        lent, other = _render_batch(backbone, drawn, text, steps, sampler).chunk(2)
        yield [_pair(*row) for row in zip(batch, lent, other, strict=True)]


def _pair(candidate: Candidate, lent: Tensor, other: Tensor) -> RenderedPair:
    pictures = (other, lent) if candidate.after_leads else (lent, other)
    return RenderedPair(candidate, *pictures)


def render_images(
    backbone: Backbone,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    cfg_scale: float,
    batch_size: int,
    sampler: str = "euler_ancestral",
) -> Iterator[Tensor]:
    """Plain text-to-image. A candidate's caption and seed give its ``before`` picture.

    Args:
        backbone, steps, sampler: as in ``render``.
        captions, seeds: one of each a picture.
        cfg_scale: guidance scale of all.
        batch_size: pictures at once, two U-Net rows each.
    Yields:
        (batch, 3, H, W) float32 in [-1, 1] a batch, in order, on the model's device.
    Raises:
        ValueError: captions and seeds differ in number; others as in ``render``.
    """
    if len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions, but {len(seeds)} seeds.")
    timesteps(backbone.schedule, steps, sampler)
    known: dict[str, Tensor] = {}
    for batch in _batches(range(len(seeds)), batch_size):
        text = encode_captions(backbone, [captions[i] for i in batch], known)
        denoise = _guided(backbone, text, torch.full((len(batch),), cfg_scale))
        noise = _noise(backbone, [seeds[i] for i in batch])
        yield _sample(backbone, denoise, noise, steps, sampler)


T = TypeVar("T")


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}.")
    return (items[i : i + size] for i in range(0, len(items), size))


def encode_captions(
    backbone: Backbone, captions: Sequence[str], known: dict[str, Tensor]
) -> Tensor:
    """Encode the captions of a batch, each text once.

    Args:
        backbone: has the text encoder.
        captions: B of them.
        known: by caption, carries what was encoded from this batch to the next.
    Returns:
        (B, L, D) embeddings.
    Raises:
        ValueError: a caption is too long for the text encoder.
    """
    new = [caption for caption in dict.fromkeys(captions) if caption not in known]
    if new:
        known.update(zip(new, backbone.encode_text(new), strict=True))
    for stale in known.keys() - set(captions):
        del known[stale]
    return torch.stack([known[caption] for caption in captions])


def noise_key(step: int) -> int:
    """Names the noise of a step for ``draws``; a walk begins with that of -1."""
    return rng.key("rendering", "noise", step)


def _noise(backbone: Backbone, seeds: Sequence[int], copies: int = 1) -> StepNoise:
    """Unit normal (copies * N, C, h, w) by step; -1 is what the walk begins with."""
    ids = torch.tensor(seeds, dtype=torch.int64).to(backbone.device)
    # The walk takes the noise's type: float32 at least, whatever the weights have.
    dtype = torch.promote_types(backbone.dtype, torch.float32)

    def at(step: int) -> Tensor:
        z = rng.normal(noise_key(step), ids, backbone.latent_shape)
        return z.to(dtype).repeat(copies, 1, 1, 1)

    return at


def _guided(backbone: Backbone, text: Tensor, cfg: Tensor) -> Denoiser:
    """The U-Net with classifier-free guidance, computing 2R rows for R texts."""
    both = torch.cat((backbone.null_text.expand_as(text), text))
    scale = cfg.to(backbone.device)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        rows = x.to(text.dtype).repeat(2, 1, 1, 1)
        eps = backbone.unet(rows, t.repeat(2), both, return_dict=False)[0]
        e_uncond, e_cond = eps.to(x.dtype).chunk(2)
        return classifier_free(e_uncond, e_cond, scale)

    return denoise


def _render_batch(
    backbone: Backbone,
    batch: Sequence[Candidate],
    text: Tensor,
    steps: int,
    sampler: str,
) -> Tensor:
    """Both pictures of N candidates: (2N, 3, H, W), all ``before`` first."""
    p = torch.tensor([c.p for c in batch], dtype=torch.float64)
    cfg = torch.tensor([c.cfg_scale for c in batch]).repeat(2)
    before = [c.triplet.caption for c in batch]
    after = [c.triplet.edited_caption for c in batch]
    edits = [c.words for c in batch]
    words = plan(backbone, edits, before, after) if any(edits) else None
    noise = _noise(backbone, [c.seed for c in batch], copies=2)
    walk = noise, backbone.schedule, steps, sampler
    guided = _guided(backbone, text, cfg)
    return backbone.decode(sample_pairs(backbone.unet, guided, *walk, p, words))


@torch.no_grad()
def _sample(
    backbone: Backbone, denoise: Denoiser, noise: StepNoise, steps: int, sampler: str
) -> Tensor:
    """Walk and decode: (R, 3, H, W) pictures."""
    latents = sample(
        sampler, denoise, noise(-1), backbone.schedule, steps, step_noise=noise
    )
    return backbone.decode(latents)
