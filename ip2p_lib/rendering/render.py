"""Generate the two captions of a triplet as two matching images (3.1.2).

A batch of N candidates is one U-Net batch of 4N rows, in the released code's order:

    [u0 | u1 | c0 | c1]     u: empty caption   c: own caption   0, 1: before, after

Rows are independent: batch size and order change an image by rounding at most.

Attention maps of two kinds may be injected: self-attention for a fraction p of the
steps, as in the released code, and cross-attention by words for a fraction tau. The
original Prompt-to-Prompt shares self-attention too, but only small maps and only in the
conditional half. Here p means the same with and without word edits.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.checks import check_whole
from ip2p_lib.diffusion.guidance import caption_denoiser
from ip2p_lib.diffusion.samplers import (
    Denoiser,
    StepNoise,
    initial_latent,
    sample,
    sampler_coefficients,
    sampler_step,
)
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.candidates import Candidate
from ip2p_lib.rendering.cross_attention import blend_mask, edit_cross_attention
from ip2p_lib.rendering.shared_attention import (
    is_active,
    share_self_attention,
    source_rows,
)
from ip2p_lib.rendering.word_edits import EditTensors, build_edit_tensors


@dataclass
class GeneratedPair:
    """A candidate and its images, (3, H, W) in [-1, 1] on the model's device."""

    candidate: Candidate
    before: Tensor
    after: Tensor


def generate_pairs(
    backbone: StableDiffusion,
    candidates: Sequence[Candidate],
    *,
    steps: int,
    batch_size: int,
    sampler: str = "euler_ancestral",
) -> Iterator[list[GeneratedPair]]:
    """Generate candidates in batches, sharing attention within each pair.

    Args:
        backbone: its ``unet`` may be compiled; every batch but the last has one shape.
        candidates: a caption is encoded once, if those of a triplet are together.
        steps, sampler: 100 in the released code, and a key of ``samplers.SAMPLERS``.
        batch_size: candidates at once, four U-Net rows each.
    Yields:
        One list of pairs a batch, in the order of ``candidates``.
    Raises:
        ValueError: a batch size below 1, a caption too long, or as
            ``samplers.timesteps`` and ``word_edits.build_edit_tensors``.
    """
    cache: dict[str, Tensor] = {}
    for rows in _batches(len(candidates), batch_size):
        batch = candidates[rows]
        ordered = [candidate.source_first() for candidate in batch]
        images = _generate_batch(backbone, ordered, steps, sampler, cache)
        yield [
            GeneratedPair(c, second, first)
            if c.source_is_after
            else GeneratedPair(c, first, second)
            for c, first, second in zip(batch, *images.chunk(2), strict=True)
        ]


def _generate_batch(
    backbone: StableDiffusion,
    batch: Sequence[Candidate],
    steps: int,
    sampler: str,
    cache: dict[str, Tensor],
) -> Tensor:
    """Both images of N candidates: (2N, 3, H, W), all first ones first."""
    first = [c.triplet.caption for c in batch]
    second = [c.triplet.edited_caption for c in batch]
    text = encode_captions(backbone, [*first, *second], cache)
    scale = torch.tensor([c.cfg_scale for c in batch]).repeat(2).to(backbone.device)
    denoise = caption_denoiser(backbone.unet, text, backbone.null_text, scale)
    noise = latent_noise(backbone, [c.seed for c in batch], copies=2)
    p = torch.tensor([c.p for c in batch], dtype=torch.float64)
    words = [c.word_edit for c in batch]
    edits = build_edit_tensors(backbone, words, first, second) if any(words) else None
    latents = _sample_pairs(backbone, denoise, noise, steps, sampler, p, edits)
    return backbone.decode(latents)


@torch.no_grad()
def _sample_pairs(
    backbone: StableDiffusion,
    denoise: Denoiser,
    noise: StepNoise,
    steps: int,
    sampler: str,
    p: Tensor,
    edits: EditTensors | None,
) -> Tensor:
    """Sample (2N, C, h, w) latents, all first images first (Hertz et al., Algorithm 1).

    ``noise`` is equal for both images; -1 is the initial one. ``p`` is (N,) float64.
    """
    unet = backbone.unet
    coefficients = sampler_coefficients(backbone.schedule, steps, sampler)
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
            timestep, *_, u, _ = coefficients[i].tolist()
            t = x.new_full(x.shape[:1], timestep)
            z = noise(i) if u else None
            x, x0 = sampler_step(x, denoise(x, t), x0, z, on_device[i])
            if edited and edited.blend_tokens is not None:
                maps = edited.attention_sum, edited.grid
                mask = blend_mask(*maps, size, edited.threshold)
                # Outside the mask second images are restored to the first ones.
                halves = x.chunk(2), x0.chunk(2)
                x, x0 = (torch.cat((a, torch.where(mask, b, a))) for a, b in halves)
    return x


def generate_images(
    backbone: StableDiffusion,
    captions: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    cfg_scale: float,
    batch_size: int,
    sampler: str = "euler_ancestral",
) -> Iterator[Tensor]:
    """Plain text-to-image. A candidate's caption and seed give its ``before`` image.

    ``batch_size`` images are made at once, two U-Net rows each; yields (batch, 3, H, W)
    float32 in [-1, 1], in order, on the model's device. ValueError if captions and
    seeds differ in number; others, and all arguments, as ``generate_pairs``.
    """
    if len(captions) != len(seeds):
        raise ValueError(f"{len(captions)} captions, but {len(seeds)} seeds.")
    cache: dict[str, Tensor] = {}
    for rows in _batches(len(captions), batch_size):
        text = encode_captions(backbone, captions[rows], cache)
        denoise = caption_denoiser(backbone.unet, text, backbone.null_text, cfg_scale)
        noise = latent_noise(backbone, seeds[rows])
        settings = noise(-1), backbone.schedule, steps
        yield backbone.decode(sample(sampler, denoise, *settings, step_noise=noise))


def _batches(n: int, size: int) -> Iterator[slice]:
    check_whole("batch_size", size)
    return (slice(i, i + size) for i in range(0, n, size))


def encode_captions(
    backbone: StableDiffusion, captions: Sequence[str], cache: dict[str, Tensor]
) -> Tensor:
    """Encode B captions to (B, L, D), each distinct text once.

    ``cache`` has the embeddings of the latest batch by caption. Raises ValueError if a
    caption is too long for the text encoder.
    """
    new = [caption for caption in dict.fromkeys(captions) if caption not in cache]
    if new:
        cache.update(zip(new, backbone.encode_text(new), strict=True))
    for unused in cache.keys() - set(captions):
        del cache[unused]
    return torch.stack([cache[caption] for caption in captions])


def noise_key(step: int) -> int:
    """The ``rng`` key of the noise of a step; -1 is the initial one."""
    return rng.key("rendering", "noise", step)


def latent_noise(
    backbone: StableDiffusion, seeds: Sequence[int], copies: int = 1
) -> StepNoise:
    """Unit normal noise (copies * N, C, h, w) by step, from N seeds."""
    ids = torch.tensor(seeds, dtype=torch.int64).to(backbone.device)
    # Latents take the noise's dtype: float32 at least, whatever the weights have.
    dtype = torch.promote_types(backbone.dtype, torch.float32)

    def at(step: int) -> Tensor:
        z = rng.normal(noise_key(step), ids, backbone.latent_shape)
        return z.to(dtype).repeat(copies, 1, 1, 1)

    return at
