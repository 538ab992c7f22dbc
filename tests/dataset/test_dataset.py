"""A data set is finished or refused; damaged pairs are counted, never used."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ip2p_lib.dataset.dataset import (
    DatasetError,
    PairDataset,
    read_manifest,
    read_shards,
    stack,
    write_shards,
)
from ip2p_lib.dataset.pairs import Pair
from ip2p_lib.dataset.shards import index_shard


def make_pair(i):
    rng = np.random.default_rng(i)
    before, after = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    images = (Image.fromarray(before), Image.fromarray(after))
    return Pair(f"{i:06d}", *images, "a cat", f"make it {i}", "a dog", i, 0.5, 7.5, 25)


@pytest.fixture
def folder(tmp_path):
    write_shards(map(make_pair, range(50)), tmp_path, shard_size=20, run_seed=3)
    return tmp_path


def damage(folder, shard, key, part="before.webp"):
    path = folder / shard
    offset, size = index_shard(path)[key][part]
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 8
    path.write_bytes(data)


def keys(pairs):
    return [int(pair.key) for pair in pairs]


def test_many_shards_are_one_data_set(folder):
    manifest = read_manifest(folder)
    assert [shard["pairs"] for shard in manifest["shards"]] == [20, 20, 10]
    assert manifest["pairs"] == 50 and manifest["run_seed"] == 3
    assert keys(read_shards(folder)) == list(range(50))


def test_without_a_manifest_the_run_is_unfinished(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        next(read_shards(folder))
    with pytest.raises(FileNotFoundError, match="not finished"):
        PairDataset(folder)


def test_the_paper_s_facts_of_a_pair_may_be_unknown(tmp_path):
    """As of pictures that nobody rendered here."""
    made = make_pair(0)
    pair = Pair("a", made.before, made.after, "", "make it blue", "")
    write_shards([pair], tmp_path)
    (back,) = read_shards(tmp_path)
    assert (back.seed, back.p, back.cfg_scale, back.steps) == (None,) * 4
    assert (back.caption, back.edited_caption, back.scores) == ("", "", {})


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("a cat", " ", "a dog"), "its instruction is empty"),
        (("", "make it a dog", "a dog"), "its caption is empty"),
        (("a cat", "make it a dog", ""), "its edited caption is empty"),
        ((None, "make it a dog", ""), "is no text"),
    ],
)
def test_a_pair_with_an_empty_text_is_never_written(tmp_path, texts, reason):
    made = make_pair(0)
    with pytest.raises(ValueError, match=f"'b' cannot be used: .*{reason}"):
        write_shards([Pair("b", made.before, made.after, *texts)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_is_said(folder):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_the_first_damaged_pair_stops_the_reading_and_is_named(folder):
    damage(folder, "pairs-00001.tar", "000025")
    with pytest.raises(DatasetError, match=r"pairs-00001\.tar: 000025: the SHA-256"):
        list(read_shards(folder))


def test_used_and_unusable_pairs_add_up(folder):
    bad = [3, 7, 21, 45]
    for i in bad:
        damage(folder, f"pairs-{i // 20:05d}.tar", f"{i:06d}", "after.webp")
    problems = []
    used = keys(read_shards(folder, problems=problems, max_bad=0.1))
    assert keys(problems) == bad
    assert sorted(used + bad) == list(range(50))


def test_too_many_unusable_pairs_stop_the_reading(folder):
    for i in (0, 1, 2):
        damage(folder, "pairs-00000.tar", f"{i:06d}")
    with pytest.raises(DatasetError, match="3 of 50 pairs"):
        list(read_shards(folder, problems=[], max_bad=0.05))


def test_an_absent_shard_counts_as_missing_pairs(folder):
    (folder / "pairs-00002.tar").unlink()
    problems = []
    used = keys(read_shards(folder, problems=problems, max_bad=0.2))
    assert used == list(range(40)) and len(problems) == 10
    with pytest.raises(DatasetError, match="should hold 50 pairs but 40"):
        PairDataset(folder)


@pytest.mark.parametrize("workers", [0, 2])
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
    expected = np.asarray(make_pair(33).after)
    assert np.array_equal(batches[2][1].after, expected)


def test_random_access_verifies_too(folder):
    damage(folder, "pairs-00000.tar", "000004")
    data = PairDataset(folder)
    assert len(data) == 50 and data[49].key == "000049"
    with pytest.raises(DatasetError, match="000004"):
        data[4]


def test_pairs_stack_into_tensors(folder):
    before, after = stack([make_pair(0), make_pair(1)])
    assert before.shape == after.shape == (2, 3, 16, 16)
    pixels = torch.from_numpy(np.array(make_pair(1).before)).permute(2, 0, 1)
    assert torch.allclose((before[1] + 1) * 127.5, pixels.float(), atol=1e-3)
