"""How figures look: sizes, colours, and fonts that every machine has.

Chinese is set in the font of ``data/fonts``, because neither matplotlib nor a Colab
machine brings one. A character that no font has is drawn as a box: a reader sees that
something is missing, and nothing warns. A "$" never starts mathematics.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAGE = 8.4  # widest figure, inches
PANEL = 2.0  # width of a picture where the page has room for it
PLOT = (6.4, 3.6)  # size of a plot
COLOURS = ("#1f6fb4", "#d9541e", "#2e8b57", "#8e5aa8", "#c2993a", "#7f7f7f")
POINTS = 9.0  # size of the letters
_FONT = Path(__file__).resolve().parents[2] / "data/fonts/NotoSansSC-common.ttf"


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
    room = inches * 72 / POINTS / 0.55  # a letter is 0.55 of the point size wide
    lines, used = [""], 0.0
    for piece in re.findall(r"\s+|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+", text.strip()):
        width = 2 if piece > "\u2e80" else len(piece)
        if used and used + width > room:
            lines, used = [*lines, ""], 0.0
        lines[-1] += " " if piece.isspace() else piece
        used += width
    drawn = "\n".join(line.strip() for line in lines)
    return "".join(c if c == "\n" or ord(c) in _fonts()[1] else "\u25a1" for c in drawn)


def lettering() -> dict[str, Any]:
    """How matplotlib is to set a text."""
    return {"family": _fonts()[0], "fontsize": POINTS, "parse_math": False}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that a notebook shows when it is a cell's value."""
    figure = plt.figure(figsize=(width, height), dpi=100)
    plt.close(figure)  # a notebook would show an open figure a second time
    return figure


def new_plot(
    x_label: str = "", y_label: str = "", title: str = ""
) -> tuple[Figure, Axes]:
    """A figure with one plot, to be drawn into."""
    figure = new_figure(*PLOT)
    axes = figure.subplots()
    dress(axes, x_label, y_label, title)
    return figure, axes


def dress(axes: Axes, x_label: str = "", y_label: str = "", title: str = "") -> None:
    """Give one plot its look and its labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", zorder=0)
    axes.tick_params(labelsize=POINTS - 1)
    axes.set_prop_cycle(color=COLOURS)
    axes.set_xlabel(x_label, **lettering())
    axes.set_ylabel(y_label, **lettering())
    axes.set_title(legible(title, PLOT[0]), **lettering())
