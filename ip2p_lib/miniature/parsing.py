"""Reads captions and instructions of the miniature world back into what they say.

The inverse of ``world.caption``, for texts from elsewhere: from people and from the
language model. It tells whether a caption is in the world's words at all, whether two
captions differ in exactly one thing, as a caption and an edited caption should, and
whether that is the thing which the instruction names.
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


@dataclass(frozen=True)
class Difference:
    """The one thing in which two captions differ."""

    attribute: str  # "name", "finish", "accessory", or an attribute of the scene
    old: str | None  # None: there was nothing
    new: str | None  # None: it is gone
    thing: str | None = None  # whose finish or accessory it is


def find_difference(before: Said, after: Said) -> Difference | None:
    """The difference of two captions, or None if they do not differ in one thing."""
    if after.rest != before.rest or count_changes(before, after) != 1:
        return None
    for name in _TABLES:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            return Difference(name, old, new)
    gone = [*(Counter(before.things) - Counter(after.things))]
    come = [*(Counter(after.things) - Counter(before.things))]
    if not gone or not come:
        lost, found = gone[0][0] if gone else None, come[0][0] if come else None
        return Difference("name", lost, found)
    (old, new), (name, *_) = (gone[0], come[0]), gone[0]
    place = next(i for i in range(3) if old[i] != new[i])
    attribute = ("name", "finish", "accessory")[place]
    return Difference(attribute, old[place], new[place], name if place else None)


def _nouns(table: dict[str, words.Words]) -> dict[str, str]:
    """How instructions speak of the values of a table, in both languages."""
    found = {re.sub(r"^(an?|the) ", "", e.noun): v for v, e in table.items()}
    return found | {e.zh.rstrip("上里中"): v for v, e in table.items()}


_SPOKEN = {
    "name": _NAMES | _NAMES_ZH,
    "finish": _nouns(words.FINISHES),
    "accessory": _nouns(words.ACCESSORIES),
    **{name: _nouns(table) | _SAID[name] for name, table in _TABLES.items()},
}
_WORDS = [word for table in _SPOKEN.values() for word in table]
_MENTION = re.compile(
    rf"\b(?:{_either(w for w in _WORDS if w.isascii())})\b"
    rf"|{_either(w for w in _WORDS if not w.isascii())}"
)
_TAKES_AWAY = re.compile(
    r"\b(remove|delete|erase|disappear|get rid|without|only|take (?!place))|去掉|移除"
)


def _spoken(instruction: str) -> dict[str, set[str]]:
    """The values that an instruction names, by attribute."""
    spoken = set(_MENTION.findall(instruction.lower()))
    return {a: {t[word] for word in spoken & t.keys()} for a, t in _SPOKEN.items()}


def names_difference(instruction: str, before: Said, after: Said) -> bool:
    """Whether an instruction names the one thing in which two captions differ.

    It is read by the words of the world's grammar in it: the new value must be among
    them, an object that is meant must not be another one, and nothing else may be asked
    for. A free wording such as "golden hour!" is not understood and counts as no.

    Args:
        instruction: in English or Chinese.
        before: what the caption says.
        after: what the edited caption says.
    """
    found = find_difference(before, after)
    if found is None or bool(_TAKES_AWAY.search(instruction)) != (found.new is None):
        return False
    said, there = _spoken(instruction), {thing[0] for thing in before.things}
    if found.attribute == "name" and found.new is None:
        stays = "only" in instruction
        meant = there - {found.old} if stays else {found.old}
        return said["name"] == meant and not said["accessory"]
    meant = {found.thing} if found.thing else {found.old, found.new}
    if found.attribute == "name" and found.old is None:
        meant = there | {found.new}  # beside what it stands
    unclear = found.thing and len(there) > 1 and found.thing not in said["name"]
    named = (found.new or found.old) in said[found.attribute]
    return named and said["name"] <= meant and not unclear
