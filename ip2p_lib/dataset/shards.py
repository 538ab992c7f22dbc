"""One tar file of pairs, which any ``webdataset`` reader opens too (section 3.1.2).

The three files of a pair are neighbours, so that many small files cost one large read.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ip2p_lib.dataset import pairs as pair_files
from ip2p_lib.dataset.pairs import EncodedPair, Pair, Problem, value_or_problem
from ip2p_lib.files import sha256_of, write_bytes

Spans = dict[str, tuple[int, int]]  # offset and size of each part in the tar file


def write_shard(pairs: Iterable[Pair], path: str | Path) -> dict[str, Any]:
    """Write one tar file atomically; equal pairs give equal bytes.

    Returns:
        Its entry in the manifest, as ``describe_shard``.

    Raises:
        ValueError: a key occurs twice.
        OSError: the disk is full or write-protected; no partial file remains.
    """
    buffer, keys = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            if pair.key in keys:
                raise ValueError(f"The key {pair.key!r} occurs twice.")
            keys.add(pair.key)
            files = pair_files.to_files(pair_files.encode_pair(pair))
            for part, data in files.items():
                member = tarfile.TarInfo(f"{pair.key}.{part}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return describe_shard(write_bytes(path, buffer.getvalue()))


def describe_shard(path: Path) -> dict[str, Any]:
    """Name, number of pairs and SHA-256 of a shard: its entry in the manifest."""
    pairs = len(index_shard(path))
    return {"name": path.name, "pairs": pairs, "sha256": sha256_of(path)}


def verify_shard(path: Path, entry: dict[str, Any]) -> Problem | None:
    """Compare a shard with its entry in the manifest; None if it is intact."""
    if not path.is_file():
        return Problem(path.name, "", "the shard is missing")
    if sha256_of(path) != entry["sha256"]:
        reason = "the shard is damaged: its SHA-256 differs from the manifest's"
        return Problem(path.name, "", reason)
    return None


def index_shard(path: Path) -> dict[str, Spans]:
    """Find the pairs of a shard by key; a truncated file gives those before the cut."""
    index: dict[str, Spans] = {}
    with (
        contextlib.suppress(tarfile.ReadError, FileNotFoundError),
        tarfile.open(path, "r:") as tar,
    ):
        for member in tar:
            key, _, part = member.name.partition(".")
            index.setdefault(key, {})[part] = (member.offset_data, member.size)
    return index


def read_pair(path: Path, key: str, spans: Spans) -> EncodedPair:
    """Read one pair of ``index_shard``; raises ValueError if it cannot be used."""
    files = {}
    with path.open("rb") as file:
        for part, (offset, size) in spans.items():
            file.seek(offset)
            files[part] = file.read(size)
    return pair_files.from_files(key, files)


def read_shard(path: Path, entry: dict[str, Any]) -> Iterator[EncodedPair | Problem]:
    """Read a shard's pairs in order, or the problem if its SHA-256 is wrong."""
    if problem := verify_shard(path, entry):
        yield problem
        return
    for key, spans in index_shard(path).items():
        yield value_or_problem(path.name, key, partial(read_pair, path, key, spans))
