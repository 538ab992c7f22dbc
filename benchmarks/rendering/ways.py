"""All ways to render by name, and how far their pictures are apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import count

import torch
from rendering_ways.of_diffusers import formed_maps, one_by_one, stock_pipeline

from ip2p_lib.config import RESULTS, preset
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.filtering.clip_filter import Scores, keep_best, load_clip
from ip2p_lib.filtering.early_rejection import score_rendered
from ip2p_lib.rendering.continuous_batching import Preview, render_in_slots
from ip2p_lib.rendering.render import Candidate, RenderedPair, render
from ip2p_lib.rendering.shared_attention import sharing

SAMPLER = "dpm_solver_pp"
Way = Callable[[Sequence[Candidate]], Iterator[list[RenderedPair]]]


def ways_of(
    backbone: Backbone, plain: Backbone, steps: int, batch: int
) -> dict[str, Way]:
    """The ways that render, by name; ``plain`` is never compiled."""
    both = (backbone, plain)
    loop, plain_loop = (partial(one_by_one, stock_pipeline(b), b) for b in both)
    options = {"steps": steps, "sampler": SAMPLER}
    return {
        "released": partial(plain_loop, formed_maps, steps),
        "pipeline": partial(loop, sharing, steps),
        "batched": partial(render, backbone, batch_size=batch, **options),
        "trees": partial(render_in_slots, backbone, slots=2 * batch, **options),
    }


def in_batches(
    found: Iterator[list[RenderedPair]], least: int
) -> Iterator[list[RenderedPair]]:
    """What comes in small lists, in lists of at least so many; the last may be less."""
    waiting: list[RenderedPair] = []
    for some in found:
        waiting += some
        if len(waiting) >= least:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def filtered(way: Way, least: int) -> Way:
    """Also score what a way renders, at least so many at once, and keep the best."""
    scale = preset("miniature")
    clip = load_clip(scale.clip)

    def render_and_filter(
        candidates: Sequence[Candidate],
    ) -> Iterator[list[RenderedPair]]:
        scores: list[Scores] = []
        groups: list[Hashable] = []
        for pairs in in_batches(way(candidates), least):
            scores.append(score_rendered(clip, pairs))
            groups += [pair.candidate.triplet for pair in pairs]
            yield pairs
        columns = zip(*(vars(some).values() for some in scores), strict=True)
        keep_best(Scores(*map(torch.cat, columns)), groups, scale.filtering)

    return render_and_filter


def rejection_found() -> dict[str, float]:
    """How early to look, what to stop and what it costs, as the miniature taught.

    Returns:
        ``look``: share of the steps; ``rejected``: share of candidates that are stopped
        there; ``recall``: share of the pairs the filter keeps that are finished.
    """
    names = (f"rejection-miniature-{device}.json" for device in ("cuda", "cpu"))
    path = next(RESULTS / name for name in names if (RESULTS / name).is_file())
    record = json.loads(path.read_text("utf-8"))
    chosen = record["chosen"]
    return {
        "look": chosen["step"] / record["steps"],
        "rejected": chosen["rejected"],
        "recall": chosen["recall"],
    }


def rejecting(backbone: Backbone, steps: int, batch: int) -> Way:
    """Trees of which as many are stopped, as early, as ``rejection_found`` says.

    Random weights draw nothing that CLIP could choose by, so evenly spread ones are
    stopped. Looks are decoded, but not scored: CLIP takes little beside a U-Net.
    """
    found = rejection_found()
    look, share = max(1, round(found["look"] * steps)), found["rejected"]

    def render_some(candidates: Sequence[Candidate]) -> Iterator[list[RenderedPair]]:
        places = count()

        def keep(pairs: Sequence[RenderedPair]) -> list[bool]:
            ranks = [next(places) for _ in pairs]
            return [int((n + 1) * share) == int(n * share) for n in ranks]

        options = {"steps": steps, "sampler": SAMPLER, "preview": Preview(look, keep)}
        yield from render_in_slots(backbone, candidates, slots=2 * batch, **options)

    return render_some


def rendered(way: Way, candidates: Sequence[Candidate]) -> list[RenderedPair]:
    """The pairs in the order of the candidates."""
    pairs = {id(pair.candidate): pair for some in way(candidates) for pair in some}
    return [pairs[id(candidate)] for candidate in candidates]


def difference(pairs: Sequence[RenderedPair], others: Sequence[RenderedPair]) -> float:
    """Mean absolute difference of pictures, in levels of 255."""
    gaps = [
        (getattr(a, n) - getattr(b, n)).abs().mean() * 127.5
        for a, b in zip(pairs, others, strict=True)
        for n in ("before", "after")
    ]
    return float(torch.stack(gaps).mean())
