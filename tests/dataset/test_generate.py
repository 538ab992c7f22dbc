"""A run that is killed anywhere leaves what an undisturbed one leaves."""

import copy
import json
import random
import signal
import time
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch

from ip2p_lib.config import Filtering, Rendering
from ip2p_lib.dataset import (
    DatasetError,
    GenerationConfig,
    Models,
    generate_dataset,
    read_shards,
)
from ip2p_lib.dataset.dataset import read_manifest
from ip2p_lib.dataset.generate import PROGRESS
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.files import FolderInUseError, run_lock
from ip2p_lib.filtering.clip_filter import passes, score_pairs
from ip2p_lib.images import to_tensor
from ip2p_lib.rendering import draw_candidates, draw_trees, generate_pairs
from ip2p_lib.triplets.record import Triplet

RENDERING = Rendering(steps=2, candidates=3, batch_size=2, sampler="ddim")
EASY = Filtering(image=-1.0, text=-1.0, direction=0.0, keep=2)  # about half pass
CONFIG = GenerationConfig(RENDERING, EASY, run_seed=7, triplets_per_shard=2)
PLACES = ("house", "river", "tree", "bird", "horse", "dog", "cat")
TRIPLETS = [
    Triplet(f"a photo of the {x}", f"put it on the {y}", f"the {x} on the {y}")
    for i, x in enumerate(PLACES)
    for y in PLACES[i + 1 :][:2]
]


@pytest.fixture(scope="module")
def models(tiny_backbone, tiny_clip_folder):
    return Models(tiny_backbone, load_clip(tiny_clip_folder, device="cpu"))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return list(generate_dataset(models, TRIPLETS, CONFIG, folder)), folder


def generate_apart(models, candidates):
    """The same candidates without continuous batching."""
    options = {"steps": 2, "batch_size": 2, "sampler": "ddim"}
    batches = generate_pairs(models.backbone, candidates, **options)
    return [pair for batch in batches for pair in batch]


def assert_same_images(stored, generated):
    for side in ("before", "after"):
        difference = to_tensor(getattr(stored, side)) - getattr(generated, side)
        assert difference.abs().max() < 0.02


def test_the_best_candidates_of_each_triplet_are_kept(models, undisturbed):
    pairs = list(read_shards(undisturbed[1]))
    candidates = draw_candidates(TRIPLETS, 3, 7, RENDERING)
    generated = generate_apart(models, candidates)
    scores = score_pairs(
        models.clip,
        torch.stack([pair.before for pair in generated]),
        torch.stack([pair.after for pair in generated]),
        [c.triplet.caption for c in candidates],
        [c.triplet.edited_caption for c in candidates],
    )
    good, direction = passes(scores, EASY).tolist(), scores.direction.tolist()
    expected = []
    for start in range(0, len(generated), 3):
        rows = [i for i in range(start, start + 3) if good[i]]
        expected += sorted(rows, key=lambda i: -direction[i])[:2]
    assert [pair.seed for pair in pairs] == [candidates[i].seed for i in expected]
    for pair, i in zip(pairs, expected, strict=True):
        assert pair.instruction == candidates[i].triplet.instruction
        assert pair.scores["direction"] == pytest.approx(direction[i], abs=1e-3)
        assert_same_images(pair, generated[i])
    assert 0 < len(pairs) < len(generated)


def test_candidates_in_trees_are_those_that_draw_trees_draws(models, tmp_path):
    few = TRIPLETS[:3]
    list(generate_dataset(models, few, replace(CONFIG, tree_size=3), tmp_path))
    generated = generate_apart(models, draw_trees(few, 1, 3, 7, RENDERING))
    apart = {(pair.candidate.seed, pair.candidate.p): pair for pair in generated}
    pairs = list(read_shards(tmp_path))
    assert pairs and read_manifest(tmp_path)["tree_size"] == 3
    for pair in pairs:
        assert_same_images(pair, apart[pair.seed, pair.p])


def test_candidates_that_are_no_whole_trees_and_no_triplets_are_refused():
    with pytest.raises(ValueError, match=r"above 0: .-1, 1, 3"):
        replace(CONFIG, triplets_per_shard=-1)
    with pytest.raises(ValueError, match="cannot form trees"):
        replace(CONFIG, tree_size=2)


