"""Figures of the filter show the counts and proportions that they are given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.filtering.calibration import (
    acceptance_by_bin,
    evaluate_filter,
    precision_recall_curve,
    proportion_ci,
)
from ip2p_lib.filtering.figures import (
    plot_funnel,
    plot_precision_curves,
    plot_proportions,
    plot_thresholds,
)

LEFT = torch.arange(10) < 6
GOOD = torch.arange(10) % 2 == 0
NONE = LEFT & False
STAGES = {"generated": GOOD | True, "image ≥ 0.5": LEFT, "none": NONE}
SCORE = torch.linspace(0, 1, 10)


def drawn(figure):
    """As a notebook saves it; warnings are errors."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return np.asarray(Image.open(file).convert("RGB"))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_the_funnel_counts_remaining_and_good_pairs():
    figure = plot_funnel(STAGES, GOOD)
    drawn(figure)
    (axes,) = figure.axes
    assert texts(axes) == ["10, 50% good", "6, 50% good", "0"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [10, 6, 0, 5, 3, 0]


def test_without_labels_the_funnel_has_one_bar_a_stage():
    figure = plot_funnel(STAGES)
    drawn(figure)
    assert texts(figure.axes[0]) == ["10", "6", "0"]
    assert len(figure.axes[0].patches) == 3


@pytest.mark.parametrize("n", [1, 40])
def test_labels_stay_inside_the_funnel(n):
    figure = plot_funnel({"best 3 of a triplet": torch.ones(n) > 0}, torch.ones(n) > 0)
    figure.canvas.draw()
    (label,) = figure.axes[0].texts
    assert label.get_window_extent().x1 <= figure.bbox.width


def test_thresholds_are_drawn_on_each_score():
    curve = precision_recall_curve(SCORE, GOOD)
    figure = plot_thresholds(
        {"image": curve, "direction": curve}, {"image": 0.3, "direction": 0.6}
    )
    drawn(figure)
    for axes, limit in zip(figure.axes, (0.3, 0.6), strict=True):
        precision, rate, line = axes.lines
        assert np.allclose(precision.get_ydata(), curve.precision)
        assert np.allclose(rate.get_ydata(), curve.keep_rate)
        assert line.get_xdata()[0] == limit


def test_precision_is_drawn_from_the_smallest_keep_rate_on():
    curve, metrics = precision_recall_curve(SCORE, GOOD), evaluate_filter(LEFT, GOOD)
    curves = {"direction": curve, "all": curve}
    figure = plot_precision_curves(
        curves, {"ours": metrics}, ceiling=0.9, min_keep_rate=0.5
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
    metrics, curve = evaluate_filter(NONE, GOOD), precision_recall_curve(SCORE, GOOD)
    drawn(plot_precision_curves({"image": curve}, {"nothing": metrics}))


def test_proportions_are_over_the_middle_of_their_bins():
    edges = [0.0, 0.5, 1.0]
    lines = {"kept": acceptance_by_bin(SCORE, LEFT, edges)}
    lines["good"] = [proportion_ci(GOOD)] * 2
    figure = plot_proportions({"p": (edges, lines), "scale": (edges, lines)})
    drawn(figure)
    for axes in figure.axes:
        line = axes.lines[0]
        assert np.allclose(line.get_xdata(), [0.25, 0.75], atol=0.03)
        assert np.allclose(line.get_ydata(), [part.value for part in lines["kept"]])


def test_an_empty_bin_is_a_gap():
    edges = [0.0, 1.0, 2.0, 3.0]
    lines = {"kept": acceptance_by_bin(SCORE, LEFT, edges)}
    drawn(plot_proportions({"p": (edges, lines)}))
