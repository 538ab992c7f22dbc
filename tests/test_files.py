"""A file is there whole or not at all."""

import os

import pytest

from ip2p_lib.files import atomic_write, remove_partials


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(OSError, match="full"), atomic_write(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_may_be_read_by_whom_the_folder_lets(tmp_path):
    old = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write(b"for all")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.txt-0123abcd", ".a.txt", "a.txt-0123abcd", ".in-use~host~1"):
        (tmp_path / name).write_bytes(b"")
    remove_partials(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".a.txt", "a.txt-0123abcd", ".in-use~host~1"}
