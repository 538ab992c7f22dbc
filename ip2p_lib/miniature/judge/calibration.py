"""Candidate pairs labelled by the judge, by which CLIP's thresholds are chosen.

``benchmarks.filtering.calibration`` writes them; notebook 03 reads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ip2p_lib.config import HELD_OUT, RESULTS
from ip2p_lib.files import read_json
from ip2p_lib.filtering import Scores
from ip2p_lib.miniature.corpus import SceneEdit, sample_edits
from ip2p_lib.results import Row

SELF_ATTENTION = RESULTS / "filter-calibration.json"  # as in the paper
CROSS_ATTENTION = RESULTS / "filter-calibration-cross-attention.json"  # and injected
FIRST = HELD_OUT + 10**6  # scenes that neither notebooks nor other measurements use


def held_out_edits(n: int, first: int = FIRST) -> list[SceneEdit]:
    """The first ``n`` edits that captions show, from one scene seed on."""
    samples = sample_edits(itertools.count(first))
    return list(itertools.islice((s for s in samples if s.is_in_captions), n))


class LabelledCandidates:
    """B candidate pairs, each with its verdict.

    Attributes:
        scores: the four of CLIP.
        verdicts, good: B names, and (B,) bool, which of them are "good".
        p, cfg_scale: (B,) share of steps with shared attention, and guidance scale.
        l1: (B,) mean difference of the two images, in [0, 1].
        triplets, edit_types: the number of each one's triplet, and its edit type.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Take the rows of a result file."""

        def column(name: str) -> Tensor:
            return torch.tensor([row[name] for row in rows])

        self.rows = rows
        names = ("image", "before", "after", "direction")
        self.scores = Scores(*map(column, names))
        self.p, self.cfg_scale, self.l1 = map(column, ("p", "cfg_scale", "l1"))
        self.verdicts: list[str] = [row["verdict"] for row in rows]
        self.good = torch.tensor([verdict == "good" for verdict in self.verdicts])
        self.triplets: list[int] = [row["triplet"] for row in rows]
        self.edit_types: list[str] = [row["edit_type"] for row in rows]

    def where(self, mask: Tensor) -> LabelledCandidates:
        """Some of them, by a (B,) bool."""
        chosen = zip(self.rows, mask.tolist(), strict=True)
        return LabelledCandidates([row for row, wanted in chosen if wanted])


def read_candidates(
    path: str | Path = SELF_ATTENTION,
) -> tuple[LabelledCandidates, Row]:
    """Read a result file: its candidates, and the settings of the run."""
    run = read_json(path)
    return LabelledCandidates(run.pop("rows")), run
