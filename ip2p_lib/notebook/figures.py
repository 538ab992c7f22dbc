"""The figures of the notebooks: pictures in rows, lines, histograms, bars.

Pictures are PIL images or tensors in [-1, 1], (3, H, W) or (B, 3, H, W), alone or in a
list. They keep one order everywhere, input before edit, under the instruction. Each
function returns the ``Figure``; as a cell's last line it is shown, once.

Figures of one stage have a module of their own, such as ``filter_figures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
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
    legible,
    lettering,
    new_figure,
    new_plot,
)

__all__ = [
    "COLOURS",
    "PAGE",
    "film_strip",
    "plot_counts",
    "plot_curve",
    "plot_histograms",
    "plot_lines",
    "plot_loss",
    "show_grid",
    "show_pairs",
]

Pictures = Image | torch.Tensor | Sequence[Image | torch.Tensor]
Numbers = Sequence[float] | torch.Tensor
_GAP, _LINE = 0.08, 0.17  # between panels, of a text line: inches


def _listed(shown: Pictures) -> list[Image]:
    if isinstance(shown, torch.Tensor):
        return images.to_pil(shown.float().reshape(-1, *shown.shape[-3:]))
    if isinstance(shown, Sequence):
        return [picture for one in shown for picture in _listed(one)]
    return [shown]


def _panel(columns: int, left: float = 0.0) -> float:
    return min(PANEL, (PAGE - left) / max(1, columns) - _GAP)


def _above(labels: Sequence[str]) -> float:
    return _LINE * max((label.count("\n") + 1.3 for label in labels), default=0)


def _cells(
    grid: Sequence[Sequence[Image]], top: float, between: float, left: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Draw rows of pictures, with inches left free on top, between rows, and left."""
    shapes = [picture.height / picture.width for row in grid for picture in row]
    if not shapes:
        raise ValueError("There is no picture to show.")
    rows, columns = len(grid), max(len(row) for row in grid)
    panel = _panel(columns, left)
    tall = panel * shapes[0]
    width = left + columns * (panel + _GAP) - _GAP
    height = top + rows * (tall + between) - between
    spaces = {"wspace": _GAP / panel, "hspace": between / tall}
    edges = {"left": left / width, "right": 1, "bottom": 0, "top": 1 - top / height}
    figure = new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=spaces | edges)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, grid, strict=True):
        for axis, picture in zip(line, row, strict=False):
            axis.imshow(picture)
    return figure, axes


def show_pairs(
    before: Pictures, instruction: str | Sequence[str], after: Pictures
) -> Figure:
    """Inputs and edits side by side, each pair under its instruction.

    Raises:
        ValueError: the three do not have the same number, or there are none.
    """
    lefts, rights = _listed(before), _listed(after)
    texts = [instruction] if isinstance(instruction, str) else list(instruction)
    if not len(lefts) == len(texts) == len(rights):
        counts = f"{len(lefts)}, {len(texts)} and {len(rights)}"
        raise ValueError(f"Got {counts} inputs, instructions, edits: not pairs.")
    flat = [picture for pair in zip(lefts, rights, strict=True) for picture in pair]
    grid = [flat[at : at + 4] for at in range(0, len(flat), 4)]
    titles = [legible(text, 2 * _panel(4)) for text in texts]
    above = _above(titles)
    figure, axes = _cells(grid, above, above + _GAP)
    middle = 1 + _GAP / 2 / PANEL  # of the pair, in widths of its left panel
    for axis, title in zip(axes[:, ::2].flat, titles, strict=False):
        place = {"transform": axis.transAxes, "ha": "center", "va": "bottom"}
        axis.text(middle, 1.02, title, **place, **lettering())
    return figure


