"""Whatever stops a run, it goes on from its folder and ends in the same bits."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ip2p_lib import checkpoint, files
from ip2p_lib.files import read_json
from ip2p_lib.training import train as training
from ip2p_lib.training.resume import catch_stop_signals, resumable_run
from ip2p_lib.training.state import TrainState
from tests.support.pairs import tree
from tests.support.train_in_parallel import Small
from tests.support.train_to_be_killed import LATENTS, SCHEDULE, SETTINGS, bytes_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What ``train_to_be_killed`` reports of its 40 runs."""
    script = Path(__file__).parents[1] / "support/train_to_be_killed.py"
    environment = {"PYTHONPATH": str(script.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("runs"))],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "times", "code"),
    [
        ("killed anywhere", 15, -signal.SIGKILL),
        ("SIGTERM", 10, 128 + signal.SIGTERM),
        ("SIGINT", 10, 128 + signal.SIGINT),
        ("SIGTERM twice", 5, 128 + signal.SIGTERM),
    ],
)
def test_a_run_that_was_struck_goes_on_and_ends_in_the_same_bits(
    outcomes, how, times, code
):
    """Weights, average, AdamW's state, step and log of losses, byte for byte."""
    rows = outcomes[how]
    assert [row["code"] for row in rows] == [code] * times, "a strike did not happen"
    assert len({row["at"] for row in rows}) == times
    assert [row["same"] for row in rows] == [True] * times
    for row in rows:
        assert row["left"][0] == "losses.json" and len(row["left"]) == 3, row
        assert row["began"] == (row["saved"] or 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_saves_within_one_step(outcomes, how):
    late = [row["saved"] - row["struck"] for row in outcomes[how]]
    assert set(late) <= {0, 1} and len(late) == 10


def a_run(root, steps=8, seed=0, **options):
    """Train up to ``steps``; returns the state and the run."""
    state = TrainState.create(Small(), SETTINGS)
    with resumable_run(state, root, **{"every_steps": 2, **options}) as run:
        for step in training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=seed):
            run.log_step(step)
            if step.step == steps:
                break
    return state, run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight")
    a_run(root)
    return bytes_of(root)


def test_leaving_the_loop_saves_and_the_log_has_every_step_once(straight, tmp_path):
    for steps in (3, 7, 8):
        _, run = a_run(tmp_path, steps)
        rows = read_json(tmp_path / "losses.json")
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert [list(row.values()) for row in rows] == run.log[:, :4].tolist()
        assert run.bins[:, 1].sum(1).tolist() == [SETTINGS.batch_size] * steps
    assert bytes_of(tmp_path) == straight


@pytest.mark.parametrize("file", ["losses.json", "*/*.safetensors"])
def test_what_is_lost_with_a_file_is_taken_again(straight, tmp_path, file):
    a_run(tmp_path, 5)
    sorted(tmp_path.glob(file))[-1].write_bytes(b"spoilt")
    damaged = pytest.warns(UserWarning, match="step-0000005 is damaged")
    with damaged if file != "losses.json" else nullcontext():
        a_run(tmp_path)
    assert bytes_of(tmp_path) == straight


def test_an_error_in_the_block_saves_nothing_of_the_half_step(tmp_path):
    state = TrainState.create(Small(), SETTINGS)
    with pytest.raises(ZeroDivisionError), resumable_run(state, tmp_path) as run:
        steps = training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0)
        run.log_step(next(steps))
        raise ZeroDivisionError
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("steps", [1, 4])
def test_a_new_machine_goes_on_from_the_backup_alone(straight, tmp_path, steps):
    drive = tmp_path / "drive"
    a_run(tmp_path / "lost machine", steps, backup_dir=drive)
    a_run(tmp_path / "new machine", backup_dir=drive)
    assert bytes_of(tmp_path / "new machine") == straight


def test_the_backup_of_another_run_is_refused_and_stays(tmp_path):
    a_run(tmp_path / "one", 2)
    a_run(tmp_path / "other", 3, seed=1)
    before = tree(tmp_path / "other")
    with pytest.raises(ValueError, match="two different runs"):
        a_run(tmp_path / "one", backup_dir=tmp_path / "other")
    assert tree(tmp_path / "other") == before


def test_a_backup_that_fails_is_said_and_training_goes_on(straight, tmp_path):
    drive = tmp_path / "drive"
    drive.write_text("not a folder")
    with pytest.warns(UserWarning, match="not in the backup") as said:
        a_run(tmp_path / "run", backup_dir=drive)
    assert len(said) == 4
    assert bytes_of(tmp_path / "run") == straight


def test_room_for_one_more_checkpoint_is_checked_before_training(tmp_path, monkeypatch):
    size = checkpoint.size_of(TrainState.create(Small(), SETTINGS).tensors())
    usage = namedtuple("usage", "total used free")(0, 0, 3 * size - 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MB are needed and .* MB free"):
        a_run(tmp_path, keep=2)
    a_run(tmp_path, 1, keep=1)


def test_the_handlers_before_are_put_back_and_ignored_signals_stay_ignored():
    before, received = signal.signal(signal.SIGTERM, signal.SIG_IGN), []
    try:
        with catch_stop_signals(lambda number, frame: received.append(number)):
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == []
            signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interrupt_says_where_to_go_on_and_the_kernel_lives_on(tmp_path):
    state = TrainState.create(Small(), SETTINGS)
    words = rf"after step 3, saved in {tmp_path}. Run this again"
    with pytest.raises(KeyboardInterrupt, match=words):  # noqa: SIM117
        with resumable_run(state, tmp_path) as run:
            for step in training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
                if step.step == 3:
                    signal.raise_signal(signal.SIGINT)
                run.log_step(step)
    assert len(run.log) == 3 and torch.isfinite(run.log).all(), "there to be plotted"
