"""Progress of a training run in a notebook: one figure that is redrawn (section 3.2).

It is saved as a file too, so that a run under papermill ends with its last state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from IPython.display import display
from PIL import Image
from torch import Tensor

from ip2p_lib.files import write_bytes
from ip2p_lib.notebook import figures
from ip2p_lib.training.train import NUM_BINS, TrainStep
from ip2p_lib.training.validation import COLUMNS, Validation, ValidationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_loss_bins(bins: Tensor, *, window: int = 20, T: int = 1000) -> Figure:
    """Running mean over ``window`` steps of the loss in each bin of timesteps.

    ``bins`` (n, 2, K) are the ``TrainStep.bins`` of n steps; an empty bin has no mean.
    """
    early = bins.new_zeros(min(window, len(bins)) - 1, *bins.shape[1:])
    windows = torch.cat([early, bins]).double().unfold(0, len(early) + 1, 1)
    total, count = windows.sum(-1).unbind(1)  # (n, K)
    edges = [-(-i * T // NUM_BINS) for i in range(NUM_BINS + 1)]
    names = [f"t {first}-{end - 1}" for first, end in pairwise(edges)]
    lines = dict(zip(names, (total / count).T, strict=True))
    steps = range(1, len(bins) + 1)
    figure = figures.plot_lines(steps, lines, x_label="step", y_label="loss")
    figure.axes[0].set_yscale("log")
    return figure


def plot_validation(
    results: Sequence[ValidationResult], references: Mapping[str, ValidationResult]
) -> Figure:
    """Both similarities by step; dotted, those of the trivial edits ``references``."""
    steps = [result.step for result in results]
    lines = {c.replace("_", " "): [getattr(r, c) for r in results] for c in COLUMNS[1:]}
    labels = {"x_label": "step", "y_label": "mean over the fixed edits"}
    figure = figures.plot_lines(steps, lines, **labels)
    axes = figure.axes[0]
    for name, reference in references.items():
        for column, colour in zip(COLUMNS[1:], figures.COLOURS, strict=False):
            level = getattr(reference, column)
            axes.axhline(level, color=colour, linestyle=":", linewidth=1)
            axes.text(steps[0], level, name, va="bottom", fontsize=7, color="#555")
    return figure


@dataclass
class ProgressFigure:
    """One figure of a run. Call ``show`` at every step; it redraws now and then."""

    validation: Validation
    last: int  # number of the run's last step
    file: Path  # the image, replaced at every drawing
    results: list[ValidationResult]  # begins with that before the first step
    every_seconds: float = 10.0
    _bins: list[Tensor] = field(default_factory=list)
    _last_draw: float = 0.0
    _handle: Any = None

    def show(self, step: TrainStep, result: ValidationResult | None = None) -> None:
        """Add a step; redraw after validation, or if the figure is old."""
        self._bins.append(step.bins)
        if result:
            self.results.append(result)
        old = time.monotonic() - self._last_draw > self.every_seconds
        if not (result or old or step.step == self.last):
            return
        image = self.draw(f"step {step.step} of {self.last}")
        write_bytes(self.file, figures.to_png(image))
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)
        self._last_draw = time.monotonic()

    def draw(self, title: str) -> Image.Image:
        """Loss and similarities side by side, above inputs, first and newest edits."""
        plots = [
            plot_loss_bins(torch.stack(self._bins).cpu()),
            plot_validation(self.results, self.validation.reference_results()),
        ]
        for plot in plots:
            plot.set_size_inches(figures.PAGE / 2, 2.9)
        plots[0].axes[0].set_title(title, fontsize=9)
        ends, examples = (self.results[0], self.results[-1]), self.validation.examples
        edits = {f"step {r.step}": r.edits for r in ends if r.edits is not None}
        rows = [examples.before, *edits.values()]
        grid = figures.show_grid(rows, ["input", *edits], examples.instructions)
        left, right, below = map(figures.to_image, (*plots, grid))
        width = max(left.width + right.width, below.width)
        top = max(left.height, right.height)
        sheet = Image.new("RGB", (width, top + below.height), "white")
        sheet.paste(left, (0, 0))
        sheet.paste(right, (left.width, 0))
        sheet.paste(below, (0, top))
        return sheet
