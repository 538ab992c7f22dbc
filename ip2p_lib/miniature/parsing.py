"""Reads captions back into what they say, and compares two of them.

The inverse of ``world.caption``, for texts from elsewhere: from people and from the
language model. It tells whether a caption is in the world's words at all, whether two
captions differ in exactly one attribute, as a caption and an edited caption should, and
whether that is the one which the instruction names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.grammar import REFERRING
from ip2p_lib.miniature.instructions import Request, read_instruction
from ip2p_lib.miniature.phrasings import LANGUAGES, load_phrasebook

# What a caption leaves out is usual.
_USUAL = {"time": "day", "weather": "clear", "medium": "photo"}
_TABLES = {
    "medium": words.MEDIA,
    "place": words.PLACES,
    "time": words.TIMES,
    "weather": words.WEATHERS,
}
_RELATION = re.compile(r"to the (left|right) of|at its (left|right)|它[左右]边")
# Relations that name the right object before the left one.
_REVERSED = re.compile(r"to the right of|at its left|它左边")
_GLUE = re.compile(
    r"\b(a|an|and|of|is|there|showing|seen|with|next to|beside|picture"
    r"|to the (left|right) of|at its (left|right))\b|[\s,.:，。：和的有它里]"
)

ObjectWords = tuple[str, str | None, str | None]  # name, finish, accessory


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption says; ``rest`` is what this world has no words for.

    ``things`` and ``sides`` (left, middle, right, or None) go from left to right.
    """

    things: tuple[ObjectWords, ...]
    medium: str
    place: str | None
    time: str
    weather: str
    rest: str
    sides: tuple[str | None, ...] = ()


def _any_of(phrases: Iterable[str]) -> str:
    """A pattern for any of the phrases, the longest that fits."""
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


def _phrases(table: dict[str, words.Words]) -> dict[str, str]:
    """Every phrase of a table in both languages, with the value it stands for."""
    chinese = {entry.zh: value for value, entry in table.items()}
    return chinese | {p: v for v, e in table.items() for p in e.captions if p}


_PHRASES = {name: _phrases(table) for name, table in _TABLES.items()}
_PATTERNS = {name: re.compile(_any_of(phrases)) for name, phrases in _PHRASES.items()}
_NAMES = {name: name for name in words.OBJECTS}
_NAMES_ZH = {zh: name for name, (_, zh) in words.OBJECTS.items()}
_SIDES = {"左边": "left", "中间": "middle", "右边": "right"}
_BEFORE, _AFTER = (
    {e.captions[i].replace("{}", "").strip(): v for v, e in words.FINISHES.items()}
    for i in (0, 1)
)
_FINISHES_ZH = {entry.zh: value for value, entry in words.FINISHES.items()}
_FINISHES = _BEFORE | _AFTER | _FINISHES_ZH
_WORN = _phrases(words.ACCESSORIES) | {
    f"戴{entry.zh}的": value for value, entry in words.ACCESSORIES.items()
}
_OBJECT = re.compile(
    rf"(?:\b(?P<before>{_any_of(_BEFORE | _AFTER)}) )?\b(?P<name>{_any_of(_NAMES)})\b"
    rf"(?: (?P<after>{_any_of(_AFTER)}))?(?: (?P<worn>{_any_of(_WORN)}))?"
    rf"(?: (?:on|in) the (?P<side>left|middle|right)\b)?"
    rf"|(?:(?P<side_zh>{_any_of(_SIDES)})的?)?(?P<worn_zh>{_any_of(_WORN)})?"
    rf"(?P<before_zh>{_any_of(_FINISHES_ZH)})?(?P<name_zh>{_any_of(_NAMES_ZH)})"
)


def _to_object(match: re.Match[str]) -> ObjectWords:
    part = match.groupdict()
    name = part["name"] or _NAMES_ZH[part["name_zh"]]
    finish = part["before"] or part["after"] or part["before_zh"]
    worn = part["worn"] or part["worn_zh"]
    return name, finish and _FINISHES[finish], worn and _WORN[worn]


def read_caption(caption: str) -> ParsedCaption:
    """Read a caption in English or Chinese.

    Args:
        caption: any text; what is not of this world is left in ``rest``.
    """
    matches, attributes = list(_OBJECT.finditer(caption)), dict[str, Any]()
    related = len(matches) == 2 and _RELATION.search(caption)
    if related and _REVERSED.search(caption):
        matches.reverse()
    sides = (m["side"] or _SIDES.get(m["side_zh"]) for m in matches)
    rest = _OBJECT.sub(" ", caption)
    for name, pattern in _PATTERNS.items():
        match = pattern.search(rest)
        attributes[name] = _PHRASES[name][match[0]] if match else _USUAL.get(name)
        rest = pattern.sub(" ", rest, count=1)
    return ParsedCaption(
        things=tuple(map(_to_object, matches)),
        rest=_GLUE.sub("", rest),
        sides=(None, None) if related else tuple(sides),
        **attributes,
    )


def _unmatched(
    before: ParsedCaption, after: ParsedCaption
) -> tuple[list[ObjectWords], list[ObjectWords]]:
    """The objects that only the first caption names, and those only of the second."""
    first, second = Counter(before.things), Counter(after.things)
    return [*(first - second).elements()], [*(second - first).elements()]


