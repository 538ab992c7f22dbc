"""A folder is there whole or not at all, and one run at a time writes it."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ip2p_lib import folders
from ip2p_lib.folders import FolderInUseError, Writer, atomic_directory

WAIT = """
import sys, time
from pathlib import Path
from ip2p_lib.folders import atomic_directory
with atomic_directory(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def other(tmp_path):
    """Another process in the midst of writing ``tmp_path / "out"``."""
    command = [sys.executable, "-c", WAIT, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with atomic_directory(tmp_path / "deep" / "out") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a" / "b").read_text() == "x"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("replaces", [None, "old|b"])
def test_what_is_there_and_is_no_older_version_stays(tmp_path, replaces):
    (tmp_path / "out").mkdir()
    for name in ("old", "photos"):
        (tmp_path / "out" / name).write_text("mine")
    with (
        pytest.raises(FileExistsError, match="not empty"),
        atomic_directory(tmp_path / "out", replaces=replaces),
    ):
        pass
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old", "photos"]


def test_an_older_version_stays_until_the_new_one_is_whole(tmp_path):
    for text in ("old", "new"):
        with atomic_directory(tmp_path / "out", replaces="a|b") as folder:
            (folder / "a").write_text(text)
            if text == "new":
                assert (tmp_path / "out" / "a").read_text() == "old"
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_second_run_is_refused_in_words(tmp_path, other):
    began = time.monotonic()
    with (
        pytest.raises(FolderInUseError) as refused,
        atomic_directory(tmp_path / "out"),
    ):
        pass
    assert time.monotonic() - began < 2
    told = rf"Process {other.pid} on \S+ has been writing .*out for \d+ s\. Wait"
    assert re.match(told, str(refused.value))


def test_another_folder_beside_it_is_free(tmp_path, other):
    with atomic_directory(tmp_path / "out2") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "out2") == ["a"]


def test_what_a_killed_run_left_is_taken_over(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert len(names(tmp_path)) == 1  # its unfinished folder
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_two_that_start_at_the_same_moment_do_not_both_write(tmp_path, monkeypatch):
    """The other's folder appears between our look and our own folder."""
    other = tmp_path / f".out~elsewhere~1~{int(time.time())}~ab"
    mkdir = folders.Path.mkdir

    def slow(path, *args, **kwargs):
        if path.name.startswith(".out~") and not other.exists():
            mkdir(other)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(folders.Path, "mkdir", slow)
    with (
        pytest.raises(FolderInUseError, match="on elsewhere"),
        atomic_directory(tmp_path / "out"),
    ):
        pass
    assert names(tmp_path) == [other.name]


def test_a_writer_is_gone_when_its_process_is(other):
    host, now = folders.host_name(), int(time.time())
    assert not Writer(host, other.pid, now).is_gone()
    assert Writer(host, other.pid, 0).is_gone()  # the number was given out again
    assert not Writer("elsewhere", other.pid, 0).is_gone()
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, but not collected
    assert Writer(host, other.pid, now).is_gone()
    other.wait()
    assert Writer(host, other.pid, now).is_gone()
