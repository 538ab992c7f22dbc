"""Pairs as Parquet files in the columns of the Hub's data sets (section 3.1.2).

    data/train-00000-of-00002.parquet   the five columns; the images keep their bytes
    records.jsonl                       what the columns cannot hold, a line per pair

``datasets.load_dataset(folder)`` opens the folder, and diffusers'
``train_instruct_pix2pix.py`` takes it as ``--dataset_name``. To publish it:
``HfApi().upload_folder(folder_path=folder, repo_id=..., repo_type="dataset")``.
"""

import importlib.util
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ip2p_lib.dataset.dataset import (
    DatasetError,
    Reading,
    read_each,
    read_encoded_shards,
    refuse,
    stored_bytes,
)
from ip2p_lib.dataset.pairs import RECORD, TEXTS, EncodedPair, Pair, Problem, make_pair
from ip2p_lib.files import atomic_directory, read_text
from ip2p_lib.images import load

IMAGES = ("original_image", "input_image", "edited_image")
COLUMNS = (  # of the authors' data, timbrooks/instructpix2pix-clip-filtered
    "original_prompt",
    "original_image",
    "edit_prompt",
    "edited_prompt",
    "edited_image",
)
RECORDS = "records.jsonl"
# Of a data set's own files, and of the Hub's conversion, <name>/<split>/0000.parquet.
PATTERNS = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
PAIRS_PER_FILE = 500  # in memory at once
_SPLITS = {  # words in the name of a file
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)")
_EXPORT = r"data/train-\d{5}-of-\d{5}\.parquet|records\.jsonl|README\.md"


def export_parquet(
    source: str | Path, out: str | Path, *, replace: bool = False
) -> Path:
    """Write a data set of shards as Parquet files; the folder appears when complete.

    ``source`` is a folder of shards; ``out`` is a new one, or with ``replace`` an older
    export, and is returned. Errors are those of ``dataset.read_shards`` and
    ``files.atomic_directory``, and ModuleNotFoundError without the package
    ``datasets``.
    """
    if not importlib.util.find_spec("datasets"):
        raise ModuleNotFoundError("Parquet export needs: pip install datasets")
    pairs, paths = read_encoded_shards(source), list[Path]()
    older = _EXPORT if replace else None, RECORDS
    with atomic_directory(Path(out), *older, needed=stored_bytes(source)) as folder:
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
    path: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    problems: list[Problem] | None = None,
) -> Iterator[Pair]:
    """Read pairs from a Parquet file, or from those in a folder (``PATTERNS``).

    From ``export_parquet`` every field of a pair comes back; a data set downloaded from
    the Hub has only texts and images.

    Args:
        split: "train", "validation" or "test", as names of files or folders say; needed
            where a folder holds several, which must not be mixed.
        columns: the data set's name of any of ``COLUMNS`` that it calls otherwise, such
            as MagicBrush's ``{"original_image": "source_img", ...}``.
        problems: as in ``dataset.read_shards``.

    Raises:
        FileNotFoundError: there is no Parquet file, or none of this split.
        ValueError: there are several splits, and none was chosen; or several folders;
            or a file of a split is missing.
        ModuleNotFoundError: the package ``pyarrow`` is not installed.
        DatasetError: a row or file cannot be used.
    """
    path, known = Path(path), {*COLUMNS, *IMAGES}
    if odd := (columns or {}).keys() - known:
        raise ValueError(f"There is no column {min(odd)}; rename {sorted(known)}.")
    paths = find_files(path, split)
    records = _read_records((path.parent if path.is_file() else path) / RECORDS)
    readings = (r for p in paths for r in _read_file(p, records, columns or {}))
    return read_each(readings, problems)


def find_files(path: Path, split: str | None) -> list[Path]:
    """The Parquet files that ``read_parquet`` reads; errors as there."""
    if not importlib.util.find_spec("pyarrow"):
        raise ModuleNotFoundError("Reading Parquet needs: pip install pyarrow")
    if path.is_file():
        root = path.parents[1 if path.stem.isdigit() else 0]
        same = split in (None, named := _split_of(path, root), *_SPLITS.get(named, ()))
        paths = [path] if same else []
    else:
        paths = _select_split(path, split)
    if not paths:
        which = f" of the split {split!r}" if split else ""
        raise FileNotFoundError(f"There is no Parquet file{which} in {path}.")
    return paths


