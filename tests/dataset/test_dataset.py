"""A data set is finished or refused; what is damaged is listed and never used."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_expander

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
from ip2p_lib.dataset.dataset import (
    read_manifest,
    write_manifest,
    write_shard,
)
from ip2p_lib.files import sha256_of
from tests.support.pairs import make_pair, same

NAME = "pairs-00001.tar"
PAIRS = [make_pair(i) for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    write_shards(map(make_pair, range(50)), tmp_path, shard_size=20, run_seed=3)
    return tmp_path


def keys(pairs):
    return [int(pair.key) for pair in pairs]


def listed(folder):
    return [(p.shard, p.key, p.reason) for p in validate(folder)]


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


def test_a_damaged_shard_stops_the_reading_or_is_collected(folder):
    data = bytearray((folder / NAME).read_bytes())
    data[len(data) // 2] ^= 8
    (folder / NAME).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{NAME}: the shard is damaged"):
        list(read_shards(folder))
    problems = []
    left = [*range(20), *range(40, 50)]
    assert keys(read_shards(folder, problems=problems)) == left
    assert problems == validate(folder) and [p.shard for p in problems] == [NAME]
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


def test_pairs_stack_into_tensors():
    before, after = stack([make_pair(0), make_pair(1)])
    assert before.shape == after.shape == (2, 3, 16, 16)
    pixels = torch.from_numpy(np.array(make_pair(1).before)).permute(2, 0, 1)
    assert torch.allclose((before[1] + 1) * 127.5, pixels.float(), atol=1e-3)


def test_pairs_come_back_bit_for_bit_and_in_order(tmp_path):
    """And a pair of unknown origin, too."""
    images = PAIRS[0].before, PAIRS[0].after
    pairs = [*PAIRS, Pair("a", *images, "", "make it blue", "")]
    entry = write_shard(pairs, tmp_path / "b" / "pairs-00000.tar")
    write_shards(pairs, tmp_path)
    assert read_manifest(tmp_path)["shards"] == [entry], "the same bytes"
    back = list(read_shards(tmp_path))
    assert [same(a, b) for a, b in zip(pairs, back, strict=True)] == [True] * 6


def test_webdataset_reads_our_shards_and_the_shipped_one(tmp_path):
    """The shipped one was written with hashes in its records."""
    write_shards(PAIRS, tmp_path)
    for folder in (tmp_path, DATA / "pairs" / "sample"):
        with (folder / "pairs-00000.tar").open("rb") as stream:
            files = tar_file_expander([{"url": "pairs-00000.tar", "stream": stream}])
            samples = list(group_by_keys(files))
        for pair, other in zip(read_shards(folder), samples, strict=True):
            record = json.loads(other["json"])
            assert (pair.key, pair.seed) == (other["__key__"], record["seed"])
            for name in ("caption", "instruction", "edited_caption", "scores", "p"):
                assert getattr(pair, name) == record[name]
            for side in ("before", "after"):
                image = Image.open(io.BytesIO(other[f"{side}.webp"]))
                assert np.array_equal(getattr(pair, side), image)
        assert validate(folder) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": "a.b"}, "letters, digits"),
        ({"key": ""}, "letters, digits"),
        ({"key": "über"}, "letters, digits"),
        ({"instruction": " "}, "instruction is empty"),
        ({"caption": ""}, "both captions"),
        ({"scores": {"image": float("nan")}}, "are numbers"),
        ({"steps": 2.5}, "its steps cannot be 2.5"),
        ({"language": None}, "its language is no text"),
        *(({"caption": caption}, "no text") for caption in (None, "\ud800")),
        ({"after": Image.new("RGB", (8, 8))}, "differ in size: 16 x 16 and 8 x 8"),
    ],
)
def test_a_pair_that_no_reader_could_use_cannot_be_built(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make_pair(0, **changes)


def test_a_key_occurs_once(tmp_path):
    twice = [PAIRS[1], PAIRS[1]]
    with pytest.raises(ValueError, match="'000001' occurs twice"):
        write_shard(twice, tmp_path / "a.tar")
    with pytest.raises(ValueError, match="'000001' occurs twice"):
        write_shards(twice, tmp_path, shard_size=1)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unknown_shards_are_listed(folder):
    (folder / NAME).rename(folder / "pairs-00009.tar")
    unknown = "it is not in manifest.json; no reader uses it"
    expected = [("pairs-00009.tar", "", unknown), (NAME, "", "the shard is missing")]
    assert listed(folder) == expected
    with pytest.raises(DatasetError, match="should hold 50 pairs but has 30"):
        PairDataset(folder)


def repack(folder, change):
    """Write shard 1 again with other files, and a manifest that agrees with it."""
    with tarfile.open(folder / NAME) as old:
        files = {m.name: old.extractfile(m).read() for m in old}
    with tarfile.open(folder / NAME, "w") as new:
        for name, data in change(files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    shards = read_manifest(folder)["shards"]
    shards[1] |= {"sha256": sha256_of(folder / NAME)}
    write_manifest(folder, shards)


def test_a_key_in_two_shards_is_listed(folder):
    shards = read_manifest(folder)["shards"]
    shards[1] = write_shard(map(make_pair, range(15, 25)), folder / NAME)
    write_manifest(folder, shards)
    reason = "its key is also in pairs-00000.tar"
    assert listed(folder) == [(NAME, f"{i:06d}", reason) for i in range(15, 20)]
    assert keys(read_shards(folder, problems=[])) == [*range(25), *range(40, 50)]
    with pytest.raises(DatasetError, match="000015: its key is also in"):
        list(read_shards(folder))
    with pytest.raises(DatasetError, match="has a key twice"):
        PairDataset(folder)


def test_a_key_twice_in_a_shard_is_listed(folder):
    """Whether or not the manifest counts the pair once."""
    data = (folder / NAME).read_bytes()
    first = data[: data.index(b"000021.before.webp")]  # the pair 000020
    (folder / NAME).write_bytes(first + data)
    shards = read_manifest(folder)["shards"]
    for count, reason in ((20, "it has 21 pairs, not 20"), (21, f"also in {NAME}")):
        shards[1] |= {"sha256": sha256_of(folder / NAME), "pairs": count}
        write_manifest(folder, shards)
        assert [reason in problem.reason for problem in validate(folder)] == [True]


def test_pairs_that_cannot_be_used_are_listed(folder):
    def change(files):
        del files["000022.before.webp"]
        record = json.loads(files["000023.json"])
        record["instruction"] = ""
        files["000023.json"] = json.dumps(record).encode()
        record["edit"] = record.pop("instruction")
        files["000024.json"] = json.dumps(record).encode()
        files["000025.json"] = b"[" * 100_000
        path = json.loads(files["000026.json"]) | {"seed": "../x"}
        files["000026.json"] = json.dumps(path).encode()
        return files | {
            "000020.after.webp": small.getvalue(),
            "000021.after.webp": b"x",
        }

    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "WEBP")
    repack(folder, change)
    problems = {key: reason for _, key, reason in listed(folder)}
    expected = {
        "000020": "differ in size: 16 x 16 and 8 x 8",
        "000021": "not an image",
        "000022": "only the files",
        "000023": "its instruction is empty",
        "000024": "differs in ['edit', 'instruction']",
        "000025": "recursion",
        "000026": "the seed '../x' is no whole number",
    }
    assert problems.keys() == expected.keys()
    assert all(expected[key] in reason for key, reason in problems.items())
    with pytest.raises(DatasetError, match="000020"):
        list(read_shards(folder))


MANIFESTS = {
    "format 2, this version reads 1": lambda m: m | {"format": 2},
    "'shards'": lambda m: {"pairs": 3},
    "lists pairs-00000.tar 2 times": lambda m: (
        m | {"shards": m["shards"][:1] * 2, "pairs": 40}
    ),
    "do not add up": lambda m: m | {"pairs": 51},
    "no file of its folder": lambda m: (
        m | {"shards": [m["shards"][0] | {"name": "../x.tar"}], "pairs": 20}
    ),
    "cannot be used": lambda m: [],
}


@pytest.mark.parametrize("reason", MANIFESTS)
def test_a_manifest_that_cannot_be_used_is_listed(folder, reason):
    manifest = MANIFESTS[reason](read_manifest(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = validate(folder)
    assert problem.shard == "manifest.json" and reason in problem.reason
    with pytest.raises(DatasetError, match=reason):
        read_manifest(folder)


def test_a_manifest_without_a_format_is_of_the_first(folder):
    manifest = read_manifest(folder)
    del manifest["format"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert validate(folder) == []


def test_a_smaller_data_set_in_its_place_leaves_nothing_of_the_larger(folder):
    write_shards([make_pair(1)], folder)
    assert [path.name for path in folder.glob("*.tar")] == ["pairs-00000.tar"]
    assert not validate(folder)


def test_a_file_of_the_users_with_the_name_of_a_shard_almost_stays(folder):
    own = folder / "pairs-train.tar"
    own.write_bytes(b"mine")
    for count in (50, 1):  # in place of a data set of as many pairs, and of a larger
        write_shards(map(make_pair, range(count)), folder, shard_size=20)
        assert own.read_bytes() == b"mine"
    assert keys(read_shards(folder)) == [0]


def test_a_data_set_may_be_rewritten_from_itself(folder):
    before = list(read_shards(folder))
    write_shards(read_shards(folder), folder, shard_size=7)
    after = list(read_shards(folder))
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert not validate(folder) and len(list(folder.glob("*.tar"))) > 3
