"""Figures: what a reader sees in them, on any machine and in two languages."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

from ip2p_lib.notebook import figures
from ip2p_lib.notebook import style as figure_style

RED = Image.new("RGB", (128, 128), (255, 0, 0))
BLUE = Image.new("RGB", (128, 128), (0, 0, 255))
ZH = "把向日葵换成玫瑰"


def drawn(figure: Figure) -> np.ndarray:
    """The figure as pixels, as an inline notebook saves it; warnings are errors."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    titles = [axes.get_title() for axes in figure.axes]
    return [text for text in (*found, *titles) if text]


def centre_of(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero((picture == colour).all(-1))
    return rows.mean(), columns.mean()


def test_the_input_stands_left_of_the_edit_under_the_instruction() -> None:
    figure = figures.show_pairs(RED, "make it blue", BLUE)
    picture = drawn(figure)
    red, blue = centre_of(picture, (255, 0, 0)), centre_of(picture, (0, 0, 255))
    assert red[0] == pytest.approx(blue[0], abs=1)
    assert red[1] + 190 < blue[1]
    assert texts(figure) == ["make it blue"]
    ink_rows = np.nonzero((picture < 80).all(-1))[0]
    assert ink_rows.max() < red[0] - 90


def test_pictures_keep_their_size_whatever_their_number() -> None:
    for count in (1, 2, 4, 5):
        figure = figures.show_pairs([RED] * count, ["x"] * count, [BLUE] * count)
        figure.canvas.draw()
        widths = {round(axes.bbox.width) for axes in figure.axes}
        assert widths <= {200, 201}, (count, widths)


def test_wide_pictures_are_not_squeezed() -> None:
    wide = Image.new("RGB", (256, 128), (255, 0, 0))
    picture = drawn(figures.show_grid([[wide, wide], [wide]], ["a"], ["b"]))
    rows, columns = np.nonzero((picture == (255, 0, 0)).all(-1))
    assert np.unique(rows).size == pytest.approx(2 * 100, abs=3)
    assert np.unique(columns).size == pytest.approx(2 * 200, abs=3)


def test_a_tensor_shows_as_the_picture_it_holds() -> None:
    tensor = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 16, 16)
    batch = torch.stack([tensor, -tensor])
    one = drawn(figures.film_strip(batch.half(), ["t = 999", "t = 0"]))
    two = drawn(
        figures.film_strip(
            [
                Image.new("RGB", (16, 16), (255, 0, 0)),
                Image.new("RGB", (16, 16), (0, 255, 255)),
            ],
            ["t = 999", "t = 0"],
        )
    )
    assert np.array_equal(one, two)


def test_chinese_is_drawn_with_glyphs_not_boxes() -> None:
    shown = drawn(figures.show_pairs(RED, ZH, BLUE))
    boxes = drawn(figures.show_pairs(RED, "\u25a1" * len(ZH), BLUE))
    assert figure_style.wrap_text(ZH, 9) == ZH
    assert (shown < 80).all(-1).sum() > 1.2 * (boxes < 80).all(-1).sum()


@pytest.mark.parametrize("text", ["add a \U0001f339", "ជ", "𠜎"])
def test_a_character_without_a_glyph_is_a_visible_box(text: str) -> None:
    assert "\u25a1" in figure_style.wrap_text(text, 9)
    drawn(figures.show_pairs(RED, text, BLUE))  # warns of nothing


def test_a_dollar_sign_is_not_mathematics() -> None:
    figure = figures.show_pairs(RED, r"$x^{2$ and $\frac", BLUE)
    drawn(figure)
    assert texts(figure) == [r"$x^{2$ and $\frac"]


@pytest.mark.parametrize("text", ["put the " + "very " * 30 + "big cat here", ZH * 8])
def test_a_long_instruction_fits_its_pair(text: str) -> None:
    figure = figures.show_pairs(RED, text, BLUE)
    figure.canvas.draw()
    (title,) = figure.axes[0].texts
    bounds = title.get_window_extent()
    assert bounds.x0 >= 0
    assert bounds.x1 <= figure.bbox.width
    assert bounds.y1 <= figure.bbox.height
    together = title.get_text().replace("\n", " " if "very" in text else "")
    assert together == text.strip()


def test_counts_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="2, 1 and 1 inputs"):
        figures.show_pairs([RED, RED], "x", BLUE)
    with pytest.raises(ValueError, match="no image"):
        figures.show_grid([])
    with pytest.raises(ValueError, match="no image"):
        figures.show_pairs([], [], [])


def test_the_curve_labels_each_point_with_its_scale() -> None:
    points = [(0.1, 0.95, 2.2), (0.2, 0.9, 1.6), (0.25, 0.8, 1.0)]
    figure = figures.plot_curve({"ours": points, "copy": [(0.0, 1.0, "")]})
    drawn(figure)
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [list(p[:2]) for p in points]
    assert [text.get_text().strip() for text in axes.texts[:3]] == ["2.2", "1.6", "1.0"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ours", "copy"]


def test_the_smooth_loss_is_the_running_mean() -> None:
    losses = torch.rand(50)
    figure = figures.plot_loss({"miniature": losses}, window=10)
    x, y = figure.axes[0].lines[1].get_xydata().T
    assert x[0] == 9
    assert y[0] == pytest.approx(losses[:10].mean().item())
    assert y[-1] == pytest.approx(losses[-10:].mean().item())
    drawn(figures.plot_loss({"one step": [1.0]}))


def test_a_histogram_says_what_share_passes() -> None:
    scores = {"direction": [0.1, 0.2, 0.3, 0.4], "image": torch.rand(99)}
    figure = figures.plot_histograms(scores, {"direction": 0.2})
    drawn(figure)
    assert texts(figure) == ["direction\n75% ≥ 0.2", "image"]


def test_bars_carry_their_counts() -> None:
    figure = figures.plot_counts({"kept": 97, "parts": 3}, title="replies")
    drawn(figure)
    assert {text.get_text() for text in figure.axes[0].texts} == {"97", "3"}


def test_lines_are_drawn_where_they_are() -> None:
    t = torch.linspace(0, 1, 5)
    figure = figures.plot_lines(t, {"t squared": t**2}, x_label="t", title=ZH)
    drawn(figure)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(t.square().tolist())
    assert figure.axes[0].get_xlabel() == "t"


def test_no_figure_stays_open() -> None:
    before = plt.get_fignums()
    figures.show_grid([[RED]], title="one")
    figures.plot_loss({"a": [1.0, 2.0]})
    assert plt.get_fignums() == before


def test_a_notebook_shows_a_figure_once() -> None:
    """The returned figure is the only picture of its cell, in a real kernel."""
    code = (
        "from PIL import Image\n"
        "from ip2p_lib.notebook import figures\n"
        "figures.show_grid([[Image.new('RGB', (8, 8))]])"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    root = Path(figures.__file__).parents[2]
    NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": root}}
    ).execute()
    shown = [output for output in notebook.cells[0].outputs if "data" in output]
    assert [("image/png" in output.data) for output in shown] == [True]
