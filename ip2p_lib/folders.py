"""Folders that appear on disk complete or not at all, written by one run at a time.

A run writes beside the folder, under a hidden name that says who is at work since
when, and renames at the end. So a lock cannot be forgotten or fail (as locks on network
drives do): names are unique, the rename is one step, and what a killed run left is
recognised by its process being gone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ip2p_lib.files import explain_disk_errors, require_room


class FolderInUseError(RuntimeError):
    """Another run is writing the same folder."""


@dataclass(frozen=True)
class Writer:
    """Who writes: parsed from the last parts of a hidden name of ``unique_name``."""

    host: str
    pid: int
    started: int  # seconds since 1970

    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == host_name()

    def is_gone(self) -> bool:
        """Whether its process has ended; one on another machine may still be there."""
        if not self.is_here():
            return False
        try:
            process = psutil.Process(self.pid)
            reused = process.create_time() > self.started + 1
            return reused or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


def host_name() -> str:
    """This machine's name, without what has no place in the name of a file."""
    return re.sub(r"[^\w.-]", "-", socket.gethostname())


def unique_name(prefix: str) -> str:
    """A name that no other run makes, and that says who is at work since when."""
    owner = f"{host_name()}~{os.getpid()}~{int(time.time())}"
    return f"{prefix}~{owner}~{secrets.token_hex(4)}"


def writers(folder: Path, prefix: str) -> dict[Path, Writer]:
    """What runs, alive or killed, have named by ``unique_name`` in a folder."""
    pattern = re.compile(rf"{re.escape(prefix)}~([^~]+)~(\d+)~(\d+)~\w+")
    matches = {p: pattern.fullmatch(p.name) for p in folder.glob(".*~*")}
    return {p: Writer(m[1], int(m[2]), int(m[3])) for p, m in matches.items() if m}


@contextmanager
def atomic_directory(
    folder: Path, *, needed: int = 0, replaces: str | None = None
) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes ``folder`` if the block ends well.

    What killed runs left of the same folder is removed first.

    Args:
        folder: absent or empty; its parents are made.
        needed: bytes that it will hold, about; refused at once if they are not free.
        replaces: an older version, whose entries all match this regular expression,
            gives way to the new one once that is complete. None: none may be there.

    Raises:
        FileExistsError: ``folder`` holds files, and no older version of this kind.
        FolderInUseError: another run is writing it.
        OSError: no room, or no right to write; also if that shows inside the block.
    """
    _check_free(folder, replaces)
    require_room(folder, needed)
    with explain_disk_errors(folder, needed):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _refuse_others(folder, ours=None)
        with _partial(folder) as partial:
            yield partial
            _sync_files(partial)
            _check_free(folder, replaces)
            _put(partial, folder)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """A new empty folder, named after its writer, that is gone after the block."""
    partial = folder.with_name(unique_name(f".{folder.name}"))
    partial.mkdir()
    try:
        _refuse_others(folder, ours=partial)  # two may have started at the same moment
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(folder: Path, replaces: str | None) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    alike = replaces and all(re.fullmatch(replaces, p.name) for p in folder.iterdir())
    if not (folder.is_dir() and alike):
        raise FileExistsError(
            f"{folder} exists and is not empty. Choose another folder, or remove it; "
            "replace=True replaces an older export of the same kind."
        )


def _refuse_others(folder: Path, ours: Path | None) -> None:
    for partial, writer in writers(folder.parent, f".{folder.name}").items():
        if partial == ours:
            continue
        if not writer.is_gone():
            raise FolderInUseError(
                f"Process {writer.pid} on {writer.host} has been writing {folder} for "
                f"{time.time() - writer.started:.0f} s. Wait for it or choose another "
                f"folder; if that machine is gone, remove {partial}."
            )
        shutil.rmtree(partial, ignore_errors=True)


def _sync_files(folder: Path) -> None:
    """Wait until every file has reached the disk: a rename must not overtake them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _put(partial: Path, folder: Path) -> None:
    old = partial.with_name(f"{partial.name}old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