def count_changes(before: ParsedCaption, after: ParsedCaption) -> int:
    """How many attributes differ: those of the scene, and of its objects.

    One object in place of another is one change; so is a new finish or accessory of one
    object, or its new place.
    """
    names = [*_TABLES, "rest"]
    changes = sum(getattr(before, name) != getattr(after, name) for name in names)
    gone, come = _unmatched(before, after)
    changes += max(len(gone), len(come))
    for old, new in zip(gone, come, strict=False):
        # An object in two respects: another name keeps its finish and its accessory.
        changes += sum(a != b for a, b in zip(old, new, strict=True)) - 1
    sides = dict(zip(before.things, before.sides, strict=False))
    for thing, side in zip(after.things, after.sides, strict=False):
        changes += bool(side and sides.get(thing)) and side != sides[thing]
    return changes


@dataclass(frozen=True)
class Difference:
    """The one attribute in which two captions differ."""

    attribute: str  # "name", "finish", "accessory", or an attribute of the scene
    old: str | None  # None: there was nothing
    new: str | None  # None: it is gone
    thing: str | None = None  # whose finish or accessory it is


def find_difference(before: ParsedCaption, after: ParsedCaption) -> Difference | None:
    """The difference of two captions, or None unless they differ in one attribute."""
    if after.rest != before.rest or count_changes(before, after) != 1:
        return None
    for name in _TABLES:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            return Difference(name, old, new)
    gone, come = _unmatched(before, after)
    first: tuple[str | None, ...] = gone[0] if gone else (None,) * 3
    second: tuple[str | None, ...] = come[0] if come else (None,) * 3
    for index, name in enumerate(("name", "finish", "accessory")):
        if first[index] != second[index]:
            whose = first[0] if index else None
            return Difference(name, first[index], second[index], whose)
    return None  # an object only stands elsewhere


def names_difference(
    instruction: str, before: ParsedCaption, after: ParsedCaption
) -> bool:
    """Whether an instruction names the one attribute in which two captions differ.

    What the grammar can write is read by its phrasings. Anything else is read by the
    words in it: the new value must be among them, an object that is meant must not be
    another one, and no other edit may be mentioned. A free wording such as "surprise me"
    is not understood and counts as no.

    Args:
        instruction: in English or Chinese.
        before: what the caption says.
        after: what the edited caption says.
    """
    difference = find_difference(before, after)
    if difference is None:
        return False
    requests = read_instruction(instruction)
    if not requests:
        return _mentions(instruction, difference, before)
    return any(_asks_for(request, difference, before) for request in requests)


def _asks_for(request: Request, difference: Difference, before: ParsedCaption) -> bool:
    """Whether a request of the grammar asks for this difference."""
    kind, old, new = difference.attribute, difference.old, difference.new
    value, concerned = new, difference.thing
    if kind == "name":
        kind = "add" if old is None else "replace" if new else "remove"
        concerned = old
    elif kind == "finish":
        kind = "material" if new in words.MATERIALS else "colour"
    elif kind == "accessory" and new is None:
        kind, value = "take off", old
    if (request.kind, request.value) != (kind, value):
        return False
    if kind not in REFERRING:
        return True
    names = [name for name, _, _ in before.things]
    if request.other and request.other.resolve(names) in (None, concerned):
        return False
    if request.object:
        return request.object.resolve(names) == concerned
    wearers = [worn for _, _, worn in before.things].count(old)
    return bool(request.other) or len(names) == 1 or wearers == 1


@lru_cache
def _spoken_words() -> tuple[dict[str, dict[str, str]], re.Pattern[str]]:
    """The words of each attribute's values in instructions, and a pattern for any."""
    tables = {
        "name": ("object",),
        "finish": ("material", "colour"),
        "accessory": ("accessory", "take off"),
        **{name: (name,) for name in _TABLES},
    }
    spoken = {name: dict(_PHRASES.get(name, {})) for name in tables}
    for attribute, names in tables.items():
        for language in LANGUAGES:
            for (table, _), values in load_phrasebook(language).words.items():
                for value, said in values.items() if table in names else ():
                    nouns = (re.sub(r"^(an?|the) ", "", word.lower()) for word in said)
                    spoken[attribute] |= dict.fromkeys(nouns, value)
    every = [word for table in spoken.values() for word in table]
    pattern = re.compile(
        rf"\b(?:{_any_of(w for w in every if w.isascii())})\b"
        rf"|{_any_of(w for w in every if not w.isascii())}"
    )
    return spoken, pattern


_TAKES_AWAY = re.compile(
    r"\b(remove|delete|erase|disappear|get rid|without|only|take (?!place))|去掉|移除"
)


def _mentions(instruction: str, difference: Difference, before: ParsedCaption) -> bool:
    """Whether the words of a free instruction name a difference."""
    attribute, old, new = difference.attribute, difference.old, difference.new
    if bool(_TAKES_AWAY.search(instruction)) != (new is None):
        return False
    tables, pattern = _spoken_words()
    spoken = set(pattern.findall(instruction.lower()))
    values = {a: {t[word] for word in spoken & t.keys()} for a, t in tables.items()}
    there = {name for name, _, _ in before.things}
    if attribute == "name" and new is None:
        meant = there - {old} if "only" in instruction else {old}
        return values["name"] == meant and not values["accessory"]
    meant = {difference.thing} if difference.thing else {old, new}
    if attribute == "name" and old is None:
        meant = there | {new}  # beside what it stands
    unclear = len(there) > 1 and difference.thing not in (None, *values["name"])
    return (new or old) in values[attribute] and values["name"] <= meant and not unclear
