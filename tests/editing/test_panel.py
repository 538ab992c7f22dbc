"""The editor panel, used as a person would use it."""

import base64
import datetime
import inspect
import io
from types import SimpleNamespace

import pytest
from PIL import Image, ImageOps

from ip2p_lib.config import Editing
from ip2p_lib.editing import panel as panels
from ip2p_lib.editing.editor import Editor

CYAN = Image.new("RGB", (32, 24), (0, 255, 255))
RED = (255, 0, 0)
EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Inverter:
    """An editor whose every edit inverts the image, and that remembers the call."""

    settings = Editing(steps=7, text_scale=2.5, image_scale=1.2)

    def __init__(self):
        self.call = {}
        self.error = None

    def edit(self, image, *arguments, **options):
        if self.error:
            raise self.error
        signature = inspect.signature(Editor.edit)
        self.call = signature.bind(self, image, *arguments, **options).arguments
        return ImageOps.invert(image)


@pytest.fixture
def panel():
    return panels.editor_panel(Inverter(), CYAN)


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def corner(box):
    return Image.open(io.BytesIO(box.value)).getpixel((0, 0))


def upload(panel, content):
    """Upload a file, in the form of the installed version of ipywidgets."""
    file = {"name": "a.png", "type": "", "size": 0, "last_modified": EPOCH}
    new = ({**file, "content": memoryview(content)},)
    old = isinstance(panel.upload.value, dict)
    panel.upload.set_trait("value", {"a.png": {"content": content}} if old else new)


def test_edit_passes_on_every_control_and_shows_the_result(panel):
    controls = (panel.text_scale.value, panel.image_scale.value, panel.steps.value)
    assert controls == (2.5, 1.2, 7)
    panel.instruction.value = "make it red"
    panel.text_scale.value, panel.image_scale.value = 4.5, 0.9
    panel.steps.value, panel.seed.value = 3, 11
    panel.edit_button.click()
    _, image, instruction, *options = panel.editor.call.values()
    assert image.getpixel((0, 0)) == (0, 255, 255)
    assert [instruction, *options] == ["make it red", 4.5, 0.9, 3, 11]
    assert corner(panel.after) == RED and corner(panel.before) == (0, 255, 255)
    assert panel.after.layout.display != "none"


def test_reset_restores_every_control_and_keeps_the_image(panel):
    def controls():
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
    assert corner(panel.after) == RED


def test_an_upload_in_ipywidgets_7_is_a_dict(panel):
    panel.upload = SimpleNamespace(value={"a.png": {"content": png(CYAN)}})
    panel._take_upload()
    assert panel.source.tobytes() == CYAN.tobytes()


def test_an_uploaded_image_is_the_next_to_be_edited(panel):
    panel.edit_button.click()
    upload(panel, png(Image.new("RGB", (8, 8), (255, 255, 0))))
    assert panel.after.layout.display == "none"
    panel.edit_button.click()
    assert corner(panel.after) == (0, 0, 255)


@pytest.mark.parametrize("content", [b"", b"not an image", png(CYAN)[:60]])
def test_a_bad_upload_is_explained_and_changes_nothing(panel, content):
    before = panel.source
    upload(panel, content)
    assert "image" in panel.message.value
    assert panel.source is before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("The instruction is ''. Say what"), "Say what"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (ValueError("<script>alert(1)</script>"), "&lt;script&gt;"),
    ],
)
def test_an_error_is_shown_in_the_panel(panel, error, message):
    panel.editor.error = error
    panel.edit_button.click()
    assert message in panel.message.value and "<script" not in panel.message.value
    assert not panel.edit_button.disabled
    panel.editor.error = None
    panel.edit_button.click()
    assert message not in panel.message.value


def test_without_an_image_the_panel_asks_for_one():
    panel = panels.editor_panel(Inverter())
    panel.edit_button.click()
    assert "upload one first" in panel.message.value
    assert panel.still() is None


def test_a_page_without_widgets_gets_a_still(panel):
    panel.instruction.value = "把它变成红色"
    panel.edit_button.click()
    bundle = panel._repr_mimebundle_()
    still = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB")
    colours = {colour for _, colour in still.getcolors(10**6) or []}
    assert {(0, 255, 255), RED} <= colours
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == panel.model_id
