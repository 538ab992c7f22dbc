"""A run as one picture that grows: losses by noise level, similarities, newest edits.

``Board`` shows it in one display of a notebook, which it replaces as training goes on
(section 3.2), and keeps it as a file too; a run under papermill is left with its last
state. Everything is drawn by ``figures``.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from IPython.display import display
from PIL import Image
from torch import Tensor

from ip2p_lib.files import atomic_write
from ip2p_lib.notebook import figures
from ip2p_lib.training.loss_weighting import band_means, band_names
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import Look, Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF = (figures.PAGE / 2, 2.9)  # inches of a plot of which two stand side by side


def plot_bands(bands: Tensor, *, window: int = 20, first: int = 1) -> Figure:
    """Running mean loss of each band of timesteps.

    Args:
        bands: (n, 2, K), what each of n steps, at least 1, had as ``bands``.
        window: steps that a mean reaches back.
        first: number of the first step.
    """
    means = band_means(bands, window)
    lines = dict(zip(band_names(bands=means.shape[1]), means.T, strict=True))
    steps = torch.arange(first, first + len(means))
    figure = figures.plot_lines(steps, lines, x_label="step", y_label="loss")
    figure.axes[0].set_yscale("log")
    return figure


def plot_looks(looks: Sequence[Look], bounds: Mapping[str, Look]) -> Figure:
    """Both similarities by step; dotted, what the trivial edits of ``bounds`` get."""
    steps = [look.step for look in looks]
    names = ("image_similarity", "directional_similarity")
    lines = {n.replace("_", " "): [getattr(k, n) for k in looks] for n in names}
    labels = {"x_label": "step", "y_label": "mean over the fixed edits"}
    figure = figures.plot_lines(steps, lines, **labels)
    axes = figure.axes[0]
    for line in axes.lines:
        line.set_marker("o")
    for name, bound in bounds.items():
        for key, colour in zip(names, figures.COLOURS, strict=False):
            level = getattr(bound, key)
            axes.axhline(level, color=colour, linestyle=":", linewidth=1)
            axes.text(steps[0], level, name, va="bottom", fontsize=7, color="#555")
    return figure


def picture_of(figure: Figure) -> Image.Image:
    """Draw a figure as the notebook would."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, bbox_inches="tight")
    return Image.open(file).convert("RGB")


def stacked(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Set pictures in rows, from the left, on white."""
    sizes = [(sum(p.width for p in r), max(p.height for p in r)) for r in rows]
    whole = (max(w for w, _ in sizes), sum(h for _, h in sizes))
    sheet, y = Image.new("RGB", whole, "white"), 0
    for row, (_, height) in zip(rows, sizes, strict=True):
        x = 0
        for picture in row:
            sheet.paste(picture, (x, y))
            x += picture.width
        y += height
    return sheet


def told_time(seconds: float) -> str:
    """A length of time in words, to the accuracy a reader needs."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Board:
    """One display of a run; ``show`` it every step, and it draws itself now and then.

    After a resume, ``bands`` and ``looks`` of the earlier sittings may be passed in.
    """

    validation: Validation
    last: int  # number of the run's last step
    file: Path | None = None  # the picture, replaced whole at every drawing
    every_seconds: float = 10.0
    bands: list[Tensor] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    _began: float = field(default_factory=lambda: time.monotonic())
    _drawn: float = 0.0
    _taken: int = 0  # steps of this sitting
    _bounds: dict[str, Look] = field(default_factory=dict)
    _handle: Any = None

    def show(self, step: TrainStep, look: Look | None = None) -> None:
        """Note a step; draw anew if there is a look, or the picture has grown old."""
        self.bands.append(step.bands)
        self._taken += 1
        if look:
            self.looks.append(look)
        old = time.monotonic() - self._drawn > self.every_seconds
        if look or old or step.step == self.last:
            self.draw(step.step)

    def words(self, step: int) -> str:
        """Where the run stands, and how long it will still take."""
        spent = time.monotonic() - self._began
        if step >= self.last:
            return f"{self.last} steps taken"
        left = spent / max(self._taken, 1) * (self.last - step)
        return f"step {step} of {self.last}, about {told_time(left)} left"

    def draw(self, step: int) -> None:
        """Draw, show and keep the picture."""
        sheet, file = self.sheet(self.words(step)), io.BytesIO()
        sheet.save(file, "PNG", optimize=True)
        shown = {
            "image/png": base64.b64encode(file.getvalue()).decode(),
            "text/plain": self.words(step),
        }
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
        if self.file:
            with atomic_write(self.file) as whole:
                whole.write(file.getvalue())
        self._drawn = time.monotonic()

    def sheet(self, title: str) -> Image.Image:
        """The picture: the plots there is something to plot for, then the edits."""
        plots = []
        if self.bands:
            plots.append(plot_bands(torch.stack([b.cpu() for b in self.bands])))
        if self.looks:
            self._bounds = self._bounds or self.validation.bounds()
            plots.append(plot_looks(self.looks, self._bounds))
        for plot in plots:
            plot.set_size_inches(*HALF)
        plots[0].axes[0].set_title(title, fontsize=9)
        rows = [[picture_of(plot) for plot in plots]]
        if any(look.edits is not None for look in self.looks):
            rows.append([picture_of(self.strip())])
        return stacked(rows)

    def strip(self) -> Figure:
        """The inputs above the first and the newest edits."""
        made = {k.step: k.edits for k in self.looks if k.edits is not None}
        shown = {f"step {n}": made[n] for n in sorted({min(made), max(made)})}
        examples = self.validation.examples
        rows = [examples.before, *shown.values()]
        return figures.show_grid(rows, ["input", *shown], examples.instructions)
