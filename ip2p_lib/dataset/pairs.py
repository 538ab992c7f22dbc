"""One pair: its record, its three files, and what can be wrong with it (3.1.2).

    <key>.before.webp  <key>.after.webp   lossless
    <key>.json                            texts, seed, p, guidance, scores, SHA-256

One flipped bit in a picture rarely stops a decoder; it only changes the picture. So
every record carries hashes, and reading verifies them. ``shards`` puts many pairs into
one file.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ip2p_lib.images import FORMATS, ImageError, load
from ip2p_lib.triplets.record import language_of

PARTS = ("before.webp", "after.webp", "json")
T = TypeVar("T")


@dataclass
class Pair:
    """A picture before and after its edit, and how it was made.

    A pair that was not rendered here may know no captions (both are empty) and has no
    seed, p, guidance or steps.
    """

    key: str  # letters, digits, - and _; unique in its data set
    before: Image.Image
    after: Image.Image
    caption: str
    instruction: str
    edited_caption: str
    seed: int | None = None
    p: float | None = None  # share of steps with shared attention
    cfg_scale: float | None = None
    steps: int | None = None
    words: dict[str, Any] = field(default_factory=dict)  # of a WordEdit, if it had one
    scores: dict[str, float] = field(default_factory=dict)  # names as filtering.Scores
    language: str = "en"


@dataclass(frozen=True)
class PackedPair:
    """A pair as it lies in its files, verified: pictures as WebP files, one record."""

    key: str
    before: bytes
    after: bytes
    record: dict[str, Any]  # the other fields of a Pair; its cfg_scale is called cfg


@dataclass(frozen=True)
class Problem:
    """A pair that cannot be used: where, which (empty: unknown), and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.shard}: {self.key or 'unknown pair'}: {self.reason}"


def attempt(place: str, key: str, make: Callable[[], T]) -> T | Problem:
    """What ``make`` returns, or as a Problem the error that it raises."""
    try:
        return make()
    except (ValueError, KeyError, TypeError, OSError) as error:
        return Problem(place, key, str(error))


def check_texts(caption: str, instruction: str, edited_caption: str) -> None:
    """Refuse a pair without words: captions are both there or both unknown (empty).

    Raises:
        ValueError: no instruction, or one caption without the other.
    """
    if not all(isinstance(t, str) for t in (caption, instruction, edited_caption)):
        raise ValueError("its instruction or a caption is no text")
    if not instruction.strip():
        raise ValueError("its instruction is empty")
    empty = [not text.strip() for text in (caption, edited_caption)]
    if empty[0] != empty[1]:
        name = "caption" if empty[0] else "edited caption"
        raise ValueError(f"its {name} is empty; give both captions, or none")


def make_pair(
    key: str,
    before: Image.Image,
    after: Image.Image,
    texts: tuple[str, str, str],
    **facts: Any,
) -> Pair:
    """Build a pair from what others made, or refuse it.

    Args:
        key: as of a ``Pair``.
        before, after: RGB, of one size.
        texts: caption, instruction and edited caption; each becomes one line.
        facts: the other fields of a ``Pair``, as far as they are known.

    Raises:
        ValueError: as ``check_texts``.
        ImageError: the pictures differ in size.
    """
    check_texts(*texts)
    if before.size != after.size:
        sizes = " and ".join(f"{p.width} x {p.height}" for p in (before, after))
        raise ImageError(f"its pictures differ in size: {sizes}")
    caption, instruction, edited_caption = (" ".join(text.split()) for text in texts)
    facts = {"language": language_of(instruction)} | facts
    return Pair(key, before, after, caption, instruction, edited_caption, **facts)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, ensure_ascii=False).encode()


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=20, method=0)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """A picture file's bytes as ``images.load`` gives a file.

    Raises:
        ImageError: they are no picture of a known kind, damaged, or too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("it is not a picture of a known kind") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("it has too many pixels; make it smaller") from error
    return load(opened)


def pack(pair: Pair) -> PackedPair:
    """Encode the pictures, lossless.

    Raises:
        ValueError: the key or a text cannot be used.
    """
    if not re.fullmatch(r"[\w-]+", pair.key, re.ASCII):
        raise ValueError(
            f"The key {pair.key!r} may hold letters, digits, - and _ only."
        )
    try:
        check_texts(pair.caption, pair.instruction, pair.edited_caption)
    except ValueError as error:
        raise ValueError(f"The pair {pair.key!r} cannot be used: {error}.") from error
    hidden = {"key", "before", "after", "cfg_scale"}
    record = {k: v for k, v in vars(pair).items() if k not in hidden}
    record["cfg"] = pair.cfg_scale
    return PackedPair(pair.key, _webp(pair.before), _webp(pair.after), record)


def unpack(packed: PackedPair) -> Pair:
    """Decode the pictures; ``images.ImageError`` if they are none."""
    pictures = decode(packed.before), decode(packed.after)
    record = dict(packed.record)
    return Pair(packed.key, *pictures, cfg_scale=record.pop("cfg", None), **record)


def to_files(packed: PackedPair) -> dict[str, bytes]:
    """The three files of a pair, by the part of the name after its key."""
    before, after, record = packed.before, packed.after, dict(packed.record)
    hashes = {"before": _sha256(before), "after": _sha256(after)}
    record["sha256"] = hashes | {"record": _sha256(_canonical(record))}
    return dict(zip(PARTS, (before, after, _canonical(record)), strict=True))


def from_files(key: str, files: dict[str, bytes]) -> PackedPair:
    """Verify one pair; ValueError says what is wrong with it."""
    if missing := [part for part in PARTS if part not in files]:
        raise ValueError(f"{' and '.join(missing)} missing")
    record = json.loads(files["json"])
    hashes = record.pop("sha256", {}) if isinstance(record, dict) else {}
    for name, data in (
        ("record", _canonical(record)),
        ("before", files["before.webp"]),
        ("after", files["after.webp"]),
    ):
        if _sha256(data) != hashes.get(name):
            raise ValueError(f"the SHA-256 of its {name} differs from the one written")
    _check_fields(record)
    return PackedPair(key, files["before.webp"], files["after.webp"], record)


def _check_fields(record: dict[str, Any]) -> None:
    known = {f.name for f in fields(Pair)} - {"key", "before", "after", "cfg_scale"}
    texts = {"caption", "instruction", "edited_caption"}
    if odd := sorted((record.keys() - known - {"cfg"}) | (texts - record.keys())):
        raise ValueError(
            "its record is of another version of this project, which differs in "
            f"{', '.join(odd)}; read it with that version"
        )
    check_texts(record["caption"], record["instruction"], record["edited_caption"])
