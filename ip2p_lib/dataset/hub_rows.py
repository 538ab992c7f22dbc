"""Pairs as rows of a table, in the columns that the Hub's data sets have (3.1.2).

``timbrooks/instructpix2pix-clip-filtered`` has ``FIVE_COLUMNS``; smaller sets, and the
defaults of diffusers' ``train_instruct_pix2pix.py``, have ``THREE_COLUMNS`` and so no
captions. ``pair_parquet`` keeps such rows in files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ip2p_lib.dataset.dataset import usable
from ip2p_lib.dataset.pairs import PackedPair, Pair, Problem, attempt, decode, make_pair
from ip2p_lib.images import ImageError, load

FIVE_COLUMNS = (
    "original_prompt",
    "original_image",
    "edit_prompt",
    "edited_prompt",
    "edited_image",
)
THREE_COLUMNS = ("input_image", "edit_prompt", "edited_image")


def to_row(pair: PackedPair, columns: tuple[str, ...]) -> dict[str, Any]:
    """A row as ``datasets`` stores it: a picture is its file's bytes and its name.

    Raises:
        ValueError: the columns hold captions, and the pair has none.
    """
    if columns == FIVE_COLUMNS and not pair.record["caption"]:
        raise ValueError(
            f"The pair {pair.key} has no captions, which two of the five columns hold. "
            "Pass columns=THREE_COLUMNS."
        )
    before = {"bytes": pair.before, "path": f"{pair.key}.before.webp"}
    after = {"bytes": pair.after, "path": f"{pair.key}.after.webp"}
    cells = {
        "original_prompt": pair.record["caption"],
        "original_image": before,
        "input_image": before,
        "edit_prompt": pair.record["instruction"],
        "edited_prompt": pair.record["edited_caption"],
        "edited_image": after,
    }
    return {name: cells[name] for name in columns}


def read_rows(
    rows: Iterable[Mapping[str, Any]], *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Pairs of a data set's rows, such as ``datasets.load_dataset`` gives or streams.

    Args:
        rows: one split, with ``FIVE_COLUMNS`` or ``THREE_COLUMNS`` among its columns;
            ``rename_columns`` of ``datasets`` brings others to these.
        problems: a list that collects the rows that cannot be used; without it, the
            first one stops the reading.

    Raises:
        ValueError: ``rows`` is a set of splits, not one of them.
        DatasetError: a row cannot be used; the message gives its number, from 0.
    """
    if isinstance(rows, Mapping):
        raise ValueError(f"Choose one split of the data set: {', '.join(rows)}.")
    items = (
        attempt("data set", f"row {n}", partial(from_row, row, key=f"{n:07d}"))
        for n, row in enumerate(_undecoded(rows))
    )
    return usable(items, problems)


def _undecoded(rows: Any) -> Iterable[Mapping[str, Any]]:
    """Let ``datasets`` hand over picture files: a bad one then costs only its row."""
    for name, kind in (getattr(rows, "features", None) or {}).items():
        if type(kind).__name__ == "Image":
            rows = rows.cast_column(name, type(kind)(decode=False))
    return rows


def from_row(row: Mapping[str, Any], key: str, **facts: Any) -> Pair:
    """The pair of one row.

    Args:
        row: a picture in it is a PIL image, a file's bytes or path, or a mapping that
            holds one of the last two under ``bytes`` or ``path``.
        key: of the pair.
        facts: other fields of the pair.

    Raises:
        ValueError: columns, texts or pictures are missing or cannot be used.
    """
    five, three = set(FIVE_COLUMNS) <= row.keys(), set(THREE_COLUMNS) <= row.keys()
    if not (five or three):
        raise ValueError(
            f"its columns are {', '.join(row)}, but needed are "
            f"{', '.join(FIVE_COLUMNS)}; or {', '.join(THREE_COLUMNS)}"
        )
    original = "original_image" if five else "input_image"
    captions = [
        _text(row, f"{n}_prompt") if five else "" for n in ("original", "edited")
    ]
    return make_pair(
        key,
        _picture(row, original),
        _picture(row, "edited_image"),
        (captions[0], _text(row, "edit_prompt"), captions[1]),
        **facts,
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    if isinstance(row[column], str) and row[column].strip():
        return row[column]
    raise ValueError(f"its {column} is empty")


def _picture(row: Mapping[str, Any], column: str) -> Image.Image:
    value = row[column]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    try:
        if isinstance(value, bytes):
            return decode(value)
        if isinstance(value, str | Path | Image.Image):
            return load(value)
    except (OSError, ValueError) as error:
        raise ImageError(f"its {column} cannot be used: {error}") from error
    raise ImageError(f"its {column} holds no picture")
