"""A data set of pairs on disk: numbered shards and a manifest (section 3.1.2).

``manifest.json`` lists the shards of one run with their SHA-256 and is written last:
without it a run is unfinished. ``read_shards`` reads a data set in order,
``PairDataset`` in any order, and ``validate`` lists everything that is wrong with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from ip2p_lib.dataset import shards as shard_files
from ip2p_lib.dataset.pairs import (
    EncodedPair,
    Pair,
    Problem,
    decode_pair,
    value_or_problem,
)
from ip2p_lib.files import read_json, write_json
from ip2p_lib.images import to_tensor

MANIFEST = "manifest.json"
FORMAT = 1  # of manifest and shards; a manifest without a number has this format
T = TypeVar("T")


class DatasetError(ValueError):
    """A data set is unfinished or damaged."""


def stack(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Both images of B pairs of one size, each (B, 3, H, W) in [-1, 1]."""
    return to_tensor([p.before for p in pairs]), to_tensor([p.after for p in pairs])


def write_manifest(
    folder: str | Path, shards: Sequence[dict[str, Any]], **metadata: Any
) -> Path:
    """Write the manifest: the shards' entries, and JSON values such as the settings."""
    total = sum(shard["pairs"] for shard in shards)
    manifest = {"format": FORMAT, "pairs": total, "shards": list(shards), **metadata}
    return write_json(Path(folder) / MANIFEST, manifest)


def write_shards(
    pairs: Iterable[Pair],
    folder: str | Path,
    *,
    shard_size: int = 1000,
    **metadata: Any,
) -> Path:
    """Write pairs as numbered shards of ``shard_size`` pairs, then the manifest.

    Only one shard's pairs are in memory at a time. Returns the manifest's path.
    """
    stream, entries = iter(pairs), list[dict[str, Any]]()
    while chunk := list(itertools.islice(stream, shard_size)):
        path = Path(folder) / f"pairs-{len(entries):05d}.tar"
        entries.append(shard_files.write_shard(chunk, path))
    return write_manifest(folder, entries, **metadata)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``manifest.json``.

    Raises:
        FileNotFoundError: there is none, so no run has finished here.
        DatasetError: it cannot be read, or another version wrote it.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}: it is no data set, or the run that writes "
            "it has not finished. Check the path, or generate it again."
        )
    try:
        manifest: dict[str, Any] = read_json(path)
        if manifest.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"format {manifest['format']}, this version reads {FORMAT}"
            )
        for entry in manifest["shards"]:
            if Path(entry["name"]).name != entry["name"]:
                raise ValueError(f"{entry['name']!r} is no file of its folder")
        if sum(entry["pairs"] for entry in manifest["shards"]) != manifest["pairs"]:
            raise ValueError("the shards do not add up to its number of pairs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} cannot be used: {error}. Copy it again.") from error
    return manifest


def stored_bytes(folder: str | Path) -> int:
    """Total size of a data set's shards."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.tar"))


def read_encoded_shards(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[EncodedPair]:
    """As ``read_shards``, with the images still encoded: for copying them."""
    items = (
        item
        for entry in read_manifest(folder)["shards"]
        for item in shard_files.read_shard(Path(folder) / entry["name"], entry)
    )
    return skip_problems(items, problems)


def read_shards(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Read every pair in the order written, from shards whose SHA-256 is right.

    Args:
        folder: as written by ``write_shards``.
        problems: a list that collects what cannot be used: a damaged shard, or a pair.
            Without it, the first problem stops the reading.

    Raises:
        FileNotFoundError: no finished data set.
        DatasetError: a shard or a pair cannot be used.
    """
    items = (
        value_or_problem(str(folder), pair.key, partial(decode_pair, pair))
        for pair in read_encoded_shards(folder, problems=problems)
    )
    return skip_problems(items, problems)


def skip_problems(
    items: Iterable[T | Problem], problems: list[Problem] | None
) -> Iterator[T]:
    """Yield the usable items; collect the problems, or raise DatasetError for one."""
    for item in items:
        if not isinstance(item, Problem):
            yield item
        elif problems is None:
            raise DatasetError(f"{item}. Pass problems=[] to continue without it.")
        else:
            problems.append(item)


class PairDataset(Dataset[Pair]):
    """Random access to the pairs of a data set, for a ``DataLoader``.

    Use ``collate_fn=list`` (or a function of a list of pairs, such as ``stack``). A
    shard's SHA-256 is checked when its first pair is read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Index the shards; raises as ``read_shards``."""
        manifest = read_manifest(folder)
        self._shards = [(Path(folder) / s["name"], s) for s in manifest["shards"]]
        self._verified: set[int] = set()
        self._rows = [
            (n, key, spans)
            for n, (path, _) in enumerate(self._shards)
            for key, spans in shard_files.index_shard(path).items()
        ]
        if len(self._rows) != manifest["pairs"]:
            raise DatasetError(
                f"{folder} should hold {manifest['pairs']} pairs but has "
                f"{len(self._rows)}: a shard is truncated or missing. Copy it again."
            )

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        """Read one pair; raises DatasetError if it is damaged."""
        n, key, spans = self._rows[index]
        path, entry = self._shards[n]
        problem = n not in self._verified and shard_files.verify_shard(path, entry)
        pair = problem or _read_pair(path, key, spans)
        if isinstance(pair, Problem):
            raise DatasetError(f"{pair}. Copy the data set again.")
        self._verified.add(n)
        return pair


def _read_pair(path: Path, key: str, spans: shard_files.Spans) -> Pair | Problem:
    return value_or_problem(
        path.name, key, lambda: decode_pair(shard_files.read_pair(path, key, spans))
    )


def validate(folder: str | Path) -> list[Problem]:
    """Read every byte of a data set and list what is wrong; empty if nothing is."""
    folder = Path(folder)
    try:
        entries = {entry["name"]: entry for entry in read_manifest(folder)["shards"]}
    except (FileNotFoundError, DatasetError) as error:
        return [Problem(MANIFEST, "", str(error))]
    unknown = {path.name for path in folder.glob("*.tar")} - entries.keys()
    reason = f"it is not in {MANIFEST}; no reader uses it"
    problems = [Problem(name, "", reason) for name in sorted(unknown)]
    shard_of_key: dict[str, str] = {}
    for name, entry in entries.items():
        if problem := shard_files.verify_shard(folder / name, entry):
            problems.append(problem)
            continue
        index = shard_files.index_shard(folder / name)
        if len(index) != entry["pairs"]:
            reason = f"it holds {len(index)} pairs, {MANIFEST} says {entry['pairs']}"
            problems.append(Problem(name, "", reason))
        for key, spans in index.items():
            if isinstance(pair := _read_pair(folder / name, key, spans), Problem):
                problems.append(pair)
            if (first := shard_of_key.setdefault(key, name)) != name:
                problems.append(Problem(name, key, f"its key is also in {first}"))
    return problems
