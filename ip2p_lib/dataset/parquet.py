"""Pairs as Parquet files, which ``datasets.load_dataset(folder)`` opens (3.1.2).

    data/train-00000-of-00002.parquet     columns as in ``pair_rows``, pictures as files
    records/train-00000-of-00002.jsonl    what the columns cannot hold, a line a row

So diffusers' ``train_instruct_pix2pix.py`` takes the folder as its ``--dataset_name``.
The pictures keep the bytes that they have in our shards.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import read_packed_shards, stored_bytes, usable
from ip2p_lib.dataset.hub_rows import FIVE_COLUMNS, THREE_COLUMNS, from_row, to_row
from ip2p_lib.dataset.pairs import PackedPair, Pair, Problem, attempt
from ip2p_lib.folders import atomic_directory

ROW_GROUP = 100  # pairs in memory at a time
_TEXTS = ("caption", "instruction", "edited_caption")
_OLDER = r"data|records|README\.md"


def export_parquet(
    source: str | Path,
    out: str | Path,
    *,
    columns: Sequence[str] = FIVE_COLUMNS,
    pairs_per_file: int = 1000,
    replace: bool = False,
    problems: list[Problem] | None = None,
    max_bad: float = 0.05,
) -> Path:
    """Write a data set of ours as Parquet files; the folder appears when it is whole.

    Args:
        source: a folder of shards.
        out: a new folder.
        columns: ``FIVE_COLUMNS``, or ``THREE_COLUMNS`` for pairs without captions.
        pairs_per_file: rows of one file.
        replace: whether an older export in ``out`` gives way to the new one.
        problems, max_bad: as ``dataset.read_shards``.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds something else, or ``replace`` is off.
        FolderInUseError: another run is writing ``out``.
        ValueError: other columns, or columns of captions for a pair without them.
        DatasetError: as ``dataset.read_shards``.
        OSError: no room, or no right to write.
    """
    schema, older = _schema(tuple(columns)), _OLDER if replace else None
    pairs = read_packed_shards(source, problems=problems, max_bad=max_bad)
    needed = stored_bytes(source)
    with atomic_directory(Path(out), needed=needed, replaces=older) as folder:
        _write_files(_chunks(pairs, pairs_per_file), folder, schema)
    return Path(out)


def _schema(columns: tuple[str, ...]) -> Any:
    """The Arrow schema, noting for ``datasets`` which columns are pictures."""
    from datasets import Features, Image, Value

    if columns not in (FIVE_COLUMNS, THREE_COLUMNS):
        raise ValueError(f"columns are FIVE_COLUMNS or THREE_COLUMNS, not {columns}.")
    kinds = {True: Image(), False: Value("string")}
    return Features({n: kinds[n.endswith("_image")] for n in columns}).arrow_schema


def _chunks(
    stream: Iterator[PackedPair], size: int
) -> Iterator[tuple[int, Iterator[PackedPair]]]:
    """Number the stream's parts of ``size``; each must be used up before the next."""
    for number in itertools.count():
        first = list(itertools.islice(stream, 1))
        if not first:
            return
        yield number, itertools.chain(first, itertools.islice(stream, size - 1))


def _write_files(
    chunks: Iterator[tuple[int, Iterator[PackedPair]]], folder: Path, schema: Any
) -> None:
    for name in ("data", "records"):
        (folder / name).mkdir()
    names = [_write(chunk, folder, f"{i:05d}", schema) for i, chunk in chunks]
    for path in [*folder.glob("*/*.*")]:
        path.rename(path.with_stem(f"train-{path.stem}-of-{len(names):05d}"))


def _write(pairs: Iterator[PackedPair], folder: Path, name: str, schema: Any) -> str:
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    with (
        (folder / "data" / f"{name}.parquet").open("wb") as file,
        (folder / "records" / f"{name}.jsonl").open("w", encoding="utf-8") as records,
        ParquetWriter(file, schema) as table,
    ):
        while group := list(itertools.islice(pairs, ROW_GROUP)):
            rows = [to_row(pair, tuple(schema.names)) for pair in group]
            table.write_table(Table.from_pylist(rows, schema=schema))
            records.writelines(map(_record_line, group))
    return name


def _record_line(pair: PackedPair) -> str:
    rest = {k: v for k, v in pair.record.items() if k not in _TEXTS}
    return json.dumps({"key": pair.key, **rest}, ensure_ascii=False) + "\n"


def read_parquet(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Pairs of ``folder/data/*.parquet`` or ``folder/*.parquet``, in order of name.

    Args:
        folder: of an export of ours, or of one fetched from the Hub.
        problems: as ``pair_rows.read_rows``; a file that is damaged counts as one.

    Raises:
        FileNotFoundError: there is no Parquet file.
        DatasetError: as ``pair_rows.read_rows``.
    """
    inside = sorted(Path(folder).glob("data/*.parquet"))
    paths = inside or sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"There is no Parquet file in {folder}, nor in data/.")
    return usable(itertools.chain.from_iterable(map(_read, paths)), problems)


def _read(path: Path) -> Iterator[Pair | Problem]:
    from pyarrow import ArrowException

    done = 0
    try:
        for done, (row, record) in enumerate(_rows(path), start=1):
            key = record.pop("key", f"{path.stem}-{done - 1:05d}")
            make = partial(from_row, row, key, **record)
            yield attempt(path.name, f"row {done - 1}", make)
    except (ArrowException, OSError, ValueError, TypeError) as error:
        yield Problem(path.name, f"rows from {done}", f"it cannot be read ({error})")


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row of a file and its record, empty if others wrote the file."""
    from pyarrow.parquet import ParquetFile

    records = _records(path.parent.with_name("records") / f"{path.stem}.jsonl")
    with ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                if (record := next(records, None)) is None:
                    raise ValueError("it has more rows than records")
                yield row, record
    if next(records, {}):
        raise ValueError("it has more records than rows")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = {**json.loads(line)}
                yield {"cfg_scale": record.pop("cfg", None), **record}
    else:
        yield from itertools.repeat({})
