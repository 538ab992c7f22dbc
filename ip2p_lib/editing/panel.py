"""The editor as a panel: upload a picture, say what to change, press Edit.

A panel does nothing that ``Editor.edit`` does not do from a plain cell; see ``panels``
for what all panels share.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import PIL.Image
from PIL.Image import Image

from ip2p_lib import images
from ip2p_lib.notebook import figures
from ip2p_lib.notebook.panel import LABEL, WIDE, Panel, slider, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ip2p_lib.editing.editor import Editor


def _uploaded(value: Any) -> bytes:
    """The newest upload: version 7 keeps a dict by file name, version 8 a tuple."""
    files = list(value.values()) if isinstance(value, dict) else list(value)
    return bytes(files[-1]["content"])


def _picture_box() -> Any:
    layout = {"max_width": "49%", "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


class EditorPanel(Panel):
    """Controls and pictures of one editor; see ``editor_panel``.

    Every control is an attribute, so that a cell can do what a hand does:
    ``panel.instruction.value = "make it night"``, ``panel.edit_button.click()``.

    Attributes:
        source: the picture to edit, or None before an upload.
        result: the last edit, or None.
    """

    about = "A panel to edit pictures; it needs a running notebook."

    def __init__(self, editor: Editor) -> None:
        """Lay out the panel with the editor's own settings."""
        self.editor = editor
        self.source: Image | None = None
        self.result: Image | None = None
        self.upload = ipywidgets.FileUpload(accept="image/*")
        self.instruction = ipywidgets.Text(
            placeholder="what to change: make it winter",
            description="instruction",
            style=LABEL,
            layout=WIDE,
        )
        defaults = editor.settings
        self.text_scale = slider("follow the text", defaults.text_scale, 15.0)
        self.image_scale = slider("keep the picture", defaults.image_scale, 3.0)
        self.steps = ipywidgets.BoundedIntText(
            defaults.steps, min=1, max=1000, description="steps", style=LABEL
        )
        self.seed = ipywidgets.BoundedIntText(
            0, min=0, max=2**31 - 1, description="seed", style=LABEL
        )
        self.edit_button = ipywidgets.Button(description="Edit", button_style="primary")
        self.reset_button = ipywidgets.Button(description="Reset")
        self.message = ipywidgets.HTML()
        self.before, self.after = _picture_box(), _picture_box()
        super().__init__(self._rows(), layout={"max_width": "900px"})
        self.upload.observe(lambda _: self._guard(self._take_upload), "value")
        self.edit_button.on_click(lambda _: self._guard(self._edit))
        self.reset_button.on_click(lambda _: self._guard(self._reset))

    def _rows(self) -> list[Any]:
        numbers = ipywidgets.HBox([self.steps, self.seed])
        buttons = ipywidgets.HBox([self.upload, self.edit_button, self.reset_button])
        shown = ipywidgets.HBox([self.before, self.after])
        sliders = [self.text_scale, self.image_scale]
        return [self.instruction, *sliders, numbers, buttons, self.message, shown]

    def take(self, image: Image) -> None:
        """Make a picture the one to edit.

        Raises:
            ImageError: the picture cannot be read.
        """
        self.source = images.load(image)
        self._show(self.before, self.source)
        self._show(self.after, None)
        self.result = None
        self.say("Now say what to change, and press Edit.")

    def still(self) -> Figure | None:
        """What the panel shows, as a figure; None without a picture."""
        if self.source is None:
            return None
        if self.result is None:
            return figures.show_grid([[self.source]])
        return figures.show_pairs(self.source, self.instruction.value, self.result)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run a callback, with the button out of reach meanwhile."""
        self.edit_button.disabled = True
        try:
            self.guard(action)
        finally:
            self.edit_button.disabled = False

    def _show(self, box: Any, picture: Image | None) -> None:
        box.value = b"" if picture is None else to_png(picture)
        box.layout.display = "none" if picture is None else ""
        if picture is not None:  # the miniature's 128 pixels twice as large
            box.layout.width = f"{max(256, picture.width)}px"

    def _take_upload(self) -> None:
        if not self.upload.value:
            return  # the front end clears the value before it sets a new one
        content = io.BytesIO(_uploaded(self.upload.value))
        try:
            self.take(PIL.Image.open(content, formats=images.FORMATS))
        except PIL.UnidentifiedImageError as error:
            kinds = ", ".join(images.FORMATS)
            raise ValueError(f"That is not a picture; use {kinds}.") from error

    def _edit(self) -> None:
        if self.source is None:
            raise ValueError("There is no picture yet: upload one first.")
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
            "Too little change? Follow the text more or keep the picture less; too "
            "much, the other way. Another seed is another attempt."
        )

    def _reset(self) -> None:
        """Back to the editor's settings and the picture as it came."""
        defaults = self.editor.settings
        self.text_scale.value = defaults.text_scale
        self.image_scale.value = defaults.image_scale
        self.steps.value, self.seed.value = defaults.steps, 0
        self.instruction.value, self.result = "", None
        self._show(self.after, None)
        self.say("")


def editor_panel(editor: Editor, image: Image | None = None) -> EditorPanel:
    """A panel to edit pictures by hand (section 4, the authors' demo).

    Args:
        editor: see ``editing.load_editor``.
        image: a picture to start from; another can be uploaded.
    """
    panel = EditorPanel(editor)
    if image is not None:
        panel.take(image)
    return panel


def sliders_grid(
    editor: Editor,
    image: Image,
    instruction: str,
    *,
    text_scales: Sequence[float],
    image_scales: Sequence[float],
    seed: int = 0,
) -> Figure:
    """What the panel's two sliders do, as one still: an edit for every pair of scales.

    Rows follow ``image_scales``, columns ``text_scales``; all from the same noise.
    """
    rows = [
        [
            editor.edit(image, instruction, text_scale=s_T, image_scale=s_I, seed=seed)
            for s_T in text_scales
        ]
        for s_I in image_scales
    ]
    return figures.show_grid(
        rows,
        [f"keep the picture {scale:g}" for scale in image_scales],
        [f"follow the text {scale:g}" for scale in text_scales],
        instruction,
    )
