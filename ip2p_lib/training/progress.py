"""Progress of a training run in a notebook: one figure that is redrawn (section 3.2).

It is saved as a file too, so that a run under papermill ends with its last state.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from IPython.display import display
from PIL import Image
from torch import Tensor

from ip2p_lib.files import write_bytes
from ip2p_lib.notebook import figures
from ip2p_lib.training.loss_weighting import bin_means, bin_names
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import COLUMNS, Validation, ValidationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF = (figures.PAGE / 2, 2.9)  # inches of a plot of which two stand side by side


def plot_loss_bins(bins: Tensor, *, window: int = 20, first: int = 1) -> Figure:
    """Running mean loss of each timestep bin, from ``TrainStep.bins`` (n, 2, K).

    ``window`` is the number of steps averaged, ``first`` the number of the first step.
    """
    means = bin_means(bins, window)
    lines = dict(zip(bin_names(bins=means.shape[1]), means.T, strict=True))
    steps = torch.arange(first, first + len(means))
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
    for line in axes.lines:
        line.set_marker("o")
    for name, reference in references.items():
        for column, colour in zip(COLUMNS[1:], figures.COLOURS, strict=False):
            level = getattr(reference, column)
            axes.axhline(level, color=colour, linestyle=":", linewidth=1)
            axes.text(steps[0], level, name, va="bottom", fontsize=7, color="#555")
    return figure


def stack_images(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put images in rows, from the left, on white."""
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width for image in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    for i, row in enumerate(rows):
        x = 0
        for image in row:
            sheet.paste(image, (x, sum(heights[:i])))
            x += image.width
    return sheet


def format_duration(seconds: float) -> str:
    """A duration such as ``"45 s"``, ``"12 min"`` or ``"1 h 30 min"``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class ProgressFigure:
    """One figure of a run. Call ``show`` at every step; it redraws now and then.

    After a resume, ``bins`` and ``results`` of the earlier sessions may be passed in.
    """

    validation: Validation
    last: int  # number of the run's last step
    file: Path | None = None  # the image, replaced at every drawing
    every_seconds: float = 10.0
    bins: list[Tensor] = field(default_factory=list)
    results: list[ValidationResult] = field(default_factory=list)
    _began: float = field(default_factory=lambda: time.monotonic())
    _last_draw: float = 0.0
    _taken: int = 0  # steps of this session
    _references: dict[str, ValidationResult] = field(default_factory=dict)
    _handle: Any = None

    def show(self, step: TrainStep, result: ValidationResult | None = None) -> None:
        """Add a step; redraw after validation, or if the figure is old."""
        self.bins.append(step.bins)
        self._taken += 1
        if result:
            self.results.append(result)
        old = time.monotonic() - self._last_draw > self.every_seconds
        if result or old or step.step == self.last:
            self.draw(step.step)

    def caption(self, step: int) -> str:
        """Steps taken, and the time left."""
        spent = time.monotonic() - self._began
        if step >= self.last:
            return f"{self.last} steps taken"
        left = spent / max(self._taken, 1) * (self.last - step)
        return f"step {step} of {self.last}, about {format_duration(left)} left"

    def draw(self, step: int) -> None:
        """Draw, display and save the figure."""
        png = figures.to_png(self.figure(self.caption(step)))
        encoded = base64.b64encode(png).decode()
        data = {"image/png": encoded, "text/plain": self.caption(step)}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
        if self.file:
            write_bytes(self.file, png)
        self._last_draw = time.monotonic()

    def figure(self, title: str) -> Image.Image:
        """The plots that have data, above the sample grid."""
        plots = []
        if self.bins:
            plots.append(plot_loss_bins(torch.stack([b.cpu() for b in self.bins])))
        if self.results:
            self._references = self._references or self.validation.reference_results()
            plots.append(plot_validation(self.results, self._references))
        for plot in plots:
            plot.set_size_inches(*HALF)
        plots[0].axes[0].set_title(title, fontsize=9)
        rows = [[figures.to_image(plot) for plot in plots]]
        if any(result.edits is not None for result in self.results):
            rows.append([figures.to_image(self.sample_grid())])
        return stack_images(rows)

    def sample_grid(self) -> Figure:
        """The inputs above the first and the newest edits."""
        edits = {r.step: r.edits for r in self.results if r.edits is not None}
        shown = {f"step {n}": edits[n] for n in sorted({min(edits), max(edits)})}
        examples = self.validation.examples
        rows = [examples.before, *shown.values()]
        return figures.show_grid(rows, ["input", *shown], examples.instructions)
