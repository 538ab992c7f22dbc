"""A full or protected disk is told in words, and leaves nothing half-written."""

import errno
import os
import resource
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ip2p_lib import files as disk_faults
from ip2p_lib.dataset.authors_format import export_folders
from ip2p_lib.dataset.dataset import read_shards, write_shards
from ip2p_lib.dataset.parquet import export_parquet
from ip2p_lib.dataset.validate import validate
from ip2p_lib.files import explain_disk_errors, require_room
from tests.support.pairs import make_pair

EXPORTS = {"folders": export_folders, "parquet": export_parquet}


@contextmanager
def file_size_limit(size):
    """No file may grow past ``size`` bytes: as a disk that fills up at that point."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.fixture
def source(tmp_path):
    write_shards(map(make_pair, range(6)), tmp_path / "shards")
    return tmp_path / "shards"


def tree(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def offsets(files):
    """Ten places within the largest file."""
    return np.linspace(0, max(map(len, files.values())) - 1, 10).astype(int).tolist()


def test_shards_survive_a_disk_that_fills_up_anywhere(source):
    before = tree(source)
    for offset in offsets(before):
        with (
            file_size_limit(offset),
            pytest.raises(OSError, match=r"No room: about \d+\.\d MB are needed"),
        ):
            write_shards(map(make_pair, range(6, 12)), source)
        assert tree(source) == before
    assert validate(source) == []


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_survive_a_disk_that_fills_up_anywhere(source, tmp_path, kind):
    out = EXPORTS[kind](source, tmp_path / "out")
    before = tree(tmp_path)
    for offset in offsets(tree(out)):
        for folder, replace in ((tmp_path / "new", False), (out, True)):
            with (
                file_size_limit(offset),
                pytest.raises(
                    OSError, match=r"\d+\.\d MB are needed and \d+\.\d MB free"
                ),
            ):
                EXPORTS[kind](source, folder, replace=replace)
        assert tree(tmp_path) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shards"]
    EXPORTS[kind](source, out, replace=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", EXPORTS)
def test_too_little_room_is_refused_before_anything_is_read(
    source, tmp_path, monkeypatch, kind
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk_faults.shutil, "disk_usage", lambda path: usage)
    (source / "pairs-00000.tar").write_bytes(b"x" * 5000)  # which no reader accepts
    with pytest.raises(OSError, match=r"0\.0 MB are needed and 0\.0 MB free") as full:
        EXPORTS[kind](source, tmp_path / "out")
    assert full.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


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


def test_a_protected_folder_is_told_in_words(read_only):
    with pytest.raises(PermissionError, match=r"Nothing may be written there.*Choose"):
        write_shards(map(make_pair, range(2)), read_only / "out")
    assert list((read_only / "out").iterdir()) == []


@pytest.mark.parametrize("kind", EXPORTS)
def test_an_export_into_a_protected_folder_is_told_in_words(kind, tmp_path, read_only):
    shards = Path(tempfile.mkdtemp())  # which the user of this test owns
    write_shards(map(make_pair, range(2)), shards)
    with pytest.raises(PermissionError, match=r"Nothing may be written there"):
        EXPORTS[kind](shards, read_only / "new")
    assert [p.name for p in read_only.iterdir()] == ["out"]
    shutil.rmtree(shards)


def test_other_errors_pass_unchanged(tmp_path):
    cause = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError) as raised, explain_disk_errors(tmp_path, 0):
        raise cause
    assert raised.value is cause


def test_room_is_looked_for_where_the_folder_will_be(tmp_path):
    require_room(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(OSError, match="No room"):
        require_room(tmp_path / "not" / "yet" / "there", 10**18)


def test_what_was_read_stays_readable(source, tmp_path):
    with file_size_limit(10), pytest.raises(OSError, match="No room"):
        export_parquet(source, tmp_path / "out")
    assert len(list(read_shards(source))) == 6
