"""The filter as a panel: move a threshold, and see what is left (section 3.1.2).

The plain call beside it is ``filter_figures.plot_funnel(calibration.funnel(...))``;
the panel draws that figure again whenever a slider moves.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import ipywidgets
from torch import Tensor

from ip2p_lib.filtering.calibration import funnel, mark
from ip2p_lib.filtering.clip_filter import Scores
from ip2p_lib.filtering.figures import plot_funnel
from ip2p_lib.notebook.panel import LABEL, WIDE, Panel, slider, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ip2p_lib.config import Filtering


class ThresholdPanel(Panel):
    """Sliders over one set of scored pairs; see ``threshold_panel``.

    Attributes:
        start: the thresholds that Reset goes back to.
    """

    about = "A panel to move the filter's thresholds; it needs a running notebook."

    def __init__(
        self,
        scores: Scores,
        groups: Sequence[Hashable],
        start: Filtering,
        good: Tensor | None,
    ) -> None:
        """Lay out the panel and draw what the thresholds to start with leave."""
        self.scores, self.groups, self.start, self.good = scores, groups, start, good
        self.image, self.text, self.direction = (
            slider(name, getattr(start, name), 1.0, step=0.01)
            for name in ("image", "text", "direction")
        )
        self.keep = ipywidgets.BoundedIntText(
            start.keep, min=1, max=100, description="keep at most", style=LABEL
        )
        self.reset_button = ipywidgets.Button(description="Reset")
        self.message = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout=WIDE)
        sliders = [self.image, self.text, self.direction]
        foot = ipywidgets.HBox([self.keep, self.reset_button])
        rows = [*sliders, foot, self.message, self.picture]
        super().__init__(rows, layout={"max_width": "700px"})
        for control in (*sliders, self.keep):
            control.observe(lambda _: self.guard(self._draw), "value")
        self.reset_button.on_click(lambda _: self._reset())
        self._draw()

    def thresholds(self) -> Filtering:
        """The filter as the sliders stand."""
        return replace(
            self.start,
            image=self.image.value,
            text=self.text.value,
            direction=self.direction.value,
            keep=self.keep.value,
        )

    def still(self) -> Figure:
        """The funnel, as the plain call draws it."""
        steps = funnel(self.scores, self.groups, self.thresholds())
        return plot_funnel(steps, self.good)

    def _draw(self) -> None:
        self.picture.value = to_png(self.still())
        *_, left = funnel(self.scores, self.groups, self.thresholds()).values()
        served = {
            group for group, stays in zip(self.groups, left, strict=True) if stays
        }
        text = f"{int(left.sum())} pairs stay, for {len(served)} of "
        text += f"{len(set(self.groups))} triplets"
        if self.good is not None and left.any():
            text += f"; {mark(left, self.good).found.value:.0%} of the good ones"
        self.say(text)

    def _reset(self) -> None:
        for name in ("image", "text", "direction", "keep"):
            getattr(self, name).value = getattr(self.start, name)


def threshold_panel(
    scores: Scores,
    groups: Sequence[Hashable],
    thresholds: Filtering,
    good: Tensor | None = None,
) -> ThresholdPanel:
    """A panel to see what thresholds keep of B scored pairs.

    Args:
        scores: of the pairs.
        groups: names each pair's triplet.
        thresholds: to start with.
        good: (B,) bool, where it is known which pairs are good.
    """
    return ThresholdPanel(scores, groups, thresholds, good)
