"""Draw the random settings with which a triplet is generated many times (3.1.2).

No single setting suits every edit: sharing attention for many steps preserves the image
and blocks the edit, sharing for few steps loses the image. So each triplet becomes many
``Candidate``s, and CLIP selects among the results later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ip2p_lib import rng
from ip2p_lib.config import Rendering
from ip2p_lib.rendering.word_edits import LocalBlend, WordEdit
from ip2p_lib.triplets.record import Triplet

TAU_RANGE = (0.2, 0.8)  # ours: fraction of steps with edited cross-attention
SEED_BITS = 48  # so that a JSON reader that parses numbers as floats keeps a seed


@dataclass(frozen=True)
class Candidate:
    """A triplet with the settings that determine its two images, all but the steps.

    Raises ValueError for a p outside [0, 1].
    """

    triplet: Triplet
    seed: int  # of the initial and the ancestral noise, the same for both images
    p: float  # fraction of steps with shared self-attention, in [0, 1]
    cfg_scale: float  # guidance scale of both images
    word_edit: WordEdit | None = None  # original Prompt-to-Prompt; not the paper's

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p is a fraction in [0, 1], not {self.p}.")

    @property
    def source_is_after(self) -> bool:
        """Whether attention maps go from the image after to the image before."""
        return self.word_edit is not None and self.word_edit.source == "after"

    def source_first(self) -> Candidate:
        """Swap the captions, if needed, so that the source image comes first."""
        if self.word_edit is None or not self.source_is_after:
            return self
        t = self.triplet
        swapped = replace(t, caption=t.edited_caption, edited_caption=t.caption)
        return replace(self, triplet=swapped, word_edit=self.word_edit.swapped())


def draw_candidates(
    triplets: Sequence[Triplet], n: int, run_seed: int, settings: Rendering
) -> list[Candidate]:
    """Draw n candidates for each triplet (3.1.2; released ``generate_img_dataset.py``).

    The draws depend on a triplet's texts, not its index; candidates of the first
    triplet come first. The paper takes 100 of each, with p in [0.1, 0.9]; the released
    code has a guidance scale in [7.5, 15].
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
    return list(map(Candidate, owners, seeds, p.tolist(), cfg.tolist()))


def _seed(triplet: Triplet, index: int, run_seed: int) -> int:
    texts = (triplet.caption, triplet.instruction, triplet.edited_caption)
    return rng.key(run_seed, "candidate", *texts, index) % 2**SEED_BITS


def add_cross_attention_edit(
    candidates: Sequence[Candidate], fraction: float, run_seed: int
) -> list[Candidate]:
    """Add Prompt-to-Prompt's cross-attention edit to a random part of the candidates.

    Tokens common to both captions take the source image's maps for a fraction tau of
    the steps, and a local blend keeps the latents equal away from the other words. The
    longer caption is the source, because what it alone names has a map to blend by.

    A ``fraction`` in [0, 1] of the candidates get one; ``run_seed`` decides which, and
    their tau.
    """
    ids = torch.tensor([c.seed for c in candidates], dtype=torch.int64)
    u_select, u_tau = (
        rng.uniform(rng.key(run_seed, "words", name), ids).tolist()
        for name in ("share", "tau")
    )
    (low, high), edited = TAU_RANGE, []
    for c, u, v in zip(candidates, u_tau, u_select, strict=True):
        longer = len(c.triplet.edited_caption) > len(c.triplet.caption)
        source, tau = "after" if longer else "before", low + (high - low) * u
        edit = WordEdit("refine", tau, blend=LocalBlend(), source=source)
        edited.append(replace(c, word_edit=edit) if v < fraction else c)
    return edited
