"""Parquet files hold our pairs bit for bit, for us, for datasets and for diffusers."""

import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import Table

from ip2p_lib.config import DATA
from ip2p_lib.dataset import (
    DatasetError,
    export_parquet,
    hub,
    read_parquet,
    read_shards,
    write_shards,
)
from ip2p_lib.dataset.hub import COLUMNS, from_row
from tests.support.pairs import make_pair, same, tree

PAIRS = [make_pair(i) for i in range(25)]
PAIRS[3] = make_pair(3, caption="", edited_caption="", seed=None)
PAIRS[4] = make_pair(4, word_edit={"line": "\u2028"})


@pytest.fixture
def source(tmp_path):
    write_shards(PAIRS, tmp_path / "shards", shard_size=8)
    return tmp_path / "shards"


@pytest.fixture
def exported(source, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "PAIRS_PER_FILE", 10)
    return export_parquet(source, tmp_path / "out")


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
    assert names == [*expected, "records.jsonl"]
    rows = [pq.read_metadata(exported / name).num_rows for name in expected]
    assert rows == [10, 10, 5]


def test_every_pair_comes_back_bit_for_bit_and_in_order(exported, tmp_path):
    for pair, back in zip(PAIRS, read_parquet(exported), strict=True):
        assert same(pair, back)
    sample = DATA / "pairs" / "sample"
    back = read_parquet(export_parquet(sample, tmp_path / "sample"))
    assert all(same(a, b) for a, b in zip(read_shards(sample), back, strict=True))


def test_the_same_pairs_make_the_same_bytes(source, exported, tmp_path):
    again = export_parquet(source, tmp_path / "again")
    assert [*tree(again).values()] == [*tree(exported).values()]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_opens_the_folder_and_reads_our_images(exported, datasets, streaming):
    rows = datasets.load_dataset(str(exported), split="train", streaming=streaming)
    assert rows.column_names == list(COLUMNS)
    for pair, row in zip(PAIRS, rows, strict=True):
        assert np.array_equal(row["original_image"], pair.before)
        assert np.array_equal(row["edited_image"], pair.after)
        texts = [row[f"{name}_prompt"] for name in ("original", "edit", "edited")]
        assert texts == [pair.caption, pair.instruction, pair.edited_caption]
        back = from_row(row, "a")
        assert np.array_equal(pair.after, back.after)
        assert (back.instruction, back.seed) == (pair.instruction, None)


