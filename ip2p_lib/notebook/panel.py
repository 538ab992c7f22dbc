"""What every widget panel of the notebooks shares: a message line and a still image.

Only panels use ipywidgets, and only what versions 7.7 (Colab) and 8 have in common.
Callbacks write to ``Image`` and ``HTML`` widgets, errors included: an exception in a
callback ends in a log that nobody sees, and an ``Output`` widget can block a notebook
that runs in batch. Pages without widgets (GitHub, the HTML report) show the still.
"""

import base64
import html
from collections.abc import Callable
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from ip2p_lib.notebook.figures import to_png

WIDE = {"width": "97%"}
LABEL = {"description_width": "11em"}


def slider(name: str, value: float, most: float, *, step: float = 0.1) -> Any:
    """Make a slider from 0 to ``most``, or to ``value`` if that is more."""
    limits = {"min": 0.0, "max": max(most, value), "step": step}
    return ipywidgets.FloatSlider(
        value, **limits, description=name, style=LABEL, layout=WIDE
    )


class Panel(ipywidgets.VBox):
    """A box of controls, each an attribute so that a cell can set it too.

    Attributes:
        about: text shown where neither widgets nor images can be drawn.
        message: an ``HTML`` widget for what a callback reports.
    """

    about = "A panel; it needs a running notebook."
    message: Any
    # ipywidgets 7 would display the panel by this method, and leave no still.
    _ipython_display_ = None

    def still(self) -> Figure | None:
        """Draw what the panel shows as a figure; None while there is nothing."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        bundle: dict[str, Any] = {"application/vnd.jupyter.widget-view+json": view}
        bundle["text/plain"] = self.about
        if figure := self.still():
            bundle["image/png"] = base64.b64encode(to_png(figure)).decode()
        return bundle

    def guard(self, action: Callable[[], None]) -> None:
        """Run a callback and show any error in the panel."""
        try:
            action()
        except (ValueError, OSError, ArithmeticError) as error:
            self.say(str(error), "#b00020")  # errors with a message for the user
        except Exception as error:
            self.say(f"This failed: {type(error).__name__}: {error}", "#b00020")

    def say(self, text: str, colour: str = "inherit") -> None:
        """Show a line of text below the controls."""
        escaped = html.escape(text)
        self.message.value = f'<span style="color: {colour}">{escaped}</span>'
