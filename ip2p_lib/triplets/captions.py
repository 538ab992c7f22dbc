"""Where captions come from: a text file, JSON lines, or a streamed data set (3.1.1).

The authors took 454,445 captions from LAION-Aesthetics. Any number is read here one at
a time, so that a list of them is never in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_KEYS = ("input", "caption", "text", "TEXT")  # ours and the authors', then LAION's


def read_captions(path: str | Path, column: str | None = None) -> Iterator[str]:
    """Read captions from a file.

    Args:
        path: ``.txt``, one caption a line; or ``.jsonl``, one object a line.
        column: the key that holds the caption; ``None`` tries ``input``, ``caption``
            and ``text``.

    Yields:
        Captions as one line each, single spaces between words; blank ones are passed
        over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or a line without a caption; the message names
            file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of captions at {path}.")
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path.name}: captions are read from .txt and .jsonl files.")
    return _read(path, column)


def _read(path: Path, column: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                bare = " ".join(line.split())
                if bare and path.suffix == ".jsonl":
                    bare = caption_of(json.loads(bare), column)
            except ValueError as error:  # also JSON errors
                raise ValueError(f"{path}:{number}: {error}") from error
            if bare:
                yield bare


def captions_of(
    rows: Iterable[Mapping[str, Any]], column: str | None = None
) -> Iterator[str]:
    """Captions of a data set's rows, such as ``datasets.load_dataset`` streams.

    Args:
        rows: read one at a time.
        column: as in ``read_captions``; its errors too, as the rows are reached.
    """
    return (bare for row in rows if (bare := caption_of(row, column)))


def caption_of(row: Any, column: str | None = None) -> str:
    """The caption of one row.

    Raises:
        ValueError: it has no such column, or no text in it.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object, found {type(row).__name__}.")
    found = [key for key in ([column] if column else _KEYS) if key in row]
    if not found or not isinstance(row[found[0]], str):
        wanted = repr(column) if column else " or ".join(map(repr, _KEYS))
        raise ValueError(f"no text under {wanted}; the keys are {sorted(row)}.")
    return " ".join(row[found[0]].split())
