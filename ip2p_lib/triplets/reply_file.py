"""Keep the replies of a paid service on the disk, so that none is paid for twice."""

import json
import math
import os
import threading
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ip2p_lib.files import explain_disk_errors, make_folder


class ServiceError(RuntimeError):
    """The service cannot go on; the message says what to check, without the key."""


class ReplyFile:
    """Replies of a service, in memory and one a line in a JSON-lines file.

    A line has the ``key`` of its request, the ``cost`` in dollars and, if a reply came,
    its ``caption``, ``text``, ``reason`` and ``tokens``. It is on the disk (fsync)
    before the reply is handed on; a last line that was cut off is removed. Threads may
    share the object, processes may not.

    Raises:
        ServiceError: another process has the file open, or a line is damaged.
        OSError: the file cannot be written; it ends with the last whole reply.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.cost, self._file, self._mutex = 0.0, None, threading.Lock()
        self.rows: dict[str, dict[str, Any]] = {}  # by key
        self._opened = ExitStack()
        if path is None:
            return
        self._path = path = Path(path)
        lock = path.with_name(f".{path.name}.lock")
        try:
            with explain_disk_errors(path, 0):
                make_folder(path.parent)
                self._opened.enter_context(FileLock(lock, 0, thread_local=False))
                file = path.open("a+b", buffering=0)
                self._file = self._opened.enter_context(file)
                self._read(self._file)
        except Timeout:
            raise ServiceError(f"Another run is using {path}. Wait for it.") from None
        except BaseException:
            self.close()
            raise

    def _read(self, file: FileIO) -> None:
        """Read all lines; a last one that was cut off is removed."""
        file.seek(0)
        *lines, rest = file.read().split(b"\n")
        with suppress(ValueError, RecursionError):
            json.loads(rest)
            lines.append(rest)  # complete, but for its line end
        for number, line in enumerate(lines, start=1):
            try:
                self._add(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError):
                raise ServiceError(
                    f"{self._path}:{number} is no reply. Delete this line only: the "
                    "others are paid for."
                ) from None
        if rest in lines:
            file.write(b"\n")
        else:
            file.truncate(file.tell() - len(rest))

    def append(self, row: dict[str, Any]) -> None:
        """Store a reply, or the cost of a request without one: whole or not at all."""
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._mutex:
            if self._file is not None:
                with explain_disk_errors(self._path, len(line)):
                    self._write(self._file, line)
            self._add(row)

    def _write(self, file: FileIO, line: bytes) -> None:
        end, rest = file.seek(0, os.SEEK_END), line
        try:
            while rest:  # of a disk that fills, a part is written before the error
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise

    def _add(self, row: dict[str, Any]) -> None:
        if not 0 <= row["cost"] < math.inf or ("text" in row and "reason" not in row):
            raise ValueError(f"not a reply: {row}")
        self.cost += row["cost"]
        if "text" in row:
            self.rows[row["key"]] = row

    def close(self) -> None:
        """Close the file and let another process open it."""
        self._opened.close()
