"""How much a filter keeps, and how much of that is good (section 3.1.2).

The paper names its thresholds (appendix A.2) and shows no count behind them. Where it
is known which pairs are good, each threshold is a trade that can be drawn: a stricter
one keeps fewer pairs, more of them good. Read ``curve``, then ``joint_rank``, which
makes one curve of four scores, and ``calibrate``, which chooses thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ip2p_lib.filtering.clip_filter import Scores, keep_best

if TYPE_CHECKING:
    from ip2p_lib.config import Filtering

_DEVIATIONS = 1.96  # of a normal variable: 95 % lie within


class Share(NamedTuple):
    """A share of counted things, with the ends of its 95 % interval; all in [0, 1]."""

    value: float
    low: float
    high: float


def share(hits: Tensor) -> Share:
    """The share of True in (n,) bool, with Wilson's interval; of nothing, NaN.

    Wilson's stays within [0, 1], also for a handful (Wilson, "Probable inference",
    JASA 1927).
    """
    n, p = len(hits), float(hits.double().mean()) if len(hits) else math.nan
    if not n:
        return Share(p, 0.0, 1.0)
    square = _DEVIATIONS**2
    middle = (p + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(p * (1 - p) / n + square / (4 * n * n)) / (1 + square / n)
    return Share(p, max(0.0, _DEVIATIONS * -half + middle), middle + _DEVIATIONS * half)


@dataclass(frozen=True)
class Curve:
    """What a score keeps at each threshold, the strictest first; all (T,) float64."""

    threshold: Tensor
    kept: Tensor  # share of all pairs, in [0, 1]
    precision: Tensor  # share of the kept that are good
    found: Tensor  # share of the good that are kept; NaN if none is


def curve(score: Tensor, good: Tensor) -> Curve:
    """Every trade that one score offers.

    Args:
        score: (B,), higher is better; a pair whose score is NaN is never kept.
        good: (B,) bool.

    Raises:
        ValueError: the two differ in length, or there is no pair.
    """
    if score.shape != good.shape or not len(score):
        raise ValueError(
            "A curve needs a score and a verdict of each pair, not "
            f"{len(score)} scores and {len(good)} verdicts."
        )
    known = ~score.isnan()
    value, order = score[known].double().cpu().sort(descending=True)
    hits = good[known].cpu()[order].double().cumsum(0)
    # Equal scores are kept together: only the last of them ends a threshold.
    last = torch.cat([value[1:] != value[:-1], torch.tensor([True])[: len(value)]])
    count = torch.arange(1, len(value) + 1, dtype=torch.float64)[last]
    hits, whole = hits[last], float(good.sum())
    found = hits / whole if whole else torch.full_like(hits, math.nan)
    return Curve(value[last], count / len(score), hits / count, found)


def joint_rank(scores: Scores) -> Tensor:
    """The conjunction of four thresholds as one score, (B,) in [0, 1].

    A pair with q passes while each of the thresholds drops less than the share q of
    all pairs, whatever the scales of the four: its worst rank of the four.
    """
    table = torch.stack(list(vars(scores).values())).double().cpu()  # (4, B)
    below = (table[:, None, :] < table[:, :, None]).double().mean(2)
    return below.masked_fill(table.isnan(), math.nan).amin(0)


class Marks(NamedTuple):
    """A filter's choice, marked."""

    kept: Share  # of all pairs
    precision: Share  # of the kept, those that are good
    found: Share  # of the good, those that are kept


def mark(chosen: Tensor, good: Tensor) -> Marks:
    """Mark (B,) bool chosen pairs by (B,) bool good ones."""
    chosen, good = chosen.cpu(), good.cpu()
    return Marks(share(chosen), share(good[chosen]), share(chosen[good]))


def funnel(
    scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> dict[str, Tensor]:
    """What is left after each step of the filter, in its order, as (B,) bool.

    Args:
        scores: of B pairs.
        groups: names each pair's triplet.
        thresholds: the filter; ``keep`` is its last step.
    """
    left = torch.ones(len(scores.image), dtype=torch.bool)
    steps = {"rendered": left}
    for name, limit in by_score(thresholds).items():
        left = left & (getattr(scores, name).cpu() >= limit)
        steps[f"{name} ≥ {limit:.3g}"] = left
    best = torch.zeros_like(left)
    best[keep_best(scores, groups, thresholds)] = True
    return steps | {f"best {thresholds.keep} of a triplet": best}


def by_score(thresholds: Filtering) -> dict[str, float]:
    """The threshold of each score by its name, in the filter's order."""
    text = {"before": thresholds.text, "after": thresholds.text}
    return {"image": thresholds.image, **text, "direction": thresholds.direction}


def acceptance(values: Tensor, accepted: Tensor, edges: Sequence[float]) -> list[Share]:
    """Share of accepted pairs in each bin of what they were drawn with, such as p.

    Args:
        values: (B,).
        accepted: (B,) bool.
        edges: ascending; n + 1 of them make n bins, the last one closed.
    """
    inner = torch.tensor(list(edges)[1:-1], dtype=values.dtype)
    bins = torch.bucketize(values.cpu(), inner, right=True)
    return [share(accepted.cpu()[bins == i]) for i in range(len(edges) - 1)]


def calibrate(
    scores: Scores,
    good: Tensor,
    thresholds: Filtering,
    *,
    precision: float,
    steps: int = 10,
) -> Filtering:
    """The thresholds that keep most good pairs at a wanted precision.

    Every combination of three thresholds is tried, each at ``steps`` quantiles of its
    score; the two captions share one, as in the paper. Measure what comes out on other
    triplets: on these it looks better than it is.

    Args:
        scores: of B pairs.
        good: (B,) bool.
        thresholds: its ``keep`` is kept.
        precision: wanted share of the kept pairs that are good, in [0, 1].
        steps: thresholds tried of each score.

    Raises:
        ValueError: no combination is as precise as that.
    """
    text = torch.minimum(scores.before, scores.after)
    columns = [x.double().cpu() for x in (scores.image, text, scores.direction)]
    shares = torch.arange(steps, dtype=torch.float64) / steps
    tried = [x[~x.isnan()].quantile(shares) for x in columns]
    reached, hits = _combinations(columns, tried, good.cpu())
    best = torch.where(reached >= precision, hits + reached, -1.0).flatten().argmax()
    if reached.flatten()[best] < precision:
        raise ValueError(
            f"No thresholds keep pairs of which {precision:.0%} are good; the most "
            f"precise keep {float(reached.max()):.0%}. Ask for less, or render better "
            "pairs."
        )
    chosen = torch.unravel_index(best, reached.shape)
    bars = [float(bar[i]) for bar, i in zip(tried, chosen, strict=True)]
    return replace(thresholds, image=bars[0], text=bars[1], direction=bars[2])


def _combinations(
    columns: Sequence[Tensor], tried: Sequence[Tensor], good: Tensor
) -> tuple[Tensor, Tensor]:
    """Precision, and good pairs kept, of all thresholds tried: (T, T, T) each."""
    image, text, direction = (
        x >= bars[:, None] for x, bars in zip(columns, tried, strict=True)
    )  # (T, B) each
    kept = image[:, None, None] & text[:, None] & direction  # (T, T, T, B)
    hits = (kept & good).sum(-1)
    return hits / kept.sum(-1).clamp(min=1), hits
