"""Reads captions of the miniature world back into what they say.

The inverse of ``world.caption``, for captions from elsewhere: from people and from the
language model. It tells whether a caption is in the world's words at all, and whether
two captions differ in exactly one thing, as a caption and an edited caption should.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ip2p_lib.miniature import vocabulary as words

# What a caption leaves out is usual.
_USUAL = {"time": "day", "weather": "clear", "medium": "photo"}
_TABLES = {
    "medium": words.MEDIA,
    "place": words.PLACES,
    "time": words.TIMES,
    "weather": words.WEATHERS,
}
_GLUE = re.compile(
    r"\b(a|an|and|of|is|there|showing|next to|beside|picture)\b|[\s,.:，。和的有]"
)

Thing = tuple[str, str | None, str | None]  # name, finish, accessory


@dataclass(frozen=True)
class Said:
    """What a caption says; ``rest`` is what this world has no words for."""

    things: tuple[Thing, ...]
    medium: str
    place: str | None
    time: str
    weather: str
    rest: str


def _either(phrases: Iterable[str]) -> str:
    """A pattern for any of the phrases, the longest that fits."""
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


def _phrases(table: dict[str, words.Words]) -> dict[str, str]:
    """Every phrase of a table in both languages, with the value it stands for."""
    found = {entry.zh: value for value, entry in table.items()}
    for value, entry in table.items():
        found |= {phrase: value for phrase in entry.captions if phrase}
    return found


_SAID = {name: _phrases(table) for name, table in _TABLES.items()}
_FIND = {name: re.compile(_either(found)) for name, found in _SAID.items()}
_NAMES = {name: name for name in words.OBJECTS}
_NAMES_ZH = {zh: name for name, (_, zh) in words.OBJECTS.items()}
_BEFORE, _AFTER = (
    {e.captions[i].replace("{}", "").strip(): v for v, e in words.FINISHES.items()}
    for i in (0, 1)
)
_FINISHES = _BEFORE | _AFTER | {e.zh: v for v, e in words.FINISHES.items()}
_WORN = _phrases(words.ACCESSORIES) | {
    f"戴{entry.zh}的": value for value, entry in words.ACCESSORIES.items()
}
_THING = re.compile(
    rf"(?:\b(?P<before>{_either(_BEFORE | _AFTER)}) )?\b(?P<name>{_either(_NAMES)})\b"
    rf"(?: (?P<after>{_either(_AFTER)}))?(?: (?P<worn>{_either(_WORN)}))?"
    rf"|(?P<worn_zh>{_either(_WORN)})?"
    rf"(?P<before_zh>{_either(e.zh for e in words.FINISHES.values())})?"
    rf"(?P<name_zh>{_either(_NAMES_ZH)})"
)


def _to_thing(match: re.Match[str]) -> Thing:
    part = match.groupdict()
    name = part["name"] or _NAMES_ZH[part["name_zh"]]
    finish = part["before"] or part["after"] or part["before_zh"]
    worn = part["worn"] or part["worn_zh"]
    return name, finish and _FINISHES[finish], worn and _WORN[worn]


def read_caption(caption: str) -> Said:
    """Read a caption in English or Chinese.

    Args:
        caption: any text; what is not of this world is left in ``rest``.
    """
    rest, found = caption, dict[str, Any]()
    things = tuple(_to_thing(match) for match in _THING.finditer(rest))
    rest = _THING.sub(" ", rest)
    for name, pattern in _FIND.items():
        match = pattern.search(rest)
        found[name] = _SAID[name][match[0]] if match else _USUAL.get(name)
        rest = pattern.sub(" ", rest, count=1)
    return Said(things, **found, rest=_GLUE.sub("", rest))


def count_changes(before: Said, after: Said) -> int:
    """How many things differ: attributes of the scene, and objects or their looks.

    One object in place of another is one change, and so is a new look of one object.
    """
    names = [*_TABLES, "rest"]
    changes = sum(getattr(before, name) != getattr(after, name) for name in names)
    gone = Counter(before.things) - Counter(after.things)
    come = Counter(after.things) - Counter(before.things)
    changes += max(gone.total(), come.total())
    for old, new in zip(gone, come, strict=False):
        # An object in two respects: another name keeps its finish and its accessory.
        changes += sum(a != b for a, b in zip(old, new, strict=True)) - 1
    return changes
