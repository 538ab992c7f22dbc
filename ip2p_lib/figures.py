"""Every figure of the notebooks, and the only place that knows matplotlib.

Pictures are PIL images or tensors in [-1, 1], (3, H, W) or (B, 3, H, W), alone or in a
list. They keep one order everywhere, input before edit, under the instruction. Each
function returns the ``Figure``; as a cell's last line it is shown, once.

Chinese is set in the font of ``data/fonts``, because neither matplotlib nor a Colab
machine brings one. A character that no font has is drawn as a box: a reader sees that
something is missing, and nothing warns. A "$" never starts mathematics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL.Image import Image

from ip2p_lib import images

Pictures = Image | torch.Tensor | Sequence[Image | torch.Tensor]
Numbers = Sequence[float] | torch.Tensor
PAGE = 8.4  # widest figure, inches
PANEL = 2.0  # width of a picture where the page has room for it
PLOT = (6.4, 3.6)  # size of a plot
COLOURS = ("#1f6fb4", "#d9541e", "#2e8b57", "#8e5aa8", "#c2993a", "#7f7f7f")
_GAP, _LINE, _POINTS = 0.08, 0.17, 9.0  # between panels, of a text line: inches; size
_FONT = Path(__file__).resolve().parent.parent / "data/fonts/NotoSansSC-common.ttf"


@lru_cache(maxsize=1)
def _fonts() -> tuple[list[str], set[int]]:
    """Font families in the order they are tried, and the characters they can draw."""
    font_manager.fontManager.addfont(_FONT)
    paths = (font_manager.findfont("DejaVu Sans"), str(_FONT))
    fonts = [font_manager.get_font(path) for path in paths]
    known = {code for font in fonts for code in font.get_charmap()}
    return [font.family_name for font in fonts], known


def legible(text: str, inches: float) -> str:
    """A text as a figure can show it: broken into lines, unknown characters boxed."""
    room = inches * 72 / _POINTS / 0.55  # a letter is 0.55 of the point size wide
    lines, used = [""], 0.0
    for piece in re.findall(r"\s+|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+", text.strip()):
        width = 2 if piece > "\u2e80" else len(piece)
        if used and used + width > room:
            lines, used = [*lines, ""], 0.0
        lines[-1] += " " if piece.isspace() else piece
        used += width
    drawn = "\n".join(line.strip() for line in lines)
    return "".join(c if c == "\n" or ord(c) in _fonts()[1] else "\u25a1" for c in drawn)


def _text() -> dict[str, Any]:
    return {"family": _fonts()[0], "fontsize": _POINTS, "parse_math": False}


def _figure(width: float, height: float) -> Figure:
    figure = plt.figure(figsize=(width, height), dpi=100)
    plt.close(figure)  # a notebook would show an open figure a second time
    return figure


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
    figure = _figure(width, height)
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
        axis.text(middle, 1.02, title, **place, **_text())
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
        axis.set_title(top, pad=3, **_text())
    for axis, label in zip(axes[:, 0], row_labels, strict=False):
        place = {"transform": axis.transAxes, "ha": "right", "va": "center"}
        axis.text(-0.05, 0.5, legible(label, left), **place, **_text())
    figure.suptitle(legible(title, PAGE), y=1.01, va="bottom", **_text())
    return figure


def film_strip(shown: Pictures, labels: Sequence[str] = (), title: str = "") -> Figure:
    """Pictures in one row, such as the states of a sampler, each under its label."""
    return show_grid([shown], column_labels=labels, title=title)


def _plot(x_label: str = "", y_label: str = "", title: str = "") -> tuple[Figure, Axes]:
    figure = _figure(*PLOT)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", zorder=0)
    axes.tick_params(labelsize=_POINTS - 1)
    axes.set_prop_cycle(color=COLOURS)
    axes.set_xlabel(x_label, **_text())
    axes.set_ylabel(y_label, **_text())
    axes.set_title(legible(title, PLOT[0]), **_text())
    return figure, axes


def plot_lines(x: Numbers, lines: Mapping[str, Numbers], **labels: str) -> Figure:
    """Named lines over one axis; labels are ``x_label``, ``y_label`` and ``title``."""
    figure, axes = _plot(**labels)
    for name, y in lines.items():
        axes.plot(np.asarray(x), np.asarray(y), label=name)
    axes.legend(frameon=False, fontsize=_POINTS - 1)
    return figure


def plot_curve(curves: Mapping[str, Sequence[tuple[float, float, Any]]]) -> Figure:
    """The trade-off of section 4.1: following the text against keeping the picture.

    Args:
        curves: for each method its points (directional similarity, image similarity,
            scale), joined in the order given; the scale is written beside the point.
    """
    figure, axes = _plot("CLIP directional similarity", "CLIP image similarity")
    for name, points in curves.items():
        axes.plot(
            *np.array([point[:2] for point in points]).T, "o-", markersize=4, label=name
        )
        for x, y, scale in points:
            axes.text(x, y, f" {scale}", va="bottom", fontsize=_POINTS - 2)
    axes.legend(frameon=False, fontsize=_POINTS - 1)
    return figure


def plot_loss(runs: Mapping[str, Numbers], *, window: int = 20) -> Figure:
    """Training losses by step: faint as they are, strong as running means."""
    figure, axes = _plot("step", "loss")
    for (name, losses), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        raw = np.asarray(losses, dtype=float)
        width = max(1, min(window, len(raw) // 2))
        mean = np.convolve(raw, np.ones(width) / width, mode="valid")
        axes.plot(raw, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(np.arange(width - 1, len(raw)), mean, color=colour, label=name)
    axes.legend(frameon=False, fontsize=_POINTS - 1)
    return figure


def plot_histograms(
    values: Mapping[str, Numbers], thresholds: Mapping[str, float] | None = None
) -> Figure:
    """Histograms side by side; a threshold is a line, titled with the share above."""
    figure = _figure(PAGE, PLOT[1] * 0.7)
    axes = figure.subplots(1, len(values), squeeze=False, gridspec_kw={"wspace": 0.3})
    for axis, (name, numbers) in zip(axes[0], values.items(), strict=True):
        seen = np.asarray(numbers, dtype=float)
        axis.hist(seen, bins=min(30, max(5, len(seen) // 8)), color=COLOURS[0])
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=_POINTS - 1)
        axis.set_title(name, **_text())
        for least in [bar for key, bar in (thresholds or {}).items() if key == name]:
            axis.axvline(least, color=COLOURS[1])
            axis.set_title(
                f"{name}\n{(seen >= least).mean():.0%} ≥ {least:g}", **_text()
            )
    return figure


def plot_counts(counts: Mapping[str, int], *, title: str = "") -> Figure:
    """Counted outcomes as labelled bars, in the order given from the top."""
    figure, axes = _plot(title=title)
    figure.set_figheight(0.6 + 0.32 * len(counts))
    bars = axes.barh(list(counts), list(counts.values()), color=COLOURS[0], zorder=2)
    axes.bar_label(bars, padding=3, fontsize=_POINTS - 1)
    axes.invert_yaxis()
    return figure
