"""Figures of the filter: what remains after each stage, and what a threshold trades.

``good`` is (B,) bool, or None where it is unknown which pairs are good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ip2p_lib.filtering.calibration import (
    FilterMetrics,
    PrecisionRecallCurve,
    Proportion,
)
from ip2p_lib.notebook.style import (
    COLOURS,
    PAGE,
    PLOT,
    POINTS,
    new_figure,
    new_plot,
    style_axes,
    text_style,
)

_SMALL = POINTS - 1


def plot_funnel(
    stages: Mapping[str, torch.Tensor], good: torch.Tensor | None = None
) -> Figure:
    """Bars of the pairs that remain after each stage, the good part darker.

    Args:
        stages: (B,) bool by name, as ``calibration.funnel`` gives.
        good: which of the B pairs are good.
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


def plot_thresholds(
    curves: Mapping[str, PrecisionRecallCurve], thresholds: Mapping[str, float]
) -> Figure:
    """Keep rate and precision of a threshold on each score alone.

    Args:
        curves: by score.
        thresholds: of the filter; a vertical line.
    """
    figure, row = _plots_in_a_row(len(curves), 2.6)
    for axes, (name, curve) in zip(row, curves.items(), strict=True):
        style_axes(axes, f"threshold on {name}")
        axes.plot(curve.threshold, curve.precision, label="good among the kept")
        axes.plot(curve.threshold, curve.keep_rate, linestyle="--", label="kept")
        axes.axvline(thresholds[name], color="#555555", linewidth=1)
        axes.set_ylim(0, 1.02)
    _legend_above(figure, row[0])
    return figure


def plot_precision_curves(
    curves: Mapping[str, PrecisionRecallCurve],
    filters: Mapping[str, FilterMetrics],
    *,
    ceiling: float | None = None,
    min_keep_rate: float = 0.1,
) -> Figure:
    """Precision over keep rate, of each score alone and of whole filters.

    Args:
        curves: by name; the last one is drawn strongest.
        filters: by name, each a point with its 95 % interval.
        ceiling: precision of perfect pairs, where the labels themselves err.
        min_keep_rate: where curves begin; below it, few pairs decide.
    """
    figure, axes = new_plot("fraction of pairs kept", "fraction of them that is good")
    for name, curve in curves.items():
        shown = curve.keep_rate >= min_keep_rate
        width = 2.2 if name == list(curves)[-1] else 1.1
        x, y = curve.keep_rate[shown], curve.precision[shown]
        axes.plot(x, y, linewidth=width, label=name)
    for marker, (name, metrics) in zip("os^D", filters.items(), strict=False):
        value, low, high = metrics.precision
        axes.errorbar(
            metrics.keep_rate.value,
            value,
            [[value - low], [high - value]],
            fmt=marker,
            label=name,
            color="black",
            capsize=2,
            linewidth=0.8,
            zorder=4,
        )
    if ceiling is not None:
        axes.axhline(ceiling, color="#555555", linestyle=":", linewidth=1)
        axes.text(1, ceiling, "perfect pairs", ha="right", va="bottom", **text_style())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    beside = (1, 0.5)
    axes.legend(
        frameon=False, fontsize=_SMALL, loc="center left", bbox_to_anchor=beside
    )
    return figure


def plot_proportions(
    plots: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[Proportion]]]],
) -> Figure:
    """Proportions by bins of a random setting, each with its 95 % interval.

    Args:
        plots: by the label of the horizontal axis: the n + 1 edges of its bins, and
            lines of n proportions by name.
    """
    figure, row = _plots_in_a_row(len(plots), 2.8)
    for axes, (name, (edges, lines)) in zip(row, plots.items(), strict=True):
        style_axes(axes, name)
        centres = [(a + b) / 2 for a, b in pairwise(edges)]
        for number, (label, proportions) in enumerate(lines.items()):
            value, low, high = map(torch.tensor, zip(*proportions, strict=True))
            errors = torch.stack([value - low, high - value])
            # Shifted aside, or intervals hide each other.
            shift = 0.06 * (edges[1] - edges[0]) * (number - (len(lines) - 1) / 2)
            x = [centre + shift for centre in centres]
            axes.errorbar(x, value, errors, marker="o", capsize=2, label=label)
        axes.set_ylim(0, 1.02)
    _legend_above(figure, row[0])
    return figure


def _plots_in_a_row(n: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Plots side by side on one page, with one vertical axis."""
    figure = new_figure(PAGE, height)
    spaces = {"wspace": 0.12, "left": 0.07, "right": 0.99, "bottom": 0.2, "top": 0.8}
    axes = figure.subplots(1, n, squeeze=False, sharey=True, gridspec_kw=spaces)
    return figure, list(axes[0])


def _legend_above(figure: Figure, axes: Axes) -> None:
    """One legend above all plots."""
    handles, labels = axes.get_legend_handles_labels()
    layout = {"frameon": False, "fontsize": _SMALL, "ncols": len(labels)}
    figure.legend(handles, labels, loc="upper center", **layout)
