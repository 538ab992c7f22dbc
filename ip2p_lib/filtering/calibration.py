"""How many pairs a filter keeps, and how many of those are good (section 3.1.2).

The paper states its thresholds (appendix A.2) without measuring them. Where it is known
which pairs are good, a stricter threshold trades recall for precision. Read
``precision_recall_curve``, then ``calibrate``, which chooses thresholds.
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

_Option = tuple[float, Tensor]  # a threshold, and which of the pairs reach it
_Z95 = 1.96  # 95 % of a normal variable lie within so many standard deviations


class Proportion(NamedTuple):
    """A proportion with its 95 % confidence interval; all in [0, 1]."""

    value: float
    low: float
    high: float


def proportion_ci(hits: Tensor) -> Proportion:
    """Proportion of True in (n,) bool with Wilson's interval; NaN for n = 0.

    It stays within [0, 1], also for small n (Wilson, "Probable inference", JASA 1927).
    """
    if not (n := len(hits)):
        return Proportion(math.nan, 0.0, 1.0)
    p = float(hits.double().mean())
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
        raise ValueError(f"No curve from {len(score)} scores, {len(good)} labels.")
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

    A pair of rank q passes if each threshold drops at most the fraction q of all pairs.
    """
    table = torch.stack(list(vars(scores).values())).double().cpu()  # (4, B)
    below = (table[:, None, :] < table[:, :, None]).double().mean(2)
    return below.masked_fill(table.isnan(), math.nan).amin(0)


class FilterMetrics(NamedTuple):
    """What a filter keeps, beside what it should keep."""

    keep_rate: Proportion  # of all pairs, those that are kept
    precision: Proportion  # of the kept, those that are good
    recall: Proportion  # of the good, those that are kept


def evaluate_filter(keep: Tensor, good: Tensor) -> FilterMetrics:
    """Keep rate, precision and recall of a filter, from (B,) bool each."""
    keep, good = keep.cpu(), good.cpu()
    parts = keep, good[keep], keep[good]
    return FilterMetrics(*(proportion_ci(part) for part in parts))


def funnel(
    scores: Scores, groups: Sequence[Hashable], thresholds: Filtering
) -> dict[str, Tensor]:
    """Pairs that remain after each stage of the filter, (B,) bool by the stage's name.

    ``groups`` has each pair's triplet; ``thresholds.keep`` is the last stage.
    """
    remaining = torch.ones(len(scores.image), dtype=torch.bool)
    stages = {"generated": remaining}
    for name, limit in thresholds_by_score(thresholds).items():
        remaining = remaining & (getattr(scores, name).cpu() >= limit)
        stages[f"{name} ≥ {limit:.3g}"] = remaining
    best = torch.zeros_like(remaining)
    best[keep_best(scores, groups, thresholds)] = True
    return stages | {f"best {thresholds.keep} of a triplet": best}


def calibrate(
    scores: Scores,
    good: Tensor,
    thresholds: Filtering,
    *,
    precision: float,
    steps: int = 10,
) -> Filtering:
    """The thresholds that keep most good pairs at a required precision.

    All combinations of three thresholds are tried; the two captions share one, as in
    the paper. Evaluate the result on other triplets: on these it is too optimistic.

    Args:
        scores, good: of B pairs; (B,) bool, which are good.
        thresholds: gives ``keep``.
        precision: required fraction of good pairs among the kept, in [0, 1].
        steps: thresholds tried per score, at its quantiles.
    Raises:
        ValueError: no combination is as precise as that.
    """
    text, good = torch.minimum(scores.before, scores.after), good.cpu()
    options = [_options(x, steps) for x in (scores.image, text, scores.direction)]

    def quality(combination: tuple[_Option, ...]) -> tuple[int, float]:
        """Good pairs kept (-1 if imprecise), then the precision."""
        keep = torch.stack([passed for _, passed in combination]).all(0)
        hits = int((keep & good).sum())
        reached = hits / max(int(keep.sum()), 1)
        return (hits if reached >= precision else -1), reached

    best = max(product(*options), key=quality)
    hits, reached = quality(best)
    if hits < 0:
        raise ValueError(
            f"No thresholds keep {precision:.0%} good pairs; the most precise keep "
            f"{reached:.0%}. Require less, or generate better pairs."
        )
    image, caption, direction = (limit for limit, _ in best)
    return replace(thresholds, image=image, text=caption, direction=direction)


def _options(score: Tensor, steps: int) -> list[_Option]:
    """Thresholds at the quantiles of a score."""
    score = score.double().cpu()
    quantiles = torch.arange(steps, dtype=torch.float64) / steps
    limits = score[~score.isnan()].quantile(quantiles)
    return [(float(limit), score >= limit) for limit in limits]
