"""Write files and folders completely or not at all, and lock a folder for one run.

A reader never meets half a file: ``atomic_write`` and ``atomic_directory`` write under
a hidden name and rename it at the end. ``run_lock`` keeps a second run out of a folder.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout


class FolderInUseError(RuntimeError):
    """Another run is writing to the same folder."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when the block ends without an error.

    Until then ``path`` is as before. Missing parent folders are created.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}.ip2p")
    try:
        with partial.open("xb") as file:  # with the permissions of any new file
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; NotADirectoryError if a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"{folder} cannot be a folder, since a file is there. Choose another."
        ) from error


def remove_partials(folder: Path) -> None:
    """Delete the hidden files of killed writers; nobody may be writing there now."""
    for path in folder.glob(".*-*.ip2p"):
        if re.fullmatch(r"\..+-[0-9a-f]{8}\.ip2p", path.name) and path.is_file():
            path.unlink()


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a whole file atomically; explains a full or protected disk."""
    path = Path(path)
    with explain_disk_errors(path, len(data)), atomic_write(path) as file:
        file.write(data)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file atomically. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, text.encode())


def decode_text(data: bytes, path: str | Path, line: int = 1) -> str:
    """Decode UTF-8, with or without a byte-order mark; ``line`` is the data's first.

    Raises ValueError, naming file and line, for other encodings such as Latin-1 and
    UTF-16: they cannot be told apart, and guessing would change letters.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}:{line}: byte {data[error.start]:#x} is not UTF-8. Save the file "
            "as UTF-8."
        ) from error
    if (end := text.find("\0")) >= 0:
        line += text.count("\n", 0, end)
        raise ValueError(f"{path}:{line}: a NUL is no text. Save the file as UTF-8.")
    return text


def read_text(path: str | Path) -> str:
    """Read a text file of UTF-8, as ``decode_text``."""
    return decode_text(Path(path).read_bytes(), path)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; ValueError names a damaged one."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Make it again.") from error


def sha256_of(*paths: str | Path) -> str:
    """SHA-256 of one file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def run_lock(folder: Path, path: Path | None = None) -> Iterator[None]:
    """Lock ``folder``, created if missing, for one run at a time.

    The lock file is ``path``, or ``.lock`` in the folder. The operating system releases
    it when the process ends, however it ends. Raises FolderInUseError if another run
    holds it.
    """
    path = path or folder / ".lock"
    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderInUseError(
            f"Another run is writing to {folder} (it holds the lock {path}). Wait for "
            "it, stop it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            path.unlink()  # while locked; filelock notices a deleted file
        lock.release()


@contextmanager
def atomic_directory(
    folder: Path, replaces: str | None = None, marker: str = "", *, needed: int = 0
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``folder`` if the block succeeds.

    Args:
        folder: missing, empty or an older version.
        replaces: a regular expression for the paths of all files of an older version.
        marker: one of them that it always has; without it the folder is not ours.
        needed: bytes it will hold, about; checked against the free space.

    Raises:
        FileExistsError: ``folder`` holds other files.
        FolderInUseError: another run is writing it.
        OSError: the disk is full or write-protected; inside the block too.
    """
    check_replaceable(folder, replaces, marker)
    require_room(folder, needed)
    hidden = folder.with_name(f".{folder.name}.ip2p-")
    lock, partial, old = (Path(f"{hidden}{end}") for end in ("lock", "partial", "old"))
    with explain_disk_errors(folder, needed), run_lock(folder, lock):
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # a run was killed between its two renames
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        shutil.rmtree(old, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            for path in filter(Path.is_file, partial.rglob("*")):
                _sync(path)  # before the rename, or a crash could keep only that
            check_replaceable(folder, replaces, marker)
            if folder.exists():
                os.replace(folder, old)
            os.replace(partial, folder)
            _sync(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and writes their names at once
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_replaceable(folder: Path, replaces: str | None, marker: str) -> None:
    """Raise FileExistsError for what ``atomic_directory`` would not replace."""
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")  # files, links and empty folders
        if path.is_symlink() or not (path.is_dir() and any(path.iterdir()))
    }
    ours = all(replaces and re.fullmatch(replaces, name) for name in names)
    if folder.is_file() or not ours or (names and marker and marker not in names):
        # Only the exports have this argument; without it they pass no ``replaces``.
        advice = "" if replaces else "; replace=True replaces an older export"
        raise FileExistsError(
            f"{folder} exists, not empty. Choose another folder, or remove it{advice}."
        )


@contextmanager
def explain_disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Explain an ``OSError`` of a full or write-protected disk raised in the block.

    ``path``, of about ``needed`` bytes, is being written. Other errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(error.errno, path, needed) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"Not writable ({error.strerror}: {error.filename}); use another"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def require_room(path: Path, needed: int) -> None:
    """Raise ``OSError`` if fewer than ``needed`` bytes are free where ``path`` is."""
    if _free_bytes(path) < needed:
        raise _disk_full(errno.ENOSPC, path, needed)


def _free_bytes(path: Path) -> int:
    existing = next(f for f in (path, *path.absolute().parents) if f.exists())
    return shutil.disk_usage(existing).free


def _disk_full(number: int, path: Path, needed: int) -> OSError:
    return OSError(
        number,
        f"No room: about {needed / 1e6:.1f} MB are needed and "
        f"{_free_bytes(path) / 1e6:.1f} MB free, or a limit on file sizes is lower. "
        "No partial file remains; free some space, or write elsewhere",
        str(path),
    )
