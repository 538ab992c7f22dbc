"""A small training that is killed and told to stop at random calls. Prints JSON.

Every run is a fork of this process, and is struck at the n-th function call it makes, n
being drawn; so a strike falls anywhere, and the same place every time. A second fork
then goes on from what the first left.
"""

import json
import random
import signal
import sys
from pathlib import Path

import torch

from ip2p_lib import checkpoint
from ip2p_lib.config import Training
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.training import train as training
from ip2p_lib.training.resume import resumable_run
from ip2p_lib.training.state import TrainState
from tests.support.strikes import Strikes, in_child
from tests.support.train_in_parallel import LATENTS, Small

SETTINGS = Training(steps=8, batch_size=5, learning_rate=1e-2, drop=0.05)
SCHEDULE = Schedule.scaled_linear()


def train(root, strikes=None):
    """The whole run, going on from ``root``; struck only within the loop if asked."""
    state = TrainState.create(Small(), SETTINGS)
    with resumable_run(state, root, every_steps=2) as run:
        began = state.step
        if strikes:
            strikes.before = lambda: (root / "struck").write_text(str(state.step))
            sys.setprofile(strikes)
        steps = training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0)
        for step in steps:
            run.log_step(step)
    sys.setprofile(None)
    return strikes.count if strikes else began


def train_counting_all(root, strikes):
    sys.setprofile(strikes)
    train(root)
    sys.setprofile(None)
    return strikes.count


def bytes_of(root):
    """The log, and the last checkpoint: weights, average, AdamW's state, step, log."""
    files = [root / "losses.json", *sorted((root / "step-0000008").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def struck_runs(folder, work, times, number, *, twice=False):
    """Strike ``times`` runs, let each go on to the end, and report on each."""
    _, total = in_child(lambda: work(folder / "straight", Strikes()))
    expected = bytes_of(folder / "straight")
    drawn = random.Random(folder.name)
    for i in range(times):
        at, root = drawn.randint(1, int(0.95 * total)), folder / str(i)
        strikes = Strikes(at, *([at + 4] if twice else []), signal=number)
        code, _ = in_child(lambda root=root, strikes=strikes: work(root, strikes))
        found = checkpoint.latest(root)
        struck = root / "struck"
        row = {"code": code, "at": at, "saved": found and found.state["step"]}
        row["struck"] = int(struck.read_text()) if struck.exists() else None
        again, row["began"] = in_child(lambda root=root: train(root))
        row["same"] = again == 0 and bytes_of(root) == expected
        row["left"] = sorted(p.name for p in root.iterdir() if p != struck)
        yield row


RUNS = {
    "killed anywhere": (train_counting_all, 15, signal.SIGKILL),
    "SIGTERM": (train, 10, signal.SIGTERM),
    "SIGINT": (train, 10, signal.SIGINT),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    train(root / "warm up")  # torch imports much of itself only when it is used
    found = {name: list(struck_runs(root / name, *how)) for name, how in RUNS.items()}
    how = (train, 5, signal.SIGTERM)
    found["SIGTERM twice"] = list(struck_runs(root / "twice", *how, twice=True))
    print(json.dumps(found))
