"""A run that is killed anywhere leaves what an undisturbed one leaves."""

import copy
import json
import os
import random
import signal
import time
import traceback
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import Filtering, Rendering
from ip2p_lib.dataset.dataset import DatasetError, read_manifest, read_shards
from ip2p_lib.dataset.generate import PROGRESS, Makers, Settings, make_pairs
from ip2p_lib.filtering.clip_filter import load_clip, passes, score_pairs
from ip2p_lib.folders import FolderInUseError
from ip2p_lib.images import to_tensor
from ip2p_lib.rendering.render import draw_candidates, render
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.run_lock import run_lock
from ip2p_lib.triplets.record import Triplet

RENDERING = Rendering(steps=2, candidates=3, batch_size=2, sampler="ddim")
EASY = Filtering(image=-1.0, text=-1.0, direction=0.0, keep=2)  # about half pass
SETTINGS = Settings(RENDERING, EASY, run_seed=7, block=2)
PLACES = ("house", "river", "tree", "bird", "horse", "dog", "cat")
TRIPLETS = [
    Triplet(f"a photo of the {x}", f"put it on the {y}", f"the {x} on the {y}")
    for i, x in enumerate(PLACES)
    for y in PLACES[i + 1 :][:2]
]


@pytest.fixture(scope="module")
def makers(tiny_backbone, tiny_clip_folder):
    return Makers(tiny_backbone, load_clip(tiny_clip_folder, device="cpu"))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(makers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return list(make_pairs(makers, TRIPLETS, SETTINGS, folder)), folder


def test_the_best_candidates_of_each_triplet_are_kept(makers, undisturbed):
    _, folder = undisturbed
    pairs = list(read_shards(folder))
    candidates = draw_candidates(TRIPLETS, 3, 7, RENDERING)
    options = {"steps": 2, "batch_size": 2, "sampler": "ddim"}
    made = [p for b in render(makers.backbone, candidates, **options) for p in b]
    scores = score_pairs(
        makers.clip,
        torch.stack([pair.before for pair in made]),
        torch.stack([pair.after for pair in made]),
        [c.triplet.caption for c in candidates],
        [c.triplet.edited_caption for c in candidates],
    )
    good, direction = passes(scores, EASY).tolist(), scores.direction.tolist()
    expected = []
    for start in range(0, len(made), 3):
        rows = [i for i in range(start, start + 3) if good[i]]
        expected += sorted(rows, key=lambda i: -direction[i])[:2]
    assert [pair.seed for pair in pairs] == [candidates[i].seed for i in expected]
    for pair, i in zip(pairs, expected, strict=True):
        assert pair.instruction == candidates[i].triplet.instruction
        assert pair.scores["direction"] == pytest.approx(direction[i], abs=1e-3)
        assert (to_tensor(pair.after) - made[i].after).abs().max() < 0.02
    assert 0 < len(pairs) < len(made)


def test_candidates_in_trees_are_those_that_draw_trees_draws(makers, tmp_path):
    few = TRIPLETS[:3]
    list(make_pairs(makers, few, replace(SETTINGS, tree=3), tmp_path))
    drawn = draw_trees(few, 1, 3, 7, RENDERING)
    options = {"steps": 2, "batch_size": 2, "sampler": "ddim"}
    made = [p for b in render(makers.backbone, drawn, **options) for p in b]
    alone = {(p.candidate.seed, p.candidate.p): p for p in made}
    pairs = list(read_shards(tmp_path))
    assert pairs
    for pair in pairs:
        right = alone[pair.seed, pair.p]
        assert (to_tensor(pair.before) - right.before).abs().max() < 0.02
        assert (to_tensor(pair.after) - right.after).abs().max() < 0.02
    assert read_manifest(tmp_path)["tree"] == 3


@pytest.mark.parametrize("tree", [0, 2])
def test_candidates_that_are_no_whole_trees_are_refused(makers, tmp_path, tree):
    with pytest.raises(ValueError, match="no whole trees"):
        list(make_pairs(makers, TRIPLETS, replace(SETTINGS, tree=tree), tmp_path))
    assert not files(tmp_path)


def test_every_candidate_is_counted_once(undisturbed):
    blocks, folder = undisturbed
    manifest = read_manifest(folder)
    for found in (*blocks, manifest):
        assert found["rendered"] == found["kept"] + sum(found["dropped"].values())
    assert manifest["rendered"] == 3 * len(TRIPLETS)
    assert manifest["pairs"] == manifest["kept"] == sum(b["kept"] for b in blocks)
    assert manifest["rendering"]["steps"] == 2 and manifest["run_seed"] == 7


def start_in_a_child(makers, folder):
    """A process of its own, which a signal can kill."""
    if child := os.fork():
        return child
    status = 1
    try:
        list(make_pairs(makers, TRIPLETS, SETTINGS, folder))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def test_killed_20_times_it_leaves_the_same_files(makers, undisturbed, tmp_path):
    chance, folders, kills = random.Random(0), [tmp_path / "0"], 0
    while kills < 20:
        folder = folders[-1]
        child = start_in_a_child(makers, folder)
        time.sleep(0.01 + 0.3 * chance.random())
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, "it failed by itself"
        kills += killed
        if (folder / PROGRESS).exists():
            noted = json.loads((folder / PROGRESS).read_text())["blocks"]
            shards = [b["shard"]["name"] for b in noted if b["shard"]]
            assert all((folder / name).exists() for name in shards)
        if not killed:  # it had come to its end: the next ones are another run's
            folders.append(tmp_path / str(len(folders)))
    list(make_pairs(makers, TRIPLETS, SETTINGS, folders[-1]))
    right = files(undisturbed[1])
    for folder in folders:
        found = files(folder)
        assert found.keys() == right.keys()
        assert [name for name in right if found[name] != right[name]] == []


def test_a_finished_run_is_not_rendered_again(makers, undisturbed, monkeypatch):
    blocks, folder = undisturbed
    monkeypatch.setattr("ip2p_lib.dataset.generate.render_by", None)
    assert list(make_pairs(makers, TRIPLETS, SETTINGS, folder)) == blocks


def test_captions_too_long_are_counted_and_left_out(makers, tmp_path):
    long = replace(TRIPLETS[0], caption="cat " * 80)
    (block,) = make_pairs(makers, [long, TRIPLETS[1]], SETTINGS, tmp_path)
    assert (block["too_long"], block["rendered"]) == (1, 3)
    (block,) = make_pairs(makers, [long], SETTINGS, tmp_path / "none")
    assert (block["too_long"], block["rendered"], block["shard"]) == (1, 0, None)
    assert read_manifest(tmp_path / "none")["pairs"] == 0


def test_another_run_in_the_folder_is_refused(makers, undisturbed, tmp_path):
    _, folder = undisturbed
    for triplets, settings in (
        (TRIPLETS[:-1], SETTINGS),
        (TRIPLETS, replace(SETTINGS, run_seed=8)),
        (TRIPLETS, replace(SETTINGS, filtering=replace(EASY, keep=1))),
    ):
        with pytest.raises(DatasetError, match="holds pairs of another run"):
            next(make_pairs(makers, triplets, settings, folder))
    other = copy.deepcopy(makers)
    with torch.no_grad():
        other.backbone.unet.conv_out.weight.add_(1e-3)
    with pytest.raises(DatasetError, match="its networks"):
        next(make_pairs(other, TRIPLETS, SETTINGS, folder))
    with run_lock(tmp_path), pytest.raises(FolderInUseError, match="Process"):
        next(make_pairs(makers, TRIPLETS, SETTINGS, tmp_path))


def test_a_shard_that_was_changed_is_named(makers, undisturbed, tmp_path):
    for name, data in files(undisturbed[1]).items():
        (tmp_path / name).write_bytes(data)
    shard = tmp_path / "pairs-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"pairs-00001\.tar is missing or changed"):
        next(make_pairs(makers, TRIPLETS, SETTINGS, tmp_path))
