"""A shard holds its pairs bit for bit, for us and for webdataset, and shows damage."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from ip2p_lib.config import DATA
from ip2p_lib.dataset import read_shards
from ip2p_lib.dataset.pairs import Problem, decode_pair
from ip2p_lib.dataset.shards import index_shard, read_pair, read_shard, write_shard
from tests.support.pairs import make_pair, same

PAIRS = [make_pair(i) for i in range(5)]


def webdataset_samples(path):
    with path.open("rb") as stream:
        files = tar_file_expander([{"url": path.name, "stream": stream}])
        return list(group_by_keys(files))


def test_pairs_come_back_bit_for_bit_and_in_order(tmp_path):
    entry = write_shard(PAIRS, tmp_path / "a.tar")
    back = map(decode_pair, read_shard(tmp_path / "a.tar", entry))
    assert [same(a, b) for a, b in zip(PAIRS, back, strict=True)] == [True] * 5
    assert write_shard(PAIRS, tmp_path / "b" / "a.tar") == entry, "the same bytes"


def test_webdataset_reads_a_shard(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    samples = webdataset_samples(tmp_path / "a.tar")
    assert [sample["__key__"] for sample in samples] == [pair.key for pair in PAIRS]
    image = Image.open(io.BytesIO(samples[2]["after.webp"]))
    assert np.array_equal(image, PAIRS[2].after)
    record = json.loads(samples[2]["json"])
    names = {"caption", "instruction", "edited_caption", "seed", "p", "cfg", "steps"}
    assert names | {"scores", "words"} <= record.keys()


def test_the_shipped_pairs_are_read_as_webdataset_reads_them():
    """They were written with hashes in their records."""
    sample = DATA / "pairs" / "sample"
    samples = webdataset_samples(sample / "pairs-00000.tar")
    for pair, other in zip(read_shards(sample), samples, strict=True):
        record = json.loads(other["json"])
        assert (pair.key, pair.seed) == (other["__key__"], record["seed"])
        assert (pair.instruction, pair.scores) == (
            record["instruction"],
            record["scores"],
        )
        assert np.array_equal(pair.before, Image.open(io.BytesIO(other["before.webp"])))
        assert np.array_equal(pair.after, Image.open(io.BytesIO(other["after.webp"])))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": "a.b"}, "letters, digits"),
        ({"key": ""}, "letters, digits"),
        ({"key": "a/b"}, "letters, digits"),
        ({"key": "über"}, "letters, digits"),
        ({"instruction": " "}, "instruction is empty"),
        ({"caption": ""}, "both captions"),
        ({"edited_caption": " "}, "both captions"),
        ({"caption": None}, "no text"),
        ({"after": Image.new("RGB", (8, 8))}, "differ in size: 16 x 16 and 8 x 8"),
    ],
)
def test_a_pair_that_no_reader_could_use_cannot_be_built(changes, reason):
    with pytest.raises(ValueError, match=reason):
        make_pair(0, **changes)


def test_a_key_occurs_once(tmp_path):
    with pytest.raises(ValueError, match="'000001' occurs twice"):
        write_shard([PAIRS[1], PAIRS[1]], tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_or_cut_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    entry = write_shard(PAIRS, path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(data), 20):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        for damaged in (flipped, data[:place]):
            path.write_bytes(damaged)
            (problem,) = read_shard(path, entry)
            assert problem.shard == "a.tar" and "SHA-256" in problem.reason
    path.unlink()
    assert list(read_shard(path, entry)) == [
        Problem("a.tar", "", "the shard is missing")
    ]


def test_a_truncated_shard_is_indexed_up_to_the_cut(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    index = index_shard(tmp_path / "a.tar")
    end = max(offset + size for offset, size in index["000002"].values())
    (tmp_path / "b.tar").write_bytes(data[:end])
    assert list(index_shard(tmp_path / "b.tar")) == ["000000", "000001", "000002"]


def test_a_part_that_is_missing_is_named(tmp_path):
    write_shard(PAIRS, tmp_path / "a.tar")
    with (
        tarfile.open(tmp_path / "a.tar") as old,
        tarfile.open(tmp_path / "b.tar", "w") as new,
    ):
        for member in old:
            if member.name != "000003.after.webp":
                new.addfile(member, old.extractfile(member))
    spans = index_shard(tmp_path / "b.tar")["000003"]
    with pytest.raises(ValueError, match=r"after\.webp missing"):
        read_pair(tmp_path / "b.tar", "000003", spans)
