"""Only a clean run is committed, and what differs from run to run is dropped."""

import base64
import io
import json

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from ip2p_lib.images import to_pil
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.world import sample_scene
from ip2p_lib.notebook import figures
from jobs.notebooks import outputs, publish, run
from tests.support.small_notebook import IMAGES, outputs_of, write_notebook


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in run.QUIET.items():
        monkeypatch.setenv(name, value)


def notebook_of(output, count=1):
    """A notebook of one cell with one output."""
    cell = new_code_cell("1", execution_count=count, outputs=[output])
    return new_notebook(cells=[cell])


def data(kind, value):
    return new_output("display_data", {kind: value})


def test_publishing_writes_a_clean_run_back_and_locks_its_sources(tmp_path):
    path = write_notebook(tmp_path / "00_overview.ipynb", IMAGES)
    before = outputs.source_hash(nbformat.read(path, as_version=4))
    assert publish.publish([path], tmp_path / "runs", 60) == []
    published = nbformat.read(path, as_version=4)
    assert outputs.faults(published) == []
    assert outputs.source_hash(published) == before
    lock = json.loads((tmp_path / "outputs.lock.json").read_text())
    assert lock == {path.stem: before}
    assert set(published.metadata) == {"kernelspec", "language_info"}
    assert "papermill" not in path.read_text() and str(tmp_path) not in path.read_text()
    panel = outputs_of(published)[-1].data
    assert set(panel) == {"image/png", "text/plain"}, "the still, and no live widget"


def test_a_faulty_run_is_not_written_back(tmp_path):
    path = write_notebook(
        tmp_path / "00_overview.ipynb", "import sys; sys.stderr.write('w')"
    )
    before = path.read_bytes()
    problems = publish.publish([path], tmp_path / "runs", 60)
    assert problems == ["00_overview: cell 5: text on standard error"]
    assert path.read_bytes() == before and not (tmp_path / "outputs.lock.json").exists()


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (new_output("stream", name="stderr", text="w"), "text on standard error"),
        (new_output("error", ename="KeyError"), "KeyError on standard error"),
        (new_output("stream", text="saved /home/ann/a.png"), "a machine's path"),
        (new_output("stream", text="<A object at 0x7f31aa02>"), "an object's address"),
        (new_output("stream", text="10%\r20%"), "progress-bar litter"),
        (data("text/html", "<script>1</script>"), "a script"),
        (data("text/html", '<img src="https://x.y">'), "an image from the network"),
        (data("application/javascript", "1"), "live content (application/javascript)"),
        (data(outputs.WIDGET, {"model_id": "a"}), f"live content ({outputs.WIDGET})"),
        (data("text/html", '<a href="https://a.b/home/c">x</a> data/tmp/a.json'), None),
    ],
)
def test_an_output_that_may_not_be_committed_is_reported(output, fault):
    notebook = notebook_of(output)
    outputs.clean(notebook)
    assert outputs.faults(notebook) == ([f"cell 1: {fault}"] if fault else [])


def test_order_and_size_are_reported():
    notebook = notebook_of(data("text/plain", "x" * outputs.LIMIT), count=2)
    assert outputs.faults(notebook) == [
        "is not one run from top to bottom",
        "is larger than 600 kB",
    ]


def compressed(png):
    """The kind, size and pixels of an image in a published notebook."""
    notebook = notebook_of(data("image/png", base64.b64encode(png).decode()))
    outputs.clean(notebook)
    ((kind, encoded),) = outputs_of(notebook)[0].data.items()
    smaller = base64.b64decode(encoded)
    return kind, len(smaller), pixels_of(smaller)


def pixels_of(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), float)


def test_generated_images_become_smaller_jpegs_and_plots_stay_sharp():
    scenes = to_pil(render([sample_scene(seed) for seed in range(8)]))
    png = figures.to_png(figures.show_grid([scenes[:4], scenes[4:]]))
    kind, size, pixels = compressed(png)
    assert kind == "image/jpeg" and size < 0.6 * len(png)
    assert np.abs(pixels - pixels_of(png)).mean() < 2

    png = figures.to_png(figures.plot_lines([0, 1, 2], {"loss": [1.0, 0.5, 0.3]}))
    kind, size, pixels = compressed(png)
    assert kind == "image/png" and size <= len(png)
    assert np.abs(pixels - pixels_of(png)).mean() < 0.2


def test_a_smooth_sky_keeps_its_colours():
    """256 colours for all channels together, as a palette has, would make bands."""
    x, y = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256))
    sky = np.stack([80 + 100 * x, 120 + 100 * y, 200 + 50 * x * y], -1)
    *_, pixels = compressed(figures.to_png(Image.fromarray(sky.astype(np.uint8))))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2000
