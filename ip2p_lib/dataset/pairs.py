"""One pair of images and its three files (section 3.1.2).

<key>.before.webp  <key>.after.webp   lossless
<key>.json                            texts, seed, p, guidance scale, CLIP scores
"""

import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from math import isfinite
from types import NoneType
from typing import Any

from PIL import Image

from ip2p_lib.checks import is_visible
from ip2p_lib.images import ImageError, load
from ip2p_lib.triplets.record import is_unchanged, language_of

PARTS = ("before.webp", "after.webp", "json")
TEXTS = ("caption", "instruction", "edited_caption")


def check_key_and_seed(key: Any, seed: Any) -> None:
    """Raise ValueError unless both can be parts of a file's name."""
    if not (isinstance(key, str) and re.fullmatch(r"[\w-]+", key, re.ASCII)):
        raise ValueError(f"the key {key!r} may hold letters, digits, - and _")
    if not (seed is None or type(seed) is int):
        raise ValueError(f"the seed {seed!r} is no whole number")


@dataclass(frozen=True)
class Pair:
    """An image before and after its edit, and how it was generated.

    A pair from elsewhere may have no captions (both are empty), and no seed, p,
    guidance scale or steps. ValueError says what is wrong with a pair.
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
    word_edit: dict[str, Any] = field(default_factory=dict)  # as WordEdit.to_dict
    scores: dict[str, float] = field(default_factory=dict)  # names as in Scores
    language: str = "en"

    def __post_init__(self) -> None:
        """Check key, seed, texts and sizes."""
        check_key_and_seed(self.key, self.seed)
        for name, kind in (("steps", int), ("word_edit", dict), ("scores", dict)):
            if type(value := getattr(self, name)) not in (kind, NoneType):
                raise ValueError(f"its {name} cannot be {value!r}")
        numbers = [self.p, self.cfg_scale, *(self.scores or {}).values()]
        if not all(
            type(x) in (int, float, NoneType) and isfinite(x or 0) for x in numbers
        ):
            raise ValueError(f"p, guidance scale and scores are numbers, not {numbers}")
        if not all(_is_text(getattr(self, name)) for name in (*TEXTS, "language")):
            raise ValueError("its instruction, a caption or its language is no text")
        if not is_visible(self.instruction):
            raise ValueError("its instruction is empty")
        if is_visible(self.caption) != is_visible(self.edited_caption):
            raise ValueError("a caption is empty; give both captions, or none")
        if self.before.size != self.after.size:
            sizes = [f"{i.width} x {i.height}" for i in (self.before, self.after)]
            raise ImageError(f"its images differ in size: {' and '.join(sizes)}")


def _is_text(value: Any) -> bool:
    """Whether it can be stored: half a surrogate pair, as JSON may hold, cannot."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


# The names of a pair's fields in its record.
_RENAMED = {"cfg_scale": "cfg", "word_edit": "words"}
_FIELDS = {f.name for f in fields(Pair)} - {"key", "before", "after"}
RECORD = {_RENAMED.get(name, name): name for name in _FIELDS}


@dataclass(frozen=True)
class EncodedPair:
    """A pair as stored, to be copied without decoding."""

    key: str
    before: bytes  # a WebP file
    after: bytes
    record: dict[str, Any]  # of RECORD's keys

    def __post_init__(self) -> None:
        """Check key and seed, which become the names of files."""
        check_key_and_seed(self.key, self.record.get("seed"))


@dataclass(frozen=True)
class Problem:
    """What cannot be used: the file, the pair (empty: the whole file), the reason."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        """One line for people."""
        return ": ".join(filter(None, (self.shard, self.key, self.reason)))


def make_pair(
    key: str,
    images: tuple[Image.Image, Image.Image],
    texts: Iterable[Any],
    **metadata: Any,
) -> Pair:
    """Build a pair from elsewhere: images before and after, and ``TEXTS``.

    Each text becomes one line. Two equal captions are a ValueError: nothing could be
    measured by them. ``metadata`` are other fields of ``Pair``; the language is
    detected if it is missing.
    """
    lines = (" ".join(t.split()) if isinstance(t, str) else t for t in texts)
    caption, instruction, edited_caption = lines
    given = isinstance(caption, str) and is_visible(caption)
    if given and is_unchanged(caption, edited_caption):
        raise ValueError(f"its two captions are equal: {caption!r}")
    metadata.setdefault("language", language_of(str(instruction)))
    return Pair(key, *images, caption, instruction, edited_caption, **metadata)


def encode_pair(pair: Pair) -> EncodedPair:
    """Encode the images as lossless WebP, and the other fields as a record."""
    record = {stored: getattr(pair, name) for stored, name in RECORD.items()}
    return EncodedPair(pair.key, _webp(pair.before), _webp(pair.after), record)


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=20, method=0)
    return buffer.getvalue()


def decode_pair(encoded: EncodedPair) -> Pair:
    """Decode the images; raises ValueError if the pair cannot be used."""
    record = {RECORD[name]: value for name, value in encoded.record.items()}
    return Pair(encoded.key, load(encoded.before), load(encoded.after), **record)


def to_files(pair: EncodedPair) -> dict[str, bytes]:
    """The three files of a pair by name."""
    record = json.dumps(pair.record, sort_keys=True, ensure_ascii=False).encode()
    files = zip(PARTS, (pair.before, pair.after, record), strict=True)
    return {f"{pair.key}.{part}": data for part, data in files}


def from_files(key: str, files: dict[str, bytes]) -> EncodedPair:
    """Build a pair from its three files; raises ValueError if one cannot be used."""
    before, after, record_file = (files.get(f"{key}.{part}") for part in PARTS)
    if not (before and after and record_file):
        raise ValueError(f"it has only the files {', '.join(files)}")
    record = {**json.loads(record_file)}
    record.pop("sha256", None)  # earlier data sets had hashes of each file
    if odd := sorted((record.keys() - RECORD) | (set(TEXTS) - record.keys())):
        raise ValueError(f"its record is of another version; it differs in {odd}")
    return EncodedPair(key, before, after, record)
