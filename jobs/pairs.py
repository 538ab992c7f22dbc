"""Finds out what a path with pairs is, and makes shards of what is none yet.

Training reads pairs in any order, which only shards allow. Other kinds are imported
once: a folder in the authors' layout, Parquet files, or a CSV table of own images.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ip2p_lib.dataset import read_folders, read_parquet, read_table, write_shards
from ip2p_lib.dataset.dataset import MANIFEST, read_manifest
from ip2p_lib.dataset.pairs import Pair, Problem


def read_pairs(
    path: Path,
    problems: list[Problem],
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Pair]:
    """Read pairs of any kind but shards, by looking what ``path`` is.

    Args:
        path: a ``.csv`` table, a ``.parquet`` file, or a folder of Parquet files or in
            the authors' layout.
        problems: collects what cannot be used.
        split, columns: of Parquet, as in ``read_parquet``.

    Raises:
        ValueError: it is none of these.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_table(path, problems=problems)
    if path.suffix == ".parquet" or any(_files(path, "*.parquet", "data/*.parquet")):
        return read_parquet(path, split=split, columns=columns, problems=problems)
    if any(_files(path, "*/prompt.json")):
        return read_folders(path, problems=problems)
    raise ValueError(
        f"{path} holds no pairs: no {MANIFEST}, Parquet file or folder with a "
        "prompt.json, and it is no CSV table."
    )


def import_pairs(
    path: Path,
    out: Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Return a folder of shards with the pairs at ``path``: itself, or ``out``.

    What cannot be used is printed. ``out`` is written once, and again only if files at
    ``path`` have changed.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: as ``read_pairs``; or no pair can be used.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    if (path / MANIFEST).is_file():
        return path
    source = _fingerprint(path, split, columns)
    if (out / MANIFEST).is_file() and read_manifest(out).get("source") == source:
        return out
    problems = list[Problem]()
    pairs = read_pairs(path, problems, split=split, columns=columns)
    first = next(pairs, None)
    for problem in problems:
        print(f"left out: {problem}")
    if first is None:
        raise ValueError(f"No pair at {path} can be used.")
    shown = len(problems)
    write_shards(itertools.chain([first], pairs), out, source=source)
    for problem in problems[shown:]:
        print(f"left out: {problem}")
    return out


def _files(folder: Path, *patterns: str) -> Iterator[Path]:
    return itertools.chain.from_iterable(folder.glob(pattern) for pattern in patterns)


def _fingerprint(
    path: Path, split: str | None, columns: Mapping[str, str] | None
) -> str:
    """A hash of names, sizes and times of the files, and of what is read of them."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.suffix.lower() in (".csv", ".tsv"):  # and the images beside it
        names = re.split(r"[,;\t\n]", path.read_bytes().decode("utf-8", "replace"))
        images = (path.parent / name.strip('" \r') for name in names)
        files += [image for image in images if _is_file(image)]
    rows = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    text = json.dumps([split, dict(columns or {}), rows])
    return hashlib.sha256(text.encode()).hexdigest()


def _is_file(path: Path) -> bool:
    """Whether a file has this name; a text of a table may be no name at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
