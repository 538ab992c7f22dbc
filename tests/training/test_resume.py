"""Whatever stops a run, it goes on from its folder and ends in the same bits."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from ip2p_lib import checkpoint, disk_faults
from ip2p_lib.checkpoint import CheckpointError
from ip2p_lib.folders import FolderInUseError
from ip2p_lib.run_lock import run_lock
from ip2p_lib.training import train as training
from ip2p_lib.training.resume import recoverable
from ip2p_lib.training.signals import noted_signals
from tests.support.train_in_parallel import Small
from tests.support.train_to_be_killed import LATENTS, SCHEDULE, SETTINGS, bytes_of


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What ``train_to_be_killed`` reports of its 45 runs."""
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


@pytest.mark.parametrize(
    ("how", "times", "code"),
    [
        ("killed anywhere", 15, -signal.SIGKILL),
        ("killed in a save", 5, -signal.SIGKILL),
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
        assert row["left"][0] == "losses.csv" and len(row["left"]) == 3, row
        start = "Resumed after" if row["saved"] else "Nothing is saved"
        assert row["banner"].startswith(start)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_run_told_to_stop_saves_within_one_step(outcomes, how):
    late = [row["saved"] - row["struck"] for row in outcomes[how]]
    assert set(late) <= {0, 1} and len(late) == 10


def a_run(root, steps=8, **options):
    """Train up to ``steps``; returns the state and the run."""
    state = training.start(Small(), SETTINGS)
    with recoverable(state, root, **{"every_steps": 2, **options}) as run:
        for step in training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
            run.record(step)
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
        rows = list(csv.DictReader((tmp_path / "losses.csv").read_text().splitlines()))
        assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
        logged = [[float(value) for value in list(row.values())[:4]] for row in rows]
        assert logged == run.log[:, :4].tolist(), "what is written reads back exactly"
        means = [list(row.values())[4:] for row in rows]
        sums, counts = run.bands[-1].tolist()
        told = [repr(s / n) if n else "" for s, n in zip(sums, counts, strict=True)]
        assert means[-1] == told and sum(counts) == SETTINGS.batch_size
    assert bytes_of(tmp_path) == straight


@pytest.mark.parametrize("file", ["losses.csv", "*/*.safetensors"])
def test_what_is_lost_with_a_file_is_taken_again(straight, tmp_path, file):
    a_run(tmp_path, 5)
    sorted(tmp_path.glob(file))[-1].write_bytes(b"spoilt")
    _, run = a_run(tmp_path)
    assert bytes_of(tmp_path) == straight
    ignored = "step-0000005 is damaged" in run.banner
    assert ignored == (file != "losses.csv")
    if ignored:
        assert "after step 4" in run.banner and "at most 2 steps, is lost" in run.banner


def test_a_save_is_also_due_by_the_clock(tmp_path):
    a_run(tmp_path, 3, every_steps=100, every_seconds=0.0, keep=3)
    assert len(list(tmp_path.glob("step-*"))) == 3


def test_an_error_in_the_block_saves_nothing_of_the_half_step(tmp_path):
    state = training.start(Small(), SETTINGS)
    with pytest.raises(ZeroDivisionError), recoverable(state, tmp_path) as run:
        run.record(next(training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0)))
        raise ZeroDivisionError
    assert checkpoint.latest(tmp_path) is None


def test_a_missing_checkpoint_is_an_error_where_one_must_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint under .* to go on"):
        a_run(tmp_path, must_resume=True)
    a_run(tmp_path, 2)
    assert a_run(tmp_path, must_resume=True)[0].step == 8
    for manifest in tmp_path.glob("*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="is intact"):
        a_run(tmp_path)


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_new_machine_goes_on_from_the_mirror_alone(straight, tmp_path, steps):
    drive = tmp_path / "drive"
    a_run(tmp_path / "lost machine", steps, mirror=drive)
    _, run = a_run(tmp_path / "new machine", mirror=drive)
    assert f"after step {steps} from {drive}" in run.banner
    assert bytes_of(tmp_path / "new machine") == straight


def test_a_mirror_that_fails_is_said_and_training_goes_on(straight, tmp_path):
    drive = tmp_path / "drive"
    drive.write_text("not a folder")
    with pytest.warns(UserWarning, match=r"not in the mirror .*goes on") as said:
        a_run(tmp_path / "run", mirror=drive)
    assert len(said) == 4
    assert bytes_of(tmp_path / "run") == straight


def test_room_for_one_more_than_is_kept_is_asked_for_before_training(
    tmp_path, monkeypatch
):
    size = checkpoint.size_of(training.start(Small(), SETTINGS).tensors())
    usage = namedtuple("usage", "total used free")(0, 0, 3 * size - 1)
    monkeypatch.setattr(disk_faults.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"MB are needed and .* MB free"):
        a_run(tmp_path, keep=2)
    a_run(tmp_path, 1, keep=1)


@pytest.mark.parametrize("host", ["a-machine", "Zoë's machine~2/3"])
def test_a_second_run_in_a_folder_is_refused_and_a_killed_ones_mark_removed(
    tmp_path, monkeypatch, host
):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    words = rf"Process {os.getpid()} on \S+ has been training in {tmp_path} for \d+ s"
    with run_lock(tmp_path):
        with pytest.raises(FolderInUseError, match=words):
            a_run(tmp_path)
        (mark,) = tmp_path.glob(".in-use~*")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / mark.name.replace(f"~{os.getpid()}~", f"~{gone.pid}~")).touch()
    a_run(tmp_path, 1)
    assert not list(tmp_path.glob(".in-use~*"))


def test_a_machine_that_cannot_be_asked_counts_as_gone_once_it_is_silent(tmp_path):
    mark = tmp_path / ".in-use~another-machine~12~1700000000~abcd"
    mark.touch()
    with pytest.raises(FolderInUseError, match=rf"12 on another-machine.*{mark}"):
        a_run(tmp_path, 1)
    os.utime(mark, (0, 0))
    a_run(tmp_path, 1)
    assert not mark.exists()


def test_a_run_is_heard_of_at_every_save(tmp_path):
    state = training.start(Small(), SETTINGS)
    with recoverable(state, tmp_path) as run:
        os.utime(run.mark, (0, 0))
        run.save()
        assert run.mark.stat().st_mtime > 1e9


def test_the_handlers_before_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with noted_signals() as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted.number is None
            assert signal.getsignal(signal.SIGINT) == noted.note
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_that_gets_no_signals_trains_all_the_same(straight, tmp_path):
    thread = threading.Thread(target=a_run, args=[tmp_path])
    thread.start()
    thread.join()
    assert bytes_of(tmp_path) == straight


def test_an_interrupt_says_where_to_go_on_and_the_kernel_lives_on(tmp_path):
    state = training.start(Small(), SETTINGS)
    words = rf"after step 3, saved in {tmp_path}. Run this again"
    with pytest.raises(KeyboardInterrupt, match=words):  # noqa: SIM117
        with recoverable(state, tmp_path) as run:
            for step in training.train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0):
                if step.step == 3:
                    signal.raise_signal(signal.SIGINT)
                run.record(step)
    assert len(run.log) == 3 and torch.isfinite(run.log).all(), "there to be plotted"
