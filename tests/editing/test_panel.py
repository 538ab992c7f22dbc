"""The editor panel, driven as hands would drive it."""

from __future__ import annotations

import base64
import datetime
import inspect
import io
from collections.abc import Callable

import pytest
from PIL import Image, ImageOps

from ip2p_lib.config import Editing
from ip2p_lib.editing import panel as widgets
from ip2p_lib.editing.editor import Editor

CYAN = Image.new("RGB", (32, 24), (0, 255, 255))
EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Inverter:
    """An editor whose every edit inverts the picture, and that remembers the call."""

    settings = Editing(steps=7, text_scale=2.5, image_scale=1.2)

    def __init__(self) -> None:
        self.asked: dict = {}
        self.fails: Exception | None = None

    def edit(
        self,
        image: Image.Image,
        instruction: str,
        *,
        text_scale: float | None = None,
        image_scale: float | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> Image.Image:
        if self.fails:
            raise self.fails
        self.asked = {key: value for key, value in locals().items() if key != "self"}
        return ImageOps.invert(image)


@pytest.fixture
def panel() -> widgets.EditorPanel:
    return widgets.editor_panel(Inverter(), CYAN)  # type: ignore[arg-type]


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def shown(box) -> Image.Image:
    return Image.open(io.BytesIO(box.value))


def upload_in_7(name: str, content: bytes) -> dict:
    return {name: {"metadata": {"name": name}, "content": content}}


def upload_in_8(name: str, content: bytes) -> tuple:
    facts = {"name": name, "type": "", "size": 0, "last_modified": EPOCH}
    return ({**facts, "content": memoryview(content)},)


def give(panel: widgets.EditorPanel, content: bytes) -> None:
    """Upload a file, in the form of the installed version."""
    form = upload_in_7 if isinstance(panel.upload.value, dict) else upload_in_8
    panel.upload.set_trait("value", form("a.png", content))


def test_the_stand_in_is_called_as_the_editor_is() -> None:
    own, real = (inspect.signature(kind.edit) for kind in (Inverter, Editor))
    assert list(own.parameters) == list(real.parameters)


def test_edit_passes_on_every_control_and_shows_the_result(panel) -> None:
    panel.instruction.value = "make it red"
    panel.text_scale.value, panel.image_scale.value = 4.5, 0.9
    panel.steps.value, panel.seed.value = 3, 11
    panel.edit_button.click()
    asked = panel.editor.asked
    assert asked.pop("image").getpixel((0, 0)) == (0, 255, 255)
    assert asked == {
        "instruction": "make it red",
        "text_scale": 4.5,
        "image_scale": 0.9,
        "steps": 3,
        "seed": 11,
    }
    assert shown(panel.after).getpixel((0, 0)) == (255, 0, 0)
    assert shown(panel.before).getpixel((0, 0)) == (0, 255, 255)
    assert panel.after.layout.display != "none"


def test_the_panel_starts_with_the_editors_settings(panel) -> None:
    values = (panel.text_scale.value, panel.image_scale.value, panel.steps.value)
    assert values == (2.5, 1.2, 7)


def test_reset_restores_every_control_and_keeps_the_picture(panel) -> None:
    def controls() -> list:
        names = ("instruction", "text_scale", "image_scale", "steps", "seed", "after")
        return [getattr(panel, name).value for name in names]

    fresh = controls()
    panel.instruction.value, panel.seed.value, panel.steps.value = "x", 3, 2
    panel.text_scale.value, panel.image_scale.value = 9.0, 0.0
    panel.edit_button.click()
    assert controls() != fresh
    panel.reset_button.click()
    assert controls() == fresh
    panel.edit_button.click()
    assert shown(panel.after).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("form", [upload_in_7, upload_in_8])
def test_an_upload_is_read_as_either_version_gives_it(form: Callable) -> None:
    assert widgets._newest_upload(form("a.png", b"bytes")) == b"bytes"


def test_an_uploaded_picture_is_the_next_to_be_edited(panel) -> None:
    panel.edit_button.click()
    give(panel, png(Image.new("RGB", (8, 8), (255, 255, 0))))
    assert panel.after.layout.display == "none"
    panel.edit_button.click()
    assert shown(panel.after).getpixel((0, 0)) == (0, 0, 255)


def test_a_photo_lying_on_its_side_is_put_upright(panel) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    CYAN.save(file, "jpeg", exif=exif)
    give(panel, file.getvalue())
    assert shown(panel.before).size == (24, 32)


@pytest.mark.parametrize("content", [b"", b"not a picture", png(CYAN)[:60]])
def test_a_bad_upload_is_explained_and_changes_nothing(panel, content: bytes) -> None:
    before = panel.source
    give(panel, content)
    assert "image" in panel.message.value
    assert panel.source is before


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("The instruction is ''. Say what"), "Say what"),
        (FloatingPointError("half precision overflowed"), "half precision"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (ValueError("<script>alert(1)</script>"), "&lt;script&gt;"),
    ],
)
def test_an_error_is_shown_in_the_panel(panel, error: Exception, says: str) -> None:
    panel.editor.fails = error
    panel.edit_button.click()
    assert says in panel.message.value
    assert "<script" not in panel.message.value
    assert not panel.edit_button.disabled
    panel.editor.fails = None
    panel.edit_button.click()
    assert says not in panel.message.value


def test_without_a_picture_the_panel_asks_for_one() -> None:
    panel = widgets.editor_panel(Inverter())  # type: ignore[arg-type]
    panel.edit_button.click()
    assert "upload one first" in panel.message.value
    assert panel.still() is None


def test_a_page_without_widgets_gets_a_still(panel) -> None:
    panel.instruction.value = "把它变成红色"
    panel.edit_button.click()
    bundle = panel._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB")
    colours = {colour for _, colour in still.getcolors(10**6) or []}
    assert {(0, 255, 255), (255, 0, 0)} <= colours
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.model_id


def test_nothing_in_the_panel_can_stall_a_batch_run(panel) -> None:
    def inside(widget) -> list[str]:
        children = getattr(widget, "children", ())
        return [
            type(widget).__name__,
            *(n for child in children for n in inside(child)),
        ]

    names = inside(panel)
    assert "Output" not in names
    assert {"FileUpload", "Text", "FloatSlider", "Button", "Image", "HTML"} <= set(
        names
    )
