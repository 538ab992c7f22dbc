"""A data set of pairs on disk: tar shards and a manifest (section 3.1.2).

A shard is a tar file that any ``webdataset`` reader opens; the three files of a pair
are neighbours in it. ``manifest.json`` lists the shards of one run with their SHA-256
and is written last: without it a run is unfinished. ``read_shards`` reads a data set in
order, ``PairDataset`` in any order, and ``validate`` lists all that is wrong with it.
"""

import contextlib
import io
import itertools
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from ip2p_lib.dataset.pairs import (
    EncodedPair,
    Pair,
    Problem,
    decode_pair,
    encode_pair,
    from_files,
    to_files,
)
from ip2p_lib.files import read_json, sha256_of, write_bytes, write_json
from ip2p_lib.images import to_tensor

MANIFEST = "manifest.json"
FORMAT = 1  # of manifest and shards; a manifest without a number has this format
Spans = dict[str, tuple[int, int]]  # offset and size of each file of a pair
# Errors that reading one bad pair may raise; deep JSON ends in a RecursionError.
PROBLEMS = (ValueError, KeyError, TypeError, OSError, RecursionError, OverflowError)
T = TypeVar("T")
Reading = tuple[str, str, Callable[[], T]]  # the names of file and pair; what reads it


class DatasetError(ValueError):
    """A data set is unfinished or damaged."""


def stack(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Both images of B pairs of one size, each (B, 3, H, W) in [-1, 1]."""
    return to_tensor([p.before for p in pairs]), to_tensor([p.after for p in pairs])


def write_shard(
    pairs: Iterable[Pair], path: str | Path, keys: set[str] | None = None
) -> dict[str, Any]:
    """Write one shard atomically; returns its entry in the manifest.

    Equal pairs give equal bytes. Raises ValueError if a key occurs twice, or is among
    the ``keys`` of the shards before, to which those of the pairs are added.
    """
    buffer, keys = io.BytesIO(), set() if keys is None else keys
    earlier = len(keys)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            if pair.key in keys:
                raise ValueError(f"The key {pair.key!r} occurs twice.")
            keys.add(pair.key)
            for name, data in to_files(encode_pair(pair)).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path = write_bytes(path, buffer.getvalue())
    return {"name": path.name, "pairs": len(keys) - earlier, "sha256": sha256_of(path)}


def write_manifest(
    folder: str | Path, shards: Sequence[dict[str, Any]], **metadata: Any
) -> Path:
    """Write the manifest: the shards' entries, and JSON values such as the settings.

    Shards of an older data set in the folder that are not among them are deleted, or
    readers of ``*.tar`` would read them too.
    """
    total = sum(shard["pairs"] for shard in shards)
    manifest = {"format": FORMAT, "pairs": total, "shards": list(shards), **metadata}
    path = write_json(Path(folder) / MANIFEST, manifest)
    names = {shard["name"] for shard in shards}
    for older in Path(folder).glob(f"pairs-{'[0-9]' * 5}.tar"):
        if older.name not in names:
            older.unlink()
    return path


def write_shards(
    pairs: Iterable[Pair], folder: str | Path, shard_size: int = 1000, **metadata: Any
) -> Path:
    """Write pairs as shards of ``shard_size`` pairs, then the manifest; its path.

    Only one shard's pairs are in memory at a time. Raises ValueError for no pair or a
    key twice, OSError if the disk is full or write-protected; no partial file remains.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, not {shard_size}.")
    stream, keys, entries = iter(pairs), set[str](), list[dict[str, Any]]()
    # Aside, for the pairs may come from the shards that are replaced.
    new = Path(folder) / ".new.ip2p"
    shutil.rmtree(new, ignore_errors=True)
    try:
        while chunk := list(itertools.islice(stream, shard_size)):
            path = new / f"pairs-{len(entries):05d}.tar"
            entries.append(write_shard(chunk, path, keys))
        if not entries:
            raise ValueError(f"There is no pair to write; {folder} stays as it was.")
        for entry in entries:
            os.replace(new / entry["name"], Path(folder) / entry["name"])
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return write_manifest(folder, entries, **metadata)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read ``manifest.json``.

    Raises FileNotFoundError if there is none, since no run has finished here, and
    DatasetError if it cannot be read, or another version wrote it.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        reason = "it is no data set, or the run that writes it has not finished"
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: {reason}.")
    try:
        manifest: dict[str, Any] = read_json(path)
        if (version := manifest.get("format", FORMAT)) != FORMAT:
            raise ValueError(f"format {version}, this version reads {FORMAT}")
        names = Counter(entry["name"] for entry in manifest["shards"])
        for name, times in names.items():
            if Path(name).name != name:
                raise ValueError(f"{name!r} is no file of its folder")
            if times > 1:
                raise ValueError(f"it lists {name} {times} times")
        if sum(entry["pairs"] for entry in manifest["shards"]) != manifest["pairs"]:
            raise ValueError("the shards do not add up to its number of pairs")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} cannot be used: {error}. Copy it again.") from error
    return manifest


def stored_bytes(folder: str | Path) -> int:
    """Total size of a data set's shards."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.tar"))


def verify_shard(folder: Path, entry: dict[str, Any]) -> Path:
    """Find an entry's shard; ValueError if it is not, bit for bit, the one written."""
    path: Path = folder / entry["name"]
    if not path.is_file():
        raise ValueError("the shard is missing")
    if sha256_of(path) != entry["sha256"]:
        raise ValueError("the shard is damaged: its SHA-256 is not the manifest's")
    return path


