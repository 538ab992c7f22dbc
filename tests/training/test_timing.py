"""The time that is left is judged by the steps taken, whatever the first ones cost."""

import pytest
import torch

from ip2p_lib.training import timing as training_time
from ip2p_lib.training.timing import duration, guess_seconds, product_speed, time_left


def test_slow_first_steps_and_a_hiccup_do_not_count():
    steady = [0.5] * 16 + [7.0]
    assert time_left([90.0, 30.0, 2.0, *steady], 1000) == pytest.approx(500)
    assert time_left([9.0, 9.0, 9.0, 1.0, 2.0, 3.0], 10) == pytest.approx(20)
    assert time_left([1.0] * 20, 0) == 0


@pytest.mark.parametrize("seconds", [[], [1.0] * 3])
def test_too_few_steps_say_nothing(seconds):
    with pytest.raises(ValueError, match="Ask again after 20"):
        time_left(seconds, 10)


def test_the_speed_of_products_is_operations_by_seconds(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(training_time.time, "perf_counter", lambda: next(clock))
    assert product_speed("cpu", torch.float32, size=10) == 2 * 10**3
    steps = guess_seconds(flops=10**6, speed=10**6, steps=7)
    assert steps == pytest.approx(7 / training_time.SHARE)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (119, "119 s"),
        (150, "2.5 min"),
        (3600, "60 min"),
        (9000, "2.5 h"),
        (36000, "10 h"),
        (864000, "10 days"),
    ],
)
def test_a_time_in_words_has_the_unit_that_suits_it(seconds, words):
    assert duration(seconds) == words
