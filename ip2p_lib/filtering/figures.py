"""Figures of the filter: what is left of it step by step, and what a threshold trades.

Verdicts are (B,) bool, or None where nobody knows which pairs are good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ip2p_lib.filtering.calibration import Curve, Marks, Share
from ip2p_lib.notebook.style import (
    COLOURS,
    PAGE,
    PLOT,
    POINTS,
    dress,
    lettering,
    new_figure,
    new_plot,
)

_SMALL = POINTS - 1


def plot_funnel(
    steps: Mapping[str, torch.Tensor], good: torch.Tensor | None = None
) -> Figure:
    """Bars of what each step of a filter leaves, the good part of it darker.

    Args:
        steps: (B,) bool by name, as ``calibration.funnel`` gives.
        good: which of the B pairs are good.
    """
    figure, axes = new_plot()
    figure.set_size_inches(PLOT[0], 0.7 + 0.34 * len(steps))
    counts = [int(left.sum()) for left in steps.values()]
    pale = COLOURS[0] if good is None else "#b9cfe6"
    bars = axes.barh(list(steps), counts, color=pale, zorder=2, label="left")
    labels = [str(n) for n in counts]
    if good is not None:
        right = [int((left & good).sum()) for left in steps.values()]
        axes.barh(list(steps), right, color=COLOURS[0], zorder=2, label="good")
        labels = [
            f"{n}, {g / n:.0%} good" if n else "0"
            for n, g in zip(counts, right, strict=True)
        ]
        axes.legend(frameon=False, fontsize=_SMALL, loc="lower right")
    axes.bar_label(bars, labels, padding=3, fontsize=_SMALL)
    axes.set_xlim(0, 1.25 * max(1, *counts))
    axes.invert_yaxis()
    return figure


def _row(panels: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Plots side by side on one page, over one vertical axis."""
    figure = new_figure(PAGE, height)
    spaces = {"wspace": 0.12, "left": 0.07, "right": 0.99, "bottom": 0.2, "top": 0.8}
    axes = figure.subplots(1, panels, squeeze=False, sharey=True, gridspec_kw=spaces)
    return figure, list(axes[0])


def plot_thresholds(
    curves: Mapping[str, Curve], thresholds: Mapping[str, float]
) -> Figure:
    """For each score, what a threshold on it alone keeps, and how precise that is.

    Args:
        curves: of each score by name.
        thresholds: where the filter stands; a vertical line.
    """
    figure, row = _row(len(curves), 2.6)
    for axes, (name, found) in zip(row, curves.items(), strict=True):
        dress(axes, f"threshold on {name}")
        axes.plot(found.threshold, found.precision, label="good among the kept")
        axes.plot(found.threshold, found.kept, linestyle="--", label="kept")
        axes.axvline(thresholds[name], color="#555555", linewidth=1)
        axes.set_ylim(0, 1.02)
    _name_lines(figure, row[0])
    return figure


def _name_lines(figure: Figure, axes: Axes) -> None:
    """One legend above all plots."""
    handles, labels = axes.get_legend_handles_labels()
    look = {"frameon": False, "fontsize": _SMALL, "ncols": len(labels)}
    figure.legend(handles, labels, loc="upper center", **look)


def plot_trade(
    curves: Mapping[str, Curve],
    points: Mapping[str, Marks],
    *,
    ceiling: float | None = None,
    least: float = 0.1,
) -> Figure:
    """How precise a filter is for what it keeps: each score alone, and all together.

    Args:
        curves: by name; the last one is drawn strongest.
        points: filters by name, each a point with its 95 % interval.
        ceiling: precision of perfect pairs, where the verdicts themselves err.
        least: share kept from which on a curve is drawn; before it, few pairs decide.
    """
    figure, axes = new_plot("share of pairs kept", "share of them that is good")
    for name, found in curves.items():
        last, shown = name == list(curves)[-1], found.kept >= least
        width = 2.2 if last else 1.1
        axes.plot(
            found.kept[shown], found.precision[shown], linewidth=width, label=name
        )
    for marker, (name, marks) in zip("os^D", points.items(), strict=False):
        _dot(axes, marks, marker, name)
    if ceiling is not None:
        axes.axhline(ceiling, color="#555555", linestyle=":", linewidth=1)
        axes.text(1, ceiling, "perfect pairs", ha="right", va="bottom", **lettering())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(
        frameon=False, fontsize=_SMALL, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def _dot(axes: Axes, marks: Marks, marker: str, name: str) -> None:
    """A filter as a point, with the interval of its precision."""
    value, low, high = marks.precision
    spread = [[value - low], [high - value]]
    axes.errorbar(
        marks.kept.value,
        value,
        spread,
        fmt=marker,
        label=name,
        color="black",
        capsize=2,
        linewidth=0.8,
        zorder=4,
    )


def plot_shares(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[Share]]]],
) -> Figure:
    """Shares by what a pair was drawn with, each with its 95 % interval.

    Args:
        panels: by the name of the horizontal axis: the n + 1 edges of its bins, and
            named lines of n shares.
    """
    figure, row = _row(len(panels), 2.8)
    for axes, (name, (edges, lines)) in zip(row, panels.items(), strict=True):
        dress(axes, name)
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        for number, (label, shares) in enumerate(lines.items()):
            value, low, high = (torch.tensor(c) for c in zip(*shares, strict=True))
            spread = torch.stack([value - low, high - value])
            aside = 0.06 * (edges[1] - edges[0]) * (number - (len(lines) - 1) / 2)
            x = [middle + aside for middle in middles]  # or intervals hide each other
            axes.errorbar(x, value, spread, marker="o", capsize=2, label=label)
        axes.set_ylim(0, 1.02)
    _name_lines(figure, row[0])
    return figure
