"""What every panel of the notebooks has: a message line, and a still of itself.

Only this module and those built on it know ipywidgets, and only what versions 7.7
(Colab) and 8 share. Everything that a callback shows is the value of an ``Image`` or
``HTML`` widget, errors too: an exception in a callback would end in a log that nobody
sees, and an ``Output`` widget now and then stalls notebooks that run in batch.

Where widgets cannot live, on a web page or in a report, a panel leaves a still picture.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets
from PIL.Image import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = {"width": "97%"}
LABEL = {"description_width": "11em"}


def to_png(picture: Image | Figure) -> bytes:
    """A picture or a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    if isinstance(picture, Image):
        picture.save(file, "png")
    else:
        picture.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def slider(
    name: str, value: float, most: float, *, least: float = 0.0, step: float = 0.1
) -> Any:
    """A slider as wide as its panel, which shows as many digits as its step has."""
    digits = 1 if step >= 0.1 else 2
    return ipywidgets.FloatSlider(
        value,
        min=min(least, value),
        max=max(most, value),
        step=step,
        description=name,
        readout_format=f".{digits}f",
        style=LABEL,
        layout=WIDE,
    )


class Panel(ipywidgets.VBox):
    """Controls of one thing; they are attributes, so that a cell can move them.

    Attributes:
        about: what stands for the panel where it cannot be drawn.
        message: an ``HTML`` widget for what a callback has to say.
    """

    about = "A panel; it needs a running notebook."
    message: Any
    # Version 7 would display the panel by this method, and leave no still behind.
    _ipython_display_ = None

    def still(self) -> Figure | None:
        """What the panel shows, as a figure; None while there is nothing to show."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live panel, and a still for pages without widgets."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        bundle: dict[str, Any] = {
            "text/plain": self.about,
            "application/vnd.jupyter.widget-view+json": view,
        }
        still = self.still()
        if still is not None:
            bundle["image/png"] = base64.b64encode(to_png(still)).decode()
        return bundle

    def guard(self, action: Callable[[], None]) -> None:
        """Run a callback; whatever goes wrong is said in the panel."""
        try:
            action()
        except (ValueError, OSError, ArithmeticError) as error:
            self.say(str(error), "#b00020")  # the library's own words
        except Exception as error:
            self.say(f"This failed: {type(error).__name__}: {error}", "#b00020")

    def say(self, text: str, colour: str = "inherit") -> None:
        """Put a line of text below the controls."""
        words = html.escape(text)
        self.message.value = f'<span style="color: {colour}">{words}</span>'
