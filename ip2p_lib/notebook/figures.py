"""Figures of the notebooks: rows of images, lines, histograms, bars.

Images are PIL images or tensors in [-1, 1], (3, H, W) or (B, 3, H, W), alone or in a
list. Each function returns a ``Figure``, which a notebook shows as the value of a
cell's last line. Figures of one stage are in its room.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib.figure import Figure
from PIL.Image import Image

from ip2p_lib import images
from ip2p_lib.notebook.style import (
    COLOURS,
    PAGE,
    PANEL,
    PLOT,
    POINTS,
    new_figure,
    new_plot,
    text_style,
    wrap_text,
)

Images = Image | torch.Tensor | Sequence[Image | torch.Tensor]
Numbers = Sequence[float] | torch.Tensor
_GAP, _LINE = 0.08, 0.17  # inches: between images, height of a line of text


def to_png(shown: Image | Figure) -> bytes:
    """Encode an image or a figure as a PNG file."""
    file = io.BytesIO()
    if isinstance(shown, Image):
        shown.save(file, "png")
    else:
        shown.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def to_image(figure: Figure) -> Image:
    """Draw a figure as an RGB image, as a notebook shows it."""
    return PIL.Image.open(io.BytesIO(to_png(figure))).convert("RGB")


def _to_list(shown: Images) -> list[Image]:
    if isinstance(shown, torch.Tensor):
        return images.to_pil(shown.float().reshape(-1, *shown.shape[-3:]))
    if isinstance(shown, Sequence):
        return [image for part in shown for image in _to_list(part)]
    return [shown]


def _image_width(columns: int, left: float = 0.0) -> float:
    return min(PANEL, (PAGE - left) / max(1, columns) - _GAP)


def _label_height(labels: Sequence[str]) -> float:
    return _LINE * max((label.count("\n") + 1.3 for label in labels), default=0)


def _draw_grid(
    grid: Sequence[Sequence[Image]], top: float, between: float, left: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Draw rows of images; leave inches free at the top, between rows, at the left."""
    shapes = [image.height / image.width for row in grid for image in row]
    if not shapes:
        raise ValueError("There is no image to show.")
    rows, columns = len(grid), max(len(row) for row in grid)
    image_width = _image_width(columns, left)
    image_height = image_width * shapes[0]
    width = left + columns * (image_width + _GAP) - _GAP
    height = top + rows * (image_height + between) - between
    spaces = {"wspace": _GAP / image_width, "hspace": between / image_height}
    edges = {"left": left / width, "right": 1, "bottom": 0, "top": 1 - top / height}
    figure = new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spaces | edges)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, grid, strict=True):
        for axis, image in zip(line, row, strict=False):
            axis.imshow(image)
    return figure, axes


def show_pairs(
    before: Images, instruction: str | Sequence[str], after: Images
) -> Figure:
    """Show inputs and edits side by side, each pair under its instruction.

    Raises ValueError if the three do not have the same number, or there are none.
    """
    lefts, rights = _to_list(before), _to_list(after)
    texts = [instruction] if isinstance(instruction, str) else list(instruction)
    if not len(lefts) == len(texts) == len(rights):
        counts = f"{len(lefts)}, {len(texts)} and {len(rights)}"
        raise ValueError(f"Got {counts} inputs, instructions, edits: not pairs.")
    flat = [image for pair in zip(lefts, rights, strict=True) for image in pair]
    grid = [flat[at : at + 4] for at in range(0, len(flat), 4)]
    titles = [wrap_text(text, 2 * _image_width(4)) for text in texts]
    above = _label_height(titles)
    figure, axes = _draw_grid(grid, above, above + _GAP)
    middle = 1 + _GAP / 2 / PANEL  # of the pair, in widths of its left panel
    for axis, title in zip(axes[:, ::2].flat, titles, strict=False):
        place = {"transform": axis.transAxes, "ha": "center", "va": "bottom"}
        axis.text(middle, 1.02, title, **place, **text_style())
    return figure


def show_grid(
    rows: Sequence[Images],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Show rows of images with labels on the left and on top, under one title.

    Raises ValueError if there is no image.
    """
    grid = [_to_list(row) for row in rows]
    left = 1.0 if any(row_labels) else 0.0
    panel = _image_width(max(map(len, grid), default=0), left)
    tops = [wrap_text(label, panel) for label in column_labels]
    figure, axes = _draw_grid(grid, _label_height(tops), _GAP, left)
    for axis, top in zip(axes[0], tops, strict=False):
        axis.set_title(top, pad=3, **text_style())
    for axis, label in zip(axes[:, 0], row_labels, strict=False):
        place = {"transform": axis.transAxes, "ha": "right", "va": "center"}
        axis.text(-0.05, 0.5, wrap_text(label, left), **place, **text_style())
    figure.suptitle(wrap_text(title, PAGE), y=1.01, va="bottom", **text_style())
    return figure


def film_strip(shown: Images, labels: Sequence[str] = (), title: str = "") -> Figure:
    """Images in one row, such as the states of a sampler, each under its label."""
    return show_grid([shown], column_labels=labels, title=title)


def plot_lines(x: Numbers, lines: Mapping[str, Numbers], **labels: str) -> Figure:
    """Plot named lines over one axis; labels: ``x_label``, ``y_label``, ``title``."""
    figure, axes = new_plot(**labels)
    for name, y in lines.items():
        axes.plot(np.asarray(x), np.asarray(y), label=name)
    axes.legend(frameon=False, fontsize=POINTS - 1)
    return figure


def plot_curve(curves: Mapping[str, Sequence[tuple[float, float, Any]]]) -> Figure:
    """Plot the trade-off of section 4.1: following the text against keeping the image.

    ``curves`` are for each method its points (directional similarity, image similarity,
    scale), joined in the order given; the scale is written beside the point.
    """
    figure, axes = new_plot("CLIP directional similarity", "CLIP image similarity")
    for name, points in curves.items():
        x_all, y_all, _ = zip(*points, strict=True)
        axes.plot(x_all, y_all, "o-", markersize=4, label=name)
        for x, y, scale in points:
            axes.text(x, y, f" {scale}", va="bottom", fontsize=POINTS - 2)
    axes.legend(frameon=False, fontsize=POINTS - 1)
    return figure


def plot_histograms(
    values: Mapping[str, Numbers], thresholds: Mapping[str, float]
) -> Figure:
    """Plot histograms side by side, each titled with the share above its threshold."""
    figure = new_figure(PAGE, PLOT[1] * 0.7)
    axes = figure.subplots(1, len(values), squeeze=False, gridspec_kw={"wspace": 0.3})
    for axis, (name, numbers) in zip(axes[0], values.items(), strict=True):
        data, limit = np.asarray(numbers, dtype=float), thresholds[name]
        axis.hist(data, bins=min(30, max(5, len(data) // 8)), color=COLOURS[0])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=POINTS - 1)
        axis.axvline(limit, color=COLOURS[1])
        share = f"{(data >= limit).mean():.0%} ≥ {limit:g}"
        axis.set_title(f"{name}\n{share}", **text_style())
    return figure


def plot_counts(counts: Mapping[str, int], *, title: str = "") -> Figure:
    """Plot counted outcomes as labelled bars, the first on top."""
    figure, axes = new_plot(title=title)
    figure.set_figheight(0.6 + 0.32 * len(counts))
    bars = axes.barh(list(counts), list(counts.values()), color=COLOURS[0], zorder=2)
    axes.bar_label(bars, padding=3, fontsize=POINTS - 1)
    axes.invert_yaxis()
    return figure
