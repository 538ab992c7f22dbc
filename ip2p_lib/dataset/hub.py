"""Pairs as Parquet files in the columns of the Hub's data sets (section 3.1.2).

    data/train-00000-of-00002.parquet   columns as below; the images keep their bytes
    records.jsonl                       what the columns cannot hold, a line per pair

``datasets.load_dataset(folder)`` opens the folder, and diffusers'
``train_instruct_pix2pix.py`` takes it as ``--dataset_name``. To publish it:
``HfApi().upload_folder(folder_path=folder, repo_id=..., repo_type="dataset")``.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import read_encoded_shards, skip_problems, stored_bytes
from ip2p_lib.dataset.pairs import (
    RECORD,
    TEXTS,
    EncodedPair,
    Pair,
    Problem,
    make_pair,
    value_or_problem,
)
from ip2p_lib.files import atomic_directory
from ip2p_lib.images import load

# Columns, and the fields of a pair that they hold: of the authors' data on the Hub,
# timbrooks/instructpix2pix-clip-filtered, and the defaults of diffusers' script.
FIVE_COLUMNS = {
    "original_prompt": "caption",
    "original_image": "before",
    "edit_prompt": "instruction",
    "edited_prompt": "edited_caption",
    "edited_image": "after",
}
THREE_COLUMNS = {
    "input_image": "before",
    "edit_prompt": "instruction",
    "edited_image": "after",
}
RECORDS = "records.jsonl"
_EXPORT = r"data|records\.jsonl|README\.md"


def export_parquet(
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] = FIVE_COLUMNS,
    pairs_per_file: int = 500,
    replace: bool = False,
) -> Path:
    """Write a data set of shards as Parquet files; the folder appears when complete.

    Args:
        source: a folder of shards.
        out: a new folder; returned. With ``replace``, an older export is replaced.
        columns: ``FIVE_COLUMNS``, or ``THREE_COLUMNS`` for pairs without captions.
        pairs_per_file: rows of one file, which are in memory at once.

    Raises:
        ValueError: columns of captions, for a pair without captions.
        ModuleNotFoundError: the package ``datasets`` is not installed.
        DatasetError, OSError, FolderInUseError: as ``dataset.read_shards`` and
            ``files.atomic_directory``.
    """
    if not importlib.util.find_spec("datasets"):
        raise ModuleNotFoundError("Parquet export needs: pip install datasets")
    pairs, paths = read_encoded_shards(source), list[Path]()
    needed, replaces = stored_bytes(source), _EXPORT if replace else None
    with atomic_directory(Path(out), needed=needed, replaces=replaces) as folder:
        (folder / "data").mkdir()
        with (folder / RECORDS).open("w", encoding="utf-8") as records:
            while chunk := list(itertools.islice(pairs, pairs_per_file)):
                paths.append(folder / "data" / f"{len(paths):05d}.parquet")
                _write_file(chunk, paths[-1], columns)
                for pair in chunk:
                    rest = {k: v for k, v in pair.record.items() if k not in TEXTS}
                    line = json.dumps({"key": pair.key} | rest, ensure_ascii=False)
                    records.write(f"{line}\n")
        for path in paths:
            path.rename(path.with_stem(f"train-{path.stem}-of-{len(paths):05d}"))
    return Path(out)


def _write_file(
    pairs: Sequence[EncodedPair], path: Path, columns: Mapping[str, str]
) -> None:
    """Write one file, with the note for ``datasets`` of which columns are images."""
    from datasets import Features, Image, Value
    from pyarrow import Table
    from pyarrow.parquet import write_table

    kinds = {n: Value("string") if f in TEXTS else Image() for n, f in columns.items()}
    schema = Features(kinds).arrow_schema
    table = Table.from_pylist([_to_row(pair, columns) for pair in pairs], schema)
    with path.open("wb") as file:  # Python's errors carry the system's number
        write_table(table, file, row_group_size=100)


def _to_row(pair: EncodedPair, columns: Mapping[str, str]) -> dict[str, Any]:
    """One row as ``datasets`` stores it; an image is its file's bytes and name."""
    if "caption" in columns.values() and not pair.record["caption"]:
        raise ValueError(f"The pair {pair.key} has no captions: use THREE_COLUMNS.")
    cells: dict[str, Any] = {name: pair.record[name] for name in TEXTS}
    for side, data in (("before", pair.before), ("after", pair.after)):
        cells[side] = {"bytes": data, "path": f"{pair.key}.{side}.webp"}
    return {name: cells[field] for name, field in columns.items()}


def read_parquet(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Read pairs from ``folder/data/*.parquet`` or ``folder/*.parquet``, by file name.

    Args:
        folder: from ``export_parquet`` (then every field of a pair comes back), or a
            data set downloaded from the Hub.
        problems: as in ``dataset.read_shards``.

    Raises:
        FileNotFoundError: there is no Parquet file.
        DatasetError: a row or file cannot be used.
    """
    folder, records = Path(folder), dict[str, dict[str, Any]]()
    paths = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"There is no Parquet file in {folder}, nor in data/.")
    if (folder / RECORDS).is_file():
        for line in (folder / RECORDS).read_text("utf-8").splitlines():
            record = json.loads(line)
            key = record.pop("key")
            records[key] = {RECORD[name]: value for name, value in record.items()}
    items = (item for path in paths for item in _read_file(path, records))
    return skip_problems(items, problems)


def _read_file(
    path: Path, records: dict[str, dict[str, Any]]
) -> Iterator[Pair | Problem]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    count = 0
    try:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    make = partial(_from_row, row, f"{path.stem}-{count:05d}", records)
                    yield value_or_problem(path.name, f"row {count}", make)
                    count += 1
    except (ArrowException, OSError, ValueError, TypeError) as error:
        yield Problem(path.name, f"rows from {count}", f"it cannot be read ({error})")


def _from_row(
    row: Mapping[str, Any], key: str, records: dict[str, dict[str, Any]]
) -> Pair:
    after = row.get("edited_image")
    if isinstance(after, Mapping):  # named by _to_row
        name = str(after.get("path")).removesuffix(".after.webp")
        key = name if name in records else key
    return from_row(row, key, **records.get(key, {}))


def from_row(row: Mapping[str, Any], key: str, **metadata: Any) -> Pair:
    """Convert one row of a data set to a pair, as ``datasets.load_dataset`` gives it.

    Args:
        row: with ``FIVE_COLUMNS`` or ``THREE_COLUMNS``; ``rename_columns`` of
            ``datasets`` brings others to these. An image is a PIL image, or a mapping
            with a file's ``bytes`` or ``path``.
        key, metadata: fields of ``Pair``.

    Raises:
        ValueError: columns, texts or images are missing or cannot be used.
    """
    known = (c for c in (FIVE_COLUMNS, THREE_COLUMNS) if c.keys() <= row.keys())
    if (columns := next(known, None)) is None:
        raise ValueError(
            f"its columns are {', '.join(row)}, but needed are "
            f"{', '.join(FIVE_COLUMNS)}; or {', '.join(THREE_COLUMNS)}"
        )
    cells: dict[str, Any] = dict.fromkeys(TEXTS, "")
    for name, field in columns.items():
        value = row[name]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if not value or (field in TEXTS and not value.strip()):
            raise ValueError(f"its {name} is empty")
        cells[field] = value if field in TEXTS else load(value)
    images, texts = (cells["before"], cells["after"]), [cells[name] for name in TEXTS]
    return make_pair(key, images, texts, **metadata)
