"""One tar file of pairs, which any ``webdataset`` reader opens too (section 3.1.2).

The three files of a pair are neighbours, so that many small files cost one big read;
``pairs`` says what they hold. ``dataset`` makes many shards one data set.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.pairs import (
    PARTS,
    PackedPair,
    Pair,
    Problem,
    attempt,
    from_files,
    pack,
    to_files,
    unpack,
)
from ip2p_lib.files import sha256_of, write_bytes

Spans = dict[str, tuple[int, int]]  # offset and size of each part in its tar file


def write_shard(pairs: Iterable[Pair], path: str | Path) -> dict[str, Any]:
    """Write one tar file, all at once, byte for byte the same for the same pairs.

    Returns:
        Its entry in the manifest, as ``describe_shard`` gives.

    Raises:
        ValueError: a key is malformed or occurs twice, or a text is empty.
        OSError: no room, or no right to write; nothing half-written is left.
    """
    buffer, seen = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            if pair.key in seen:
                raise ValueError(f"The key {pair.key!r} occurs twice.")
            seen.add(pair.key)
            for part, data in to_files(pack(pair)).items():
                member = tarfile.TarInfo(f"{pair.key}.{part}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return describe_shard(write_bytes(path, buffer.getvalue()))


def describe_shard(path: str | Path) -> dict[str, Any]:
    """Name, number of pairs and SHA-256 of a finished shard."""
    with tarfile.open(path, "r:") as tar:
        pairs = len(tar.getnames()) // len(PARTS)
    return {
        "name": Path(path).name,
        "pairs": pairs,
        "sha256": sha256_of(path),
    }


def index_shard(path: Path) -> dict[str, Spans]:
    """Find the pairs of a shard by key; one cut short gives what precedes the cut."""
    index: dict[str, Spans] = {}
    with (
        contextlib.suppress(tarfile.ReadError, FileNotFoundError),
        tarfile.open(path, "r:") as tar,
    ):
        for member in tar:
            key, _, part = member.name.partition(".")
            index.setdefault(key, {})[part] = (member.offset_data, member.size)
    return index


def read_packed(path: Path, key: str, spans: Spans) -> PackedPair | Problem:
    """Read and verify one pair of ``index_shard``, its pictures still encoded."""
    files = {}
    with path.open("rb") as file:
        for part, (offset, size) in spans.items():
            file.seek(offset)
            files[part] = file.read(size)
    return attempt(path.name, key, lambda: from_files(key, files))


def read_pair(path: Path, key: str, spans: Spans) -> Pair | Problem:
    """Read, verify and decode one pair of ``index_shard``."""
    return _opened(path, read_packed(path, key, spans))


def read_packed_shard(path: Path, expected: int) -> Iterator[PackedPair | Problem]:
    """As ``read_shard``, the pictures still encoded."""
    index = index_shard(path)
    for key, spans in index.items():
        yield read_packed(path, key, spans)
    for _ in range(expected - len(index)):
        yield Problem(path.name, "", "it is missing: the shard is cut short or absent")


def read_shard(path: Path, expected: int) -> Iterator[Pair | Problem]:
    """Read ``expected`` pairs in order; each is a Pair or why there is none."""
    return (_opened(path, item) for item in read_packed_shard(path, expected))


def _opened(path: Path, item: PackedPair | Problem) -> Pair | Problem:
    if isinstance(item, Problem):
        return item
    return attempt(path.name, item.key, lambda: unpack(item))
