"""The panel draws what the plain call draws, wherever its sliders are."""

import base64
import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ip2p_lib.config import Filtering
from ip2p_lib.filtering import Scores
from ip2p_lib.filtering.calibration import funnel
from ip2p_lib.filtering.figures import plot_funnel
from ip2p_lib.filtering.panel import ThresholdPanel
from ip2p_lib.notebook.figures import to_png
from ip2p_lib.rng import integers, key, uniform

N = 40
START = Filtering(image=0.2, text=0.1, direction=0.3, keep=2)
NAMES = ("image", "before", "after", "direction")
SCORES = Scores(*(uniform(key("test", name), torch.arange(N)) for name in NAMES))
GROUPS = integers(key("test", "group"), torch.arange(N), 8).tolist()
GOOD = SCORES.direction > 0.5


@pytest.fixture
def panel():
    return ThresholdPanel(SCORES, GROUPS, START, GOOD)


def expected(thresholds, good=GOOD):
    return to_png(plot_funnel(funnel(SCORES, GROUPS, thresholds), good))


@pytest.mark.parametrize(
    ("name", "value"), [("image", 0.6), ("text", 0.4), ("direction", 0.8), ("keep", 1)]
)
def test_a_moved_slider_draws_what_the_plain_call_draws(panel, name, value):
    assert panel.picture.value == expected(START)
    panel.sliders[name].value = value
    moved = expected(replace(START, **{name: value}))
    assert panel.picture.value == moved != expected(START)


def test_labels_are_optional():
    panel = ThresholdPanel(SCORES, GROUPS, START)
    assert panel.picture.value == expected(START, good=None)


def test_a_page_without_widgets_gets_a_still(panel):
    bundle = panel._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.size == Image.open(io.BytesIO(panel.picture.value)).size


def test_an_error_is_shown_in_the_panel(panel, monkeypatch):
    def fail(*_):
        raise RuntimeError("<b>no room</b>")

    monkeypatch.setattr("ip2p_lib.filtering.panel.funnel", fail)
    panel.sliders["image"].value = 0.9
    assert "RuntimeError: &lt;b&gt;no room" in panel.message.value
