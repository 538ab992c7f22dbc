"""Figures of the filter show the counts and proportions that they are given."""

import pytest
import torch

from ip2p_lib.filtering.calibration import evaluate_filter, precision_recall_curve
from ip2p_lib.filtering.figures import plot_funnel, plot_precision_curves
from ip2p_lib.notebook.figures import to_png

LEFT = torch.arange(10) < 6
GOOD = torch.arange(10) % 2 == 0
NONE = LEFT & False
STAGES = {"generated": GOOD | True, "image ≥ 0.5": LEFT, "none": NONE}


def draw(figure):
    """The figure's axes and their texts, once it was drawn without a warning."""
    to_png(figure)
    (axes,) = figure.axes
    return axes, [text.get_text() for text in axes.texts]


def test_the_funnel_counts_remaining_and_good_pairs():
    axes, texts = draw(plot_funnel(STAGES, GOOD))
    assert texts == ["10, 50% good", "6, 50% good", "0"]
    assert [bar.get_width() for bar in axes.patches] == [10, 6, 0, 5, 3, 0]
    assert all(t.get_window_extent().x1 <= axes.figure.bbox.width for t in axes.texts)
    axes, texts = draw(plot_funnel(STAGES))  # it is unknown which are good
    assert texts == ["10", "6", "0"] and len(axes.patches) == 3


def test_precision_is_drawn_from_a_tenth_of_the_pairs_on():
    score = torch.linspace(0, 1, 40)
    curve = precision_recall_curve(score, GOOD.repeat(4))
    metrics, nothing = evaluate_filter(LEFT, GOOD), evaluate_filter(NONE, GOOD)
    axes, texts = draw(
        plot_precision_curves(
            {"direction": curve, "all": curve},
            {"ours": metrics, "nothing passes": nothing},
            ceiling=0.9,
        )
    )
    thin, strong, point = axes.lines[:3]
    assert min(thin.get_xdata()) == pytest.approx(0.1)
    assert strong.get_linewidth() > thin.get_linewidth()
    assert (point.get_xdata(), point.get_ydata()) == ([0.6], [0.5])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["direction", "all", "ours", "nothing passes"]
    assert texts == ["perfect pairs"]
