"""A shard holds its pairs bit for bit, for us and for webdataset, and shows damage."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from ip2p_lib.dataset.shards import (
    Pair,
    Problem,
    describe_shard,
    index_shard,
    read_shard,
    write_bytes,
    write_shard,
)


def make_pair(i, size=24):
    rng = np.random.default_rng(i)
    before, after = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    return Pair(
        key=f"{i:06d}",
        before=Image.fromarray(before),
        after=Image.fromarray(after),
        caption="一只猫, a cat",
        instruction=f"make it {i}",
        edited_caption="a dog",
        seed=2**47 + i,
        p=0.1 + i / 100,
        cfg_scale=7.5,
        steps=25,
        scores={"image": 0.75, "before": 0.2, "after": 0.25, "direction": 0.3},
    )


PAIRS = [make_pair(i) for i in range(5)]


def same(a, b):
    pictures = ("before", "after")
    texts = [{k: v for k, v in vars(p).items() if k not in pictures} for p in (a, b)]
    return texts[0] == texts[1] and all(
        np.array_equal(getattr(a, k), getattr(b, k)) for k in pictures
    )


def test_pairs_come_back_bit_for_bit_and_in_order(tmp_path):
    entry = write_shard(PAIRS, tmp_path / "a.tar")
    assert entry["pairs"] == 5 and entry == describe_shard(tmp_path / "a.tar")
    found = list(read_shard(tmp_path / "a.tar", 5))
    assert [same(a, b) for a, b in zip(PAIRS, found, strict=True)] == [True] * 5


def test_the_same_pairs_make_the_same_bytes(tmp_path):
    entries = [write_shard(PAIRS, tmp_path / name / "a.tar") for name in ("x", "y")]
    assert entries[0] == entries[1]


def test_webdataset_reads_a_shard(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    with (tmp_path / "a.tar").open("rb") as stream:
        files = tar_file_expander([{"url": "a.tar", "stream": stream}])
        samples = list(group_by_keys(files))
    assert [sample["__key__"] for sample in samples] == [pair.key for pair in PAIRS]
    image = Image.open(io.BytesIO(samples[2]["after.webp"]))
    assert np.array_equal(image, PAIRS[2].after)
    record = json.loads(samples[2]["json"])
    names = {"caption", "instruction", "edited_caption", "seed", "p", "cfg", "steps"}
    assert names | {"scores", "sha256"} <= record.keys()


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "über"])
def test_keys_that_would_confuse_readers_are_refused(tmp_path, key):
    pair = make_pair(0)
    pair.key = key
    with pytest.raises(ValueError, match="letters, digits"):
        write_shard([pair], tmp_path / "a.tar")


def test_a_key_occurs_once(tmp_path):
    with pytest.raises(ValueError, match="'000001' occurs twice"):
        write_shard([PAIRS[1], PAIRS[1]], tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["before.webp", "after.webp", "json"])
def test_a_flipped_bit_is_blamed_on_its_part(tmp_path, part):
    path = tmp_path / "a.tar"
    write_shard(PAIRS, path)
    offset, size = index_shard(path)["000002"][part]
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    found = list(read_shard(path, 5))
    problem = found.pop(2)
    assert [type(item) for item in found] == [Pair] * 4
    assert (problem.shard, problem.key) == ("a.tar", "000002")
    if part != "json":
        assert str(problem).endswith(f"its {part[:-5]} differs from the one written")


def test_a_part_that_is_missing_is_named(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    with (
        tarfile.open(tmp_path / "a.tar") as old,
        tarfile.open(tmp_path / "b.tar", "w") as new,
    ):
        for member in old:
            if member.name != "000003.after.webp":
                new.addfile(member, old.extractfile(member))
    found = list(read_shard(tmp_path / "b.tar", 5))
    assert found[3] == Problem("b.tar", "000003", "after.webp missing")


def test_a_cut_shard_gives_the_whole_pairs_and_the_number_of_the_rest(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    ends = [
        max(offset + size for offset, size in spans.values())
        for spans in index_shard(tmp_path / "a.tar").values()
    ]
    rng = np.random.default_rng(0)
    for cut in [0, 100, *rng.integers(0, ends[-1], 20)]:
        (tmp_path / "b.tar").write_bytes(data[:cut])
        found = list(read_shard(tmp_path / "b.tar", 5))
        whole = sum(end <= cut for end in ends)
        assert len(found) == 5
        assert [isinstance(item, Pair) for item in found] == [
            i < whole for i in range(5)
        ]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a" / "file", b"old")

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
