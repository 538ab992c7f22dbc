"""The editor as a panel: upload an image, say what to change, press Edit (section 4).

See ``notebook.panel`` for what all panels share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets
from PIL.Image import Image

from ip2p_lib import images
from ip2p_lib.notebook import figures
from ip2p_lib.notebook.panel import LABEL, WIDE, Panel, slider

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ip2p_lib.editing.editor import Editor


class EditorPanel(Panel):
    """Controls of one editor, its ``source`` image and the ``result``, or None.

    Every control is an attribute, so that a cell can do what a hand does:
    ``panel.instruction.value = "make it night"``, ``panel.edit_button.click()``.
    """

    about = "A panel to edit images; it needs a running notebook."

    def __init__(self, editor: Editor) -> None:
        """Lay out the panel with the editor's own settings."""
        self.editor = editor
        self.source: Image | None = None
        self.result: Image | None = None
        self.upload = ipywidgets.FileUpload(accept="image/*")
        hint = {"placeholder": "what to change", "description": "instruction"}
        self.instruction = ipywidgets.Text(**hint, style=LABEL, layout=WIDE)
        defaults = editor.settings
        self.text_scale = slider("follow the text", defaults.text_scale, 15.0)
        self.image_scale = slider("keep the image", defaults.image_scale, 3.0)
        self.steps = _whole_number("steps", defaults.steps, 1, 1000)
        self.seed = _whole_number("seed", 0, 0, 2**31 - 1)
        self.edit_button = ipywidgets.Button(description="Edit", button_style="primary")
        self.reset_button = ipywidgets.Button(description="Reset")
        self.message = ipywidgets.HTML()
        self.before, self.after = (
            ipywidgets.Image(layout={"max_width": "49%", "display": "none"})
            for _ in range(2)
        )
        row = ipywidgets.HBox
        rows = [
            self.instruction,
            self.text_scale,
            self.image_scale,
            row([self.steps, self.seed]),
            row([self.upload, self.edit_button, self.reset_button]),
            self.message,
            row([self.before, self.after]),
        ]
        super().__init__(rows, layout={"max_width": "900px"})
        self.upload.observe(lambda _: self._run(self._take_upload), "value")
        self.edit_button.on_click(lambda _: self._run(self._edit))
        self.reset_button.on_click(lambda _: self._run(self._reset))

    def take(self, image: Image | bytes) -> None:
        """Make an image the one to edit; raises ImageError if it cannot be read."""
        self.source, self.result = images.load(image), None
        self._show(self.before, self.source)
        self._show(self.after, None)
        self.say("Now say what to change, and press Edit.")

    def still(self) -> Figure | None:
        """What the panel shows, as a figure; None without an image."""
        if self.source is None:
            return None
        if self.result is None:
            return figures.show_grid([[self.source]])
        scales = f"text {self.text_scale.value:g}, image {self.image_scale.value:g}"
        title = f"{self.instruction.value} (guidance scales: {scales})"
        return figures.show_pairs(self.source, title, self.result)

    def _run(self, action: Callable[[], None]) -> None:
        """Run a callback, with the button disabled, and show any error."""
        self.edit_button.disabled = True
        try:
            self.guard(action)
        finally:  # an interrupt is no Exception, which guard would show
            self.edit_button.disabled = False

    def _show(self, box: Any, image: Image | None) -> None:
        box.value = b"" if image is None else figures.to_png(image)
        box.layout.display = "none" if image is None else ""
        if image is not None:  # the miniature's 128 pixels twice as large
            box.layout.width = f"{max(256, image.width)}px"

    def _take_upload(self) -> None:
        files = self.upload.value  # a dict in ipywidgets 7, a tuple in version 8
        if files:  # the front end clears the value before it sets a new one
            *_, newest = files.values() if isinstance(files, dict) else files
            self.take(bytes(newest["content"]))

    def _edit(self) -> None:
        if self.source is None:
            raise ValueError("There is no image yet: upload one first.")
        self.say("Editing ...")
        self.result = self.editor.edit(
            self.source,
            self.instruction.value,
            text_scale=self.text_scale.value,
            image_scale=self.image_scale.value,
            steps=self.steps.value,
            seed=self.seed.value,
        )
        self._show(self.after, self.result)
        self.say(
            "Too little change? Follow the text more or keep the image less; too much, "
            "the other way. Another seed is another attempt."
        )

    def _reset(self) -> None:
        """Restore the editor's settings; the image to edit stays."""
        defaults = self.editor.settings
        self.text_scale.value = defaults.text_scale
        self.image_scale.value = defaults.image_scale
        self.steps.value, self.seed.value = defaults.steps, 0
        self.instruction.value, self.result = "", None
        self._show(self.after, None)
        self.say("")


def _whole_number(name: str, value: int, low: int, high: int) -> Any:
    return ipywidgets.BoundedIntText(
        value, min=low, max=high, description=name, style=LABEL
    )


def editor_panel(editor: Editor, image: Image | None = None) -> EditorPanel:
    """A panel to edit images by hand, like the authors' demo (section 4)."""
    panel = EditorPanel(editor)
    if image is not None:
        panel.take(image)
    return panel