def test_every_candidate_is_counted_once(undisturbed):
    blocks, folder = undisturbed
    manifest = read_manifest(folder)
    for found in (*blocks, manifest):
        assert found["rendered"] == found["kept"] + sum(found["dropped"].values())
    assert manifest["rendered"] == 3 * len(TRIPLETS)
    assert manifest["pairs"] == manifest["kept"] == sum(b["kept"] for b in blocks)
    assert manifest["rendering"]["steps"] == 2 and manifest["run_seed"] == 7


def test_killed_20_times_it_leaves_the_same_files(models, undisturbed, tmp_path):
    chance, folders, kills = random.Random(0), [tmp_path / "0"], 0
    while kills < 20:
        run = generate_dataset(models, TRIPLETS, CONFIG, folders[-1])
        child = get_context("fork").Process(target=list, args=(run,))
        child.start()
        time.sleep(0.01 + 0.3 * chance.random())
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), "it failed by itself"
        if (progress := folders[-1] / PROGRESS).exists():
            blocks = json.loads(progress.read_bytes())["blocks"]
            shards = [block["shard"]["name"] for block in blocks if block["shard"]]
            assert all((folders[-1] / name).exists() for name in shards)
        if child.exitcode:
            kills += 1
        else:  # it had come to its end: the next ones are another run's
            folders.append(tmp_path / str(len(folders)))
    list(generate_dataset(models, TRIPLETS, CONFIG, folders[-1]))
    for folder in folders:
        assert files(folder) == files(undisturbed[1])


def test_a_finished_run_is_not_rendered_again(models, undisturbed, monkeypatch):
    blocks, folder = undisturbed
    monkeypatch.setattr("ip2p_lib.dataset.generate.generate_batched", None)
    assert list(generate_dataset(models, TRIPLETS, CONFIG, folder)) == blocks


def test_captions_too_long_are_counted_and_left_out(models, tmp_path):
    long = replace(TRIPLETS[0], caption="cat " * 80)
    (block,) = generate_dataset(models, [long, TRIPLETS[1]], CONFIG, tmp_path)
    assert (block["too_long"], block["rendered"]) == (1, 3)
    (block,) = generate_dataset(models, [long], CONFIG, tmp_path / "none")
    assert (block["too_long"], block["rendered"], block["shard"]) == (1, 0, None)
    assert read_manifest(tmp_path / "none")["pairs"] == 0


def test_another_run_in_the_folder_is_refused(models, undisturbed, tmp_path):
    _, folder = undisturbed
    for triplets, config in (
        (TRIPLETS[:-1], CONFIG),
        (TRIPLETS, replace(CONFIG, run_seed=8)),
        (TRIPLETS, replace(CONFIG, filtering=replace(EASY, keep=1))),
    ):
        with pytest.raises(DatasetError, match="holds pairs of another run"):
            next(generate_dataset(models, triplets, config, folder))
    for name in ("unet", "text_encoder"):
        other = copy.deepcopy(models)
        with torch.no_grad():
            [*getattr(other.backbone, name).parameters()][-1].view(-1)[-1] += 1
        with pytest.raises(DatasetError, match="its models"):
            next(generate_dataset(other, TRIPLETS, CONFIG, folder))
    with run_lock(tmp_path), pytest.raises(FolderInUseError, match="Another run"):
        next(generate_dataset(models, TRIPLETS, CONFIG, tmp_path))


def test_a_shard_that_was_changed_is_named(models, undisturbed, tmp_path):
    for name, data in files(undisturbed[1]).items():
        (tmp_path / name).write_bytes(data)
    shard = tmp_path / "pairs-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"pairs-00001\.tar: the shard is damaged"):
        next(generate_dataset(models, TRIPLETS, CONFIG, tmp_path))


@pytest.mark.parametrize("name", ["kept", "rendered", "dropped", "shard"])
@pytest.mark.parametrize("value", [None, "x", {"name": "a"}])
def test_a_block_that_lacks_something_is_named(
    models, undisturbed, tmp_path, name, value
):
    progress = json.loads((undisturbed[1] / PROGRESS).read_bytes())
    block = next(block for block in progress["blocks"] if block["kept"])
    block.update({name: value}) if value else block.pop(name)
    (tmp_path / PROGRESS).write_text(json.dumps(progress))
    with pytest.raises(DatasetError, match=r"progress\.json is damaged\. Remove"):
        next(generate_dataset(models, TRIPLETS, CONFIG, tmp_path))


def test_a_triplet_listed_twice_is_generated_once(models, undisturbed, tmp_path):
    blocks = list(generate_dataset(models, TRIPLETS + TRIPLETS[:3], CONFIG, tmp_path))
    assert blocks == undisturbed[0]
