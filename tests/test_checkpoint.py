"""A checkpoint is whole or it is not there, and damage is always noticed."""

import os
import signal
from pathlib import Path

import pytest
import torch

from ip2p_lib import checkpoint
from ip2p_lib.checkpoint import CheckpointError, latest, load, prune, save
from tests.support.pairs import file_size_limit
from tests.support.strikes import in_child

TENSORS = {
    "float": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([0.1, -2.0]).half(),
    "turned": torch.arange(6).reshape(2, 3).T,
    "number": torch.tensor(3.5),
}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def save_steps(root, *steps):
    return [save(root / f"step-{step}", TENSORS, {"step": step}) for step in steps]


def names(root):
    return {path.name for path in root.iterdir()}


def test_what_is_saved_is_loaded_and_can_be_replaced_in_place(tmp_path):
    save(tmp_path, {"float": torch.ones(3)}, {"step": 1})
    save(tmp_path, TENSORS, {"step": 2, "note": "ok"})
    stored = load(tmp_path)
    assert equal(stored.tensors, TENSORS)
    assert stored.state == {"step": 2, "note": "ok"}
    assert len(names(tmp_path)) == 2, "the old tensors were left behind"


def test_the_highest_number_of_two_folders_counts_and_the_first_breaks_ties(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert latest(here, there) is None
    save_steps(here, 9, 20)
    (newest,) = save_steps(there, 100)
    assert latest(here, there).folder == newest
    (tie,) = save_steps(here, 100)
    assert latest(here, there).folder == tie
    spoil(tie / checkpoint.MANIFEST, 0)
    intact = latest(here, there)
    assert intact.folder == newest and str(tie) in intact.refused[0]


def spoil(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_pruning_keeps_the_newest_and_clears_what_a_killed_save_left(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / ".step-4.ip2p-partial").mkdir()
    (tmp_path / ".step-4.ip2p-partial" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / ".step-4.ip2p-lock").touch()
    own = {"pairs-1", "holiday-9", "step-0", "step-x", ".step-1.old"}
    for name in own:
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoint.MANIFEST).write_text("{}")
    prune(tmp_path, keep=2)
    assert names(tmp_path) == {"step-2", "step-3", *own}
    assert not latest(tmp_path).refused
    with pytest.raises(ValueError, match="At least one"):
        prune(tmp_path, keep=0)


@pytest.mark.parametrize("damaged", [1, 3])
def test_nothing_is_deleted_unless_a_newer_one_reads_back_intact(tmp_path, damaged):
    folders = save_steps(tmp_path, 0, 1, 2, 3)
    for folder in folders[4 - damaged :]:
        spoil(folder / checkpoint.TENSORS, -1)
    prune(tmp_path, keep=1)
    assert names(tmp_path) == {f"step-{step}" for step in range(3 - damaged, 4)}
    assert latest(tmp_path).state["step"] == 3 - damaged


def damage(folder, generator):
    """One of: a flipped bit, a cut, a lost file."""

    def choose(n):
        return int(torch.randint(n, (), generator=generator))

    path, kind = sorted(folder.iterdir())[choose(2)], choose(7)
    data = bytearray(path.read_bytes())
    at = choose(len(data))
    if kind < 4:
        data[at] ^= 1 << choose(8)
    path.write_bytes(data if kind < 4 else data[:at])
    if kind == 6:
        path.unlink()
    return f"{path.name} {kind} {at}"


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_is_noticed_and_the_previous_one_used_and_both_named(tmp_path, seed):
    (old,) = save_steps(tmp_path, 1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(25):
        checkpoint.shutil.rmtree(tmp_path / "step-2", ignore_errors=True)
        (new,) = save_steps(tmp_path, 2)
        what = damage(new, generator)
        intact = latest(tmp_path)
        assert intact.folder == old, what
        assert len(intact.refused) == 1 and str(new) in intact.refused[0], what


def test_when_all_are_damaged_nothing_starts_over_in_silence(tmp_path):
    (folder,) = save_steps(tmp_path, 1)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"start over.*step-1 is damaged"):
        latest(tmp_path)
    with pytest.raises(FileNotFoundError, match="No complete checkpoint"):
        load(tmp_path / "step-7")


def save_large(root, step):
    """40 kB of tensors and a manifest of 100 kB."""
    state = {"step": step, "note": "x" * 100_000}
    save(root / f"step-{step}", {"x": torch.full((10_000,), float(step))}, state)


def newest_step(root):
    newest = latest(root)
    assert (newest.tensors["x"] == newest.state["step"]).all()
    return newest.state["step"]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors, path):
    Path(path).write_bytes(b"0" * 20_000)
    die()


def dies_at(call, function):
    calls = iter(range(1, 100))
    return lambda *args: (die if next(calls) == call else function)(*args)


POINTS = {  # what is patched to die there, and the step that is newest afterwards
    "open": (checkpoint, "save_file", die, 1),
    "half written": (checkpoint, "save_file", half_written, 1),
    "before the manifest": (checkpoint, "sha256_of", die, 1),
    "before the first fsync": (os, "fsync", die, 1),
    "before the second fsync": (os, "fsync", dies_at(2, os.fsync), 1),
    "before rename": (os, "replace", die, 1),
    "before directory fsync": (os, "fsync", dies_at(3, os.fsync), 2),
    "before prune": (checkpoint, "prune", die, 2),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path, point):
    *patch, step = POINTS[point]

    def work():
        setattr(*patch)
        save_large(tmp_path, 2)
        checkpoint.prune(tmp_path, keep=1)

    save_large(tmp_path, 1)
    assert in_child(work)[0] == -signal.SIGKILL, "the kill did not happen"
    assert newest_step(tmp_path) == step
    save_large(tmp_path, 3)
    prune(tmp_path, keep=1)
    assert names(tmp_path) == {"step-3"}
    assert names(tmp_path / "step-3") == {checkpoint.MANIFEST, checkpoint.TENSORS}


def test_a_disk_that_fills_up_is_explained_and_leaves_the_old_checkpoint(tmp_path):
    """The system refuses to write past ten offsets, in tensors and manifest."""
    save_large(tmp_path, 1)
    for offset in range(0, 100_000, 10_000):
        with file_size_limit(offset), pytest.raises(OSError, match="MB are needed"):
            save_large(tmp_path, 2)
        assert names(tmp_path) == {"step-1"} and newest_step(tmp_path) == 1
