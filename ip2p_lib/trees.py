"""Candidates that differ in p alone, walked as one tree (section 3.1.2).

``rendering.render`` takes candidates as the released code does: both pictures of each,
from the first step to the last. Much of that is done twice. Candidates of one caption
pair, seed and guidance scale that differ in p have *one* first picture, and their
second pictures are one until the smaller p is over:

    source     *------------------------------*      before, of all
    trunk      *======*=======*===============*      after, largest p     = shares
                      |       '---------------*      after, middle p      - does not
                      '-----------------------*      after, smallest p

A fork leaves the trunk when its p is over, and needs no source any more. ``slots``
renders trees; here is what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from ip2p_lib import draws
from ip2p_lib.backbone import Backbone
from ip2p_lib.rendering import Candidate, Ranges, draw_candidates, noise_key
from ip2p_lib.stepping import begin
from ip2p_lib.triplets import Triplet


@dataclass(eq=False)
class Walk:
    """One picture on its way from noise, for one or several candidates."""

    candidates: list[Candidate]  # largest p first
    text: Tensor  # (L, D)
    x: Tensor  # (C, h, w) latent
    x0: Tensor  # (C, h, w) clean latent, as last predicted
    source: Walk | None = None  # of a second picture: the walk of the first
    step: int = 0  # steps done
    picture: Tensor = field(default_factory=lambda: torch.empty(0))  # once decoded

    def fork(self, steps: int) -> Walk | None:
        """Part from a trunk the candidates whose p is over, if any but not all are."""
        stay = self.sharing(steps)
        if not 0 < stay < len(self.candidates):
            return None
        leave, self.candidates = self.candidates[stay:], self.candidates[:stay]
        state = self.x.clone(), self.x0.clone(), self.source, self.step
        return Walk(leave, self.text, *state)

    def sharing(self, steps: int) -> int:
        """How many of its candidates share attention in its next step."""
        limit = self.step / max(steps - 1, 1)  # as in ``prompt_to_prompt.is_active``
        return sum(c.p > limit for c in self.candidates) if self.source else 0


def draw_trees(
    triplets: Sequence[Triplet], seeds: int, n: int, run_seed: int, settings: Ranges
) -> list[Candidate]:
    """Like ``draw_candidates``, but ``seeds`` times n of them share seed and scale.

    The n values of p are spread: one is drawn in each n-th part of their range.
    """
    first = draw_candidates(triplets, seeds, run_seed, settings)
    ids = torch.tensor([c.seed for c in first], dtype=torch.int64)
    u = draws.uniform(draws.key(run_seed, "tree", "p"), ids, (n,)).double()
    width = (settings.p_max - settings.p_min) / n
    p = settings.p_min + width * (torch.arange(n) + u)
    return [
        replace(c, p=value)
        for c, values in zip(first, p.tolist(), strict=True)
        for value in values
    ]


def plant(
    backbone: Backbone, candidates: Iterable[Candidate], table: Tensor, sampler: str
) -> Iterator[list[Walk]]:
    """Source and trunk of each tree, at their first step.

    Args:
        backbone: encodes the captions, each triplet's once.
        candidates: those of one tree together; read as trees are asked for.
        table: of ``stepping.step_table``.
        sampler: the table's.
    Raises:
        ValueError: a p outside [0, 1], a caption too long for the text encoder, or a
            candidate whose cross-attention is edited.
    """
    for triplet, family in groupby(candidates, lambda c: c.triplet):
        text = backbone.encode_text([triplet.caption, triplet.edited_caption])
        for _, twins in groupby(family, lambda c: (c.seed, c.cfg_scale)):
            tree = sorted(twins, key=lambda c: -c.p)
            if not 0 <= tree[-1].p <= tree[0].p <= 1:
                raise ValueError(f"p is a share of steps in [0, 1]: {tree}.")
            if any(c.words for c in tree):
                raise ValueError("Words are not edited in trees: use render.")
            x = begin(_noise(backbone, tree[0].seed), table, sampler)[0]
            source = Walk(list(tree), text[0], x, x)
            yield [source, Walk(tree, text[1], x, x, source)]


def _noise(backbone: Backbone, seed: int) -> Tensor:
    ids = torch.tensor([seed], device=backbone.device)
    dtype = torch.promote_types(backbone.dtype, torch.float32)  # as ``rendering``
    return draws.normal(noise_key(-1), ids, backbone.latent_shape).to(dtype)
