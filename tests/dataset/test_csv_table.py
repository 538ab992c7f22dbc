"""Anybody's images and a table become pairs; every bad row is reported."""

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
    head = "instruction,caption,edited_caption,before,after"
    rows = [
        '"a hat, please",a cat,a cat in a hat,0.png,1.png',
        "戴上帽子,,,2.png,3.png",
    ]
    first, second = read_table(table(folder, *rows, head=head))
    assert (first.key, second.key) == ("0000000", "0000001")
    assert (first.instruction, second.instruction) == ("a hat, please", "戴上帽子")
    assert (first.caption, first.edited_caption) == ("a cat", "a cat in a hat")
    assert (first.language, second.language) == ("en", "zh")
    assert np.array_equal(second.after, Image.open(folder / "3.png"))
    assert (second.caption, second.seed, second.scores) == ("", None, {})


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";"), ("utf-8", "\t")]
)
def test_tables_are_read_as_spreadsheets_write_them(folder, encoding, delimiter):
    rows = ["Before,After, Instruction", "0.png,1.png,make it bluer"]
    head, row = (line.replace(",", delimiter) for line in rows)
    (pair,) = read_table(table(folder, row, head=head, encoding=encoding))
    assert pair.instruction == "make it bluer"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_may_end_in_commas_and_an_open_quote_swallows_no_row(folder, end):
    rows = ["before,after,instruction,,", "0.png,1.png,one", "", "0.png,1.png,two,,"]
    rows += ['0.png,1.png,"three, with', "", 'a ""second"" line"', "0.png,1.png,four"]
    rows += ['0.png,1.png,"open', '0.png,1.png,five"', "0.png,1.png,six, too,"]
    (folder / "pairs.csv").write_text(end.join(rows), newline="")
    problems = []
    texts = [p.instruction for p in read_table(folder / "pairs.csv", problems=problems)]
    assert texts == ["one", "two", "four", 'five"']
    assert [p.key for p in problems] == [f"line {n}" for n in (5, 7, 9, 11)]


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
        "0.png,1.png,one caption,a cat,": "line 8: a caption is empty",
        ".,1.png,a folder,,": "line 9: ",
        "2.png,3.png,good too,,": None,
    }
    problems, path = [], table(folder, *rows, head=head)
    pairs = list(read_table(path, problems=problems))
    assert [pair.instruction for pair in pairs] == ["good", "good too"]
    expected = [reason for reason in rows.values() if reason]
    for problem, reason in zip(problems, expected, strict=True):
        assert str(problem).startswith("pairs.csv: ") and reason in str(problem)
    with pytest.raises(DatasetError, match=r"pairs\.csv: line 3: There is no image"):
        list(read_table(path))


def test_images_become_squares_of_one_size(folder):
    Image.open(folder / "1.png").resize((48, 32)).save(folder / "double.png")
    Image.new("RGB", (32, 16)).save(folder / "wide.png")
    rows = ["0.png,double.png,twice as large", "2.png,3.png,x", "0.png,wide.png,bad"]
    problems = []
    pairs = list(read_table(table(folder, *rows), resolution=8, problems=problems))
    sizes = {image.size for p in pairs for image in (p.before, p.after)}
    assert len(pairs) == 2 and sizes == {(8, 8)}
    middle = Image.open(folder / "2.png").crop((4, 0, 20, 16)).resize((8, 8))
    assert psnr(pairs[1].before, middle) > 30
    assert "aspect ratios differ" in problems[0].reason, "not squeezed together"


@pytest.mark.parametrize("resolution", [0, -8])
def test_a_square_without_pixels_is_refused_before_a_row_is_read(folder, resolution):
    path = table(folder, "0.png,1.png,x")
    with pytest.raises(ValueError, match=f"at least 1, not {resolution}"):
        read_table(path, resolution=resolution, problems=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("before,after\n0.png,1.png", "no column instruction;"),
        ("", "no column before and after and instruction;"),
        ("plus de fumée", "not UTF-8"),
        ("before,after,instruction\n\n", "no rows below"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(folder, text, message):
    (folder / "pairs.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        read_table(folder / "pairs.csv")
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_table(folder / "none.csv")


def test_ones_own_images_become_a_data_set_to_train_on(folder):
    """Upright, and without what the camera noted, such as where it was."""
    upright, exif = Image.open(folder / "0.png"), Image.Exif()
    exif[ORIENTATION], exif[0x010F] = 6, "Secret Camera"
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "photo.jpg", quality=100, subsampling=0, exif=exif)
    write_shards(read_table(table(folder, "photo.jpg,1.png,bluer")), folder / "shards")
    (pair,) = PairDataset(folder / "shards")
    assert pair.instruction == "bluer"
    assert pair.before.size == (24, 16) and psnr(pair.before, upright) > 40
    assert b"Secret Camera" in (folder / "photo.jpg").read_bytes()
    assert b"Secret Camera" not in (folder / "shards" / "pairs-00000.tar").read_bytes()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0.png,1.png,make it old, and grey,a woman,an old woman", "it has 6 cells"),
        ("0.png,1.png", "it has 2 cells and the first line 5"),
        ('0.png,1.png,"make it old,a woman,an old woman', "close each quote"),
        ('0.png,1.png,"make" it,a woman,an old woman', "close each quote"),
        ("0.png,1.png,make it old,a woman,A woman.", "captions are equal"),
        (f"0.png,1.png,{'x' * 200_000},a,b", "line 2: field larger than"),
    ],
)
def test_no_cell_is_guessed_lost_or_moved(folder, row, reason):
    """And the rows after a bad one are read, an open quote swallows none of them."""
    problems, good = [], '2.png,3.png,"a hat, please",a cat,a cat in a hat'
    head = "before,after,instruction,caption,edited_caption"
    path = table(folder, row, good, head=head)
    (pair,) = read_table(path, problems=problems)
    assert (pair.instruction, pair.caption) == ("a hat, please", "a cat")
    (problem,) = problems
    assert str(problem).startswith("pairs.csv: line 2") and reason in str(problem)
