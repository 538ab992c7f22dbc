"""How many pairs a filter keeps, and how many of those are good (section 3.1.2).

The paper states its thresholds (appendix A.2) without measuring them. Where it is known
which pairs are good, a threshold is a trade-off: a stricter one keeps fewer pairs, more
of them good. Read ``precision_recall_curve``, then ``joint_rank``, which makes one
score of four, and ``calibrate``, which chooses thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ip2p_lib.filtering.clip_filter import Scores, keep_best, thresholds_by_score

if TYPE_CHECKING:
    from ip2p_lib.config import Filtering

_Z95 = 1.96  # 95 % of a normal variable lie within so many standard deviations


class Proportion(NamedTuple):
    """A proportion with its 95 % confidence interval; all in [0, 1]."""

    value: float
    low: float
    high: float


def proportion_ci(hits: Tensor) -> Proportion:
    """Proportion of True in (n,) bool with Wilson's interval; NaN for n = 0.

    Wilson's interval stays within [0, 1], also for small n (Wilson, "Probable
    inference", JASA 1927).
    """
    n, p = len(hits), float(hits.double().mean()) if len(hits) else math.nan
    if not n:
        return Proportion(p, 0.0, 1.0)
    scale = 1 + _Z95**2 / n
    centre = (p + _Z95**2 / (2 * n)) / scale
    half = _Z95 * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n * n)) / scale
    return Proportion(p, max(0.0, centre - half), centre + half)


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """A score as a filter, at each threshold, strictest first; all (T,) float64."""

    threshold: Tensor
    keep_rate: Tensor  # fraction of all pairs that is kept
    precision: Tensor  # fraction of the kept pairs that is good
    recall: Tensor  # fraction of the good pairs that is kept; NaN if none is good


def precision_recall_curve(score: Tensor, good: Tensor) -> PrecisionRecallCurve:
    """Precision, recall and keep rate of one score at every threshold.

    Args:
        score: (B,), higher is better; a pair whose score is NaN is never kept.
        good: (B,) bool.
    Raises:
        ValueError: the two differ in length, or there is no pair.
    """
    if score.shape != good.shape or not len(score):
        raise ValueError(
            "A curve needs one score and one label per pair, not "
            f"{len(score)} scores and {len(good)} labels."
        )
    valid = ~score.isnan()
    value, order = score[valid].double().cpu().sort(descending=True)
    hits = good[valid].cpu()[order].double().cumsum(0)
    # Equal scores are kept together: a threshold ends after the last of them.
    last = torch.cat([value[1:] != value[:-1], torch.tensor([True])[: len(value)]])
    count = torch.arange(1, len(value) + 1, dtype=torch.float64)[last]
    hits, total = hits[last], float(good.sum())
    recall = hits / total if total else torch.full_like(hits, math.nan)
    return PrecisionRecallCurve(value[last], count / len(score), hits / count, recall)


def joint_rank(scores: Scores) -> Tensor:
    """The four scores as one, (B,) in [0, 1]: each pair's worst rank of the four.

    A pair of rank q passes four thresholds as long as each of them, on its own, drops
    no more than the fraction q of all pairs, whatever the scales of the scores.
    """
    table = torch.stack(list(vars(scores).values())).double().cpu()  # (4, B)
    below = (table[:, None, :] < table[:, :, None]).double().mean(2)
    return below.masked_fill(table.isnan(), math.nan).amin(0)


class FilterMetrics(NamedTuple):
    """What a filter keeps, beside what it should keep."""

    keep_rate: Proportion  # of all pairs, those that are kept
    precision: Proportion  # of the kept, those that are good
    recall: Proportion  # of the good, those that are kept


def evaluate_filter(kept: Tensor, good: Tensor) -> FilterMetrics:
    """Keep rate, precision and recall of (B,) bool kept and good pairs."""
    kept, good = kept.cpu(), good.cpu()
    parts = kept, good[kept], kept[good]
    return FilterMetrics(*(proportion_ci(part) for part in parts))


def funnel(
    scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> dict[str, Tensor]:
    """Pairs that remain after each stage of the filter, in its order, as (B,) bool.

    Args:
        scores: of B pairs.
        groups: each pair's triplet.
        thresholds: the filter; ``keep`` is its last stage.
    """
    remaining = torch.ones(len(scores.image), dtype=torch.bool)
    stages = {"generated": remaining}
    for name, limit in thresholds_by_score(thresholds).items():
        remaining = remaining & (getattr(scores, name).cpu() >= limit)
        stages[f"{name} ≥ {limit:.3g}"] = remaining
    best = torch.zeros_like(remaining)
    best[keep_best(scores, groups, thresholds)] = True
    return stages | {f"best {thresholds.keep} of a triplet": best}


def acceptance_by_bin(
    values: Tensor, accepted: Tensor, edges: Sequence[float]
) -> list[Proportion]:
    """Proportion of accepted pairs in each bin of a random setting, such as p.

    Args:
        values: (B,).
        accepted: (B,) bool.
        edges: ascending; n + 1 of them make n bins, the last one closed.
    """
    inner = torch.tensor(list(edges)[1:-1], dtype=values.dtype)
    bins = torch.bucketize(values.cpu(), inner, right=True)
    accepted = accepted.cpu()
    return [proportion_ci(accepted[bins == i]) for i in range(len(edges) - 1)]


def calibrate(
    scores: Scores,
    good: Tensor,
    thresholds: Filtering,
    *,
    precision: float,
    steps: int = 10,
) -> Filtering:
    """The thresholds that keep most good pairs at a required precision.

    All combinations of three thresholds are tried, each at ``steps`` quantiles of its
    score; the two captions share one, as in the paper. Evaluate the result on other
    triplets: on these it looks better than it is.

    Args:
        scores: of B pairs.
        good: (B,) bool.
        thresholds: its ``keep`` is kept.
        precision: required fraction of the kept pairs that are good, in [0, 1].
        steps: thresholds tried per score.
    Raises:
        ValueError: no combination is as precise as that.
    """
    text = torch.minimum(scores.before, scores.after)
    good, options = good.cpu(), []
    for score in (scores.image, text, scores.direction):
        score = score.double().cpu()
        quantiles = torch.arange(steps, dtype=torch.float64) / steps
        limits = score[~score.isnan()].quantile(quantiles)
        options.append([(float(limit), score >= limit) for limit in limits])

    def quality(combination: tuple[tuple[float, Tensor], ...]) -> tuple[int, float]:
        """Good pairs kept (-1 if too imprecise), then the precision."""
        (_, image), (_, caption), (_, direction) = combination
        kept = image & caption & direction
        hits = int((kept & good).sum())
        reached = hits / max(int(kept.sum()), 1)
        return (hits if reached >= precision else -1), reached

    best = max(product(*options), key=quality)
    hits, reached = quality(best)
    if hits < 0:
        raise ValueError(
            f"No thresholds keep pairs of which {precision:.0%} are good; the most "
            f"precise keep {reached:.0%}. Require less, or generate better pairs."
        )
    image, caption, direction = (limit for limit, _ in best)
    return replace(thresholds, image=image, text=caption, direction=direction)