def index_shard(path: Path) -> list[tuple[str, Spans]]:
    """Find a shard's pairs, with their keys; a truncated file gives those it holds."""
    index: list[tuple[str, Spans]] = []
    with (
        contextlib.suppress(tarfile.TarError, FileNotFoundError, ValueError),
        tarfile.open(path, "r:") as tar,
    ):
        for member in tar:
            key = member.name.partition(".")[0]
            if not index or index[-1][0] != key or member.name in index[-1][1]:
                index.append((key, {}))
            index[-1][1][member.name] = member.offset_data, member.size
    return index


def _read_pair(path: Path, key: str, spans: Spans) -> EncodedPair:
    files = {}
    with path.open("rb") as file:
        for name, (offset, size) in spans.items():
            file.seek(offset)
            files[name] = file.read(size)
    return from_files(key, files)


def _read_shard(
    folder: Path,
    entry: dict[str, Any],
    shard_of_key: dict[str, str],
    problems: list[Problem] | None,
) -> Iterator[EncodedPair]:
    """Read a shard's pairs in order, if it is the one that was written."""
    name = entry["name"]

    def index() -> list[tuple[str, Spans]]:
        pairs = index_shard(verify_shard(folder, entry))
        if len(pairs) != entry["pairs"]:
            raise ValueError(f"it has {len(pairs)} pairs, not {entry['pairs']}")
        return pairs

    def read(key: str, spans: Spans) -> EncodedPair:
        if key in shard_of_key:
            raise ValueError(f"its key is also in {shard_of_key[key]}")
        shard_of_key[key] = name
        return _read_pair(folder / name, key, spans)

    for pairs in read_each([(name, "", index)], problems):
        readings = ((name, key, partial(read, key, spans)) for key, spans in pairs)
        yield from read_each(readings, problems)


def read_encoded_shards(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[EncodedPair]:
    """As ``read_shards``, with the images still encoded: for copying them."""
    keys: dict[str, str] = {}
    entries = read_manifest(folder)["shards"]
    shards = (_read_shard(Path(folder), entry, keys, problems) for entry in entries)
    return itertools.chain.from_iterable(shards)


def read_shards(
    folder: str | Path, *, problems: list[Problem] | None = None
) -> Iterator[Pair]:
    """Read every pair in the order written, from shards whose SHA-256 is right.

    ``problems`` is a list that collects what cannot be used: a damaged shard, or a
    pair. Without it, the first one is a DatasetError. Raises FileNotFoundError if there
    is no finished data set.
    """
    encoded = read_encoded_shards(folder, problems=problems)
    readings = ((str(folder), p.key, partial(decode_pair, p)) for p in encoded)
    return read_each(readings, problems)


def read_each(
    readings: Iterable[Reading[T]], problems: list[Problem] | None
) -> Iterator[T]:
    """Yield what each reading returns; collect its error, or raise DatasetError."""
    for shard, key, read in readings:
        try:
            value = read()
        except PROBLEMS as error:
            problem = Problem(shard, key, str(error))
            if problems is None:
                message = f"{problem}. Pass problems=[] to continue without it."
                raise DatasetError(message) from error
            problems.append(problem)
        else:
            yield value


def refuse(reason: str) -> NoReturn:
    """A reading of what is no pair: it is a problem with this reason."""
    raise ValueError(reason)


class PairDataset(Dataset[Pair]):
    """Random access to the pairs of a data set, for a ``DataLoader``.

    Use ``collate_fn=list`` (or a function of a list of pairs, such as ``stack``). A
    shard's SHA-256 is checked when its first pair is read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Index the shards; raises as ``read_shards``."""
        manifest, self._folder = read_manifest(folder), Path(folder)
        self._verified: set[Path] = set()
        self._rows = [
            (entry, key, spans)
            for entry in manifest["shards"]
            for key, spans in index_shard(self._folder / entry["name"])
        ]
        if len(self._rows) != manifest["pairs"]:
            counts = f"{manifest['pairs']} pairs but has {len(self._rows)}"
            raise DatasetError(f"{folder} should hold {counts}. Copy it again.")
        if len({key for _, key, _ in self._rows}) < len(self._rows):
            raise DatasetError(f"{folder} has a key twice; validate lists which.")

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        """Read one pair; raises DatasetError if it is damaged."""
        entry, key, spans = self._rows[index]
        path = self._folder / entry["name"]
        try:
            if path not in self._verified:
                self._verified.add(verify_shard(self._folder, entry))
            return decode_pair(_read_pair(path, key, spans))
        except PROBLEMS as error:
            message = f"{path.name}: {key}: {error}. Copy the data set again."
            raise DatasetError(message) from error


def validate(folder: str | Path) -> list[Problem]:
    """Read every byte of a data set and list what is wrong; empty if nothing is."""
    folder = Path(folder)
    try:
        entries = read_manifest(folder)["shards"]
    except (FileNotFoundError, DatasetError) as error:
        return [Problem(MANIFEST, "", str(error))]
    names = {entry["name"] for entry in entries}
    unknown = {path.name for path in folder.glob("*.tar")} - names
    reason = f"it is not in {MANIFEST}; no reader uses it"
    problems = [Problem(name, "", reason) for name in sorted(unknown)]
    keys: dict[str, str] = {}
    for entry in entries:
        encoded = _read_shard(folder, entry, keys, problems)
        readings = ((entry["name"], p.key, partial(decode_pair, p)) for p in encoded)
        for _ in read_each(readings, problems):
            pass
    return problems
