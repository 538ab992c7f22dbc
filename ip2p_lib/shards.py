"""One tar file of pairs, which any ``webdataset`` reader opens too (section 3.1.2).

A pair is three neighbours in the file, so that many small files cost one big read:

    <key>.before.webp  <key>.after.webp   lossless
    <key>.json                            texts, seed, p, guidance, scores, SHA-256

One flipped bit in a picture rarely stops a decoder; it only changes the picture. So
every record carries hashes, and reading verifies them. ``dataset`` makes many shards
one data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ip2p_lib.files import written_whole
from ip2p_lib.images import load

PARTS = ("before.webp", "after.webp", "json")
Spans = dict[str, tuple[int, int]]  # offset and size of each part in its tar file


@dataclass
class Pair:
    """A picture before and after its edit, and how it was made."""

    key: str  # letters, digits, - and _; unique in its data set
    before: Image.Image
    after: Image.Image
    caption: str
    instruction: str
    edited_caption: str
    seed: int
    p: float  # share of steps with shared attention
    cfg_scale: float
    steps: int
    scores: dict[str, float] = field(default_factory=dict)  # names as filtering.Scores
    language: str = "en"


@dataclass(frozen=True)
class Problem:
    """A pair that cannot be used: where, which (empty: unknown), and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.shard}: {self.key or 'unknown pair'}: {self.reason}"


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Put a whole file in place at once: a reader meets the old one or the new one."""
    path = Path(path)
    with written_whole(path) as file:
        file.write(data)
    return path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, ensure_ascii=False).encode()


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=20, method=0)
    return buffer.getvalue()


def _encode(pair: Pair) -> dict[str, bytes]:
    """The three files of a pair, by the part of the name after its key."""
    if not re.fullmatch(r"[\w-]+", pair.key, re.ASCII):
        raise ValueError(
            f"The key {pair.key!r} may hold letters, digits, - and _ only."
        )
    before, after = _webp(pair.before), _webp(pair.after)
    hidden = {"key", "before", "after", "cfg_scale"}
    record = {k: v for k, v in vars(pair).items() if k not in hidden}
    record["cfg"] = pair.cfg_scale
    hashes = {"before": _sha256(before), "after": _sha256(after)}
    record["sha256"] = hashes | {"record": _sha256(_canonical(record))}
    return dict(zip(PARTS, (before, after, _canonical(record)), strict=True))


def _decode(key: str, files: dict[str, bytes]) -> Pair:
    """Verify and decode one pair; ValueError says what is wrong with it."""
    if missing := [part for part in PARTS if part not in files]:
        raise ValueError(f"{' and '.join(missing)} missing")
    record = json.loads(files["json"])
    hashes = record.pop("sha256")
    for name, data in (
        ("record", _canonical(record)),
        ("before", files["before.webp"]),
        ("after", files["after.webp"]),
    ):
        if _sha256(data) != hashes[name]:
            raise ValueError(f"the SHA-256 of its {name} differs from the one written")
    before, after = (load(Image.open(io.BytesIO(files[p]))) for p in PARTS[:2])
    return Pair(key, before, after, cfg_scale=record.pop("cfg"), **record)


def write_shard(pairs: Iterable[Pair], path: str | Path) -> dict[str, Any]:
    """Write one tar file, all at once, byte for byte the same for the same pairs.

    Returns:
        Its entry in the manifest, as ``describe_shard`` gives.

    Raises:
        ValueError: a key is malformed or occurs twice.
    """
    buffer, seen = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            if pair.key in seen:
                raise ValueError(f"The key {pair.key!r} occurs twice.")
            seen.add(pair.key)
            for part, data in _encode(pair).items():
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
        "sha256": _sha256(Path(path).read_bytes()),
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


def read_pair(path: Path, key: str, spans: Spans) -> Pair | Problem:
    """Read and verify one pair of ``index_shard``."""
    files = {}
    with path.open("rb") as file:
        for part, (offset, size) in spans.items():
            file.seek(offset)
            files[part] = file.read(size)
    try:
        return _decode(key, files)
    except (ValueError, KeyError, TypeError) as error:
        return Problem(path.name, key, str(error))


def read_shard(path: Path, expected: int) -> Iterator[Pair | Problem]:
    """Read ``expected`` pairs in order; each is a Pair or why there is none."""
    index = index_shard(path)
    for key, spans in index.items():
        yield read_pair(path, key, spans)
    for _ in range(expected - len(index)):
        yield Problem(path.name, "", "it is missing: the shard is cut short or absent")
