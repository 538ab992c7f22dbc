"""All ways to generate candidates by name, and how far their images are apart."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.rendering.of_diffusers import materialise_maps, one_by_one
from ip2p_lib.config import preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.filtering import Scores, keep_best, score_generated
from ip2p_lib.rendering import (
    Candidate,
    GeneratedPair,
    generate_batched,
    generate_pairs,
)
from ip2p_lib.rendering.shared_attention import share_self_attention
from tests.support.pipelines import stock_pipeline

SAMPLER = "dpm_solver_pp"
Way = Callable[[Sequence[Candidate]], Iterator[list[GeneratedPair]]]


def ways_of(
    backbone: StableDiffusion, plain: StableDiffusion, steps: int, batch: int
) -> dict[str, Way]:
    """The ways to generate by name; ``plain`` is never compiled."""
    loop, plain_loop = (
        partial(one_by_one, stock_pipeline(b, StableDiffusionPipeline, SAMPLER), b)
        for b in (backbone, plain)
    )
    options = {"steps": steps, "sampler": SAMPLER}
    return {
        "released": partial(plain_loop, materialise_maps, steps),
        "pipeline": partial(loop, share_self_attention, steps),
        "batched": partial(generate_pairs, backbone, batch_size=batch, **options),
        "trees": partial(generate_batched, backbone, batch_rows=2 * batch, **options),
    }


def rebatch(
    batches: Iterator[list[GeneratedPair]], min_size: int
) -> Iterator[list[GeneratedPair]]:
    """Merge small batches into batches of at least a size; the last may be smaller."""
    pending: list[GeneratedPair] = []
    for batch in batches:
        pending += batch
        if len(pending) >= min_size:
            yield pending
            pending = []
    if pending:
        yield pending


def filtered(way: Way, batch: int) -> Way:
    """Also score what a way generates, at least a batch at once, and keep the best."""
    scale = preset("miniature")
    clip = load_clip(scale.clip)

    def generate(candidates: Sequence[Candidate]) -> Iterator[list[GeneratedPair]]:
        scores: list[Scores] = []
        groups: list[Hashable] = []
        for pairs in rebatch(way(candidates), batch):
            scores.append(score_generated(clip, pairs))
            groups += [pair.candidate.triplet for pair in pairs]
            yield pairs
        columns = zip(*(vars(part).values() for part in scores), strict=True)
        keep_best(Scores(*map(torch.cat, columns)), groups, scale.filtering)

    return generate


def in_order(way: Way, candidates: Sequence[Candidate]) -> list[GeneratedPair]:
    """The pairs in the order of the candidates."""
    pairs = {id(pair.candidate): pair for batch in way(candidates) for pair in batch}
    return [pairs[id(candidate)] for candidate in candidates]


def difference(
    pairs: Sequence[GeneratedPair], others: Sequence[GeneratedPair]
) -> float:
    """Mean absolute difference of images, in levels of 255."""
    gaps = [
        (getattr(a, n) - getattr(b, n)).abs().mean() * 127.5
        for a, b in zip(pairs, others, strict=True)
        for n in ("before", "after")
    ]
    return float(torch.stack(gaps).mean())
