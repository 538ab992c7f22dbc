"""A file or folder is complete or absent, and one run at a time writes a folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from ip2p_lib import files
from ip2p_lib.dataset.authors_format import export_folders
from ip2p_lib.dataset.dataset import validate, write_shards
from ip2p_lib.dataset.hub import export_parquet
from ip2p_lib.files import (
    FolderInUseError,
    atomic_directory,
    atomic_write,
    explain_disk_errors,
    remove_partials,
    require_room,
    run_lock,
)
from tests.support.pairs import file_size_limit, make_pair, tree

EXPORTS = {"folders": export_folders, "parquet": export_parquet}
WAIT = """
import sys, time
from pathlib import Path
from ip2p_lib.files import atomic_directory, run_lock
out = Path(sys.argv[1])
with run_lock(out / "run"), atomic_directory(out / "out") as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def other(tmp_path):
    """Another process that is writing ``out`` and holds the lock of ``run``."""
    command = [sys.executable, "-c", WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(OSError, match="full"), atomic_write(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write(b"for all")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    own = [".a.txt", ".notes-20240101", "a.txt-0123abcd.ip2p"]
    for name in (*own, ".a.txt-0123abcd.ip2p"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".b-20240101.ip2p").mkdir()
    remove_partials(tmp_path)
    assert names(tmp_path) == [own[0], ".b-20240101.ip2p", *own[1:]]


def test_json_and_hashes(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"name": "é", "n": [1, 2.5]})
    assert files.read_json(path) == {"name": "é", "n": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    (tmp_path / "ab").write_bytes(b"ab")
    (tmp_path / "c").write_bytes(b"c")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of(tmp_path / "ab", tmp_path / "c") == expected  # FIPS 180-2


def test_a_folder_appears_when_it_is_complete(tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "deep" / "out", tmp_path / "empty"):
        with atomic_directory(out) as folder:
            (folder / "a").mkdir()
            (folder / "a" / "b").write_text("x")
            assert not out.exists() or names(out) == []
        assert (out / "a" / "b").read_text() == "x"
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path) == ["deep", "empty"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("replaces", [None, "old|b"])
def test_files_of_another_kind_are_never_replaced(tmp_path, replaces):
    (tmp_path / "out").mkdir()
    for name, marker in (("old", "b"), ("photos", "")):
        (tmp_path / "out" / name).write_text("mine")
        with (
            pytest.raises(FileExistsError, match="not empty") as refused,
            atomic_directory(tmp_path / "out", replaces=replaces, marker=marker),
        ):
            pass
        assert ("replace=True" in str(refused.value)) == (replaces is None)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["old", "photos"]


def test_an_older_version_stays_until_the_new_one_is_complete(tmp_path):
    def replace_by(text):
        with atomic_directory(tmp_path / "out", replaces="a|b") as folder:
            (folder / "a").write_text(text)
            assert text == "old" or (tmp_path / "out" / "a").read_text() == "old"

    replace_by("old")
    (tmp_path / "out").rename(tmp_path / ".out.ip2p-old")  # killed between two renames
    replace_by("new")
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path, other):
    for start in (atomic_directory(tmp_path / "out"), run_lock(tmp_path / "run")):
        with pytest.raises(FolderInUseError, match="Another run"), start:
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert names(tmp_path) == [".out.ip2p-lock", ".out.ip2p-partial", "run"]
    with run_lock(tmp_path / "run"), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path) == ["out", "run"] and names(tmp_path / "out") == ["a"]
    assert names(tmp_path / "run") == []


def test_an_error_of_the_disk_releases_the_lock(tmp_path):
    for _ in range(2):  # the second finds nothing of the first
        with pytest.raises(OSError, match="full"), run_lock(tmp_path):
            assert names(tmp_path) == [".lock"]
            raise OSError("full")
    assert names(tmp_path) == []


def test_of_two_that_start_at_the_same_moment_one_writes(tmp_path):
    """The second opens the lock file just before the first deletes it."""
    first = run_lock(tmp_path)
    first.__enter__()
    late = files.FileLock(tmp_path / ".lock")
    opened = os.open(tmp_path / ".lock", os.O_RDWR)
    first.__exit__(None, None, None)
    with run_lock(tmp_path), pytest.raises(files.Timeout):
        late.acquire(timeout=0)
    os.close(opened)


@contextmanager
def full_disk(offset):
    with file_size_limit(offset), pytest.raises(OSError, match=r"MB are needed and"):
        yield


@pytest.fixture
def source(tmp_path):
    write_shards(map(make_pair, range(6)), tmp_path / "shards")
    return tmp_path / "shards"


def offsets(contents):
    """Five places within the largest file."""
    return [max(map(len, contents.values())) * i // 5 for i in range(5)]


def test_shards_survive_a_disk_that_fills_up_anywhere(source):
    before = tree(source)
    for offset in offsets(before):
        with full_disk(offset):
            write_shards(map(make_pair, range(6, 12)), source)
        assert tree(source) == before
    for pairs, size in (([], 5), (map(make_pair, range(6)), 0)):
        with pytest.raises(ValueError, match=r"no pair to write|at least 1, not 0"):
            write_shards(pairs, source, shard_size=size)
    assert tree(source) == before and validate(source) == []


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_survive_a_disk_that_fills_up_anywhere(source, tmp_path, kind):
    out = EXPORTS[kind](source, tmp_path / "out")
    before = tree(tmp_path)
    for offset in offsets(tree(out)):
        for folder, replace in ((tmp_path / "new", False), (out, True)):
            with full_disk(offset):
                EXPORTS[kind](source, folder, replace=replace)
        assert tree(tmp_path) == before
        assert names(tmp_path) == ["out", "shards"]
    EXPORTS[kind](source, out, replace=True)
    assert tree(tmp_path) == before
    (next(filter(Path.is_dir, out.iterdir())) / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        EXPORTS[kind](source, out, replace=True)


def test_too_little_room_is_noticed_before_anything_is_read(
    source, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    (source / "pairs-00000.tar").write_bytes(b"x" * 5000)  # which no reader accepts
    for export in EXPORTS.values():
        with pytest.raises(OSError, match="0 MB are needed and") as full:
            export(source, tmp_path / "out")
        assert full.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["shards"]


@pytest.fixture
def read_only():
    """A folder that this process may read but not write, also where it runs as root."""
    folder = Path(tempfile.mkdtemp())
    (folder / "out").mkdir()
    (folder / "out").chmod(0o555)
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_protected_folder_is_explained(read_only):
    with pytest.raises(PermissionError, match="Not writable"):
        write_shards(map(make_pair, range(2)), read_only / "out")
    assert names(read_only / "out") == []
    with (
        pytest.raises(PermissionError, match="Not writable"),
        atomic_directory(read_only / "new"),
    ):
        pass
    with pytest.raises(PermissionError):
        run_lock(read_only / "out").__enter__()
    assert names(read_only) == ["out"]


def test_other_errors_pass_unchanged(tmp_path):
    cause = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError) as raised, explain_disk_errors(tmp_path, 0):
        raise cause
    assert raised.value is cause


def test_room_is_looked_for_where_the_folder_will_be(tmp_path):
    require_room(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(OSError, match="No room"):
        require_room(tmp_path / "not" / "yet" / "there", 10**18)
