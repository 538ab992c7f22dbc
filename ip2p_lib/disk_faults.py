"""Disks that are full or closed to us, said in words with their sizes.

Writers of whole files and folders leave nothing half-written behind; this module turns
the bare number that the system gives as the reason into what a person can act on.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def told_in_words(path: Path, needed: int) -> Iterator[None]:
    """Explain an ``OSError`` of a full or protected disk raised inside the block.

    Args:
        path: what is being written, whole or not at all.
        needed: bytes, about.

    Raises:
        OSError: of the same errno as the one inside; others pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(error, path, needed) from error
        if error.errno in _CLOSED:
            raise OSError(
                error.errno,
                f"Nothing may be written there ({error.strerror}: {error.filename}). "
                "Choose another folder, or ask for the right to write",
                str(path),
            ) from error
        raise


def require_room(path: Path, needed: int) -> None:
    """Refuse to start writing ``needed`` bytes at ``path`` if they cannot fit.

    Raises:
        OSError: less is free on that disk; the message gives both in MB.
    """
    if free_bytes(path) < needed:
        raise _no_room(OSError(errno.ENOSPC, ""), path, needed)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk where ``path`` is, or will be."""
    there = next(
        folder for folder in (path, *path.absolute().parents) if folder.exists()
    )
    return shutil.disk_usage(there).free


def _no_room(error: OSError, path: Path, needed: int) -> OSError:
    return OSError(
        error.errno,
        f"No room: about {needed / 1e6:.1f} MB are needed and "
        f"{free_bytes(path) / 1e6:.1f} MB free, or a limit on file sizes is lower. "
        "Nothing half-written is left; free some space, or write elsewhere",
        str(path),
    )
