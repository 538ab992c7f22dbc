"""Anybody's images and a table become pairs; every bad row is told, once."""

import numpy as np
import pytest
from PIL import Image

from ip2p_lib.dataset import DatasetError, PairDataset, read_table, write_shards
from tests.support.pairs import psnr

ORIENTATION = 0x0112  # the EXIF tag


@pytest.fixture
def folder(tmp_path):
    """Six images, 24 wide and 16 high, and two files that are none."""
    x, y = np.meshgrid(np.arange(24), np.arange(16))
    for i in range(6):
        pixels = np.stack([x * 10, y * 15, np.full_like(x, i * 40)], -1).astype("u1")
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.png").write_text("buy milk")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:-40])
    return tmp_path


def table(folder, *rows, head="before,after,instruction", encoding="utf-8"):
    path = folder / "pairs.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding=encoding)
    return path


def test_a_table_becomes_pairs_in_its_order(folder):
    path = table(folder, "0.png,1.png,make it bluer", "2.png,3.png,戴上帽子")
    pairs = list(read_table(path))
    assert [pair.key for pair in pairs] == ["0000000", "0000001"]
    assert [pair.instruction for pair in pairs] == ["make it bluer", "戴上帽子"]
    assert [pair.language for pair in pairs] == ["en", "zh"]
    assert np.array_equal(pairs[1].after, Image.open(folder / "3.png"))
    assert (pairs[0].caption, pairs[0].seed, pairs[0].scores) == ("", None, {})


def test_captions_are_read_where_they_stand(folder):
    head = "instruction,caption,edited_caption,before,after"
    path = table(folder, '"a hat, please",a cat,a cat in a hat,0.png,1.png', head=head)
    (pair,) = read_table(path)
    assert (pair.caption, pair.edited_caption) == ("a cat", "a cat in a hat")
    assert pair.instruction == "a hat, please"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_are_read_as_spreadsheets_write_them(folder, encoding, delimiter):
    rows = ["Before,After, Instruction", "0.png,1.png,make it bluer"]
    head, row = (line.replace(",", delimiter) for line in rows)
    (pair,) = read_table(table(folder, row, head=head, encoding=encoding))
    assert pair.instruction == "make it bluer"


def test_images_are_upright(folder):
    """A camera turned on its side; ``test_images`` has the other orientations."""
    upright = Image.open(folder / "0.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    filmed = upright.transpose(Image.Transpose.ROTATE_90)
    filmed.save(folder / "photo.jpg", quality=100, subsampling=0, exif=exif)
    (pair,) = read_table(table(folder, "photo.jpg,1.png,make it bluer"))
    assert pair.before.size == (24, 16) and psnr(pair.before, upright) > 40


def test_each_bad_row_is_reported_with_its_line_and_reason(folder):
    Image.new("RGB", (30, 16)).save(folder / "wide.png")
    head = "before,after,instruction,caption,edited_caption"
    rows = {
        "0.png,1.png,good,,": None,
        "0.png,none.png,no image,,": "line 3: There is no image at ",
        "0.png,notes.png,not a image,,": "notes.png is not an image of",
        "cut.png,1.png,cut,,": "cut.png cannot be read",
        "0.png,wide.png,sizes,,": "line 6: its images differ in size: 24 x 16 and 30",
        "0.png,1.png,,,": "line 7: its instruction is empty",
        "0.png,,no after,,": "line 8: its after is empty",
        "0.png,1.png,one caption,a cat,": "line 9: a caption is empty",
        ",,,,": "line 10: its before and after and instruction is empty",
        ".,1.png,a folder,,": "line 11: ",
        "2.png,3.png,good too,,": None,
    }
    problems = []
    pairs = list(read_table(table(folder, *rows, head=head), problems=problems))
    assert [pair.instruction for pair in pairs] == ["good", "good too"]
    expected = [reason for reason in rows.values() if reason]
    for problem, reason in zip(problems, expected, strict=True):
        assert str(problem).startswith("pairs.csv: ") and reason in str(problem)
    assert len(pairs) + len(problems) == len(rows)


def test_without_a_list_the_first_bad_row_stops_the_reading(folder):
    path = table(folder, "0.png,1.png,good", "0.png,none.png,bad", "x,y,worse")
    with pytest.raises(DatasetError, match=r"pairs\.csv: line 3: There is no image"):
        list(read_table(path))


def test_images_become_squares_of_one_size(folder):
    Image.open(folder / "1.png").resize((48, 32)).save(folder / "double.png")
    rows = ["0.png,double.png,twice as large", "2.png,3.png,as it was"]
    pairs = list(read_table(table(folder, *rows), resolution=8))
    sizes = {image.size for p in pairs for image in (p.before, p.after)}
    assert sizes == {(8, 8)}
    middle = Image.open(folder / "2.png").crop((4, 0, 20, 16)).resize((8, 8))
    assert psnr(pairs[1].before, middle) > 30


def test_images_of_another_shape_are_not_squeezed_together(folder):
    Image.new("RGB", (32, 16)).save(folder / "wide.png")
    problems = []
    path = table(folder, "0.png,wide.png,other shape")
    assert list(read_table(path, resolution=8, problems=problems)) == []
    assert "differ in aspect ratio: 24 x 16 and 32 x 16" in problems[0].reason


@pytest.mark.parametrize(
    ("head", "missing"),
    [("before,after", "instruction"), ("a,b,c", "before and after and instruction")],
)
def test_a_table_without_the_columns_is_refused(folder, head, missing):
    with pytest.raises(ValueError, match=f"has no column {missing};"):
        read_table(table(folder, "0.png,1.png,x", head=head))


def test_an_empty_table_is_refused(folder):
    (folder / "pairs.csv").write_text("")
    with pytest.raises(ValueError, match="has no column before and after"):
        read_table(folder / "pairs.csv")


def test_another_encoding_is_told(folder):
    path = table(folder, "0.png,1.png,plus de fumée", encoding="latin-1")
    with pytest.raises(ValueError, match="not UTF-8; save it as CSV in UTF-8"):
        read_table(path)


def test_no_table_is_told(folder):
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_table(folder / "none.csv")


def test_ones_own_images_become_a_data_set_to_train_on(folder):
    """And what the camera noted, such as where it was, stays at home."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 1, "Secret Camera"
    Image.open(folder / "0.png").save(folder / "photo.jpg", exif=exif)
    path = table(folder, "photo.jpg,1.png,make it bluer", "2.png,3.png,bluer still")
    write_shards(read_table(path, resolution=16), folder / "shards")
    data = PairDataset(folder / "shards")
    assert [data[i].instruction for i in range(2)] == ["make it bluer", "bluer still"]
    assert b"Secret Camera" in (folder / "photo.jpg").read_bytes()
    assert b"Secret Camera" not in (folder / "shards" / "pairs-00000.tar").read_bytes()
