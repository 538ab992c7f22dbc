"""A checkpoint is whole or it is not there, and damage is always noticed."""

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from ip2p_lib import checkpoint
from ip2p_lib.checkpoint import CheckpointError, latest, load, prune, save

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


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "step-1", TENSORS, {"step": 1, "note": "ok"})
    found = load(tmp_path / "step-1")
    assert equal(found.tensors, TENSORS)
    assert found.state == {"step": 1, "note": "ok"}


def test_a_checkpoint_can_be_replaced_in_place(tmp_path):
    save(tmp_path, TENSORS, {"step": 1})
    save(tmp_path, {"float": torch.ones(3)}, {"step": 2})
    assert load(tmp_path).state == {"step": 2}
    assert len(list(tmp_path.iterdir())) == 2, "the old tensors were left behind"


def test_the_newest_is_the_one_with_the_highest_number(tmp_path):
    for step in (9, 100, 20):
        save(tmp_path / f"step-{step}", TENSORS, {"step": step})
    assert latest(tmp_path).state["step"] == 100
    assert latest(tmp_path / "elsewhere") is None


def test_pruning_keeps_the_newest_and_clears_what_a_killed_save_left(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step}", TENSORS, {"step": step})
    (tmp_path / "step-4").mkdir()
    (tmp_path / "step-4" / ".partial-77").write_bytes(b"half")
    (tmp_path / "notes-of-mine").mkdir()
    prune(tmp_path, keep=2)
    left = {folder.name for folder in tmp_path.iterdir()}
    assert left == {"step-2", "step-3", "notes-of-mine"}
    with pytest.raises(ValueError, match="At least one"):
        prune(tmp_path, keep=0)


def damage(path, position, generator):
    """Flip one bit, or cut the file off, at a share of its length."""
    data = bytearray(path.read_bytes())
    at = int(position * len(data))
    if torch.rand((), generator=generator) < 0.5:
        data[at] ^= 1 << int(torch.randint(8, (), generator=generator))
        path.write_bytes(data)
    else:
        path.write_bytes(data[:at])


def test_any_flipped_bit_or_cut_is_noticed_and_the_previous_one_used(tmp_path):
    save(tmp_path / "step-1", TENSORS, {"step": 1})
    generator, noticed = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        folder = save(tmp_path / "step-2", TENSORS, {"step": 2})
        files = sorted(folder.iterdir())
        position = torch.rand((), generator=generator).item()
        damage(files[int(2 * position * 7919) % 2], position, generator)
        try:
            found = latest(tmp_path)
        except CheckpointError:
            pytest.fail("an intact checkpoint was there")
        if found.state["step"] == 2:  # a flip that spells the same JSON
            assert equal(found.tensors, TENSORS)
            continue
        assert found.state["step"] == 1 and "step-2" in found.refused[0]
        noticed += 1
    assert noticed > 95


def test_when_all_are_damaged_nothing_starts_over_in_silence(tmp_path):
    folder = save(tmp_path / "step-1", TENSORS, {"step": 1})
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"start over.*step-1 cannot be read"):
        latest(tmp_path)
    with pytest.raises(FileNotFoundError, match="No complete checkpoint"):
        load(tmp_path / "step-7")


def test_missing_tensors_are_damage_too(tmp_path):
    folder = save(tmp_path / "step-1", TENSORS, {"step": 1})
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(folder)


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 10, 5)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0 MB are needed, 0 free.*Older.*untouched"):
        save(tmp_path / "step-1", TENSORS, {})


@pytest.mark.parametrize("call", range(7))
def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path, monkeypatch, call):
    save(tmp_path, TENSORS, {"step": 1})
    calls = iter(range(100))

    def fails(function):
        def run(*args, **options):
            if next(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **options)

        return run

    monkeypatch.setattr(checkpoint, "save_file", fails(checkpoint.save_file))
    monkeypatch.setattr(checkpoint.os, "replace", fails(os.replace))
    monkeypatch.setattr(checkpoint.os, "fsync", fails(os.fsync))
    if call < 6:
        with pytest.raises(OSError, match="No room for a checkpoint"):
            save(tmp_path, {"new": torch.ones(2)}, {"step": 2})
        assert next(calls) == call + 1, "the fault did not happen"
    else:
        save(tmp_path, {"new": torch.ones(2)}, {"step": 2})
        assert next(calls) == call, "a place that can fail is not tested"
    committed = call >= 5  # the last fsync is of the folder, after the rename
    assert load(tmp_path).state["step"] == (2 if committed else 1)
    assert not list(tmp_path.glob(".partial*"))


KILLS = """
import json, os, shutil, sys
from pathlib import Path
import torch
from ip2p_lib import checkpoint

def killed_before(n, function, calls=[0]):
    def run(*args, **options):
        calls[0] += 1
        if calls[0] == n:
            os._exit(9)
        return function(*args, **options)
    return run

root, report = Path(sys.argv[1]), []
for n in range(1, 9):
    run = root / str(n)
    checkpoint.save(run / "step-1", {"x": torch.ones(3)}, {"step": 1})
    child = os.fork()
    if child == 0:
        checkpoint.save_file = killed_before(n, checkpoint.save_file)
        checkpoint.os.fsync = killed_before(n, os.fsync)
        checkpoint.os.replace = killed_before(n, os.replace)
        checkpoint.shutil.rmtree = killed_before(n, shutil.rmtree)
        checkpoint.save(run / "step-2", {"x": torch.ones(3) * 2}, {"step": 2})
        checkpoint.prune(run, keep=1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = checkpoint.latest(run)
    assert float(found.tensors["x"][0]) == found.state["step"]
    checkpoint.save(run / "step-3", {"x": torch.ones(3)}, {"step": 3})
    checkpoint.prune(run, keep=1)
    assert [p.name for p in run.iterdir()] == ["step-3"]
    report.append((code, found.state["step"]))
print(json.dumps(report))
"""


def test_a_kill_at_any_point_leaves_a_whole_checkpoint(tmp_path):
    root = Path(checkpoint.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout)
    assert outcomes == [[9, 1]] * 5 + [[9, 2]] * 2 + [[0, 2]]
