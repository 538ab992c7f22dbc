"""Shared-prefix sampling: candidates that differ in p alone form a tree (3.1.2).

``render.generate_pairs`` samples both images of each candidate from the first step to
the last, as the released code does, and repeats work. Candidates of one caption pair,
seed and guidance scale that differ in p have *one* first image, and their second images
are the same until the smaller p has passed:

    source     *------------------------------*      before, of all
    prefix     *======*=======*===============*      after, largest p     = shares
                      |       '---------------*      after, middle p      - does not
                      '-----------------------*      after, smallest p

A branch leaves the shared prefix when its p has passed, and needs no source then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import torch
from torch import Tensor

from ip2p_lib import rng
from ip2p_lib.config import Rendering
from ip2p_lib.diffusion.samplers import initial_latent
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.candidates import Candidate, draw_candidates
from ip2p_lib.rendering.render import encode_captions, latent_noise
from ip2p_lib.triplets.record import Triplet


def draw_trees(
    triplets: Sequence[Triplet], seeds: int, n: int, run_seed: int, settings: Rendering
) -> list[Candidate]:
    """Like ``draw_candidates``, but ``seeds`` trees of n candidates per triplet.

    Those of a tree share seed and guidance scale. Their n values of p are stratified:
    one is drawn in each n-th part of the range.
    """
    roots = draw_candidates(triplets, seeds, run_seed, settings)
    ids = torch.tensor([c.seed for c in roots], dtype=torch.int64)
    u = rng.uniform(rng.key(run_seed, "tree", "p"), ids, (n,)).double()
    width = (settings.p_max - settings.p_min) / n
    p = settings.p_min + width * (torch.arange(n) + u)
    return [
        replace(c, p=value)
        for c, values in zip(roots, p.tolist(), strict=True)
        for value in values
    ]


@dataclass(eq=False)
class Trajectory:
    """One image on its way from noise, for one or several candidates.

    ``x`` and ``x0`` are its state before and after it is in a batch, not meanwhile.
    """

    settings: Candidate  # seed and guidance scale, the same for a whole tree
    text: Tensor  # (L, D)
    x: Tensor  # (C, h, w) latent
    x0: Tensor  # (C, h, w) clean latent, as last predicted
    candidates: list[Candidate] = field(default_factory=list)  # largest p first
    source: Trajectory | None = None  # of a second image: the first one's
    step: int = 0  # steps done
    image: Tensor = field(default_factory=lambda: torch.empty(0))  # once decoded

    def num_sharing(self, steps: int) -> int:
        """How many of its candidates share attention in its next step."""
        limit = self.step / max(steps - 1, 1)  # as in ``shared_attention.is_active``
        return sum(c.p > limit for c in self.candidates)

    def branch(self, steps: int) -> Trajectory | None:
        """Split off the candidates whose p has passed, if any but not all have."""
        n = self.num_sharing(steps)
        if not 0 < n < len(self.candidates):
            return None
        leaving, self.candidates = self.candidates[n:], self.candidates[:n]
        return replace(self, candidates=leaving)


def build_trees(
    backbone: StableDiffusion,
    candidates: Iterable[Candidate],
    coefficients: Tensor,
    sampler: str,
    prefetch: int,
) -> Iterator[tuple[Trajectory, Trajectory]]:
    """Source and shared prefix of each tree, at their first step.

    The candidates of one tree come together, and are read lazily: the captions of
    ``prefetch`` trees are encoded at once. Raises ValueError for a caption too long for
    the text encoder, or a candidate whose cross-attention is edited.
    """
    trees, cache = _group_by_tree(candidates), dict[str, Tensor]()
    while group := list(islice(trees, prefetch)):
        triplets = [tree[0].triplet for tree in group]
        captions = [t.caption for t in triplets] + [t.edited_caption for t in triplets]
        first, second = encode_captions(backbone, captions, cache).chunk(2)
        noise = latent_noise(backbone, [tree[0].seed for tree in group])(-1)
        latents = initial_latent(noise, coefficients, sampler)
        for tree, before, after, x in zip(group, first, second, latents, strict=True):
            source = Trajectory(tree[0], before, x, x)
            yield source, Trajectory(tree[0], after, x, x, tree, source)


def _group_by_tree(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """The candidates of each tree, the largest p first."""
    for _, members in groupby(candidates, lambda c: (c.triplet, c.seed, c.cfg_scale)):
        tree = sorted(members, key=lambda c: -c.p)
        if any(c.word_edit for c in tree):
            raise ValueError("Trees have no word edits: use generate_pairs.")
        yield tree
