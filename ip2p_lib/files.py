"""Files that appear on disk complete or not at all (the pipeline writes only such)."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends without an error.

    Until then, and if it does end with one, a reader meets the old file. The folder is
    made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with partial.open("xb") as file:  # with the rights of any new file
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder where nobody else is writing now."""
    for path in folder.glob(".*-*"):
        if re.fullmatch(r"\..+-[0-9a-f]{8}", path.name):
            path.unlink()
