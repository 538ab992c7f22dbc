"""Figures of the filter: what remains after each stage, and what a threshold trades."""

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from ip2p_lib.filtering.calibration import FilterMetrics, PrecisionRecallCurve
from ip2p_lib.notebook.style import COLOURS, PLOT, POINTS, new_plot, text_style

_SMALL = POINTS - 1


def plot_funnel(
    stages: Mapping[str, torch.Tensor], good: torch.Tensor | None = None
) -> Figure:
    """Bars of the pairs that remain after each stage of ``calibration.funnel``.

    With ``good`` (B,) bool, the part of each bar that is good is darker.
    """
    figure, axes = new_plot()
    figure.set_size_inches(PLOT[0], 0.7 + 0.34 * len(stages))
    counts = [int(remaining.sum()) for remaining in stages.values()]
    colour = COLOURS[0] if good is None else "#b9cfe6"
    bars = axes.barh(list(stages), counts, color=colour, zorder=2, label="remaining")
    labels = [str(n) for n in counts]
    if good is not None:
        hits = [int((remaining & good).sum()) for remaining in stages.values()]
        axes.barh(list(stages), hits, color=COLOURS[0], zorder=2, label="good")
        labels = [
            f"{n}, {g / n:.0%} good" if n else "0"
            for n, g in zip(counts, hits, strict=True)
        ]
        axes.legend(frameon=False, fontsize=_SMALL, loc="lower right")
    axes.bar_label(bars, labels, padding=3, fontsize=_SMALL)
    axes.set_xlim(0, 1.25 * max(1, *counts))
    axes.invert_yaxis()
    return figure


def plot_precision_curves(
    curves: Mapping[str, PrecisionRecallCurve],
    filters: Mapping[str, FilterMetrics],
    *,
    ceiling: float,
) -> Figure:
    """Precision over keep rate, of each score alone and of whole filters.

    The last curve is drawn strongest; a filter is a point with its 95 % interval;
    ``ceiling`` is the precision of perfect pairs, where the labels themselves err.
    """
    figure, axes = new_plot("fraction of pairs kept", "fraction of them that is good")
    for name, curve in curves.items():
        shown = curve.keep_rate >= 0.1  # below it, few pairs decide
        width = 2.2 if name == list(curves)[-1] else 1.1
        x, y = curve.keep_rate[shown], curve.precision[shown]
        axes.plot(x, y, linewidth=width, label=name)
    for marker, (name, metrics) in zip("os^D", filters.items(), strict=False):
        rate, (value, low, high) = metrics.keep_rate.value, metrics.precision
        style: dict[str, Any] = {"fmt": marker, "color": "black", "capsize": 2}
        error = [[value - low], [high - value]]
        axes.errorbar(rate, value, error, label=name, zorder=4, **style)
    axes.axhline(ceiling, color="#555555", linestyle=":", linewidth=1)
    axes.text(1, ceiling, "perfect pairs", ha="right", va="bottom", **text_style())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(frameon=False, fontsize=_SMALL, **place)
    return figure
