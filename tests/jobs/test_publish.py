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


def test_publishing_writes_a_clean_run_back_and_locks_its_sources(tmp_path):
    path = write_notebook(tmp_path / "00_overview.ipynb", IMAGES)
    before = outputs.source_hash(nbformat.read(path, as_version=4))
    assert publish.publish([path], tmp_path / "runs", 60) == []
    published = nbformat.read(path, as_version=4)
    assert outputs.faults(published) == []
    assert outputs.source_hash(published) == before
    assert json.loads((tmp_path / "outputs.lock.json").read_text()) == {
        path.stem: before
    }
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
        (new_output("display_data", {"text/html": "<script>1</script>"}), "a script"),
        (
            new_output("display_data", {"text/html": '<img src="https://x.y">'}),
            "an image from the network",
        ),
        (
            new_output("display_data", {"application/javascript": "1"}),
            "live content (application/javascript)",
        ),
    ],
)
def test_an_output_that_may_not_be_committed_is_told(output, fault):
    cell = new_code_cell("1", execution_count=1, outputs=[output])
    assert outputs.faults(new_notebook(cells=[cell])) == [f"cell 1: {fault}"]


def test_order_and_size_are_told():
    big = new_output("stream", text="x" * outputs.LIMIT)
    cells = [new_code_cell("1", execution_count=2, outputs=[big])]
    assert outputs.faults(new_notebook(cells=cells)) == [
        "is not one run from top to bottom",
        "is larger than 600 kB",
    ]


def test_relative_paths_links_and_pictures_are_no_faults():
    data = {
        "text/html": '<a href="https://a.b/home/c">x</a> data/tmp/a.json, and/or/var/x'
    }
    cell = new_code_cell("1", execution_count=1)
    cell.outputs = [new_output("display_data", data)]
    assert outputs.faults(new_notebook(cells=[cell])) == []


def test_a_widget_without_a_still_is_a_fault():
    data = {outputs.WIDGET: {"model_id": "a"}, "text/plain": "FloatSlider()"}
    cell = new_code_cell("1", execution_count=1, outputs=[])
    cell.outputs = [new_output("display_data", data)]
    notebook = new_notebook(cells=[cell])
    outputs.clean(notebook)
    assert outputs.faults(notebook) == [f"cell 1: live content ({outputs.WIDGET})"]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


def test_images_become_smaller_jpegs_and_look_the_same():
    scenes = to_pil(render([sample_scene(seed) for seed in range(8)]))
    png = figures.to_png(figures.show_grid([scenes[:4], scenes[4:]]))
    kind, data = outputs.compress(png)
    assert kind == "jpeg" and len(data) < 0.75 * len(png)
    assert decoded(data).shape == decoded(png).shape
    assert np.abs(decoded(data) - decoded(png)).mean() < 2


def test_plots_stay_exact():
    png = figures.to_png(figures.plot_lines([0, 1, 2], {"loss": [1.0, 0.5, 0.3]}))
    kind, data = outputs.compress(png)
    assert kind == "png" and len(data) <= len(png)
    assert np.array_equal(decoded(data), decoded(png))


def test_a_smooth_sky_keeps_its_colours():
    """256 colours for all channels together, as a palette has, would make bands."""
    x, y = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256))
    sky = np.stack([80 + 100 * x, 120 + 100 * y, 200 + 50 * x * y], -1)
    _, data = outputs.compress(figures.to_png(Image.fromarray(sky.astype(np.uint8))))
    assert len(np.unique(decoded(data).reshape(-1, 3), axis=0)) > 2000


def test_compressed_outputs_replace_the_originals():
    (scene,) = to_pil(render([sample_scene(4)]))
    encoded = base64.b64encode(figures.to_png(scene)).decode()
    cell = new_code_cell("1", execution_count=1)
    cell.outputs = [new_output("display_data", {"image/png": encoded})]
    notebook = new_notebook(cells=[cell])
    outputs.clean(notebook)
    (output,) = outputs_of(notebook)
    ((kind, data),) = output.data.items()
    assert (kind.removeprefix("image/"), base64.b64decode(data)) == outputs.compress(
        figures.to_png(scene)
    )
