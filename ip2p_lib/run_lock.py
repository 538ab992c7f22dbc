"""One run a folder: a second one would save over the first and delete what it kept.

Every run leaves a mark, a file of its own whose name says who is at work since when,
and touches it as long as it lives. The mark of a killed run is known by its process
being gone or, on a machine that cannot be asked, by its silence, and is removed. Unlike
a lock of the system this works on network drives; and since all that is written has
unique names, even two runs that miss each other's mark cannot spoil a file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ip2p_lib.distributed import rank
from ip2p_lib.folders import FolderInUseError, unique_name, writers

_MARK = ".in-use"
SILENCE = 900.0  # seconds after which a run on another machine counts as gone


@contextmanager
def run_lock(folder: Path) -> Iterator[Path]:
    """Mark ``folder``, made if missing, as in use while the block lasts.

    Of the processes of one run the first makes the mark, for all of them.

    Returns:
        The mark, to be touched more often than every ``SILENCE`` seconds.

    Raises:
        FolderInUseError: another run is at work there; names its machine and process.
    """
    mark = folder / unique_name(_MARK)
    if rank() > 0:
        yield mark
        return
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_others(folder, ours=None)
    mark.touch()
    try:
        _refuse_others(folder, ours=mark)  # two may have started at the same moment
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _refuse_others(folder: Path, ours: Path | None) -> None:
    for mark, writer in writers(folder, _MARK).items():
        if mark == ours:
            continue
        try:
            silent = time.time() - mark.stat().st_mtime
        except FileNotFoundError:
            continue  # its run has just ended
        silenced = not writer.is_here() and silent > SILENCE
        if not (writer.is_gone() or silenced):
            raise FolderInUseError(
                f"Process {writer.pid} on {writer.host} has been training in {folder} "
                f"for {time.time() - writer.started:.0f} s; last heard of "
                f"{silent:.0f} s ago. Stop it or choose another folder; if that "
                f"machine is gone, remove {mark}."
            )
        mark.unlink(missing_ok=True)
