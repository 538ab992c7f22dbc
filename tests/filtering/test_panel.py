"""The panel of thresholds, driven as hands would drive it."""

import base64
import io

import pytest
import torch
from PIL import Image

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.calibration import funnel
from ip2p_lib.filtering.clip_filter import Scores
from ip2p_lib.filtering.figures import plot_funnel
from ip2p_lib.filtering.panel import ThresholdPanel, threshold_panel
from ip2p_lib.notebook.panel import to_png
from ip2p_lib.rng import integers, key, uniform

N = 40
START = Filtering(image=0.2, text=0.1, direction=0.3, keep=2)
SCORES = Scores(
    *(
        uniform(key("test", name), torch.arange(N))
        for name in ("image", "before", "after", "direction")
    )
)
GROUPS = integers(key("test", "group"), torch.arange(N), 8).tolist()
GOOD = SCORES.direction > 0.5


@pytest.fixture
def panel() -> ThresholdPanel:
    return threshold_panel(SCORES, GROUPS, START, GOOD)


def expected(thresholds: Filtering) -> bytes:
    return to_png(plot_funnel(funnel(SCORES, GROUPS, thresholds), GOOD))


def test_the_panel_starts_where_the_filter_stands(panel):
    assert panel.thresholds() == START
    assert panel.picture.value == expected(START)


@pytest.mark.parametrize(
    ("name", "value"), [("image", 0.6), ("text", 0.4), ("direction", 0.8), ("keep", 1)]
)
def test_a_moved_slider_draws_what_the_plain_call_draws(panel, name, value):
    getattr(panel, name).value = value
    moved = Filtering(**{**vars(START), name: value})
    assert panel.thresholds() == moved
    assert panel.picture.value == expected(moved) != expected(START)


def test_the_message_counts_pairs_triplets_and_the_good_ones_found(panel):
    panel.direction.value = 0.5
    *_, left = funnel(SCORES, GROUPS, panel.thresholds()).values()
    rows = left.nonzero().flatten().tolist()
    served = len({GROUPS[i] for i in rows})
    found = f"{int((left & GOOD).sum()) / int(GOOD.sum()):.0%} of the good ones"
    assert f"{len(rows)} pairs stay, for {served} of" in panel.message.value
    assert found in panel.message.value


def test_a_filter_that_keeps_nothing_says_so(panel):
    panel.image.value = 1.0
    assert "0 pairs stay, for 0 of" in panel.message.value


def test_reset_goes_back_to_the_start(panel):
    panel.image.value, panel.keep.value = 0.9, 7
    panel.reset_button.click()
    assert panel.thresholds() == START
    assert panel.picture.value == expected(START)


def test_without_verdicts_nothing_is_said_of_good_pairs():
    panel = threshold_panel(SCORES, GROUPS, START)
    assert "good" not in panel.message.value
    plain = plot_funnel(funnel(SCORES, GROUPS, START))
    assert panel.picture.value == to_png(plain)


def test_a_page_without_widgets_gets_a_still(panel):
    bundle = panel._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert still.size == Image.open(io.BytesIO(panel.picture.value)).size
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.model_id


def test_an_error_is_shown_in_the_panel(panel, monkeypatch):
    def fail(*_):
        raise RuntimeError("<b>no room</b>")

    monkeypatch.setattr("ip2p_lib.filtering.panel.funnel", fail)
    panel.image.value = 0.9
    assert "RuntimeError: &lt;b&gt;no room" in panel.message.value
