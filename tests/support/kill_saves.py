"""Saves that are killed or run out of disk: a folder to work in. Prints JSON."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from ip2p_lib import checkpoint
from tests.support.strikes import Strikes, in_child

OLD, NEW = torch.ones(10_000), torch.ones(10_000) * 2  # 40 kB
NOTE = "x" * 100_000  # so the manifest is longer than the tensors


def save(root, step):
    tensor = OLD if step == 1 else NEW
    checkpoint.save(root / f"step-{step}", {"x": tensor}, {"step": step, "note": NOTE})


def state_of(root):
    """The newest whole checkpoint's step, read as a later run would."""
    found = checkpoint.latest(root)
    assert torch.equal(found.tensors["x"], OLD if found.state["step"] == 1 else NEW)
    return found.state["step"]


def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(tensors, path):
    Path(path).write_bytes(b"0" * 20_000)
    die()


def dies_at(call, function):
    calls = iter(range(1, 100))

    def run(*args, **options):
        return (die if next(calls) == call else function)(*args, **options)

    return run


POINTS = {
    "open": (checkpoint, "save_file", die),
    "half written": (checkpoint, "save_file", half_written),
    "before the manifest": (checkpoint, "sha256_of", die),
    "before the first fsync": (os, "fsync", die),
    "before the second fsync": (os, "fsync", dies_at(2, os.fsync)),
    "before rename": (os, "replace", die),
    "before directory fsync": (os, "fsync", dies_at(3, os.fsync)),
    "before prune": (checkpoint, "prune", die),
}


def save_and_prune(root, patch=None):
    if patch:
        setattr(*patch)
    save(root, 2)
    checkpoint.prune(root, keep=1)


def left_after_the_next(root):
    save(root, 3)
    checkpoint.prune(root, keep=1)
    files = sorted(path.suffix for path in root.rglob("*") if path.is_file())
    return [path.name for path in root.iterdir()], files


def at_points(root):
    for name, patch in POINTS.items():
        run = root / name
        save(run, 1)
        code, _ = in_child(lambda run=run, patch=patch: save_and_prune(run, patch))
        yield [name, code, state_of(run), *left_after_the_next(run)]


def while_pruning(root):
    """SIGKILL at ten calls spread over ``prune``, with keep=1."""

    def work(run, strikes):
        checkpoint.prune = strikes.within(checkpoint.prune)
        save_and_prune(run)
        return strikes.count

    save(root / "all", 1)
    _, count = in_child(lambda: work(root / "all", Strikes()))
    for part in range(10):
        run, strikes = root / str(part), Strikes(1 + part * (count - 1) // 10, signal=9)
        save(run, 1)
        code, _ = in_child(lambda run=run, strikes=strikes: work(run, strikes))
        yield [part, code, state_of(run)]


def on_a_full_disk(root):
    """The system refuses to write past ten offsets, in tensors and manifest."""

    def work(run, most):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            save(run, 2)
        except OSError as error:
            return str(error)

    for most in range(0, 100_000, 10_000):
        run = root / str(most)
        save(run, 1)
        _, words = in_child(lambda run=run, most=most: work(run, most))
        yield [most, words, state_of(run), [path.name for path in run.iterdir()]]


if __name__ == "__main__":
    root = Path(sys.argv[1])
    parts = (at_points, while_pruning, on_a_full_disk)
    print(json.dumps({f.__name__: list(f(root / f.__name__)) for f in parts}))
