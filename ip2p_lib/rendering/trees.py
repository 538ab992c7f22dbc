"""Candidates that differ in p alone, walked as one tree (section 3.1.2).

``rendering.render`` takes candidates as the released code does: both pictures of each,
from the first step to the last. Much of that is done twice. Candidates of one caption
pair, seed and guidance scale that differ in p have *one* first picture, and their
second pictures are one until the smaller p is over:

    source     *------------------------------*      before, of all
    trunk      *======*=======*===============*      after, largest p     = shares
                      |       '---------------*      after, middle p      - does not
                      '-----------------------*      after, smallest p

A fork leaves the trunk when its p is over, and needs no source any more. Here trees
are planted; ``walks`` walks them, ``slots`` renders what they carry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.diffusion.sampler_steps import begin
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.rendering.render import (
    Candidate,
    Ranges,
    draw_candidates,
    encode_captions,
    noise_key,
)
from ip2p_lib.rendering.trajectories import Walk
from ip2p_lib.triplets.record import Triplet


def draw_trees(
    triplets: Sequence[Triplet], seeds: int, n: int, run_seed: int, settings: Ranges
) -> list[Candidate]:
    """Like ``draw_candidates``, but ``seeds`` times n of them share seed and scale.

    The n values of p are spread: one is drawn in each n-th part of their range.
    """
    first = draw_candidates(triplets, seeds, run_seed, settings)
    ids = torch.tensor([c.seed for c in first], dtype=torch.int64)
    u = rng.uniform(rng.key(run_seed, "tree", "p"), ids, (n,)).double()
    width = (settings.p_max - settings.p_min) / n
    p = settings.p_min + width * (torch.arange(n) + u)
    return [
        replace(c, p=value)
        for c, values in zip(first, p.tolist(), strict=True)
        for value in values
    ]


def plant(
    backbone: Backbone,
    candidates: Iterable[Candidate],
    table: Tensor,
    sampler: str,
    *,
    ahead: int,
) -> Iterator[list[Walk]]:
    """Source and trunk of each tree, at their first step.

    Args:
        backbone: encodes the captions.
        candidates: those of one tree together; read as trees are asked for.
        table: of ``stepping.step_table``.
        sampler: the table's.
        ahead: trees that are read, and their captions encoded, at once.
    Raises:
        ValueError: a p outside [0, 1], a caption too long for the text encoder, or a
            candidate whose cross-attention is edited.
    """
    trees, known = _trees(candidates), dict[str, Tensor]()
    while some := list(islice(trees, ahead)):
        triplets = [tree[0].triplet for tree in some]
        captions = [t.caption for t in triplets] + [t.edited_caption for t in triplets]
        first, second = encode_captions(backbone, captions, known).chunk(2)
        noise = begin(_noise(backbone, [tree[0].seed for tree in some]), table, sampler)
        for tree, before, after, x in zip(some, first, second, noise, strict=True):
            source = Walk(list(tree), before, x, x)
            yield [source, Walk(tree, after, x, x, source)]


def _trees(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """The candidates of each tree, the largest p first."""
    for _, twins in groupby(candidates, lambda c: (c.triplet, c.seed, c.cfg_scale)):
        tree = sorted(twins, key=lambda c: -c.p)
        if not 0 <= tree[-1].p <= tree[0].p <= 1:
            raise ValueError(f"p is a share of steps in [0, 1]: {tree}.")
        if any(c.words for c in tree):
            raise ValueError("Words are not edited in trees: use render.")
        yield tree


def _noise(backbone: Backbone, seeds: Sequence[int]) -> Tensor:
    ids = torch.tensor(seeds, device=backbone.device)
    dtype = torch.promote_types(backbone.dtype, torch.float32)  # as ``rendering``
    return rng.normal(noise_key(-1), ids, backbone.latent_shape).to(dtype)
