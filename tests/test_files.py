"""A file is there whole or not at all."""

import pytest

from ip2p_lib.files import written_whole


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with written_whole(path) as file:
        file.write(b"old")
    with pytest.raises(OSError, match="full"), written_whole(path) as file:
        file.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
