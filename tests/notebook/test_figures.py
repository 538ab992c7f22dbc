"""Figures: what a reader sees in them, on any machine and in two languages."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from ip2p_lib.notebook import figures
from ip2p_lib.notebook.style import wrap_text

RED = Image.new("RGB", (128, 128), (255, 0, 0))
BLUE = Image.new("RGB", (128, 128), (0, 0, 255))
ZH = "把向日葵换成玫瑰"


def to_pixels(figure: Figure) -> np.ndarray:
    """The figure as a notebook shows it; warnings are errors."""
    return np.asarray(figures.to_image(figure))


def texts(figure: Figure) -> list[str]:
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title() for axes in figure.axes]
    return [text for text in (*labels, *titles) if text]


def test_the_input_stands_left_of_the_edit_under_the_instruction():
    figure = figures.show_pairs(RED, "make it blue", BLUE)
    pixels = to_pixels(figure)
    red, blue = (
        np.argwhere((pixels == colour).all(-1)).mean(0)
        for colour in ((255, 0, 0), (0, 0, 255))
    )
    assert red[0] == pytest.approx(blue[0], abs=1)
    assert red[1] + 190 < blue[1]
    assert texts(figure) == ["make it blue"]
    assert np.argwhere((pixels < 80).all(-1))[:, 0].max() < red[0] - 90


def test_images_keep_their_size_and_shape_whatever_their_number():
    for count in (1, 5):
        figure = figures.show_pairs([RED] * count, ["x"] * count, [BLUE] * count)
        figure.canvas.draw()
        assert {round(axes.bbox.width) for axes in figure.axes} <= {200, 201}
    wide = Image.new("RGB", (256, 128), (255, 0, 0))
    pixels = to_pixels(figures.show_grid([[wide, wide], [wide]], ["a"], ["b"]))
    rows, columns = np.nonzero((pixels == (255, 0, 0)).all(-1))
    assert np.unique(rows).size == pytest.approx(2 * 100, abs=3)
    assert np.unique(columns).size == pytest.approx(2 * 200, abs=3)


def test_a_tensor_shows_as_the_image_it_holds():
    tensor = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16)
    images = [Image.new("RGB", (16, 16), c) for c in ((255, 0, 0), (0, 255, 255))]
    one, two = (
        to_pixels(figures.film_strip(shown, ["t = 999", "t = 0"]))
        for shown in (torch.stack([tensor, -tensor]).half(), images)
    )
    assert np.array_equal(one, two)


def test_chinese_is_drawn_with_glyphs_not_boxes():
    shown = to_pixels(figures.show_pairs(RED, ZH, BLUE))
    boxes = to_pixels(figures.show_pairs(RED, "\u25a1" * len(ZH), BLUE))
    assert (shown < 80).all(-1).sum() > 1.2 * (boxes < 80).all(-1).sum()


@pytest.mark.parametrize("text", ["add a \U0001f339", "ជ", "𠜎", r"$x^{2$ and $\frac"])
def test_no_text_warns_or_becomes_mathematics(text: str):
    """A character without a glyph is a visible box."""
    figure = figures.show_pairs(RED, text, BLUE)
    to_pixels(figure)
    assert texts(figure) == [text] if "$" in text else "\u25a1" in texts(figure)[0]


@pytest.mark.parametrize("text", ["put the " + "very " * 30 + "big cat here", ZH * 8])
def test_a_long_instruction_fits_its_pair(text: str):
    figure = figures.show_pairs(RED, text, BLUE)
    figure.canvas.draw()
    (title,) = figure.axes[0].texts
    bounds = title.get_window_extent()
    assert bounds.x0 >= 0
    assert bounds.x1 <= figure.bbox.width
    assert bounds.y1 <= figure.bbox.height
    assert title.get_text().replace("\n", " " if "very" in text else "") == text


def test_counts_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="2, 1 and 1 inputs"):
        figures.show_pairs([RED, RED], "x", BLUE)
    with pytest.raises(ValueError, match="no image"):
        figures.show_pairs([], [], [])


def test_plots_show_the_numbers_that_they_are_given():
    opened = plt.get_fignums()
    points = [(0.1, 0.95, 2.2), (0.2, 0.9, 1.6), (0.25, 0.8, 1.0)]
    curve = figures.plot_curve({"ours": points, "copy": [(0.0, 1.0, "")]})
    assert curve.axes[0].lines[0].get_xydata().tolist() == [list(p[:2]) for p in points]
    assert [text.strip() for text in texts(curve)[:3]] == ["2.2", "1.6", "1.0"]

    scores = {"direction": [0.1, 0.2, 0.3, 0.4], "image": torch.ones(99)}
    histograms = figures.plot_histograms(scores, {"direction": 0.2, "image": 2})
    assert texts(histograms) == ["direction\n75% ≥ 0.2", "image\n0% ≥ 2"]

    counts = figures.plot_counts({"valid": 97, "parts": 3}, title="replies")
    assert texts(counts) == ["97", "3", "replies"]

    t = torch.linspace(0, 1, 5)
    lines = figures.plot_lines(t, {"t squared": t**2}, x_label="t", title=ZH)
    assert lines.axes[0].lines[0].get_ydata() == pytest.approx(t.square().tolist())
    assert wrap_text(ZH, 9) == ZH == lines.axes[0].get_title()
    for figure in (curve, histograms, counts, lines):
        to_pixels(figure)
    assert plt.get_fignums() == opened, "an open figure is shown a second time"
