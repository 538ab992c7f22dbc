"""Read captions from a text file or from JSON lines (section 3.1.1).

The authors took 454,445 captions from LAION-Aesthetics. Captions are read one at a
time, so any number needs the memory of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_KEYS = ("input", "caption", "text", "TEXT")  # ours and the authors', then LAION's


def read_captions(path: str | Path, column: str | None = None) -> Iterator[str]:
    """Read captions from a file.

    Args:
        path: ``.txt``, one caption a line; or ``.jsonl``, one object a line.
        column: the key that holds the caption; ``None`` tries ``input``, ``caption``,
            ``text`` and ``TEXT``.

    Yields:
        Captions as one line each, single spaces between words; blank ones are left out.

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
                caption = " ".join(line.split())
                if caption and path.suffix == ".jsonl":
                    caption = _caption_of(json.loads(caption), column)
            except ValueError as error:  # also JSON errors
                raise ValueError(f"{path}:{number}: {error}") from error
            if caption:
                yield caption


def _caption_of(row: Any, column: str | None) -> str:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}.")
    keys = [column] if column else _KEYS
    caption = next((row[key] for key in keys if key in row), None)
    if not isinstance(caption, str):
        names = " or ".join(map(repr, keys))
        raise ValueError(f"no text under {names}; the keys are {sorted(row)}.")
    return " ".join(caption.split())
