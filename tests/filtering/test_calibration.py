"""Counts of a filter are right, and the calibrated thresholds are the best."""

import itertools
import math

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.filtering import Scores, passes
from ip2p_lib.filtering.calibration import (
    calibrate,
    evaluate_filter,
    funnel,
    joint_rank,
    precision_recall_curve,
    proportion_ci,
)
from ip2p_lib.rng import integers, key, uniform

LIMITS = Filtering(image=0.5, text=0.3, direction=0.4, keep=2)
N = 60
IMAGE, BEFORE, AFTER, DIRECTION, LUCK = (
    uniform(key("test", name), torch.arange(N))
    for name in ("image", "before", "after", "direction", "luck")
)
SCORES = Scores(IMAGE, BEFORE, AFTER, DIRECTION)
GOOD = DIRECTION + 0.3 * LUCK > 0.8


def test_a_curve_is_the_count_at_each_threshold():
    curve = precision_recall_curve(DIRECTION, GOOD)
    assert len(curve.threshold) == N
    for threshold, *rates in zip(*vars(curve).values(), strict=True):
        above = DIRECTION.double() >= threshold
        parts = above, GOOD[above], above[GOOD]
        assert rates == pytest.approx([float(part.double().mean()) for part in parts])


def test_equal_scores_pass_together_and_nan_never():
    score = torch.tensor([0.5, math.nan, 0.9, 0.5])
    curve = precision_recall_curve(score, torch.tensor([True, True, False, False]))
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.5])
    assert curve.precision.tolist() == pytest.approx([0.0, 1 / 3])
    assert curve.keep_rate.tolist() == [0.25, 0.75]
    assert curve.recall.tolist() == [0.0, 0.5]
    empty = precision_recall_curve(torch.tensor([math.nan]), torch.tensor([True]))
    assert empty.keep_rate.tolist() == []
    for n, m in ((2, 1), (0, 0)):
        with pytest.raises(ValueError, match="labels"):
            precision_recall_curve(torch.zeros(n), torch.ones(m, dtype=torch.bool))


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5])
def test_the_joint_rank_is_four_thresholds_at_once(dropped):
    number, columns = int(dropped * N), torch.stack([*vars(SCORES).values()])
    expected = (columns >= columns.sort(1).values[:, number, None]).all(0)
    assert torch.equal(joint_rank(SCORES) >= number / N, expected)
    image = IMAGE.clone()
    image[3] = math.nan
    rank = joint_rank(Scores(image, BEFORE, AFTER, DIRECTION))
    assert rank.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_the_interval_is_wilsons(n, part):
    """Its ends are where the normal test of the proportion just turns."""
    value, low, high = proportion_ci(torch.arange(n) < round(part * n))
    for end in (low, high):
        if 0 < end < 1:
            deviation = math.sqrt(end * (1 - end) / n)
            assert abs(value - end) / deviation == pytest.approx(1.96, rel=1e-6)
    assert 0 <= low <= value <= high <= 1
    value, low, high = proportion_ci(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


def test_the_funnel_ends_with_the_best_of_each_triplet():
    groups = integers(key("test", "group"), torch.arange(N), 9).tolist()
    stages = funnel(SCORES, groups, LIMITS)
    limits = ["image ≥ 0.5", "before ≥ 0.3", "after ≥ 0.3", "direction ≥ 0.4"]
    assert list(stages) == ["generated", *limits, "best 2 of a triplet"]
    for wider, narrower in itertools.pairwise(stages.values()):
        assert not (narrower & ~wider).any()
    passed, last = passes(SCORES, LIMITS), stages["best 2 of a triplet"]
    assert torch.equal(stages["direction ≥ 0.4"], passed)
    for group in set(groups):
        own = torch.tensor([g == group for g in groups]) & passed
        best = DIRECTION[own].sort(descending=True).values[:2]
        assert set(DIRECTION[own & last].tolist()) == set(best.tolist())


def test_metrics_are_of_all_pairs_of_the_passing_and_of_the_good():
    keep = torch.tensor([True, True, True, False, False])
    good = torch.tensor([True, True, False, True, False])
    values = [proportion.value for proportion in evaluate_filter(keep, good)]
    assert values == pytest.approx([3 / 5, 2 / 3, 2 / 3])
    for odd in (keep.long(), keep[:1]):
        with pytest.raises(ValueError, match="pairs are"):
            evaluate_filter(odd, good)
        with pytest.raises(ValueError, match=r"of 60 pairs are \(60,\) bool"):
            calibrate(SCORES, odd, LIMITS, precision=0.5)


@pytest.mark.parametrize("precision", [0.3, 0.9])
def test_calibrated_thresholds_keep_most_good_pairs_at_that_precision(precision):
    limits = calibrate(SCORES, GOOD, LIMITS, precision=precision)
    metrics = evaluate_filter(passes(SCORES, limits), GOOD)
    assert limits.keep == LIMITS.keep
    assert metrics.precision.value >= precision
    quantiles, most = torch.arange(10, dtype=torch.float64) / 10, 0
    columns = IMAGE, torch.minimum(BEFORE, AFTER), DIRECTION
    for image, text, direction in itertools.product(  # one filter at a time
        *(column.double().quantile(quantiles).tolist() for column in columns)
    ):
        keep = passes(SCORES, Filtering(image, text, direction))
        hits = int((keep & GOOD).sum())
        if keep.any() and hits >= precision * int(keep.sum()):
            most = max(most, hits)
    assert metrics.recall.value == pytest.approx(most / int(GOOD.sum()))


def test_a_precision_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="precise keep 0%"):
        calibrate(SCORES, GOOD & False, LIMITS, precision=0.5)
