"""Figures of the filter show the counts and shares that they are given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.filtering.calibration import acceptance, curve, mark, share
from ip2p_lib.filtering.figures import (
    plot_funnel,
    plot_shares,
    plot_thresholds,
    plot_trade,
)

LEFT = torch.arange(10) < 6
GOOD = torch.arange(10) % 2 == 0
STEPS = {"rendered": GOOD | True, "image ≥ 0.5": LEFT, "none": LEFT & False}
SCORE = torch.linspace(0, 1, 10)


def drawn(figure):
    """As a notebook saves it; warnings are errors."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return np.asarray(Image.open(file).convert("RGB"))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_funnel_counts_what_is_left_and_what_of_it_is_good():
    figure = plot_funnel(STEPS, GOOD)
    drawn(figure)
    (axes,) = figure.axes
    assert texts(axes) == ["10, 50% good", "6, 50% good", "0"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [10, 6, 0, 5, 3, 0]


def test_without_verdicts_the_funnel_has_one_bar_a_step():
    figure = plot_funnel(STEPS)
    drawn(figure)
    assert texts(figure.axes[0]) == ["10", "6", "0"]
    assert len(figure.axes[0].patches) == 3


@pytest.mark.parametrize("n", [1, 40])
def test_labels_stay_inside_the_funnel(n):
    figure = plot_funnel({"best 3 of a triplet": torch.ones(n) > 0}, torch.ones(n) > 0)
    figure.canvas.draw()
    (label,) = figure.axes[0].texts
    assert label.get_window_extent().x1 <= figure.bbox.width


def test_thresholds_stand_where_they_are_on_each_score():
    found = curve(SCORE, GOOD)
    figure = plot_thresholds(
        {"image": found, "direction": found}, {"image": 0.3, "direction": 0.6}
    )
    drawn(figure)
    for axes, bar in zip(figure.axes, (0.3, 0.6), strict=True):
        precision, kept, line = axes.lines
        assert np.allclose(precision.get_ydata(), found.precision)
        assert np.allclose(kept.get_ydata(), found.kept)
        assert line.get_xdata()[0] == bar


def test_a_trade_is_drawn_from_the_least_share_on():
    found, marks = curve(SCORE, GOOD), mark(LEFT, GOOD)
    figure = plot_trade(
        {"direction": found, "all": found}, {"ours": marks}, ceiling=0.9, least=0.5
    )
    drawn(figure)
    (axes,) = figure.axes
    thin, strong, point = axes.lines[:3]
    assert min(thin.get_xdata()) == pytest.approx(0.5)
    assert strong.get_linewidth() > thin.get_linewidth()
    assert (point.get_xdata(), point.get_ydata()) == ([0.6], [0.5])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["direction", "all", "ours"]
    assert "perfect pairs" in texts(axes)


def test_a_filter_that_keeps_nothing_is_no_point():
    marks = mark(LEFT & False, GOOD)
    drawn(plot_trade({"image": curve(SCORE, GOOD)}, {"nothing": marks}))


def test_shares_stand_over_the_middle_of_their_bins():
    edges = [0.0, 0.5, 1.0]
    lines = {"kept": acceptance(SCORE, LEFT, edges), "good": [share(GOOD)] * 2}
    figure = plot_shares({"p": (edges, lines), "scale": (edges, lines)})
    drawn(figure)
    for axes in figure.axes:
        shown = axes.lines[0]
        assert np.allclose(shown.get_xdata(), [0.25, 0.75], atol=0.03)
        assert np.allclose(shown.get_ydata(), [line.value for line in lines["kept"]])


def test_an_empty_bin_is_a_gap():
    lines = {"kept": acceptance(SCORE, LEFT, [0.0, 1.0, 2.0, 3.0])}
    drawn(plot_shares({"p": ([0.0, 1.0, 2.0, 3.0], lines)}))
