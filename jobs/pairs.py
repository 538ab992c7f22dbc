"""Finds out what a path with pairs is, and makes shards of what is none yet.

Training reads pairs in any order, which only shards allow. Other kinds are imported
once: a folder in the authors' layout, Parquet files, or a CSV table of own images.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ip2p_lib.dataset import read_folders, read_parquet, read_table, write_shards
from ip2p_lib.dataset.authors_format import PROMPT
from ip2p_lib.dataset.dataset import MANIFEST, read_manifest, verify_shard
from ip2p_lib.dataset.hub import IMAGES, PATTERNS, RECORDS, find_files
from ip2p_lib.dataset.pairs import Pair, Problem
from ip2p_lib.files import sha256_of


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
    ``path`` have changed, or ``out`` is damaged.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: as ``read_pairs``; or ``out`` is a data set of another origin, or no
            pair can be used; or ``split`` or ``columns`` are given for pairs that are
            not Parquet.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}.")
    if (split or columns) and not _is_parquet(path):
        raise ValueError(f"{path} is not Parquet: it has no splits and columns.")
    if (path / MANIFEST).is_file():
        return path
    source = fingerprint(path, split, columns)
    if _is_whole(out, source):
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


def _is_whole(out: Path, source: str) -> bool:
    """Whether ``out`` holds every shard of the pairs with this fingerprint.

    Raises ValueError for a data set that was not imported, which would be lost.
    """
    try:
        manifest = read_manifest(out)
        whole = all(verify_shard(out, entry) for entry in manifest["shards"])
    except (ValueError, KeyError, TypeError, OSError):
        return False
    if "source" not in manifest:
        raise ValueError(f"{out} holds another data set; choose another --out.")
    return whole and manifest["source"] == source


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" or any(any(path.glob(p)) for p in PATTERNS)


def fingerprint(
    path: Path,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """A hash of the pairs at ``path``, wherever it is: of each file that is read."""
    if (path / MANIFEST).is_file():
        files = [path / MANIFEST]  # it has the shards' hashes, which readers check
    elif path.suffix.lower() in (".csv", ".tsv"):
        files = [path, *_images_of_table(path)]
    elif _is_parquet(path):
        files = _files_of_parquet(path, split, columns or {})
    else:
        files = [
            file
            for prompt in path.glob(f"*/{PROMPT}")
            for file in prompt.parent.iterdir()
            if file.is_file() and not file.name.startswith(".")
        ]
    folder = path if path.is_dir() else path.parent
    rows = sorted((os.path.relpath(f, folder), digest(f)) for f in {*files})
    text = json.dumps([split, dict(columns or {}), rows])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def digest(path: Path) -> str:
    """A hash of a whole file, taken once while it does not change; empty if unreadable.

    A file that cannot be read is a problem of its row, which reading the pairs names.
    """
    try:
        facts = path.stat()
        return _digest(path.resolve(), facts.st_size, facts.st_mtime_ns)
    except OSError:
        return ""


@functools.lru_cache(maxsize=2**16)
def _digest(path: Path, size: int, modified: int) -> str:
    return sha256_of(path)


def _images_of_table(path: Path) -> list[Path]:
    """The files that cells of a table name, as ``read_table`` would find them."""
    text = path.read_bytes().decode("utf-8-sig", "replace")
    images = {
        path.parent / cell.strip()
        for line in text.replace("\r", "\n").split("\n")  # an open quote ends with it
        for delimiter in ",;\t"
        for cell in _split(line, delimiter)
    }
    return [image for image in images if _is_file(image)]


def _files_of_parquet(
    path: Path, split: str | None, columns: Mapping[str, str]
) -> list[Path]:
    """The Parquet files of a split, and the images that their rows name by path."""
    paths, images = find_files(path, split), set[Path]()
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    names = {columns.get(name, name) for name in IMAGES}
    for file in paths:
        with suppress(ArrowException, OSError), ParquetFile(file) as table:
            leaves = [table.schema.column(i) for i in range(len(table.schema))]
            texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
            texts = [t for t in texts if t.removesuffix(".path") in names]
            for batch in table.iter_batches(columns=texts) if texts else ():
                for row in batch.to_pylist():
                    values = (
                        v["path"] if isinstance(v, dict) else v for v in row.values()
                    )
                    images |= {file.parent / value for value in values if value}
    records = (path if path.is_dir() else path.parent) / RECORDS
    return [*paths, *filter(_is_file, {records, *images})]


def _split(line: str, delimiter: str) -> list[str]:
    """The cells of a line of a table; none if one is too long for a name."""
    try:
        cells = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
        return next(cells, [])
    except csv.Error:
        return []


def _is_file(path: Path) -> bool:
    """Whether a file has this name; a text of a table may be no name at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
