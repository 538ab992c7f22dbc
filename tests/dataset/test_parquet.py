"""Parquet files hold our pairs bit for bit, for us, for datasets and for diffusers."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ip2p_lib.config import DATA
from ip2p_lib.dataset.dataset import DatasetError, read_shards, write_shards
from ip2p_lib.dataset.hub_rows import FIVE_COLUMNS, THREE_COLUMNS, read_rows
from ip2p_lib.dataset.parquet import export_parquet, read_parquet
from tests.support.pairs import make_pair, same, texts_of

PAIRS = [make_pair(i) for i in range(25)]


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards", shard_size=8)
    return tmp_path / "shards"


@pytest.fixture
def exported(source, tmp_path):
    return export_parquet(source, tmp_path / "out", pairs_per_file=10)


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, with its caches in the test's folder and no progress bars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def test_the_files_are_named_as_the_hub_names_them(exported):
    names = sorted(str(p.relative_to(exported)) for p in exported.rglob("*.*"))
    of = [f"train-0000{i}-of-00003" for i in range(3)]
    expected = [f"data/{name}.parquet" for name in of]
    assert names == expected + [f"records/{name}.jsonl" for name in of]
    rows = [pq.read_metadata(exported / name).num_rows for name in expected]
    assert rows == [10, 10, 5]


def test_every_pair_comes_back_bit_for_bit_and_in_order(exported):
    back = list(read_parquet(exported))
    assert [same(a, b) for a, b in zip(PAIRS, back, strict=True)] == [True] * 25


def test_the_shipped_sample_comes_back_too(tmp_path):
    sample = DATA / "pairs" / "sample"
    back = read_parquet(export_parquet(sample, tmp_path / "out"))
    assert all(same(a, b) for a, b in zip(read_shards(sample), back, strict=True))


def test_the_same_pairs_make_the_same_bytes(source, exported, tmp_path):
    again = export_parquet(source, tmp_path / "again", pairs_per_file=10)
    for path in exported.rglob("*.*"):
        copy = again / path.relative_to(exported)
        assert path.read_bytes() == copy.read_bytes(), path.name


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_the_folder_and_sees_our_pictures(exported, datasets, streaming):
    rows = datasets.load_dataset(str(exported), split="train", streaming=streaming)
    assert tuple(rows.column_names) == FIVE_COLUMNS
    for pair, row in zip(PAIRS, rows, strict=True):
        assert np.array_equal(row["original_image"], pair.before)
        assert np.array_equal(row["edited_image"], pair.after)
        texts = [row[f"{name}_prompt"] for name in ("original", "edit", "edited")]
        assert texts == [pair.caption, pair.instruction, pair.edited_caption]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_datasets_becomes_pairs(exported, datasets, streaming):
    rows = datasets.load_dataset(str(exported), split="train", streaming=streaming)
    back = list(read_rows(rows))
    assert [pair.instruction for pair in back] == [pair.instruction for pair in PAIRS]
    assert all(
        np.array_equal(a.after, b.after) for a, b in zip(PAIRS, back, strict=True)
    )
    assert {(pair.seed, pair.p, pair.steps) for pair in back} == {(None, None, None)}


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        (FIVE_COLUMNS, ("original_image", "edit_prompt", "edited_image")),
        (THREE_COLUMNS, (None, None, None)),
    ],
)
def test_rows_serve_as_diffusers_training_script_uses_them(
    source, datasets, tmp_path, columns, flags
):
    """As train_instruct_pix2pix.py: columns by flag or place, then batched access."""
    folder = export_parquet(source, tmp_path / "x", columns=columns)
    train = datasets.load_dataset(str(folder))["train"].shuffle(seed=0).select(range(8))
    names = train.column_names
    image, prompt, edited = (f or names[i] for i, f in enumerate(flags))

    def preprocess(examples):
        pixels = [
            np.array(picture.convert("RGB").resize((8, 8))).transpose(2, 0, 1)
            for picture in examples[image] + examples[edited]
        ]
        return {"pixels": pixels, "texts": list(examples[prompt])}

    batch = train.with_transform(preprocess)[:4]
    assert np.stack(batch["pixels"]).shape == (8, 3, 8, 8)
    assert set(batch["texts"]) <= {pair.instruction for pair in PAIRS}


def test_three_columns_lose_the_captions_and_nothing_else(source, tmp_path):
    folder = export_parquet(source, tmp_path / "x", columns=THREE_COLUMNS)
    for pair, back in zip(PAIRS, read_parquet(folder), strict=True):
        gone = {"caption": "", "edited_caption": ""}
        assert texts_of(back) == texts_of(pair) | gone


def test_pairs_without_captions_are_sent_to_the_three_columns(tmp_path):
    bare = {"caption": "", "edited_caption": ""}
    write_shards([make_pair(0, **bare)], tmp_path / "shards")
    with pytest.raises(ValueError, match=r"000000 has no captions.*THREE_COLUMNS"):
        export_parquet(tmp_path / "shards", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    export_parquet(tmp_path / "shards", tmp_path / "out", columns=THREE_COLUMNS)
    assert texts_of(next(read_parquet(tmp_path / "out"))) == texts_of(
        make_pair(0, **bare)
    )


def test_other_columns_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="FIVE_COLUMNS or THREE_COLUMNS, not"):
        export_parquet(source, tmp_path / "out", columns=("image", "text"))


def png(size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


GOOD = {"input_image": png(), "edit_prompt": "make it blue", "edited_image": png()}
FAULTS = {
    "edited_image cannot be used: it is not a picture": {"edited_image": b"GIF89a?"},
    "edited_image cannot be used: The picture cannot be read": {
        "edited_image": png()[:-30]
    },
    "input_image holds no picture": {"input_image": None},
    "there is no picture": {"input_image": {"bytes": None, "path": "nowhere.png"}},
    "edit_prompt is empty": {"edit_prompt": " "},
    "differ in size: 8 x 8 and 9 x 8": {"edited_image": png((9, 8))},
    "its columns are text": {},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_row_that_cannot_be_used_is_named_with_its_reason(reason):
    bad = GOOD | FAULTS[reason] if FAULTS[reason] else {"text": "x"}
    with pytest.raises(DatasetError, match=f"row 1: .*(?i:{reason})"):
        list(read_rows([GOOD, bad]))
    problems = []
    good = list(read_rows([GOOD, bad, GOOD], problems=problems))
    assert [pair.key for pair in good] == ["0000000", "0000002"]
    assert [problem.key for problem in problems] == ["row 1"]


def test_a_broken_picture_costs_datasets_users_one_row(datasets):
    rows = [GOOD, GOOD | {"edited_image": b"nothing"}, GOOD]
    kinds = {"edit_prompt": datasets.Value("string")}
    kinds |= {name: datasets.Image() for name in ("input_image", "edited_image")}
    loaded = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    problems = []
    assert len(list(read_rows(loaded, problems=problems))) == 2
    assert len(problems) == 1


def test_a_set_of_splits_is_refused():
    with pytest.raises(ValueError, match="Choose one split of the data set: train"):
        read_rows({"train": []})


def test_a_folder_without_parquet_files_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        read_parquet(tmp_path)


def test_a_cut_file_is_one_problem_and_the_others_are_read(exported):
    path = exported / "data" / "train-00001-of-00003.parquet"
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 10).astype(int):
        path.write_bytes(data[:cut])
        problems = []
        keys = [int(pair.key) for pair in read_parquet(exported, problems=problems)]
        assert keys == [*range(10), *range(20, 25)]
        assert [problem.shard for problem in problems] == [path.name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [(-1, "more rows than records"), (1, "more records than rows")],
)
def test_records_that_do_not_match_their_rows_are_said(exported, change, reason):
    path = exported / "records" / "train-00002-of-00003.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = lines[:change] if change < 0 else [*lines, lines[0]]
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(DatasetError, match=reason):
        list(read_parquet(exported))
