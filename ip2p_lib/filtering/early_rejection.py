"""Early rejection: stop pairs that the filter will drop anyway (section 3.1.2).

Most candidates are rendered to be thrown away. Part of the way the network already
predicts both clean pictures; CLIP scores them as it would the finished ones, and pairs
below some floor are stopped (``slots.Preview``). A blurred picture scores lower than
the finished one will, in every score by another amount that changes with the step, so
the floors are not the filter's thresholds: ``fit_floors`` puts each where it loses a
small share of pairs known to be kept. Of a triplet rendered many times the filter keeps
the few best by direction; a ``Contest`` stops those that lag behind. ``outcome``
counts what either does to pairs whose end is known.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ip2p_lib.filtering.calibration import Share, share
from ip2p_lib.filtering.clip_filter import (
    ClipScorer,
    Scores,
    keep_best,
    passes,
    score_embedded,
)
from ip2p_lib.rendering.continuous_batching import Preview

if TYPE_CHECKING:
    from ip2p_lib.config import Filtering
    from ip2p_lib.rendering.render import RenderedPair

NAMES = ("image", "text", "direction")  # of floors, as of ``config.Filtering``
ANY = -1.0  # a floor below every cosine


def score_rendered(clip: ClipScorer, pairs: Sequence[RenderedPair]) -> Scores:
    """Score candidates by their pictures, predicted or finished; at least one pair.

    A tree's candidates share their picture before, which CLIP sees once.
    """
    first = {id(pair.before): pair.before for pair in pairs}
    place = {key: row for row, key in enumerate(first)}
    pictures = torch.stack([*first.values(), *(pair.after for pair in pairs)])
    before, after = clip.embed_images(pictures).tensor_split([len(first)])
    rows = torch.tensor([place[id(pair.before)] for pair in pairs], device=clip.device)
    captions = [pair.candidate.triplet.caption for pair in pairs]
    edited = [pair.candidate.triplet.edited_caption for pair in pairs]
    return score_embedded(clip, before[rows], after, captions + edited)


class Contest:
    """Lets a pair pass while few of its triplet, so far, pointed better than it.

    The first ``places`` of a triplet all pass; of n in random order about
    places * (1 + log(n / places)) do. It remembers, so use a new one for each run.

    Attributes:
        places: at least as many as the filter keeps, and more, since the order at a
            preview is not the order in the end; None lets all pass.
    """

    def __init__(self, places: int | None) -> None:
        self.places = places
        self._best: dict[Hashable, list[float]] = {}

    def enter(self, groups: Sequence[Hashable], direction: Tensor) -> list[bool]:
        """Which of some pairs pass; in the order given, the earlier ones count.

        Args:
            groups: names each pair's triplet.
            direction: (B,) directional similarities as predicted.
        """
        found = zip(groups, direction.tolist(), strict=True)
        return [self._passes(group, value) for group, value in found]

    def _passes(self, group: Hashable, value: float) -> bool:
        best = self._best.setdefault(group, [])  # the lowest of them first
        if self.places is None or len(best) < self.places:
            heapq.heappush(best, value)
            return True
        return heapq.heappushpop(best, value) < value


def clip_preview(
    clip: ClipScorer, step: int, floors: Filtering, places: int | None = None
) -> Preview:
    """A preview that finishes pairs whose predicted pictures reach every floor.

    Args:
        clip: the filter's scorer.
        step: after how many steps to look.
        floors: as ``fit_floors`` finds them at this step; ``keep`` is not used.
        places: of a ``Contest`` among those that reach them; None is no contest.
    """
    contest = Contest(places)

    def keep(pairs: Sequence[RenderedPair]) -> list[bool]:
        scores = score_rendered(clip, pairs)
        finish = passes(scores, floors).tolist()
        return contested(finish, scores, [p.candidate.triplet for p in pairs], contest)

    return Preview(step, keep)


def contested(
    finish: Sequence[bool], seen: Scores, groups: Sequence[Hashable], contest: Contest
) -> list[bool]:
    """Of the pairs that are to be finished, those that a contest lets pass.

    Args:
        finish: (B,) which pairs reach the floors; the others do not enter.
        seen: the scores of the B pairs as predicted.
        groups: names each pair's triplet.
        contest: takes the pairs in order.
    """
    rows = [row for row, enters in enumerate(finish) if enters]
    passed = iter(contest.enter([groups[row] for row in rows], seen.direction[rows]))
    return [enters and next(passed) for enters in finish]


def fit_floors(
    seen: Scores,
    kept: Sequence[int],
    thresholds: Filtering,
    *,
    slack: float,
    margin: float = 0.0,
    names: Collection[str] = NAMES,
) -> Filtering:
    """Floors of a preview, each of which loses at most a share of the kept pairs.

    Args:
        seen: the scores of B pairs as predicted at the preview.
        kept: rows of those that the filter keeps once they are finished.
        thresholds: the filter; its ``keep`` is kept.
        slack: share of the kept pairs that one floor may lose, in [0, 1]; together the
            floors may lose as many times that as there are ``names``.
        margin: put each floor lower by this much of a cosine: what the worst of a few
            kept pairs scored is no bound on the next.
        names: the floors to set, of "image", "text" (of both captions) and "direction".
            The others are below every cosine.
    Raises:
        ValueError: nothing was kept, so there is nothing to learn from.
    """
    if not len(kept):
        raise ValueError(
            "Floors are fitted to pairs that the filter keeps, and it kept none. "
            "Render more triplets, or lower its thresholds."
        )
    columns = {
        "image": seen.image,
        "text": torch.minimum(seen.before, seen.after),
        "direction": seen.direction,
    }
    floors = dict.fromkeys(NAMES, ANY)
    for name in names:
        found = columns[name][list(kept)].double()
        floors[name] = float(found.quantile(slack, interpolation="lower")) - margin
    image, text, direction = floors.values()
    return replace(thresholds, image=image, text=text, direction=direction)


def finish_by_halves(
    seen: Scores,
    kept: Sequence[int],
    thresholds: Filtering,
    groups: Sequence[Hashable],
    *,
    slack: float,
    margin: float = 0.0,
    names: Collection[str] = NAMES,
) -> Tensor:
    """(B,) bool, pairs that reach floors fitted to the other half of the triplets.

    On the pairs they were fitted to, floors look better than they are. Arguments and
    errors as ``fit_floors``; ``groups`` names each pair's triplet, and every other one
    of them, in the order they appear, is of the second half.
    """
    place = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    second = torch.tensor([place[group] % 2 == 1 for group in groups])
    finish = torch.zeros_like(second)
    for half in (second, ~second):
        others = [row for row in kept if not half[row]]
        floors = fit_floors(
            seen, others, thresholds, slack=slack, margin=margin, names=names
        )
        finish |= half & passes(seen, floors).cpu()
    return finish


@dataclass(frozen=True)
class Outcome:
    """What rejection does to pairs whose end is known."""

    recall: Share  # of the pairs kept without it, those that it finishes
    rejected: Share  # of all pairs, those that it stops
    kept: int  # pairs kept with it: a next best may take a lost one's place


def outcome(
    finish: Tensor, scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> Outcome:
    """Count what would have been kept, had some pairs not been finished.

    Args:
        finish: (B,) bool, pairs that the preview lets through.
        scores: of the B finished pairs.
        groups: names each pair's triplet.
        thresholds: the filter.
    """
    finish = finish.cpu()
    kept = torch.tensor(keep_best(scores, groups, thresholds), dtype=torch.long)
    rows = finish.nonzero().flatten().tolist()
    left = Scores(*(column[rows] for column in vars(scores).values()))
    again = keep_best(left, [groups[row] for row in rows], thresholds)
    return Outcome(share(finish[kept]), share(~finish), len(again))
