"""A folder of images is edited once each, also across stops, and errors cost one."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import edit
from tests.support.images import smooth_image
from tests.support.tiny_editor import new_editor


@pytest.fixture
def editor(tiny_backbone, monkeypatch):
    editor = new_editor(tiny_backbone)
    monkeypatch.setattr(edit, "load_editor", lambda name: editor)
    return editor


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.JPG", "more/a.webp"]):
        smooth_image(64, 48 + 16 * i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.png").write_bytes(b"of a Mac")
    return folder


def run(photos, *words):
    out = photos.parent / "out"
    start = [str(photos), "--instruction", "make it a cat", "--out", str(out)]
    return edit.main([*start, "--steps", "2", *words]), out


def table(out):
    path = out / "edits.csv"
    with path.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_every_image_is_edited_as_the_editor_edits_it(editor, photos):
    status, out = run(photos, "--seed", "3", "--image-scale", "1")
    assert status == 0
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert names == ["a.png", "b.png", "more/a.png"]
    options = {"steps": 2, "seed": 3, "image_scale": 1.0}
    expected = editor.edit(Image.open(photos / "b.JPG"), "make it a cat", **options)
    assert np.array_equal(Image.open(out / "b.png"), expected)
    row = table(out)[1]
    assert row["image"].endswith("b.JPG") and row["instruction"] == "make it a cat"
    assert (row["steps"], row["text_scale"], row["error"]) == ("2", "7.5", "")


def test_the_same_command_makes_only_what_is_missing(editor, photos, monkeypatch):
    _, out = run(photos)
    done, first = [], {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    real = editor.edit
    monkeypatch.setattr(editor, "edit", lambda *a, **k: done.append(1) or real(*a, **k))
    assert run(photos)[0] == 0 and not done
    (out / "b.png").unlink()
    smooth_image(32, 32).save(photos / "a.png")  # another image than before
    run(photos)
    assert len(done) == 2
    assert (out / "more/a.png").stat().st_mtime_ns == first[out / "more/a.png"]
    for size in (0, 300):
        (out / "b.png").write_bytes((out / "b.png").read_bytes()[:size])
        run(photos)
    assert len(done) == 4 and Image.open(out / "b.png").convert("RGB")
    run(photos, "--seed", "1")
    assert len(done) == 7 and len(table(out)) == 3
    with monkeypatch.context() as patch:  # stopped between an edit and its row
        writes = iter([edit.write_bytes] * 2)
        patch.setattr(edit, "write_bytes", lambda *a: next(writes)(*a))
        assert run(photos)[0] == 2
    run(photos, "--seed", "1")
    assert len(done) == 9 and {row["seed"] for row in table(out)} == {"1"}
    with torch.no_grad():  # another editor of the same name
        editor.backbone.unet.conv_out.weight.mul_(0.5)
    run(photos, "--seed", "1")
    assert len(done) == 12


def test_ctrl_c_keeps_the_edits_so_far_and_says_in_one_line_how_to_go_on(
    editor, photos, monkeypatch, capsys
):
    real, edits = editor.edit, []

    def interrupted(*arguments, **options):
        if len(edits) == 1:
            signal.raise_signal(signal.SIGINT)
        edits.append(real(*arguments, **options))
        return edits[-1]

    monkeypatch.setattr(editor, "edit", interrupted)
    status, out = run(photos)
    assert status == 130 and len(edits) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "Stopped. The same command goes on."
    assert "Traceback" not in said
    assert [path.name for path in out.glob("*.png")] == ["a.png"]


def test_an_image_that_cannot_be_read_costs_only_itself(editor, photos, capsys):
    (photos / "a.png").write_bytes(b"broken")
    status, out = run(photos)
    assert status == 1 and "a.png is not an image" in capsys.readouterr().err
    assert [bool(row["error"]) for row in table(out)] == [True, False, False]
    assert (out / "b.png").is_file() and not (out / "a.png").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--text-scale", "-1"], "text_scale must be"),
        (["--instruction", "\udce9"], "say what to change"),
        (["--out", __file__], "test_edit.py cannot be a folder"),
    ],
)
def test_what_concerns_every_image_is_said_once(editor, photos, capsys, words, says):
    assert run(photos, *words)[0] == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and says in error


def test_a_path_without_images_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("none.png", "empty"):
        with pytest.raises(FileNotFoundError, match=f"no image at .*{name}"):
            edit.find_images([tmp_path / name], tmp_path / "out")


def test_two_images_of_one_name_are_refused(editor, photos, capsys):
    smooth_image(64, 64).save(photos / "a.gif")
    assert run(photos)[0] == 2
    assert "would both become a.png" in capsys.readouterr().err


def test_no_original_and_no_edit_of_another_image_is_overwritten(
    editor, photos, capsys
):
    before = (photos / "a.png").read_bytes()
    assert run(photos, "--out", str(photos))[0] == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before
    others, out = photos.parent / "others", photos.parent / "out"
    others.mkdir()
    out.mkdir()
    tables = ("output,price\nb.png,3\n", "x" * 200_000)
    for name, text in (("b.png", "mine"), *(("edits.csv", text) for text in tables)):
        (out / name).write_text(text)
        assert run(photos)[0] == 2
        assert name in capsys.readouterr().err and (out / name).read_text() == text
        (out / name).unlink()
    smooth_image(64, 64).save(others / "a.png")
    run(photos)
    assert run(others)[0] == 2
    assert "is of " in capsys.readouterr().err


def test_edits_inside_the_folder_are_not_edited_again(editor, photos, monkeypatch):
    """However the folders are named; a note of the user stays."""
    out = photos / "edits"
    assert run(photos, "--out", str(out))[0] == 0
    text = (out / "edits.csv").read_text()
    text = text.replace("error\n", "error,note\n").replace(",\n", ",,fine\n")
    (out / "edits.csv").write_text(text)
    monkeypatch.chdir(photos.parent)
    assert run(Path("photos"), "--out", str(out), "--seed", "1")[0] == 0
    assert [row["note"] for row in table(out)] == ["fine"] * 3


def test_odd_files_cost_only_themselves(editor, photos):
    (photos / "0.png").symlink_to(photos / "nowhere.png")
    (photos / "c.heic").write_bytes(b"ftypheic")
    (photos / "folder.png").mkdir()
    (photos / "a.png").rename(photos / os.fsdecode(b"\xe9.png"))
    for _ in range(2):
        status, out = run(photos)
    errors = {row["output"]: bool(row["error"]) for row in table(out)}
    assert status == 1 and errors.pop("0.png") and errors.pop("c.png")
    assert errors == {"\udce9.png": False, "b.png": False, "more/a.png": False}
