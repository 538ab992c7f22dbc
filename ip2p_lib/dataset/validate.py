"""Say everything that is wrong with a data set of pairs, by file and pair (3.1.2).

``dataset.read_shards`` stops when too much is damaged; ``validate`` reads all of it,
changes nothing, and also finds what reading never meets: files that no manifest names,
keys used twice, pictures that do not match in size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ip2p_lib.dataset.dataset import MANIFEST, DatasetError, read_manifest
from ip2p_lib.dataset.pairs import Pair, Problem
from ip2p_lib.dataset.shards import read_shard
from ip2p_lib.files import sha256_of


def validate(folder: str | Path) -> list[Problem]:
    """Read every byte of a data set and list what is wrong; empty if nothing is.

    Args:
        folder: as ``dataset.write_shards`` leaves it.

    Returns:
        Problems: the file, the pair (empty if the whole file is meant) and the reason.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except (FileNotFoundError, DatasetError) as error:
        return [Problem(MANIFEST, "", str(error))]
    return [
        *_strangers(folder, manifest),
        *_counts(manifest),
        *_pairs(folder, manifest),
    ]


def _strangers(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    """Shards that the manifest does not name."""
    named = {shard["name"] for shard in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in named:
            yield Problem(path.name, "", f"it is not in {MANIFEST}; no reader uses it")


def _counts(manifest: dict[str, Any]) -> Iterator[Problem]:
    total = sum(shard["pairs"] for shard in manifest["shards"])
    if total != manifest["pairs"]:
        reason = f"it says {manifest['pairs']} pairs, and its shards add up to {total}"
        yield Problem(MANIFEST, "", reason)


def _pairs(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    seen: dict[str, str] = {}  # the shard of each key
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            reason = f"it is absent, with its {shard['pairs']} pairs"
            yield Problem(path.name, "", reason)
            continue
        found = list(_in_shard(path, shard["pairs"], seen))
        if not found and sha256_of(path) != shard["sha256"]:
            reason = f"its SHA-256 differs from the one in {MANIFEST}"
            found = [Problem(path.name, "", f"{reason}; its pairs are whole")]
        yield from found


def _in_shard(path: Path, expected: int, seen: dict[str, str]) -> Iterator[Problem]:
    items = 0
    missing = 0
    for item in read_shard(path, expected):
        items += 1
        if isinstance(item, Pair):
            yield from _in_pair(path.name, item, seen)
        elif item.key:
            yield item
        else:
            missing += 1
    if missing:
        reason = f"{missing} of its {expected} pairs are missing: it is cut short"
        yield Problem(path.name, "", reason)
    if items > expected:
        reason = f"it holds {items} pairs, and {MANIFEST} says {expected}"
        yield Problem(path.name, "", reason)


def _in_pair(shard: str, pair: Pair, seen: dict[str, str]) -> Iterator[Problem]:
    if pair.key in seen:
        yield Problem(shard, pair.key, f"its key is also in {seen[pair.key]}")
    seen[pair.key] = shard
    if pair.before.size != pair.after.size:
        sizes = [f"{p.width} x {p.height}" for p in (pair.before, pair.after)]
        reason = f"its pictures differ in size: {' and '.join(sizes)}"
        yield Problem(shard, pair.key, reason)
