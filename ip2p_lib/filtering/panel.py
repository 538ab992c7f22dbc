"""Sliders for the filter's thresholds: ``plot_funnel`` redrawn at each move (3.1.2)."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import ipywidgets
from matplotlib.figure import Figure
from torch import Tensor

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.calibration import funnel
from ip2p_lib.filtering.clip_filter import Scores
from ip2p_lib.filtering.figures import plot_funnel
from ip2p_lib.notebook.figures import to_png
from ip2p_lib.notebook.panel import LABEL, WIDE, Panel, slider


class ThresholdPanel(Panel):
    """A slider per threshold and the funnel, of which ``plot_funnel`` is the still."""

    about = "A panel to move the filter's thresholds; it needs a running notebook."

    def __init__(
        self,
        scores: Scores,
        groups: Sequence[Hashable],
        thresholds: Filtering,
        good: Tensor,
    ) -> None:
        self.scores, self.groups, self.good = scores, groups, good
        self.start = thresholds
        self.sliders = {
            name: slider(name, getattr(thresholds, name), 1.0, step=0.01)
            for name in ("image", "text", "direction")
        }
        self.sliders["keep"] = ipywidgets.BoundedIntText(
            thresholds.keep, min=1, max=100, description="keep at most", style=LABEL
        )
        self.message = ipywidgets.HTML()
        self.plot = ipywidgets.Image(format="png", layout=WIDE)
        rows = [*self.sliders.values(), self.message, self.plot]
        super().__init__(rows, layout={"max_width": "700px"})
        for control in self.sliders.values():
            control.observe(lambda _: self.guard(self._draw), "value")
        self._draw()

    def still(self) -> Figure:
        """The funnel at the sliders' thresholds."""
        values = {name: control.value for name, control in self.sliders.items()}
        stages = funnel(self.scores, self.groups, replace(self.start, **values))
        return plot_funnel(stages, self.good)

    def _draw(self) -> None:
        self.say("")
        self.plot.value = to_png(self.still())
