"""Style of the figures: sizes, colours, and fonts that every machine has.

Chinese is set in the font of ``data/fonts``, since neither matplotlib nor Colab brings
one. A character that no font has is drawn as a box, without a warning. A "$" never
starts mathematics.
"""

import re
from functools import lru_cache
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ip2p_lib.config import DATA

PAGE = 8.4  # width of the widest figure, inches
PANEL = 2.0  # width of an image where the page has room for it, inches
PLOT = (6.4, 3.6)  # width and height of a plot, inches
COLOURS = ("#1f6fb4", "#d9541e", "#2e8b57", "#8e5aa8", "#c2993a", "#7f7f7f")
POINTS = 9.0  # font size
_FONT = DATA / "fonts" / "NotoSansSC-common.ttf"


@lru_cache(maxsize=1)
def _fonts() -> tuple[list[str], set[int]]:
    """Font families in the order they are tried, and the characters they have."""
    font_manager.fontManager.addfont(_FONT)
    paths = (font_manager.findfont("DejaVu Sans"), str(_FONT))
    fonts = [font_manager.get_font(path) for path in paths]
    characters = {code for font in fonts for code in font.get_charmap()}
    return [font.family_name for font in fonts], characters


def wrap_text(text: str, inches: float) -> str:
    """Break a text into lines of a width; characters without a glyph become boxes."""
    room = inches * 72 / POINTS / 0.55  # a letter is 0.55 of the font size wide
    lines, used = [""], 0.0
    for piece in re.findall(r"\s+|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+", text.strip()):
        width = 2 if piece > "\u2e80" else len(piece)
        if used and used + width > room:
            lines, used = [*lines, ""], 0.0
        lines[-1] += " " if piece.isspace() else piece
        used += width
    whole = "\n".join(line.strip() for line in lines)
    return "".join(c if c == "\n" or ord(c) in _fonts()[1] else "\u25a1" for c in whole)


def text_style() -> dict[str, Any]:
    """Keyword arguments of matplotlib's text functions: fonts, size, no mathematics."""
    return {"family": _fonts()[0], "fontsize": POINTS, "parse_math": False}


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, that a notebook shows once."""
    figure = plt.figure(figsize=(width, height), dpi=100)
    plt.close(figure)  # an open figure would be shown a second time
    return figure


def new_plot(
    x_label: str = "", y_label: str = "", title: str = ""
) -> tuple[Figure, Axes]:
    """Make a figure with one empty plot: its grid, colours and labels."""
    figure = new_figure(*PLOT)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", zorder=0)
    axes.tick_params(labelsize=POINTS - 1)
    axes.set_prop_cycle(color=COLOURS)
    axes.set_xlabel(x_label, **text_style())
    axes.set_ylabel(y_label, **text_style())
    axes.set_title(wrap_text(title, PLOT[0]), **text_style())
    return figure, axes
