"""Pairs on disk: numbered shards and a manifest (section 3.1.2).

``manifest.json`` lists the shards of one run and is written last: without it a run is
unfinished. ``read_shards`` reads a data set in order, ``PairDataset`` in any order, and
both verify every byte. What a pair is, and how it lies in a tar file: see ``shards``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from ip2p_lib.dataset.pairs import PackedPair, Pair, Problem
from ip2p_lib.dataset.shards import (
    index_shard,
    read_packed_shard,
    read_pair,
    read_shard,
    write_bytes,
    write_shard,
)
from ip2p_lib.images import to_tensor

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest and the shards; one without a number is of this format
T = TypeVar("T")


class DatasetError(ValueError):
    """A data set is unfinished, or too much of it is damaged."""


def stack(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Both pictures of B pairs of one size, each (B, 3, H, W) in [-1, 1]."""
    return to_tensor([p.before for p in pairs]), to_tensor([p.after for p in pairs])


def write_manifest(
    folder: str | Path, shards: Sequence[dict[str, Any]], **facts: Any
) -> Path:
    """Declare a run finished: ``shards`` in order, ``facts`` such as its settings."""
    total = sum(shard["pairs"] for shard in shards)
    manifest = {"format": FORMAT, "pairs": total, "shards": list(shards), **facts}
    data = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    return write_bytes(Path(folder) / MANIFEST, data)


def write_shards(
    pairs: Iterable[Pair], folder: str | Path, *, shard_size: int = 1000, **facts: Any
) -> Path:
    """Write pairs as numbered shards, then the manifest, whose path is returned.

    Args:
        pairs: any number; ``shard_size`` of them are held at a time.
        folder: made if missing.
        shard_size: pairs in a shard.
        facts: JSON values kept in the manifest, such as the settings of the run.
    """
    stream = iter(pairs)
    shards: list[dict[str, Any]] = []
    while chunk := list(itertools.islice(stream, shard_size)):
        shards.append(write_shard(chunk, Path(folder) / f"pairs-{len(shards):05d}.tar"))
    return write_manifest(folder, shards, **facts)


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
            "it has not finished. Check the path, or render again."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        _check_manifest(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error}); render again.") from error
    if manifest.get("format", FORMAT) != FORMAT:
        raise DatasetError(
            f"{path} is of format {manifest['format']}, this version reads {FORMAT}. "
            "Read it with the version that wrote it."
        )
    return manifest


def _check_manifest(manifest: Any) -> None:
    counts = [manifest["pairs"], *(shard["pairs"] for shard in manifest["shards"])]
    if not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError(f"{counts} are no numbers of pairs")
    for shard in manifest["shards"]:
        if Path(shard["name"]).name != shard["name"]:
            raise ValueError(f"{shard['name']!r} is no file of its folder")


def stored_bytes(folder: str | Path) -> int:
    """Size of a data set's shards; errors as ``read_manifest``."""
    paths = [Path(folder) / shard["name"] for shard in read_manifest(folder)["shards"]]
    return sum(path.stat().st_size for path in paths if path.is_file())


def read_shards(
    folder: str | Path, *, problems: list[Problem] | None = None, max_bad: float = 0.05
) -> Iterator[Pair]:
    """Read every pair, verified, in the order written.

    Args:
        folder: as written by ``write_shards``.
        problems: a list that collects the pairs that cannot be used; without it, the
            first one stops the reading.
        max_bad: share of the pairs that may be unusable.

    Raises:
        FileNotFoundError: no finished data set.
        DatasetError: a pair cannot be used, or more than ``max_bad`` of them cannot.
    """
    return _read(folder, read_shard, problems, max_bad)


def read_packed_shards(
    folder: str | Path, *, problems: list[Problem] | None = None, max_bad: float = 0.05
) -> Iterator[PackedPair]:
    """As ``read_shards``, the pictures verified but still encoded: for copying them."""
    return _read(folder, read_packed_shard, problems, max_bad)


def _read(
    folder: str | Path,
    read: Callable[[Path, int], Iterator[T | Problem]],
    problems: list[Problem] | None,
    max_bad: float,
) -> Iterator[T]:
    manifest = read_manifest(folder)
    items = itertools.chain.from_iterable(
        read(Path(folder) / shard["name"], shard["pairs"])
        for shard in manifest["shards"]
    )
    return usable(items, problems, manifest["pairs"], max_bad)


def usable(
    items: Iterable[T | Problem],
    problems: list[Problem] | None,
    total: int | None = None,
    max_bad: float = 1.0,
) -> Iterator[T]:
    """Pass on what can be used, and collect the problems among it.

    Args:
        items: in the order read.
        problems: a list that collects; without it, the first one stops the reading.
        total: how many items there should be, if that is known.
        max_bad: share of the total that may be problems.

    Raises:
        DatasetError: a problem that may not be collected.
    """
    found: list[Problem] = [] if problems is None else problems
    limit = math.inf if total is None else max_bad * total
    allowed = 0 if problems is None else limit
    for item in items:
        if not isinstance(item, Problem):
            yield item
            continue
        found.append(item)
        if len(found) > allowed:
            share = f"{len(found)}{'' if total is None else f' of {total}'} pairs"
            raise DatasetError(
                f"{share} cannot be used; the last is {item}. Mend or copy the data "
                "set again, or pass problems=[] (and a higher max_bad, where there is "
                "one) to go on without them."
            )


class PairDataset(Dataset[Pair]):
    """Random access to the verified pairs of a data set, for a ``DataLoader``.

    Use ``collate_fn=list`` (or a function of a list of pairs, such as ``stack``).
    """

    def __init__(self, folder: str | Path) -> None:
        """Index the shards; errors as ``read_shards``."""
        manifest = read_manifest(folder)
        paths = [Path(folder) / shard["name"] for shard in manifest["shards"]]
        self._rows = [
            (p, key, spans) for p in paths for key, spans in index_shard(p).items()
        ]
        if len(self._rows) != manifest["pairs"]:
            raise DatasetError(
                f"{folder} should hold {manifest['pairs']} pairs but {len(self._rows)} "
                "are there: a shard is cut short or absent. Copy the data set again."
            )

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        """Read and verify one pair; a damaged one raises DatasetError."""
        pair = read_pair(*self._rows[index])
        if isinstance(pair, Problem):
            raise DatasetError(f"{pair}. Copy the data set again.")
        return pair
