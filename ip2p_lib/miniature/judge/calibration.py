"""Candidate pairs labelled by the judge, by which CLIP's thresholds are chosen.

``jobs.miniature.calibrate_filter`` writes them; notebook 03 reads them.
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

SELF_ATTENTION = RESULTS / "filter-calibration.json"  # as in the paper
CROSS_ATTENTION = RESULTS / "filter-calibration-cross-attention.json"  # and injected
FIRST = HELD_OUT + 10**6  # scenes that neither notebooks nor other measurements use


def held_out_edits(n: int, first: int = FIRST) -> list[SceneEdit]:
    """The first ``n`` edits that captions show, from one scene seed on."""
    samples = sample_edits(itertools.count(first))
    return list(itertools.islice((s for s in samples if s.is_in_captions), n))


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

        def take(column: Tensor | list) -> Any:
            if isinstance(column, Tensor):
                return column[rows]
            return [column[row] for row in rows]

        scores, *columns = vars(self).values()
        scores = Scores(*map(take, vars(scores).values()))
        return LabelledCandidates(scores, *map(take, columns))


def read_candidates(
    path: str | Path = SELF_ATTENTION,
) -> tuple[LabelledCandidates, dict[str, Any]]:
    """Read a result file: its candidates, and the settings of the run."""
    run = json.loads(Path(path).read_text("utf-8"))
    rows = run.pop("rows")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    names = ("image", "before", "after", "direction")
    candidates = LabelledCandidates(
        scores=Scores(**{name: torch.tensor(columns[name]) for name in names}),
        verdicts=columns["verdict"],
        p=torch.tensor(columns["p"]),
        cfg_scale=torch.tensor(columns["cfg_scale"]),
        l1=torch.tensor(columns["l1"]),
        triplets=columns["triplet"],
        edit_types=columns["edit_type"],
    )
    return candidates, run
