"""Pairs from a folder of your own images and a CSV table of instructions (3.1.2).

    before,after,instruction
    cat.jpg,cat_hat.jpg,give it a hat

``python -m jobs.train --pairs table.csv`` trains an editor on it. ``before`` and
``after`` are files beside the table. A row is one line, so that an open quote swallows
no other. The columns ``caption`` and ``edited_caption`` are optional; directional
similarity needs them. ``dataset.write_shards`` makes a data set of the pairs.
"""

import csv
import difflib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ip2p_lib.checks import is_visible
from ip2p_lib.dataset.dataset import read_each
from ip2p_lib.dataset.pairs import TEXTS, Pair, Problem, make_pair
from ip2p_lib.files import read_text
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
        resolution: side in pixels of the centre squares that images become, or None.
        problems: as in ``dataset.read_shards``; without it DatasetError for a row.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not UTF-8, has no rows, or a column is missing or there twice.
    """
    path = Path(path)
    if resolution is not None and resolution < 1:
        raise ValueError(f"The resolution must be at least 1, not {resolution}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no table at {path}.")
    head, *lines = re.split("\r\n|\r|\n", read_text(path))
    delimiter = max(",;\t", key=head.count)
    columns = _read_head(path, head, delimiter)
    widths = len(columns), head.count(delimiter) + 1
    rows = [(i, line) for i, line in enumerate(lines, 2) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows below the names of its columns.")

    def read(index: int, line: str) -> Pair:
        cells = dict(zip(columns, _split(line, delimiter, widths), strict=True))
        return _to_pair(f"{index:07d}", cells, path.parent, resolution)

    readings = (
        (path.name, f"line {number}", partial(read, index, line))
        for index, (number, line) in enumerate(rows)
    )
    return read_each(readings, problems)


def _read_head(path: Path, line: str, delimiter: str) -> list[str]:
    columns = [name.strip().lower() for name in line.split(delimiter)]
    columns = [name.strip('"') for name in columns]
    while columns[-1:] == [""]:  # spreadsheets leave delimiters at the end
        columns.pop()
    missing = [name for name in REQUIRED if name not in columns]
    if missing or len(set(columns)) < len(columns):
        reason = f"no column {' and '.join(missing)}" if missing else "a column twice"
        raise ValueError(
            f"{path} has {reason}; its first line must name the columns "
            f"{', '.join(REQUIRED)}, each once."
        )
    for name in columns:
        near = difflib.get_close_matches(name, (*REQUIRED, *TEXTS), 1, 0.7)
        if near and near[0] not in columns:
            raise ValueError(f"{path} has a column {name}; did you mean {near[0]}?")
    return columns


def _split(line: str, delimiter: str, widths: tuple[int, int]) -> list[str]:
    """Split a row into cells; ValueError if it could be split in several ways."""
    columns, widest = widths  # without and with those at the end that have no name
    try:
        dialect: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": True}
        cells = next(csv.reader([line], strict=True, **dialect))
    except csv.Error as error:
        raise ValueError(f"{error}; close each quote on its line") from error
    cells = [cell.strip() for cell in cells]
    if len(cells) == widest and not any(cells[columns:]):
        cells = cells[:columns]
    if len(cells) != columns:
        # Any guess which of the delimiters belong to a text would lose words.
        raise ValueError(
            f"it has {len(cells)} cells and the first line {columns}; put quotes "
            f'around a text with a delimiter: "old, and grey"'
        )
    return cells


def _to_pair(
    key: str, cells: dict[str, str], folder: Path, resolution: int | None
) -> Pair:
    if empty := [name for name in REQUIRED if not is_visible(cells[name])]:
        raise ValueError(f"its {' and '.join(empty)} is empty")
    before, after = (load(folder / cells[name]) for name in ("before", "after"))
    if resolution is not None:
        ratios = [image.width / image.height for image in (before, after)]
        if max(ratios) / min(ratios) > 1 + ASPECT_ERROR:
            raise ImageError(f"its images' aspect ratios differ: {ratios}")
        square, method = (resolution, resolution), Image.Resampling.LANCZOS
        before, after = (ImageOps.fit(i, square, method) for i in (before, after))
    return make_pair(key, (before, after), [cells.get(name, "") for name in TEXTS])