def show_grid(
    rows: Sequence[Pictures],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Rows of pictures, labelled on the left and on top, under one title.

    Raises:
        ValueError: there is no picture.
    """
    grid = [_listed(row) for row in rows]
    left = 1.0 if any(row_labels) else 0.0
    panel = _panel(max(map(len, grid), default=0), left)
    tops = [legible(label, panel) for label in column_labels]
    figure, axes = _cells(grid, _above(tops), _GAP, left)
    for axis, top in zip(axes[0], tops, strict=False):
        axis.set_title(top, pad=3, **lettering())
    for axis, label in zip(axes[:, 0], row_labels, strict=False):
        place = {"transform": axis.transAxes, "ha": "right", "va": "center"}
        axis.text(-0.05, 0.5, legible(label, left), **place, **lettering())
    figure.suptitle(legible(title, PAGE), y=1.01, va="bottom", **lettering())
    return figure


def film_strip(shown: Pictures, labels: Sequence[str] = (), title: str = "") -> Figure:
    """Pictures in one row, such as the states of a sampler, each under its label."""
    return show_grid([shown], column_labels=labels, title=title)


def plot_lines(x: Numbers, lines: Mapping[str, Numbers], **labels: str) -> Figure:
    """Named lines over one axis; labels are ``x_label``, ``y_label`` and ``title``."""
    figure, axes = new_plot(**labels)
    for name, y in lines.items():
        axes.plot(np.asarray(x), np.asarray(y), label=name)
    axes.legend(frameon=False, fontsize=POINTS - 1)
    return figure


def plot_curve(curves: Mapping[str, Sequence[tuple[float, float, Any]]]) -> Figure:
    """The trade-off of section 4.1: following the text against keeping the picture.

    Args:
        curves: for each method its points (directional similarity, image similarity,
            scale), joined in the order given; the scale is written beside the point.
    """
    figure, axes = new_plot("CLIP directional similarity", "CLIP image similarity")
    for name, points in curves.items():
        axes.plot(
            *np.array([point[:2] for point in points]).T, "o-", markersize=4, label=name
        )
        for x, y, scale in points:
            axes.text(x, y, f" {scale}", va="bottom", fontsize=POINTS - 2)
    axes.legend(frameon=False, fontsize=POINTS - 1)
    return figure


def plot_loss(runs: Mapping[str, Numbers], *, window: int = 20) -> Figure:
    """Training losses by step: faint as they are, strong as running means."""
    figure, axes = new_plot("step", "loss")
    for (name, losses), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        raw = np.asarray(losses, dtype=float)
        width = max(1, min(window, len(raw) // 2))
        mean = np.convolve(raw, np.ones(width) / width, mode="valid")
        axes.plot(raw, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(np.arange(width - 1, len(raw)), mean, color=colour, label=name)
    axes.legend(frameon=False, fontsize=POINTS - 1)
    return figure


def plot_histograms(
    values: Mapping[str, Numbers], thresholds: Mapping[str, float] | None = None
) -> Figure:
    """Histograms side by side; a threshold is a line, titled with the share above."""
    figure = new_figure(PAGE, PLOT[1] * 0.7)
    axes = figure.subplots(1, len(values), squeeze=False, gridspec_kw={"wspace": 0.3})
    for axis, (name, numbers) in zip(axes[0], values.items(), strict=True):
        seen = np.asarray(numbers, dtype=float)
        axis.hist(seen, bins=min(30, max(5, len(seen) // 8)), color=COLOURS[0])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=POINTS - 1)
        axis.set_title(name, **lettering())
        for least in [bar for key, bar in (thresholds or {}).items() if key == name]:
            axis.axvline(least, color=COLOURS[1])
            axis.set_title(
                f"{name}\n{(seen >= least).mean():.0%} ≥ {least:g}", **lettering()
            )
    return figure


def plot_counts(counts: Mapping[str, int], *, title: str = "") -> Figure:
    """Counted outcomes as labelled bars, in the order given from the top."""
    figure, axes = new_plot(title=title)
    figure.set_figheight(0.6 + 0.32 * len(counts))
    bars = axes.barh(list(counts), list(counts.values()), color=COLOURS[0], zorder=2)
    axes.bar_label(bars, padding=3, fontsize=POINTS - 1)
    axes.invert_yaxis()
    return figure
