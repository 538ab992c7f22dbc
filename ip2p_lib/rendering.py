"""Paired rendering: two captions of a triplet as two matching pictures (3.1.2).

No single setting suits every edit: sharing attention for many steps keeps the picture
and blocks the edit, sharing for few loses the picture. So each triplet is rendered as
many ``Candidate``s, each with its own share p of shared steps, guidance scale and seed
(``draw_candidates``), all are rendered (``render``), and CLIP chooses later.

A batch of N candidates is one U-Net batch of 4N rows, in the released code's order:

    [u0 | u1 | c0 | c1]     u: empty caption   c: own caption   0, 1: before, after

Rows are independent: batch size and order change a picture by rounding at most, and a
pair can be rendered again from its record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ip2p_lib import draws
from ip2p_lib.backbone import Backbone
from ip2p_lib.diffusion import Denoiser, StepNoise, sample, timesteps
from ip2p_lib.guidance import classifier_free
from ip2p_lib.paired_sampling import sample_pairs
from ip2p_lib.triplets import Triplet
from ip2p_lib.word_edits import WordEdit, plan

SEED_BITS = 48  # a seed survives any JSON reader, also one that reads floats


class Ranges(Protocol):
    """What ``draw_candidates`` reads of ``config.Rendering``."""

    @property
    def p_min(self) -> float: ...
    @property
    def p_max(self) -> float: ...
    @property
    def cfg_min(self) -> float: ...
    @property
    def cfg_max(self) -> float: ...


@dataclass(frozen=True)
class Candidate:
    """One attempt at a triplet: all that its two pictures depend on, but the steps."""

    triplet: Triplet
    seed: int  # of the initial and the ancestral noise, the same for both pictures
    p: float  # share of steps with shared self-attention, in [0, 1]
    cfg_scale: float  # guidance scale of both pictures
    words: WordEdit | None = None  # of the original Prompt-to-Prompt; not the paper's


@dataclass
class RenderedPair:
    """A candidate and its pictures, (3, H, W) in [-1, 1] on the model's device."""

    candidate: Candidate
    before: Tensor
    after: Tensor


def draw_candidates(
    triplets: Sequence[Triplet], n: int, run_seed: int, settings: Ranges
) -> list[Candidate]:
    """Draw n candidates for each triplet (3.1.2; released ``generate_img_dataset.py``).

    Args:
        triplets: in any order; the draws hang on a triplet's words, not on its place.
        n: candidates of one triplet; the paper takes 100.
        run_seed: another one gives other candidates.
        settings: ranges of the uniform draws; the paper has p in [0.1, 0.9], the
            released code a guidance scale in [7.5, 15].
    Returns:
        n candidates of the first triplet, then of the second, and so on.
    """
    owners = [triplet for triplet in triplets for _ in range(n)]
    seeds = [_seed(t, i, run_seed) for t in triplets for i in range(n)]
    ids = torch.tensor(seeds, dtype=torch.int64)
    u_p, u_cfg = (
        draws.uniform(draws.key(run_seed, "candidate", name), ids).double()
        for name in ("p", "cfg_scale")
    )
    p = settings.p_min + (settings.p_max - settings.p_min) * u_p
    cfg = settings.cfg_min + (settings.cfg_max - settings.cfg_min) * u_cfg
    return [
        Candidate(*row)
        for row in zip(owners, seeds, p.tolist(), cfg.tolist(), strict=True)
    ]


def _seed(triplet: Triplet, index: int, run_seed: int) -> int:
    words = (triplet.caption, triplet.instruction, triplet.edited_caption)
    return draws.key(run_seed, "candidate", *words, index) % 2**SEED_BITS


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
        captions = [c.triplet.caption for c in batch]
        edited = [c.triplet.edited_caption for c in batch]
        text = _encode(backbone, [*captions, *edited], known)
        before, after = _render_batch(backbone, batch, text, steps, sampler).chunk(2)
        yield [RenderedPair(*row) for row in zip(batch, before, after, strict=True)]


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
        text = _encode(backbone, [captions[i] for i in batch], known)
        denoise = _guided(backbone, text, torch.full((len(batch),), cfg_scale))
        noise = _noise(backbone, [seeds[i] for i in batch])
        yield _sample(backbone, denoise, noise, steps, sampler)


T = TypeVar("T")


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}.")
    return (items[i : i + size] for i in range(0, len(items), size))


def _encode(
    backbone: Backbone, captions: Sequence[str], known: dict[str, Tensor]
) -> Tensor:
    """(B, L, D) embeddings; ``known`` carries them from this batch to the next."""
    new = [caption for caption in dict.fromkeys(captions) if caption not in known]
    if new:
        known.update(zip(new, backbone.encode_text(new), strict=True))
    for stale in known.keys() - set(captions):
        del known[stale]
    return torch.stack([known[caption] for caption in captions])


def _noise(backbone: Backbone, seeds: Sequence[int], copies: int = 1) -> StepNoise:
    """Unit normal (copies * N, C, h, w) by step; -1 is what the walk begins with."""
    ids = torch.tensor(seeds, dtype=torch.int64).to(backbone.device)
    # The walk takes the noise's type: float32 at least, whatever the weights have.
    dtype = torch.promote_types(backbone.dtype, torch.float32)

    def at(step: int) -> Tensor:
        purpose = draws.key("rendering", "noise", step)
        z = draws.normal(purpose, ids, backbone.latent_shape)
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
