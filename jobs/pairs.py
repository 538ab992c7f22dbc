"""Finds out what a path with pairs is, and makes shards of what is none yet.

Training reads pairs in any order, which only shards allow. Other kinds are imported
once: a folder in the authors' layout, Parquet files, or a CSV table of own images.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ip2p_lib.dataset import read_folders, read_parquet, read_table, write_shards
from ip2p_lib.dataset.dataset import MANIFEST, read_manifest
from ip2p_lib.dataset.hub import PATTERNS
from ip2p_lib.dataset.pairs import Pair, Problem

_END = 2**16  # bytes


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
    if _is_parquet(path):
        return read_parquet(path, split=split, columns=columns, problems=problems)
    if any(path.glob("*/prompt.json")):
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
        ValueError: as ``read_pairs``; or no pair can be used; or ``split`` or
            ``columns`` are given for pairs that are not Parquet.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    if (split or columns) and not _is_parquet(path):
        raise ValueError(f"{path} is not Parquet: it has no splits and columns.")
    if (path / MANIFEST).is_file():
        return path
    source = fingerprint(path, split, columns)
    if (out / MANIFEST).is_file() and read_manifest(out).get("source") == source:
        return out
    problems = list[Problem]()
    pairs = read_pairs(path, problems, split=split, columns=columns)
    first = next(pairs, None)
    if first is not None:
        write_shards(itertools.chain([first], pairs), out, source=source)
    for problem in problems:
        print(f"left out: {problem}")
    if first is None:
        raise ValueError(f"No pair at {path} can be used.")
    return out


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" or any(any(path.glob(p)) for p in PATTERNS)


def fingerprint(
    path: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """A hash of the pairs at ``path``, wherever it is, and of what is read of them."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.suffix.lower() in (".csv", ".tsv"):  # and the images beside it
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
        images = {
            path.parent / cell.strip()
            for line in lines  # each alone: an open quote swallows no line
            for delimiter in ",;\t"
            for cell in _split(line, delimiter)
        }
        files += sorted(image for image in images if _is_file(image))
    folder = path if path.is_dir() else path.parent
    rows = [(os.path.relpath(f, folder), *digest(f)) for f in files]
    text = json.dumps([split, dict(columns or {}), rows])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def digest(path: Path) -> tuple[int, str]:
    """Size of a file, and a hash of its first and last 64 KiB: fast for large ones."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END)
        file.seek(max(size - _END, 0))
        ends += file.read(_END)
    return size, hashlib.sha256(ends).hexdigest()


def _split(line: str, delimiter: str) -> list[str]:
    """The cells of a line of a table; none if one is too long for a name."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _is_file(path: Path) -> bool:
    """Whether a file has this name; a text of a table may be no name at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
