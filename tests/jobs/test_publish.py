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
from jobs import notebooks, publish
from jobs.notebooks.widget_stills import still
from tests.support.small_notebook import PICTURE, outputs, write_notebook


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    for name, value in notebooks.QUIET.items():
        monkeypatch.setenv(name, value)


def test_publishing_writes_a_clean_run_back_and_locks_its_sources(tmp_path):
    path = write_notebook(tmp_path / "00_overview.ipynb", PICTURE)
    before = publish.source_hash(nbformat.read(path, as_version=4))
    assert publish.publish([path], tmp_path / "runs", 60) == []
    published = nbformat.read(path, as_version=4)
    assert publish.faults(published) == []
    assert publish.source_hash(published) == before
    assert json.loads((tmp_path / "outputs.lock.json").read_text()) == {
        path.stem: before
    }
    assert set(published.metadata) == {"kernelspec", "language_info"}
    assert "papermill" not in path.read_text() and str(tmp_path) not in path.read_text()
    panel = outputs(published)[-1].data["text/html"]
    assert "text scale" in panel and "7.5" in panel and ">Edit<" in panel
    assert panel.count("data:image/png;base64,") == 1


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
            "a picture from the network",
        ),
        (
            new_output("display_data", {"application/javascript": "1"}),
            "live content (application/javascript)",
        ),
    ],
)
def test_an_output_that_may_not_be_committed_is_told(output, fault):
    cell = new_code_cell("1", execution_count=1, outputs=[output])
    assert publish.faults(new_notebook(cells=[cell])) == [f"cell 1: {fault}"]


def test_order_and_size_are_told():
    big = new_output("stream", text="x" * publish.LIMIT)
    cells = [new_code_cell("1", execution_count=2, outputs=[big])]
    assert publish.faults(new_notebook(cells=cells)) == [
        "is not one run from top to bottom",
        "is larger than 500 kB",
    ]


def test_relative_paths_links_and_pictures_are_no_faults():
    data = {
        "text/html": '<a href="https://a.b/home/c">x</a> data/tmp/a.json, and/or/var/x'
    }
    cell = new_code_cell("1", execution_count=1)
    cell.outputs = [new_output("display_data", data)]
    assert publish.faults(new_notebook(cells=[cell])) == []


def test_a_still_shows_menus_and_values_and_escapes_text():
    menu = {"_options_labels": ["one", "<two>"], "index": 1, "description": "which"}
    widgets = {
        "box": {
            "model_name": "HBoxModel",
            "state": {"children": ["IPY_MODEL_a", "IPY_MODEL_b"]},
        },
        "a": {"model_name": "DropdownModel", "state": menu},
        "b": {"model_name": "IntSliderModel", "state": {"value": 0}},
    }
    panel = still("box", widgets)
    assert "flex-direction:row" in panel and "&lt;two&gt;" in panel and ">0<" in panel


def _encoded(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_published_pictures_are_smaller_and_look_the_same():
    (picture,) = to_pil(render([sample_scene(4)]))
    page = f'<img src="data:image/png;base64,{_encoded(picture)}">'
    data = {"image/png": _encoded(picture), "text/html": page}
    cell = new_code_cell("1", outputs=[new_output("display_data", data)])
    notebook = new_notebook(cells=[cell])
    publish.shrink_pictures(notebook)
    shrunk = notebook.cells[0].outputs[0].data
    assert len(shrunk["image/png"]) < len(data["image/png"])
    assert shrunk["image/png"] in shrunk["text/html"]
    again = Image.open(io.BytesIO(base64.b64decode(shrunk["image/png"])))
    difference = np.asarray(again.convert("RGB"), float) - np.asarray(picture, float)
    assert again.size == picture.size and np.abs(difference).mean() < 3
