"""Pairs from a folder of one's own pictures and a table of instructions (3.1.2).

    before,after,instruction
    cat.jpg,cat_hat.jpg,give it a hat

``before`` and ``after`` are files beside the table. Two more columns, ``caption`` and
``edited_caption``, are optional; directional similarity cannot be measured without.
``dataset.write_shards`` makes a data set of the pairs, from which the editor trains.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from ip2p_lib.dataset.dataset import usable
from ip2p_lib.dataset.pairs import Pair, Problem, attempt, make_pair
from ip2p_lib.images import ImageError, load

NEEDED = ("before", "after", "instruction")
CAPTIONS = ("caption", "edited_caption")
ASPECT_ERROR = 0.02  # two pictures of a pair may differ this much in width : height


def read_table(
    path: str | Path,
    *,
    resolution: int | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[Pair]:
    """Pairs of a CSV file, in its order; pictures upright, RGB.

    Args:
        path: comma, semicolon or tab between columns; UTF-8.
        resolution: cut each picture to a square of this side, in pixels: scaled, and
            its middle kept. None leaves the pictures as they are.
        problems: a list that collects the rows that cannot be used, with the line and
            the reason; without it, the first one stops the reading.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not UTF-8, or a column is missing.
        DatasetError: a row cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table at {path}.")
    rows = _rows(path)
    items = (
        attempt(path.name, f"line {line}", partial(_from_row, row, path, n, resolution))
        for n, (line, row) in enumerate(rows)
    )
    return usable(items, problems)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Each row with its line in the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel marks UTF-8 at the start
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save it as CSV in UTF-8.") from error
    first, _, _ = text.partition("\n")
    lines = io.StringIO(text, newline="")
    table = csv.DictReader(lines, delimiter=max(",;\t", key=first.count))
    names = [name.strip().lower() for name in table.fieldnames or []]
    if missing := [name for name in NEEDED if name not in names]:
        raise ValueError(
            f"{path} has no column {' and '.join(missing)}; its first line must name "
            f"the columns {', '.join(NEEDED)}, and may name {', '.join(CAPTIONS)}."
        )
    table.fieldnames = names
    return [(table.line_num, row) for row in table]


def _from_row(row: dict[str, str], path: Path, n: int, resolution: int | None) -> Pair:
    cells = {name: (row.get(name) or "").strip() for name in (*NEEDED, *CAPTIONS)}
    if empty := [name for name in NEEDED if not cells[name]]:
        raise ValueError(f"its {' and '.join(empty)} is empty")
    before, after = (_load(path.parent, cells[name]) for name in ("before", "after"))
    if resolution is not None:
        _check_aspect(before, after)
        before, after = (_square(picture, resolution) for picture in (before, after))
    texts = (cells["caption"], cells["instruction"], cells["edited_caption"])
    return make_pair(f"{n:07d}", before, after, texts)


def _load(folder: Path, name: str) -> Image.Image:
    try:
        return load(folder / name)
    except FileNotFoundError as error:
        raise ImageError(f"there is no picture {name}") from error
    except ImageError as error:
        raise ImageError(str(error).replace(str(folder / name), name)) from error


def _check_aspect(before: Image.Image, after: Image.Image) -> None:
    ratios = [picture.width / picture.height for picture in (before, after)]
    if max(ratios) / min(ratios) > 1 + ASPECT_ERROR:
        sizes = " and ".join(f"{p.width} x {p.height}" for p in (before, after))
        raise ImageError(
            f"its pictures differ in shape: {sizes}; crop one to what the other shows"
        )


def _square(picture: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(picture, (side, side), method=Image.Resampling.LANCZOS)
