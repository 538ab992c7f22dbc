"""The panel draws what the plain call draws, wherever its sliders are."""

import base64
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.filtering import Scores
from ip2p_lib.filtering.calibration import funnel
from ip2p_lib.filtering.figures import plot_funnel
from ip2p_lib.filtering.panel import ThresholdPanel
from ip2p_lib.notebook.figures import to_png
from ip2p_lib.rng import uniform

START = Filtering(image=0.2, text=0.1, direction=0.3, keep=2)
SCORES = Scores(*(uniform(column, torch.arange(40)) for column in range(4)))
GROUPS, GOOD = [i // 5 for i in range(40)], SCORES.direction > 0.5


@pytest.fixture
def panel():
    return ThresholdPanel(SCORES, GROUPS, START, GOOD)


def expected(thresholds):
    return to_png(plot_funnel(funnel(SCORES, GROUPS, thresholds), GOOD))


@pytest.mark.parametrize(("name", "value"), [("text", 0.4), ("keep", 1)])
def test_a_moved_slider_draws_what_the_plain_call_draws(panel, name, value):
    assert panel.plot.value == expected(START)
    panel.sliders[name].value = value
    moved = expected(replace(START, **{name: value}))
    assert panel.plot.value == moved != expected(START)
    still = panel._repr_mimebundle_()["image/png"]  # for a page without widgets
    assert base64.b64decode(still) == moved
