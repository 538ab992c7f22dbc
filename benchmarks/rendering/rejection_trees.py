"""What slots would show and walk, told from candidates that were walked one by one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from ip2p_lib.filtering.clip_filter import Scores
from ip2p_lib.filtering.early_rejection import Contest, contested
from ip2p_lib.rendering.render import Candidate


def first_pictures(candidates: Iterable[Candidate]) -> int:
    """How many there are: candidates of one triplet and seed share theirs."""
    return len({(c.triplet, c.seed) for c in candidates})


def shared(p: Tensor, steps: int) -> Tensor:
    """In how many steps each candidate shares; of a tree, equals are one walk."""
    step = torch.arange(steps)
    return (p[..., None] > step / max(steps - 1, 1)).sum(-1)


def shown(candidates: Sequence[Candidate], look: int, steps: int) -> list[int]:
    """By whom each candidate is shown in a preview: a row of those with largest p.

    Args:
        candidates: of ``trees.draw_trees``.
        look: after how many steps.
        steps: of the whole walk.
    """
    counts = shared(torch.tensor([c.p for c in candidates]), steps).tolist()
    first: dict[tuple[object, ...], int] = {}
    told = [0] * len(candidates)
    for row in sorted(range(len(candidates)), key=lambda row: -candidates[row].p):
        one = candidates[row]
        walk = one.triplet, one.seed, min(counts[row], look)
        told[row] = first.setdefault(walk, row)
    return told


def walked(p: Tensor, finish: Tensor, look: int, steps: int) -> int:
    """How many steps all walks of some trees take together.

    Args:
        p: (T, K) of the candidates of T trees.
        finish: (T, K) bool, which are not stopped at the preview.
        look: after how many steps that is.
        steps: of the whole walk.
    """
    step = torch.arange(steps)
    alive = (step < look) | finish[..., None]
    # Those that still share are one, whatever their number is.
    left = torch.minimum(shared(p, steps)[..., None], step + 1)
    kinds = torch.arange(steps + 1)
    second = (alive[..., None] & (left[..., None] == kinds)).any(1)
    return int(alive.any(1).sum() + second.sum())


def enter(
    reach: Tensor,
    seen: Scores,
    groups: Sequence[Hashable],
    place: list[int],
    contest: Contest,
) -> Tensor:
    """(B,) bool, who is finished if those that are shown enter a contest, in order."""
    rows = sorted(set(place))
    few = Scores(*(column[rows] for column in vars(seen).values()))
    passed = contested(
        reach[rows].tolist(), few, [groups[row] for row in rows], contest
    )
    by_row = dict(zip(rows, passed, strict=True))
    return torch.tensor([by_row[row] for row in place])
