"""Candidates: attempts at a triplet, each with what it is drawn with (section 3.1.2).

No single setting suits every edit: sharing attention for many steps keeps the picture
and blocks the edit, sharing for few loses the picture. So each triplet is rendered as
many ``Candidate``s, each with its own share p of shared steps, guidance scale and seed
(``draw_candidates``), and CLIP chooses later. ``lend_words`` adds the original
Prompt-to-Prompt to some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ip2p_lib import rng
from ip2p_lib.rendering.word_edits import LocalBlend, WordEdit
from ip2p_lib.triplets.record import Triplet

TAUS = (0.2, 0.8)  # ours: of words, share of steps in which maps are borrowed
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

    @property
    def after_leads(self) -> bool:
        """Whether the picture after lends its maps to the one before."""
        return self.words is not None and self.words.lead == "after"

    def in_order(self) -> Candidate:
        """The same with the picture first that lends its maps (``WordEdit.lead``)."""
        if self.words is None or not self.after_leads:
            return self
        t = self.triplet
        turned = replace(t, caption=t.edited_caption, edited_caption=t.caption)
        return replace(self, triplet=turned, words=self.words.turned())


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
        rng.uniform(rng.key(run_seed, "candidate", name), ids).double()
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
    return rng.key(run_seed, "candidate", *words, index) % 2**SEED_BITS


def lend_words(
    candidates: Sequence[Candidate], share: float, run_seed: int
) -> list[Candidate]:
    """Give some candidates the original Prompt-to-Prompt beside p.

    The words that both captions have borrow their maps for a share tau of the steps,
    and outside the places of the other words the pictures stay one. The longer caption
    leads: what it names and the other does not has a place that can be marked.

    Args:
        candidates: of ``draw_candidates``.
        share: of them, in [0, 1], drawn at random.
        run_seed: another one chooses others.
    """
    ids = torch.tensor([c.seed for c in candidates], dtype=torch.int64)
    u_some, u_tau = (
        rng.uniform(rng.key(run_seed, "words", name), ids).tolist()
        for name in ("share", "tau")
    )
    low, high = TAUS
    return [
        replace(c, words=_word_edit(c.triplet, low + (high - low) * u))
        if v < share
        else c
        for c, u, v in zip(candidates, u_tau, u_some, strict=True)
    ]


def _word_edit(triplet: Triplet, tau: float) -> WordEdit:
    longer = len(triplet.edited_caption) > len(triplet.caption)
    lead = "after" if longer else "before"
    return WordEdit("refine", tau, blend=LocalBlend(), lead=lead)
