"""The editor as a panel: upload a picture, say what to change, press Edit.

The only place that knows ipywidgets, and only what versions 7.7 (Colab) and 8 share.
Everything a callback shows is the value of an ``Image`` or ``HTML`` widget, errors too:
an exception in a callback would end in a log that nobody sees, and an ``Output`` widget
now and then stalls notebooks that run in batch.

A panel does nothing that ``Editor.edit`` does not do from a plain cell. Where widgets
cannot live, on a web page or in a report, it leaves a still picture of itself.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import PIL.Image
from PIL.Image import Image

from ip2p_lib import figures, images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ip2p_lib.editing import Editor

_WIDE = {"width": "97%"}
_LABEL = {"description_width": "11em"}


def _png(picture: Image | Figure) -> bytes:
    file = io.BytesIO()
    if isinstance(picture, Image):
        picture.save(file, "png")
    else:
        picture.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def _uploaded(value: Any) -> bytes:
    """The newest upload: version 7 keeps a dict by file name, version 8 a tuple."""
    files = list(value.values()) if isinstance(value, dict) else list(value)
    return bytes(files[-1]["content"])


def _slider(name: str, value: float, most: float) -> Any:
    return ipywidgets.FloatSlider(
        value,
        min=0.0,
        max=max(most, value),
        step=0.1,
        description=name,
        readout_format=".1f",
        style=_LABEL,
        layout=_WIDE,
    )


def _picture_box() -> Any:
    layout = {"max_width": "49%", "display": "none"}
    return ipywidgets.Image(format="png", layout=layout)


class EditorPanel(ipywidgets.VBox):
    """Controls and pictures of one editor; see ``editor_panel``.

    Every control is an attribute, so that a cell can do what a hand does:
    ``panel.instruction.value = "make it night"``, ``panel.edit_button.click()``.

    Attributes:
        source: the picture to edit, or None before an upload.
        result: the last edit, or None.
    """

    # Version 7 would display the panel by this method, and leave no still behind.
    _ipython_display_ = None

    def __init__(self, editor: Editor) -> None:
        """Lay out the panel with the editor's own settings."""
        self.editor = editor
        self.source: Image | None = None
        self.result: Image | None = None
        self.upload = ipywidgets.FileUpload(accept="image/*")
        self.instruction = ipywidgets.Text(
            placeholder="what to change: make it winter",
            description="instruction",
            style=_LABEL,
            layout=_WIDE,
        )
        defaults = editor.settings
        self.text_scale = _slider("follow the text", defaults.text_scale, 15.0)
        self.image_scale = _slider("keep the picture", defaults.image_scale, 3.0)
        self.steps = ipywidgets.BoundedIntText(
            defaults.steps, min=1, max=1000, description="steps", style=_LABEL
        )
        self.seed = ipywidgets.BoundedIntText(
            0, min=0, max=2**31 - 1, description="seed", style=_LABEL
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
        self._say("Now say what to change, and press Edit.")

    def still(self) -> Figure | None:
        """What the panel shows, as a figure; None without a picture."""
        if self.source is None:
            return None
        if self.result is None:
            return figures.show_grid([[self.source]])
        return figures.show_pairs(self.source, self.instruction.value, self.result)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live panel, and a still for pages without widgets."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        bundle: dict[str, Any] = {
            "text/plain": "A panel to edit pictures; it needs a running notebook.",
            "application/vnd.jupyter.widget-view+json": view,
        }
        still = self.still()
        if still is not None:
            bundle["image/png"] = base64.b64encode(_png(still)).decode()
        return bundle

    def _guard(self, action: Callable[[], None]) -> None:
        """Run a callback; whatever goes wrong is said in the panel."""
        self.edit_button.disabled = True
        try:
            action()
        except (ValueError, OSError, ArithmeticError) as error:
            self._say(str(error), "#b00020")  # the library's own words
        except Exception as error:
            self._say(f"This failed: {type(error).__name__}: {error}", "#b00020")
        finally:
            self.edit_button.disabled = False

    def _say(self, text: str, colour: str = "inherit") -> None:
        words = html.escape(text)
        self.message.value = f'<span style="color: {colour}">{words}</span>'

    def _show(self, box: Any, picture: Image | None) -> None:
        box.value = b"" if picture is None else _png(picture)
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
        self._say("Editing ...")
        self.result = self.editor.edit(
            self.source,
            self.instruction.value,
            text_scale=self.text_scale.value,
            image_scale=self.image_scale.value,
            steps=self.steps.value,
            seed=self.seed.value,
        )
        self._show(self.after, self.result)
        self._say(
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
        self._say("")


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
