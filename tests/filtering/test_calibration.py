"""Counts of a filter are right, and the calibrated thresholds are the best."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.filtering import Scores, passes
from ip2p_lib.filtering.calibration import (
    acceptance_by_bin,
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


def drawn(name, n=N):
    return uniform(key("test", name), torch.arange(n))


@pytest.fixture(scope="module")
def scores():
    return Scores(*(drawn(name) for name in ("image", "before", "after", "direction")))


@pytest.fixture(scope="module")
def good(scores):
    return scores.direction + 0.3 * drawn("luck") > 0.8


def test_a_curve_is_the_count_at_each_threshold(scores, good):
    curve = precision_recall_curve(scores.direction, good)
    assert len(curve.threshold) == N
    for threshold, rate, precision, recall in zip(*vars(curve).values(), strict=True):
        above = scores.direction.double() >= threshold
        assert rate == pytest.approx(float(above.double().mean()))
        assert precision == pytest.approx(float(good[above].double().mean()))
        assert recall == pytest.approx(float(above[good].double().mean()))


def test_equal_scores_are_kept_together_and_nan_never():
    score = torch.tensor([0.5, math.nan, 0.9, 0.5])
    curve = precision_recall_curve(score, torch.tensor([True, True, False, False]))
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.5])
    assert curve.precision.tolist() == pytest.approx([0.0, 1 / 3])
    assert curve.keep_rate.tolist() == [0.25, 0.75]
    assert curve.recall.tolist() == [0.0, 0.5]
    empty = precision_recall_curve(torch.tensor([math.nan]), torch.tensor([True]))
    assert empty.keep_rate.tolist() == []


@pytest.mark.parametrize(("n", "m"), [(2, 1), (0, 0)])
def test_scores_without_labels_are_refused(n, m):
    with pytest.raises(ValueError, match="labels"):
        precision_recall_curve(torch.zeros(n), torch.ones(m, dtype=torch.bool))


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5])
def test_the_joint_rank_is_four_thresholds_at_once(scores, dropped):
    number, columns = int(dropped * N), list(vars(scores).values())
    limits = [column.sort().values[number] for column in columns]
    expected = torch.stack(
        [column >= limit for column, limit in zip(columns, limits, strict=True)]
    ).all(0)
    assert torch.equal(joint_rank(scores) >= number / N, expected)


def test_the_joint_rank_of_a_pair_without_a_score_is_nan(scores):
    image = scores.image.clone()
    image[3] = math.nan
    rank = joint_rank(replace(scores, image=image))
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


def test_the_proportion_of_nothing_is_unknown():
    value, low, high = proportion_ci(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


def test_the_funnel_ends_with_the_best_of_each_triplet(scores):
    groups = integers(key("test", "group"), torch.arange(N), 9).tolist()
    stages = funnel(scores, groups, LIMITS)
    limits = ["image ≥ 0.5", "before ≥ 0.3", "after ≥ 0.3", "direction ≥ 0.4"]
    assert list(stages) == ["generated", *limits, "best 2 of a triplet"]
    for wider, narrower in itertools.pairwise(stages.values()):
        assert not (narrower & ~wider).any()
    passed, last = passes(scores, LIMITS), stages["best 2 of a triplet"]
    assert torch.equal(stages["direction ≥ 0.4"], passed)
    for group in set(groups):
        own = torch.tensor([g == group for g in groups]) & passed
        best = scores.direction[own].sort(descending=True).values[:2]
        assert set(scores.direction[own & last].tolist()) == set(best.tolist())


def test_metrics_are_of_all_of_the_kept_and_of_the_good():
    kept = torch.tensor([True, True, True, False, False])
    good = torch.tensor([True, True, False, True, False])
    values = [proportion.value for proportion in evaluate_filter(kept, good)]
    assert values == pytest.approx([3 / 5, 2 / 3, 2 / 3])


def test_each_value_is_counted_in_one_bin():
    values = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.9])
    accepted = torch.tensor([True, False, True, True, False])
    low, high = acceptance_by_bin(values, accepted, [0.1, 0.5, 0.9])
    assert (low.value, high.value) == (pytest.approx(1 / 2), pytest.approx(2 / 3))


def best_recall(scores, good, precision, steps):
    """Most good pairs that any of the thresholds keep, one filter at a time."""
    text = torch.minimum(scores.before, scores.after)
    quantiles = torch.arange(steps, dtype=torch.float64) / steps
    most = 0
    for image, caption, direction in itertools.product(
        *(x.double().quantile(quantiles).tolist()
          for x in (scores.image, text, scores.direction))
    ):  # fmt: skip
        limits = Filtering(image=image, text=caption, direction=direction)
        kept = passes(scores, limits)
        hits = int((kept & good).sum())
        if kept.any() and hits >= precision * int(kept.sum()):
            most = max(most, hits)
    return most / int(good.sum())


@pytest.mark.parametrize("precision", [0.3, 0.6, 0.9])
def test_calibrated_thresholds_keep_most_good_pairs_at_that_precision(
    scores, good, precision
):
    limits = calibrate(scores, good, LIMITS, precision=precision, steps=6)
    metrics = evaluate_filter(passes(scores, limits), good)
    assert limits.keep == LIMITS.keep
    assert metrics.precision.value >= precision
    expected = best_recall(scores, good, precision, 6)
    assert metrics.recall.value == pytest.approx(expected)


def test_a_precision_out_of_reach_is_refused(scores):
    nothing = torch.zeros(N, dtype=torch.bool)
    with pytest.raises(ValueError, match="precise keep 0%"):
        calibrate(scores, nothing, LIMITS, precision=0.5)
