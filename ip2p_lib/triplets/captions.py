"""Read captions from a text file or from JSON lines (section 3.1.1).

The authors took 454,445 captions from LAION-Aesthetics. Captions are read one at a
time, so any number needs the memory of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ip2p_lib.files import decode_text

_KEYS = ("input", "caption", "text", "TEXT")  # ours and the authors', then LAION's


def read_captions(path: str | Path) -> Iterator[str]:
    """Read captions from a file.

    Args:
        path: ``.txt``, one caption a line; or ``.jsonl``, one object a line with the
            caption under ``input``, ``caption``, ``text`` or ``TEXT``.

    Yields:
        Captions with single spaces between words; blank ones are left out.

    Raises:
        ValueError: another kind of file, or a line without a caption; the message names
            file and line.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path.name}: captions are read from .txt and .jsonl files.")
    with path.open("rb") as lines:
        for number, data in enumerate(lines, start=1):
            line = decode_text(data, path, number)
            try:
                is_json = path.suffix == ".jsonl" and line.strip()
                text = _caption_of(json.loads(line)) if is_json else line
            except (ValueError, RecursionError) as error:  # also JSON errors
                raise ValueError(f"{path}:{number}: {error}") from error
            if caption := " ".join(text.split()):
                yield caption


def _caption_of(row: Any) -> str:
    keys = [key for key in _KEYS if isinstance(row, dict) and key in row]
    if not keys or not isinstance(row[keys[0]], str):
        raise ValueError(f"expected an object with a text under one of {_KEYS}.")
    text: str = row[keys[0]]
    return text
