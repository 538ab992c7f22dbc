"""A data set is finished or refused; what is damaged is listed and never used."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ip2p_lib.config import DATA
from ip2p_lib.dataset import (
    DatasetError,
    Pair,
    PairDataset,
    read_shards,
    stack,
    validate,
    write_shards,
)
from ip2p_lib.dataset.dataset import read_manifest, write_manifest
from ip2p_lib.dataset.shards import describe_shard, write_shard
from tests.support.pairs import make_pair

NAME = "pairs-00001.tar"


@pytest.fixture
def folder(tmp_path):
    write_shards(map(make_pair, range(50)), tmp_path, shard_size=20, run_seed=3)
    return tmp_path


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def keys(pairs):
    return [int(pair.key) for pair in pairs]


def listed(folder):
    return [(p.shard, p.key, p.reason) for p in validate(folder)]


def rewrite(folder, change):
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def test_many_shards_are_one_data_set(folder):
    manifest = read_manifest(folder)
    assert [shard["pairs"] for shard in manifest["shards"]] == [20, 20, 10]
    assert manifest["pairs"] == 50 and manifest["run_seed"] == 3
    assert keys(read_shards(folder)) == list(range(50))


def test_without_a_manifest_the_run_is_unfinished(folder):
    (folder / "manifest.json").unlink()
    for read in (read_shards, PairDataset):
        with pytest.raises(FileNotFoundError, match="not finished"):
            list(read(folder))
    assert "has not finished" in validate(folder)[0].reason


def test_how_a_pair_was_generated_may_be_unknown(tmp_path):
    images = make_pair(0).before, make_pair(0).after
    write_shards([Pair("a", *images, "", "make it blue", "")], tmp_path)
    (back,) = read_shards(tmp_path)
    assert (back.seed, back.p, back.cfg_scale, back.steps) == (None,) * 4
    assert (back.caption, back.edited_caption, back.scores) == ("", "", {})


def test_a_damaged_shard_stops_the_reading_or_is_collected(folder):
    damage(folder / NAME)
    with pytest.raises(DatasetError, match=rf"{NAME}: the shard is damaged"):
        list(read_shards(folder))
    problems = []
    assert keys(read_shards(folder, problems=problems)) == [
        *range(20),
        *range(40, 50),
    ]
    assert [problem.shard for problem in problems] == [NAME]
    data = PairDataset(folder)
    assert len(data) == 50 and data[49].key == "000049"
    with pytest.raises(DatasetError, match="damaged"):
        data[20]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_any_number_of_workers_reads_the_same_pairs(folder, workers):
    loader = DataLoader(
        PairDataset(folder),
        batch_size=16,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context="spawn" if workers else None,
    )
    batches = list(loader)
    assert keys(pair for batch in batches for pair in batch) == list(range(50))
    assert np.array_equal(batches[2][1].after, make_pair(33).after)


def test_pairs_stack_into_tensors(folder):
    before, after = stack([make_pair(0), make_pair(1)])
    assert before.shape == after.shape == (2, 3, 16, 16)
    pixels = torch.from_numpy(np.array(make_pair(1).before)).permute(2, 0, 1)
    assert torch.allclose((before[1] + 1) * 127.5, pixels.float(), atol=1e-3)


# ---------------------------------------------------------------------- validation


@pytest.mark.parametrize("n", [0, 1, 25])
def test_a_good_set_has_no_problems(tmp_path, n):
    write_shards(map(make_pair, range(n)), tmp_path, shard_size=10)
    (tmp_path / "README.md").write_text("a card")
    assert validate(tmp_path) == []


def test_the_shipped_sample_has_no_problems():
    assert validate(DATA / "pairs" / "sample") == []


@pytest.mark.parametrize("cut", [0, 1000, -512])
def test_a_truncated_shard_is_listed(folder, cut):
    (folder / NAME).write_bytes((folder / NAME).read_bytes()[:cut])
    ((shard, key, reason),) = listed(folder)
    assert (shard, key) == (NAME, "") and "SHA-256 differs" in reason


def test_missing_and_unknown_shards_are_listed(folder):
    (folder / NAME).rename(folder / "pairs-00009.tar")
    unknown = "it is not in manifest.json; no reader uses it"
    expected = [("pairs-00009.tar", "", unknown), (NAME, "", "the shard is missing")]
    assert listed(folder) == expected
    with pytest.raises(DatasetError, match="should hold 50 pairs but has 30"):
        PairDataset(folder)


def repack(folder, change, **entry):
    """Write shard 1 again with other files, and a manifest that agrees with it."""
    with tarfile.open(folder / NAME) as old:
        files = {m.name: old.extractfile(m).read() for m in old}
    with tarfile.open(folder / NAME, "w") as new:
        for name, data in change(files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    shards = read_manifest(folder)["shards"]
    shards[1] = describe_shard(folder / NAME) | entry
    write_manifest(folder, shards)


@pytest.mark.parametrize("part", ["before.webp", "after.webp", "json"])
def test_a_missing_file_of_a_pair_is_listed(folder, part):
    name = f"000024.{part}"
    repack(folder, lambda files: {k: v for k, v in files.items() if k != name})
    assert listed(folder) == [(NAME, "000024", f"{part} missing")]


def test_a_wrong_number_of_pairs_is_listed(folder):
    repack(folder, lambda files: files, pairs=19)
    assert listed(folder) == [(NAME, "", "it holds 20 pairs, manifest.json says 19")]


def test_a_key_in_two_shards_is_listed(folder):
    write_shard(map(make_pair, range(15, 25)), folder / NAME)
    repack(folder, lambda files: files)
    reason = "its key is also in pairs-00000.tar"
    assert listed(folder) == [(NAME, f"{i:06d}", reason) for i in range(15, 20)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": "a.png"}, "another version"),
        ({"instruction": "drop", "edit": "x"}, "differs in ['edit', 'instruction']"),
        ({"caption": " "}, "give both captions"),
        ({"instruction": ""}, "its instruction is empty"),
        ({"instruction": 7}, "is no text"),
    ],
)
def test_a_record_that_cannot_be_used_is_listed(folder, changes, reason):
    def change(files):
        record = json.loads(files["000025.json"]) | changes
        record = {k: v for k, v in record.items() if v != "drop"}
        return files | {"000025.json": json.dumps(record).encode()}

    repack(folder, change)
    ((shard, key, text),) = listed(folder)
    assert (shard, key) == (NAME, "000025") and reason in text
    with pytest.raises(DatasetError, match="000025"):
        list(read_shards(folder))


def test_images_of_two_sizes_and_no_images_are_listed(folder):
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "WEBP")
    other = {"000020.after.webp": small.getvalue(), "000021.after.webp": b"nothing"}
    repack(folder, lambda files: files | other)
    first, second = listed(folder)
    assert first[1:] == ("000020", "its images differ in size: 16 x 16 and 8 x 8")
    assert second[1] == "000021" and "not an image" in second[2]


MANIFESTS = {
    "format 2, this version reads 1": lambda m: m | {"format": 2},
    "'shards'": lambda m: {"pairs": 3},
    "do not add up": lambda m: m | {"pairs": 51},
    "no file of its folder": lambda m: (
        m | {"shards": [m["shards"][0] | {"name": "../x.tar"}], "pairs": 20}
    ),
    "cannot be used": lambda m: [],
}


@pytest.mark.parametrize("reason", MANIFESTS)
def test_a_manifest_that_cannot_be_used_is_listed(folder, reason):
    rewrite(folder, MANIFESTS[reason])
    (problem,) = validate(folder)
    assert problem.shard == "manifest.json" and reason in problem.reason
    with pytest.raises(DatasetError, match=reason):
        read_manifest(folder)


def test_a_manifest_without_a_format_is_of_the_first(folder):
    rewrite(folder, lambda m: {k: v for k, v in m.items() if k != "format"})
    assert validate(folder) == []
