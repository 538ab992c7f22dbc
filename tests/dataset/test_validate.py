"""Validation names everything that is broken, and nothing that is not."""

import io
import json
import tarfile

import numpy as np
import pytest

from ip2p_lib.config import DATA
from ip2p_lib.dataset.dataset import (
    DatasetError,
    read_manifest,
    write_manifest,
    write_shards,
)
from ip2p_lib.dataset.pairs import pack, to_files
from ip2p_lib.dataset.shards import describe_shard, index_shard, write_shard
from ip2p_lib.dataset.validate import validate
from tests.support.pairs import make_pair

NAME = "pairs-00001.tar"


@pytest.fixture
def folder(tmp_path):
    write_shards(map(make_pair, range(25)), tmp_path, shard_size=10, run_seed=3)
    return tmp_path


def rewrite(folder, change):
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def repack(folder, change, **facts):
    """Write shard 1 again with other files, and a manifest that agrees with it."""
    with tarfile.open(folder / NAME) as old:
        files = {m.name: old.extractfile(m).read() for m in old}
    with tarfile.open(folder / NAME, "w") as new:
        for name, data in change(files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    shards = read_manifest(folder)["shards"]
    shards[1] = describe_shard(folder / NAME) | facts
    write_manifest(folder, shards)


def flip(folder, shard, key, part):
    offset, size = index_shard(folder / shard)[key][part]
    data = bytearray((folder / shard).read_bytes())
    data[offset + size // 2] ^= 8
    (folder / shard).write_bytes(data)


def told(folder):
    return [(p.shard, p.key, p.reason) for p in validate(folder)]


@pytest.mark.parametrize("n", [0, 1, 25])
def test_a_good_set_has_no_problems(tmp_path, n):
    write_shards(map(make_pair, range(n)), tmp_path, shard_size=10)
    (tmp_path / "README.md").write_text("a card")
    assert validate(tmp_path) == []


def test_the_shipped_sample_has_no_problems():
    assert validate(DATA / "pairs" / "sample") == []


def test_every_damaged_pair_is_named(folder):
    flip(folder, "pairs-00000.tar", "000003", "before.webp")
    flip(folder, NAME, "000012", "after.webp")
    flip(folder, NAME, "000017", "json")
    found = told(folder)
    assert [place[:2] for place in found] == [
        ("pairs-00000.tar", "000003"),
        (NAME, "000012"),
        (NAME, "000017"),
    ]
    assert "the SHA-256 of its before differs" in found[0][2]


def test_a_cut_shard_is_told_by_the_number_of_pairs_that_are_missing(folder):
    data = (folder / NAME).read_bytes()
    ends = [max(map(sum, s.values())) for s in index_shard(folder / NAME).values()]
    rng = np.random.default_rng(0)
    for cut in [0, *rng.integers(0, ends[-1], 9).tolist()]:
        (folder / NAME).write_bytes(data[:cut])
        found = told(folder)
        broken = [key for _, key, _ in found if key]
        missing = [int(reason.split()[0]) for _, key, reason in found if not key]
        assert {shard for shard, *_ in found} == {NAME}
        assert len(broken) + sum(missing) == sum(end > cut for end in ends)


def test_a_shard_cut_behind_its_last_pair_is_told(folder):
    data = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(data[:-512])
    ((shard, key, reason),) = told(folder)
    assert (shard, key) == (NAME, "") and "SHA-256 differs from the one in" in reason


def test_an_absent_shard_is_told(folder):
    (folder / NAME).unlink()
    assert told(folder) == [(NAME, "", "it is absent, with its 10 pairs")]


def test_a_shard_that_the_manifest_does_not_name_is_told(folder):
    write_shard([make_pair(90)], folder / "pairs-00009.tar")
    ((shard, key, reason),) = told(folder)
    assert (shard, key) == ("pairs-00009.tar", "") and "not in manifest.json" in reason


@pytest.mark.parametrize("part", ["before.webp", "after.webp", "json"])
def test_a_missing_member_is_told(folder, part):
    name = f"000014.{part}"
    repack(folder, lambda f: {k: v for k, v in f.items() if k != name}, pairs=10)
    assert told(folder) == [(NAME, "000014", f"{part} missing")]


def test_more_pairs_than_the_manifest_says_are_told(folder):
    repack(folder, lambda files: files, pairs=9)
    assert told(folder) == [(NAME, "", "it holds 10 pairs, and manifest.json says 9")]


def test_a_key_in_two_shards_is_told(folder):
    write_shard(map(make_pair, range(5, 15)), folder / NAME)
    repack(folder, lambda files: files)
    expected = [(NAME, f"{i:06d}") for i in range(5, 10)]
    found = told(folder)
    assert [place[:2] for place in found] == expected
    assert {reason for *_, reason in found} == {"its key is also in pairs-00000.tar"}


def with_record(files, **changes):
    """Files of shard 1 with another record of pair 15, correctly hashed."""
    packed = pack(make_pair(15))
    record = {k: v for k, v in (packed.record | changes).items() if v != "drop"}
    changed = to_files(type(packed)("000015", packed.before, packed.after, record))
    return files | {f"000015.{part}": data for part, data in changed.items()}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": "a.png"}, "another version of this project, which differs in mask"),
        ({"instruction": "drop", "edit": "x"}, "differs in edit, instruction"),
        ({"caption": " "}, "its caption is empty"),
        ({"edited_caption": ""}, "its edited caption is empty"),
        ({"instruction": ""}, "its instruction is empty"),
        ({"instruction": 7}, "is no text"),
    ],
)
def test_a_record_that_cannot_be_used_is_told(folder, changes, reason):
    repack(folder, lambda files: with_record(files, **changes))
    ((shard, key, found),) = told(folder)
    assert (shard, key) == (NAME, "000015") and reason in found


def test_pictures_of_two_sizes_are_told(folder):
    pair = make_pair(10)
    pair.after = pair.after.resize((8, 8))
    write_shard([pair, *map(make_pair, range(11, 20))], folder / NAME)
    repack(folder, lambda files: files)
    reason = "its pictures differ in size: 16 x 16 and 8 x 8"
    assert told(folder) == [(NAME, "000010", reason)]


MANIFESTS = {
    "is of format 2, this version reads 1": lambda m: m | {"format": 2},
    r"is damaged \('shards'\)": lambda m: {"pairs": 3},
    r"no numbers of pairs": lambda m: m | {"pairs": "many"},
    r"no file of its folder": lambda m: (
        m | {"shards": [m["shards"][0] | {"name": "../x.tar"}], "pairs": 10}
    ),
    "is damaged": lambda m: [],
}


@pytest.mark.parametrize("reason", MANIFESTS)
def test_a_manifest_that_cannot_be_used_is_told(folder, reason):
    rewrite(folder, MANIFESTS[reason])
    (problem,) = validate(folder)
    assert problem.shard == "manifest.json"
    with pytest.raises(DatasetError, match=reason):
        read_manifest(folder)


def test_a_manifest_without_a_format_is_of_the_first(folder):
    rewrite(folder, lambda m: {k: v for k, v in m.items() if k != "format"})
    assert validate(folder) == []


def test_a_manifest_that_does_not_add_up_is_told(folder):
    rewrite(folder, lambda m: m | {"pairs": 26})
    ((shard, _, reason),) = told(folder)
    assert (
        shard == "manifest.json" and "26 pairs, and its shards add up to 25" in reason
    )


def test_an_unfinished_run_is_told(folder):
    (folder / "manifest.json").unlink()
    assert "has not finished" in validate(folder)[0].reason
