"""Candidate pairs with the judge's verdicts: what CLIP's thresholds are chosen by.

``jobs.miniature.calibrate_filter`` generates candidates of held-out edits, filters
nothing, and writes what CLIP and the judge say of each; notebook 03 reads that file.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.config import HELD_OUT, RESULTS
from ip2p_lib.filtering import Scores
from ip2p_lib.miniature.corpus import SceneEdit, sample_edits
from ip2p_lib.triplets.record import is_unchanged

SELF_ATTENTION = RESULTS / "filter-calibration.json"  # as in the paper
CROSS_ATTENTION = RESULTS / "filter-calibration-cross-attention.json"  # and injected
FIRST = HELD_OUT + 10**6  # scenes that neither notebooks nor other measurements use


def held_out_edits(n: int, first: int = FIRST) -> list[SceneEdit]:
    """The first ``n`` edits that captions show, from one scene seed on."""
    samples = sample_edits(itertools.count(first))
    shown = (
        sample
        for sample in samples
        if not is_unchanged(sample.triplet.caption, sample.triplet.edited_caption)
    )
    return list(itertools.islice(shown, n))


@dataclass(frozen=True)
class LabelledCandidates:
    """B candidate pairs, each with its verdict."""

    scores: Scores
    verdicts: list[str]
    p: Tensor  # (B,) share of steps with shared attention
    cfg_scale: Tensor  # (B,)
    l1: Tensor  # (B,) mean difference of the two images, in [0, 1]
    triplets: list[int]  # the number of each one's triplet
    edit_types: list[str]

    @property
    def good(self) -> Tensor:
        """(B,) bool."""
        return torch.tensor([verdict == "good" for verdict in self.verdicts])

    def where(self, mask: Tensor) -> LabelledCandidates:
        """Some of them, by a (B,) bool."""
        rows = mask.nonzero().flatten().tolist()
        lists = (self.verdicts, self.triplets, self.edit_types)
        verdicts, triplets, types = ([column[i] for i in rows] for column in lists)
        scores = Scores(*(column[rows] for column in vars(self.scores).values()))
        p, cfg_scale, l1 = self.p[rows], self.cfg_scale[rows], self.l1[rows]
        return LabelledCandidates(scores, verdicts, p, cfg_scale, l1, triplets, types)


def read_candidates(
    path: str | Path = SELF_ATTENTION,
) -> tuple[LabelledCandidates, dict[str, Any]]:
    """Read a result file: its candidates, and the settings of the run."""
    run = json.loads(Path(path).read_text("utf-8"))
    rows = run.pop("rows")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    numbers = {
        name: torch.tensor(columns[name])
        for name in ("image", "before", "after", "direction", "p", "cfg_scale", "l1")
    }
    p, cfg_scale, l1 = (numbers.pop(name) for name in ("p", "cfg_scale", "l1"))
    lists = (columns[name] for name in ("verdict", "triplet", "edit_type"))
    verdicts, triplets, types = lists
    scores = Scores(**numbers)
    return LabelledCandidates(scores, verdicts, p, cfg_scale, l1, triplets, types), run