def _split_of(path: Path, root: Path) -> str:
    """The split of a file: all names before ``-00000-of-00001`` are splits.

    So is the name of a folder that holds ``0000.parquet``. Other names are of the split
    whose word ``datasets`` would find in the file's name or its folders', or "train".
    """
    *folders, _ = path.relative_to(root).parts
    words = ({*re.split(r"[^a-z]+", n.lower())} for n in (path.stem, *folders[::-1]))
    usual = (s for w in words for s, known in _SPLITS.items() if known & w)
    numbered = _NUMBERED.fullmatch(path.stem)
    own = path.stem.isdigit() and folders[-1:] not in ([], ["data"])
    return next(usual, numbered[1] if numbered else folders[-1] if own else "train")


def _select_split(folder: Path, split: str | None) -> list[Path]:
    """The files of one split, which must be complete and in one folder."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(path for pattern in PATTERNS for path in folder.glob(pattern)):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") for part in parts):  # macOS leaves such files
            splits.setdefault(_split_of(path, folder), []).append(path)
    if split is None and len(splits) > 1:
        raise ValueError(
            f"{folder} holds the splits {', '.join(sorted(splits))}. Choose one: "
            f"split={min(splits)!r}."
        )
    names = [n for n in splits if split in (None, n) or split in _SPLITS.get(n, ())]
    paths = [path for name in names for path in splits[name]]
    if len(homes := sorted({str(path.parent) for path in paths})) > 1:
        raise ValueError(
            f"There are Parquet files of one split in {' and in '.join(homes)}; name "
            "the folder to read."
        )
    numbered = [m.groups() for p in paths if (m := _NUMBERED.fullmatch(p.stem))]
    for name, count in {(name, count) for name, _, count in numbered}:
        there = sorted(int(i) for other, i, _ in numbered if other == name)
        if there != [*range(int(count))]:
            raise ValueError(
                f"{folder} should hold {int(count)} files {name}-*-of-{count}.parquet "
                f"and has the numbers {there}. Copy it again, or name one file to read."
            )
    return paths


def _read_records(path: Path) -> dict[str, dict[str, Any]]:
    """What ``export_parquet`` noted of each pair, by key; empty without a file."""
    if not path.is_file():
        return {}
    records = {}
    try:
        for line in filter(None, read_text(path).split("\n")):
            record = json.loads(line)
            key = record.pop("key")
            records[key] = {RECORD[name]: value for name, value in record.items()}
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({error!r}). Copy it again.") from error
    return records


def _read_file(
    path: Path, records: dict[str, dict[str, Any]], columns: Mapping[str, str]
) -> Iterator[Reading[Pair]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    count = 0
    try:
        with ParquetFile(path) as table:
            there = table.schema_arrow.names
            if lost := {*columns.values()} - {*there}:
                raise ValueError(f"no column {min(lost)}; there are {', '.join(there)}")
            for batch in table.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    row |= {name: row.get(theirs) for name, theirs in columns.items()}
                    after = row.get("edited_image")
                    name = str(after.get("path")) if isinstance(after, Mapping) else ""
                    key = name.removesuffix(".after.webp")  # as _write_file names it
                    if key not in records:
                        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
                        key = f"{stem}-{count:05d}"
                    row |= {n: _locate(row[n], path.parent) for n in {*IMAGES} & {*row}}
                    read = partial(from_row, row, key, **records.get(key, {}))
                    yield path.name, f"row {count}", read
                    count += 1
    except (ArrowException, OSError, ValueError, TypeError) as error:
        reason = f"it cannot be read ({error})"
        yield path.name, f"rows from {count}", partial(refuse, reason)


def _locate(value: Any, folder: Path) -> Any:
    """An image that a row names by its path is beside the file."""
    if isinstance(value, Mapping):
        return value if value.get("bytes") else _locate(value.get("path"), folder)
    return {"path": folder / value} if value and isinstance(value, str) else value


def from_row(row: Mapping[str, Any], key: str, **metadata: Any) -> Pair:
    """Convert a row, as ``datasets.load_dataset`` gives it; ValueError if it is unfit.

    It has ``COLUMNS``, or ``input_image``, ``edit_prompt`` and ``edited_image``, the
    defaults of diffusers' script. An image is a PIL image, or a mapping with a file's
    ``bytes`` or ``path``. ``metadata`` are other fields of ``Pair``.
    """
    before = "original_image" if "original_image" in row else "input_image"
    if missing := {before, "edit_prompt", "edited_image"} - row.keys():
        raise ValueError(f"it has no columns {', '.join(sorted(missing))}")
    images = _load(row[before]), _load(row["edited_image"])
    prompts = ("original_prompt", "edit_prompt", "edited_prompt")
    texts = ["" if row.get(name) is None else row[name] for name in prompts]
    return make_pair(key, images, texts, **metadata)


def _load(value: Any) -> Image.Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return load(value or b"")
