"""Pairs from a folder of your own images and a CSV table of instructions (3.1.2).

    before,after,instruction
    cat.jpg,cat_hat.jpg,give it a hat

``before`` and ``after`` are files beside the table. The columns ``caption`` and
``edited_caption`` are optional; directional similarity needs them.
``dataset.write_shards`` makes a data set of the pairs, from which the editor trains.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from ip2p_lib.dataset.dataset import read_each
from ip2p_lib.dataset.pairs import TEXTS, Pair, Problem, make_pair
from ip2p_lib.images import ImageError, load

REQUIRED = ("before", "after", "instruction")
ASPECT_ERROR = 0.02  # the aspect ratios of two images of a pair may differ this much


def read_table(
    path: str | Path,
    *,
    resolution: int | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[Pair]:
    """Read pairs from a CSV file in its order; the images are upright and RGB.

    Args:
        path: UTF-8, with comma, semicolon or tab between columns.
        resolution: side in pixels of the centre square to which each image is resized
            and cropped. None leaves the images as they are.
        problems: as in ``dataset.read_shards``.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not UTF-8, or a column is missing.
        DatasetError: a row cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table at {path}.")
    readings = (
        (path.name, f"line {line}", partial(_from_row, row, path, n, resolution))
        for n, (line, row) in enumerate(_read_rows(path))
    )
    return read_each(readings, problems)


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Each row with its line number in the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel marks UTF-8 at the start
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save it as CSV in UTF-8.") from error
    first, _, _ = text.partition("\n")
    lines = io.StringIO(text, newline="")
    table = csv.DictReader(lines, delimiter=max(",;\t", key=first.count))
    names = [name.strip().lower() for name in table.fieldnames or []]
    if missing := [name for name in REQUIRED if name not in names]:
        raise ValueError(
            f"{path} has no column {' and '.join(missing)}; its first line must name "
            f"the columns {', '.join(REQUIRED)}."
        )
    table.fieldnames = names
    return [(table.line_num, row) for row in table]


def _from_row(row: dict[str, str], path: Path, n: int, resolution: int | None) -> Pair:
    cells = {name: (row.get(name) or "").strip() for name in (*REQUIRED, *TEXTS)}
    if empty := [name for name in REQUIRED if not cells[name]]:
        raise ValueError(f"its {' and '.join(empty)} is empty")
    before, after = (load(path.parent / cells[name]) for name in ("before", "after"))
    if resolution is not None:
        ratios = [image.width / image.height for image in (before, after)]
        if max(ratios) / min(ratios) > 1 + ASPECT_ERROR:
            raise ImageError(f"its images' aspect ratios differ: {ratios}")
        square, method = (resolution, resolution), Image.Resampling.LANCZOS
        before, after = (ImageOps.fit(i, square, method) for i in (before, after))
    return make_pair(f"{n:07d}", (before, after), [cells[name] for name in TEXTS])
