"""How many pairs a filter keeps, and how many of those are good (section 3.1.2).

The paper states its thresholds (appendix A.2) without measuring them. Where it is known
which pairs are good, a stricter threshold trades recall for precision. Read
``precision_recall_curve``, then ``calibrate``, which chooses thresholds.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from ip2p_lib.checks import check_number
from ip2p_lib.config import Filtering
from ip2p_lib.filtering.clip_filter import Scores, keep_best, thresholds_by_score

_STEPS = 10  # thresholds that ``calibrate`` tries of each score
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
    if not (n := len(_check_labels(hits))):
        return Proportion(math.nan, 0.0, 1.0)
    p = float(hits.double().mean())
    scale = 1 + _Z95**2 / n
    centre = (p + _Z95**2 / (2 * n)) / scale
    half = _Z95 * math.sqrt(p * (1 - p) / n + _Z95**2 / (4 * n * n)) / scale
    return Proportion(p, max(0.0, centre - half), centre + half)


def _check_labels(labels: Tensor, n: int | None = None) -> Tensor:
    """Labels on the CPU; ValueError unless they are bool, one for each of n pairs."""
    n = labels.numel() if n is None else n
    if labels.dtype != torch.bool or labels.shape != (n,):
        kind = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"The labels of {n} pairs are ({n},) bool, not {kind}.")
    return labels.cpu()


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """A score as a filter, at each threshold, strictest first; all (T,) float64."""

    threshold: Tensor
    keep_rate: Tensor  # fraction of all pairs that pass
    precision: Tensor  # fraction of the passing pairs that are good
    recall: Tensor  # fraction of the good pairs that pass; NaN if none is good


def precision_recall_curve(score: Tensor, good: Tensor) -> PrecisionRecallCurve:
    """Precision, recall and keep rate of one score at every threshold.

    ``score`` (B,) is higher for better pairs; one whose score is NaN never passes.
    ValueError unless ``good`` is (B,) bool, and not empty.
    """
    score, good = score.cpu(), _check_labels(good, len(score))
    if not len(score):
        raise ValueError("There is no curve without scores and labels.")
    valid = ~score.isnan()
    value, order = score[valid].double().sort(descending=True)
    threshold, equal = value.unique_consecutive(return_counts=True)
    count = equal.cumsum(0)  # pairs that reach each threshold; equal scores together
    hits = good[valid][order].double().cumsum(0)[count - 1]
    rates = count.double() / len(score), hits / count, hits / good.sum()
    return PrecisionRecallCurve(threshold, *rates)


def joint_rank(scores: Scores) -> Tensor:
    """The four scores as one, (B,) in [0, 1]: each pair's worst rank of the four.

    A pair of rank q passes if each threshold drops at most the fraction q of all pairs.
    """
    table = torch.stack(list(vars(scores).values())).double().cpu()  # (4, B)
    below = (table[:, None, :] < table[:, :, None]).double().mean(2)
    return below.masked_fill(table.isnan(), math.nan).amin(0)


class FilterMetrics(NamedTuple):
    """What a filter keeps, beside what it should keep."""

    keep_rate: Proportion  # fraction of all pairs that pass
    precision: Proportion  # fraction of the passing pairs that are good
    recall: Proportion  # fraction of the good pairs that pass


def evaluate_filter(keep: Tensor, good: Tensor) -> FilterMetrics:
    """Keep rate, precision and recall of a filter, from (B,) bool each."""
    keep, good = _check_labels(keep), _check_labels(good, len(keep))
    return FilterMetrics(*map(proportion_ci, (keep, good[keep], keep[good])))


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
    scores: Scores, good: Tensor, thresholds: Filtering, *, precision: float
) -> Filtering:
    """The thresholds that keep most good pairs at a required precision.

    All combinations of ten quantiles of three scores are tried; the two captions share
    a threshold, as in the paper. Evaluate the result on other triplets: on these it is
    too optimistic.

    ``good`` (B,) bool says which of the B pairs are; ``thresholds`` gives ``keep``;
    ``precision`` is the required fraction of good pairs among the passing, in [0, 1].
    Raises ValueError if no combination is as precise as that.
    """
    check_number("precision", precision, high=1)
    good = _check_labels(good, len(scores.image))
    text = torch.minimum(scores.before, scores.after)
    table = torch.stack([scores.image, text, scores.direction]).double().cpu()  # (3, B)
    quantiles = torch.arange(_STEPS, dtype=torch.float64) / _STEPS
    limits = table.nanquantile(quantiles, dim=1).T  # (3, _STEPS)

    def quality(combination: tuple[Tensor, ...]) -> tuple[int, float]:
        """Number of good pairs that pass (-1 if imprecise), then the precision."""
        keep = (table >= torch.stack(combination)[:, None]).all(0)
        hits = int((keep & good).sum())
        reached = hits / max(int(keep.sum()), 1)
        return (hits if reached >= precision else -1), reached

    best = max(product(*limits), key=quality)
    hits, reached = quality(best)
    if hits < 0:
        raise ValueError(
            f"No thresholds keep {precision:.0%} good pairs; the most precise keep "
            f"{reached:.0%}. Require less, or generate better pairs."
        )
    image, caption, direction = map(float, best)
    return replace(thresholds, image=image, text=caption, direction=direction)
