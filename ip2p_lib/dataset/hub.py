"""Pairs as Parquet files in the columns of the Hub's data sets (section 3.1.2).

    data/train-00000-of-00002.parquet   the five columns; the images keep their bytes
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

from PIL import Image

from ip2p_lib.dataset.dataset import (
    Reading,
    read_each,
    read_encoded_shards,
    stored_bytes,
)
from ip2p_lib.dataset.pairs import RECORD, TEXTS, EncodedPair, Pair, Problem, make_pair
from ip2p_lib.files import atomic_directory
from ip2p_lib.images import load

COLUMNS = (  # of the authors' data, timbrooks/instructpix2pix-clip-filtered
    "original_prompt",
    "original_image",
    "edit_prompt",
    "edited_prompt",
    "edited_image",
)
RECORDS = "records.jsonl"
PAIRS_PER_FILE = 500  # in memory at once
_EXPORT = r"data|records\.jsonl|README\.md"


def export_parquet(
    source: str | Path, out: str | Path, *, replace: bool = False
) -> Path:
    """Write a data set of shards as Parquet files; the folder appears when complete.

    ``source`` is a folder of shards; ``out`` is a new one, or with ``replace`` an older
    export, and is returned.

    Raises:
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
            while chunk := list(itertools.islice(pairs, PAIRS_PER_FILE)):
                paths.append(folder / "data" / f"{len(paths):05d}.parquet")
                _write_file(chunk, paths[-1])
                for pair in chunk:
                    rest = {k: v for k, v in pair.record.items() if k not in TEXTS}
                    line = json.dumps({"key": pair.key} | rest, ensure_ascii=False)
                    records.write(f"{line}\n")
        for path in paths:
            path.rename(path.with_stem(f"train-{path.stem}-of-{len(paths):05d}"))
    return Path(out)


def _write_file(pairs: Sequence[EncodedPair], path: Path) -> None:
    """Write one file, with the note for ``datasets`` of which columns are images."""
    import datasets
    from pyarrow import Table
    from pyarrow.parquet import write_table

    image, text = datasets.Image(), datasets.Value("string")
    features = datasets.Features({n: image if "image" in n else text for n in COLUMNS})
    rows = [
        {
            "original_prompt": pair.record["caption"],
            "original_image": {"bytes": pair.before, "path": f"{pair.key}.before.webp"},
            "edit_prompt": pair.record["instruction"],
            "edited_prompt": pair.record["edited_caption"],
            "edited_image": {"bytes": pair.after, "path": f"{pair.key}.after.webp"},
        }
        for pair in pairs
    ]
    table = Table.from_pylist(rows, features.arrow_schema)
    with path.open("wb") as file:  # Python's errors carry the system's number
        write_table(table, file, row_group_size=100)


def read_parquet(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Read pairs from ``folder/data/*.parquet`` or ``folder/*.parquet``, by file name.

    From ``export_parquet`` every field of a pair comes back; a data set downloaded from
    the Hub has only texts and images. ``problems`` is as in ``dataset.read_shards``.

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
    readings = (reading for path in paths for reading in _read_file(path, records))
    return read_each(readings, problems)


def _read_file(
    path: Path, records: dict[str, dict[str, Any]]
) -> Iterator[Reading[Pair]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    count = 0
    try:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    after = row.get("edited_image")
                    name = str(after.get("path")) if isinstance(after, Mapping) else ""
                    key = name.removesuffix(".after.webp")  # as _write_file names it
                    if key not in records:
                        key = f"{path.stem}-{count:05d}"
                    read = partial(from_row, row, key, **records.get(key, {}))
                    yield path.name, f"row {count}", read
                    count += 1
    except (ArrowException, OSError, ValueError, TypeError) as error:
        yield path.name, f"rows from {count}", partial(_refuse, str(error))


def _refuse(reason: str) -> Pair:
    raise ValueError(f"it cannot be read ({reason})")


def from_row(row: Mapping[str, Any], key: str, **metadata: Any) -> Pair:
    """Convert a row, as ``datasets.load_dataset`` gives it; ValueError if it is unfit.

    Args:
        row: with ``COLUMNS``, or with ``input_image``, ``edit_prompt`` and
            ``edited_image``, the defaults of diffusers' script. An image is a PIL
            image, or a mapping with a file's ``bytes`` or ``path``.
        key, metadata: fields of ``Pair``.
    """
    before = "original_image" if "original_image" in row else "input_image"
    if missing := {before, "edit_prompt", "edited_image"} - row.keys():
        raise ValueError(f"it has no columns {', '.join(sorted(missing))}")
    images = _load(row[before]), _load(row["edited_image"])
    prompts = ("original_prompt", "edit_prompt", "edited_prompt")
    return make_pair(key, images, [row.get(name, "") for name in prompts], **metadata)


def _load(value: Any) -> Image.Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return load(value or b"")