def png(size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_a_data_set_of_others_is_read_and_a_bad_row_named(tmp_path, datasets):
    """Written by ``datasets``, with the columns of diffusers' example."""
    good = {"input_image": png(), "edit_prompt": "make it blue", "edited_image": png()}
    faults = {
        "cannot be read": {"edited_image": png()[:-30]},
        "not an image": {"input_image": None},
        "no image at": {"input_image": {"bytes": None, "path": "nowhere.png"}},
        "instruction is empty": {"edit_prompt": " "},
        "differ in size": {"edited_image": png((9, 8))},
    }
    rows = [good, *(good | fault for fault in faults.values()), good]
    kinds = {"edit_prompt": datasets.Value("string")}
    kinds |= {name: datasets.Image() for name in ("input_image", "edited_image")}
    data = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    pq.write_table(data.data.table, tmp_path / "train.parquet")
    problems = []
    pairs = list(read_parquet(tmp_path, problems=problems))
    assert [pair.key for pair in pairs] == ["train-00000", "train-00006"]
    for i, (problem, reason) in enumerate(zip(problems, faults, strict=True)):
        assert problem.key == f"row {i + 1}" and re.search(reason, problem.reason)
    with pytest.raises(DatasetError, match="row 1"):
        list(read_parquet(tmp_path))
    with pytest.raises(ValueError, match="no columns edit_prompt"):
        from_row({"text": "x"}, "a")


def test_what_is_missing_is_named(source, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        read_parquet(source)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        export_parquet(source, tmp_path / "out")


def test_a_cut_file_is_one_problem_and_the_others_are_read(exported):
    path = exported / "data" / "train-00001-of-00003.parquet"
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 1, 10).astype(int):
        path.write_bytes(data[:cut])
        problems = []
        keys = [int(pair.key) for pair in read_parquet(exported, problems=problems)]
        assert keys == [*range(10), *range(20, 25)]
        assert [problem.shard for problem in problems] == [path.name]


def test_splits_are_not_mixed(exported):
    data = exported / "data"
    (data / "train-00001-of-00003.parquet").rename(data / "validation-0.parquet")
    (data / "train-00002-of-00003.parquet").rename(data / "test.parquet")
    with pytest.raises(ValueError, match="the splits test, train, validation"):
        read_parquet(exported)
    with pytest.raises(ValueError, match=r"3 files train-.* the numbers \[0\]"):
        read_parquet(exported, split="train")
    whole = data / "train-00000-of-00001.parquet"
    (data / "train-00000-of-00003.parquet").rename(whole)
    with pytest.raises(FileNotFoundError, match="of the split 'test'"):
        read_parquet(whole, split="test")
    parts = {name: read_parquet(exported, split=name) for name in ("train", "test")}
    keys = {name: [pair.key for pair in pairs] for name, pairs in parts.items()}
    expected = [pair.key for pair in PAIRS]
    assert keys == {"train": expected[:10], "test": expected[20:]}
    assert next(read_parquet(data / "test.parquet")).key.startswith("test-")
    (data / "test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="of the split 'test'"):
        read_parquet(exported, split="test")


def test_columns_of_other_names_are_read(exported, tmp_path):
    """Such as MagicBrush's."""
    names = {
        "original_image": "source_img",
        "edit_prompt": "instruction",
        "edited_image": "target_img",
    }
    table = pq.read_table(exported / "data" / "train-00002-of-00003.parquet")
    table = table.select([*names]).rename_columns([*names.values()])
    pq.write_table(table, tmp_path / "dev-0.parquet")
    pairs = list(read_parquet(tmp_path / "dev-0.parquet", columns=names))
    assert [p.instruction for p in pairs] == [p.instruction for p in PAIRS[20:]]
    assert np.array_equal(pairs[0].after, PAIRS[20].after)


def test_damaged_records_are_named(exported):
    (exported / "records.jsonl").write_text("{}\n")
    with pytest.raises(DatasetError, match=r"records\.jsonl is damaged"):
        read_parquet(exported)


def test_any_name_before_the_number_is_a_split_and_no_file_is_passed_over(exported):
    data = exported / "data"
    (data / "train-00000-of-00003.parquet").rename(data / "seen-00000-of-00001.parquet")
    (data / "train-00001-of-00003.parquet").rename(exported / "dev-0.parquet")
    (data / "._seen-00000-of-00001.parquet").write_bytes(b"of a Mac")
    with pytest.raises(ValueError, match="the splits seen, train, validation"):
        read_parquet(exported)
    counts = [len(list(read_parquet(exported, split=s))) for s in ("seen", "dev")]
    assert counts == [10, 10]


def test_folders_of_the_hubs_conversion_are_splits(exported, tmp_path):
    """As ``refs/convert/parquet`` has them; two configurations are not mixed."""
    splits = {"partial-train": 0, "test": 1, "seen": 2}
    for split, i in splits.items():
        new = tmp_path / "hub" / "default" / split / "0000.parquet"
        new.parent.mkdir(parents=True)
        (exported / "data" / f"train-0000{i}-of-00003.parquet").rename(new)
    with pytest.raises(ValueError, match="the splits seen, test, train"):
        read_parquet(tmp_path / "hub")
    for split, i in splits.items():
        pairs = list(
            read_parquet(tmp_path / "hub", split=split.removeprefix("partial-"))
        )
        assert np.array_equal(pairs[0].after, PAIRS[10 * i].after)
    (tmp_path / "hub" / "other" / "test").mkdir(parents=True)
    (tmp_path / "hub" / "other" / "test" / "0000.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"default/test and in .*other/test; name"):
        read_parquet(tmp_path / "hub", split="test")


def test_odd_names_nulls_and_paths_beside_the_file_are_read(
    exported, tmp_path, monkeypatch
):
    rows = pq.read_table(exported / "data" / "train-00002-of-00003.parquet").to_pylist()
    for row in rows:
        name = row["edited_image"]["path"]
        (tmp_path / name).write_bytes(row["edited_image"]["bytes"])
        row |= {"edited_image": {"path": name}, "original_prompt": None}
        row |= {"original_image": name, "edited_prompt": None}
    path = tmp_path / "my data (1).v2.parquet"
    pq.write_table(Table.from_pylist(rows), path)
    pairs = list(read_parquet(path))
    assert np.array_equal(pairs[0].after, PAIRS[20].after) and pairs[0].caption == ""
    with pytest.raises(ValueError, match="no column orig_image"):
        read_parquet(path, columns={"orig_image": "source_img"})
    with pytest.raises(DatasetError, match="no column nope; there are original_pr"):
        next(read_parquet(path, columns={"original_image": "nope"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        read_parquet(path)
