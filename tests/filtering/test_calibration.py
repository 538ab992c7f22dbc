"""What a filter keeps is counted rightly, and the thresholds chosen are the best."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.calibration import (
    acceptance,
    by_score,
    calibrate,
    curve,
    funnel,
    joint_rank,
    mark,
    share,
)
from ip2p_lib.filtering.clip_filter import Scores, passes
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


def test_a_curve_is_the_count_at_each_of_its_thresholds(scores, good):
    found = curve(scores.direction, good)
    assert len(found.threshold) == N
    for threshold, kept, precision, recall in zip(*vars(found).values(), strict=True):
        above = scores.direction.double() >= threshold
        assert kept == pytest.approx(float(above.double().mean()))
        assert precision == pytest.approx(float(good[above].double().mean()))
        assert recall == pytest.approx(float(above[good].double().mean()))


def test_equal_scores_are_kept_together():
    found = curve(torch.tensor([0.5, 0.9, 0.5]), torch.tensor([True, False, False]))
    assert found.threshold.tolist() == pytest.approx([0.9, 0.5])
    assert found.precision.tolist() == pytest.approx([0.0, 1 / 3])


def test_a_score_that_is_no_number_is_never_kept():
    found = curve(torch.tensor([math.nan, 0.2]), torch.tensor([True, True]))
    assert found.kept.tolist() == [0.5]
    assert found.found.tolist() == [0.5]
    assert curve(torch.tensor([math.nan]), torch.tensor([True])).kept.tolist() == []


def test_scores_without_verdicts_are_refused():
    with pytest.raises(ValueError, match="2 scores and 1 verdicts"):
        curve(torch.zeros(2), torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="0 scores"):
        curve(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5])
def test_the_joint_rank_is_four_thresholds_at_once(scores, dropped):
    number = int(dropped * N)
    bars = [column.sort().values[number] for column in vars(scores).values()]
    naive = [
        all(
            column[i] >= bar
            for column, bar in zip(vars(scores).values(), bars, strict=True)
        )
        for i in range(N)
    ]
    assert (joint_rank(scores) >= number / N).tolist() == naive


def test_the_joint_rank_of_a_pair_without_a_score_is_no_number(scores):
    image = scores.image.clone()
    image[3] = math.nan
    rank = joint_rank(replace(scores, image=image))
    assert rank.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_the_interval_holds_what_a_binomial_would_not_reject(n, part):
    """Wilson's ends are where the normal test of the share just turns."""
    hits = torch.arange(n) < round(part * n)
    value, low, high = share(hits)
    for end in (low, high):
        if 0 < end < 1:
            deviation = math.sqrt(end * (1 - end) / n)
            assert abs(value - end) / deviation == pytest.approx(1.96, rel=1e-6)
    assert 0 <= low <= value <= high <= 1


def test_of_nothing_nothing_is_known():
    value, low, high = share(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


def test_the_funnel_ends_with_the_best_of_each_triplet(scores):
    groups = integers(key("test", "group"), torch.arange(N), 9).tolist()
    steps = funnel(scores, groups, LIMITS)
    names = [
        "rendered",
        "image ≥ 0.5",
        "before ≥ 0.3",
        "after ≥ 0.3",
        "direction ≥ 0.4",
    ]
    assert list(steps) == [*names, "best 2 of a triplet"]
    for wider, narrower in itertools.pairwise(steps.values()):
        assert not (narrower & ~wider).any()
    assert torch.equal(steps["direction ≥ 0.4"], passes(scores, LIMITS))
    last = steps["best 2 of a triplet"]
    for group in set(groups):
        own = torch.tensor([g == group for g in groups]) & passes(scores, LIMITS)
        expected = scores.direction[own].sort(descending=True).values[:2]
        assert sorted(scores.direction[own & last].tolist()) == sorted(
            expected.tolist()
        )


def test_marks_are_shares_of_all_of_the_kept_and_of_the_good():
    chosen = torch.tensor([True, True, True, False, False])
    good = torch.tensor([True, True, False, True, False])
    marks = mark(chosen, good)
    values = [s.value for s in marks]
    assert values == pytest.approx([3 / 5, 2 / 3, 2 / 3])


def test_acceptance_counts_each_value_in_one_bin():
    values = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.9])
    accepted = torch.tensor([True, False, True, True, False])
    low, high = acceptance(values, accepted, [0.1, 0.5, 0.9])
    assert (low.value, high.value) == (pytest.approx(1 / 2), pytest.approx(2 / 3))


def exhaustive(scores, good, tried, precision):
    """Most good pairs that any of the tried thresholds keep, one filter at a time."""
    most = 0
    for image, text, direction in itertools.product(*tried):
        limits = Filtering(image=image, text=text, direction=direction)
        kept = passes(scores, limits)
        hits = int((kept & good).sum())
        if kept.any() and hits >= precision * int(kept.sum()):
            most = max(most, hits)
    return most


@pytest.mark.parametrize("precision", [0.3, 0.6, 0.9])
def test_calibrated_thresholds_keep_most_good_pairs_at_that_precision(
    scores, good, precision
):
    steps = 6
    text = torch.minimum(scores.before, scores.after)
    shares = torch.arange(steps, dtype=torch.float64) / steps
    tried = [
        x.double().quantile(shares).tolist()
        for x in (scores.image, text, scores.direction)
    ]
    found = calibrate(scores, good, LIMITS, precision=precision, steps=steps)
    marks = mark(passes(scores, found), good)
    assert found.keep == LIMITS.keep
    assert marks.precision.value >= precision
    expected = exhaustive(scores, good, tried, precision) / int(good.sum())
    assert marks.found.value == pytest.approx(expected)


def test_a_precision_out_of_reach_is_refused(scores):
    nothing = torch.zeros(N, dtype=torch.bool)
    with pytest.raises(
        ValueError, match="of which 50% are good; the most precise keep 0%"
    ):
        calibrate(scores, nothing, LIMITS, precision=0.5)


def test_thresholds_name_each_score_once(scores):
    assert list(by_score(LIMITS)) == list(vars(scores))
    assert by_score(LIMITS)["before"] == by_score(LIMITS)["after"] == LIMITS.text
