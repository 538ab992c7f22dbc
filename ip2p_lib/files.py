"""Write files completely or not at all, and explain full or protected disks (ours)."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
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


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Put a whole file in place at once: a reader meets the old one or the new one."""
    path = Path(path)
    with explain_disk_errors(path, len(data)), atomic_write(path) as file:
        file.write(data)
    return path


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explain_disk_errors(path: Path, needed: int) -> Iterator[None]:
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
