"""Reads captions back into attributes, and checks triplets of the world.

Captions and instructions of people and of the language model are checked: whether two
captions differ in one attribute, and whether the instruction names that one.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.instructions import could_ask
from ip2p_lib.miniature.phrasings import LANGUAGES, load_phrasebook
from ip2p_lib.miniature.scenes import ObjectWords, ParsedCaption

# What a caption leaves out is usual.
_USUAL = {"time": "day", "weather": "clear", "medium": "photo"}
_RELATION = re.compile(r"to the (left|right) of|at its (left|right)|它[左右]边")
# Relations that name the right object before the left one.
_REVERSED = re.compile(r"to the right of|at its left|它左边")
_GLUE = re.compile(
    r"\b(a|an|and|of|is|there|showing|seen|with|next to|beside|picture"
    r"|to the (left|right) of|at its (left|right))\b|[\s,.:，。：和的有它里]"
)


def _any_of(phrases: Iterable[str]) -> str:
    """A pattern for any of the phrases, the longest that fits."""
    return "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))


def _phrases(table: dict[str, words.Words]) -> dict[str, str]:
    """Every phrase of a table in both languages, with the value it stands for."""
    chinese = {entry.zh: value for value, entry in table.items()}
    return chinese | {p: v for v, e in table.items() for p in e.captions if p}


_PHRASES = {name: _phrases(table) for name, table in words.SCENE.items()}
_PATTERNS = {name: re.compile(_any_of(phrases)) for name, phrases in _PHRASES.items()}
_ART_SETS = {f"{style} style": name for name, style in words.ART_STYLES["en"].items()}
_ART_SETS |= {f"{style}风格": name for name, style in words.ART_STYLES["zh"].items()}
_ART = re.compile(_any_of(_ART_SETS))
_NAMES_ZH = {zh: name for name, (_, zh) in words.OBJECTS.items()}
_SIDES = {"左边": "left", "中间": "middle", "右边": "right"}
_FINISHES = {
    text.replace("{}", "").strip(): finish
    for text, finish in _phrases(words.MATERIALS_AND_COLOURS).items()
}
_ACCESSORIES = _phrases(words.ACCESSORIES) | {
    f"戴{entry.zh}的": value for value, entry in words.ACCESSORIES.items()
}
_OBJECT = re.compile(
    rf"(?:\b(?P<before>{_any_of(_FINISHES)}) )?\b(?P<name>{_any_of(words.OBJECTS)})\b"
    rf"(?: (?P<after>{_any_of(_FINISHES)}))?"
    rf"(?: (?P<accessory>{_any_of(_ACCESSORIES)}))?"
    rf"(?: (?:on|in) the (?P<side>left|middle|right)\b)?"
    rf"|(?:(?P<side_zh>{_any_of(_SIDES)})的?)?(?P<accessory_zh>{_any_of(_ACCESSORIES)})?"
    rf"(?P<before_zh>{_any_of(_FINISHES)})?(?P<name_zh>{_any_of(_NAMES_ZH)})"
)


def _to_object(match: re.Match[str]) -> ObjectWords:
    """What a match of ``_OBJECT`` says of the object."""
    part = match.groupdict()
    name = part["name"] or _NAMES_ZH[part["name_zh"]]
    finish = part["before"] or part["after"] or part["before_zh"]
    accessory = part["accessory"] or part["accessory_zh"]
    return ObjectWords(name, _FINISHES.get(finish), _ACCESSORIES.get(accessory))


def read_caption(caption: str) -> ParsedCaption:
    """Read a caption in English or Chinese; other words are left in ``rest``."""
    matches, attributes = list(_OBJECT.finditer(caption)), dict[str, Any]()
    related = len(matches) == 2 and _RELATION.search(caption)
    if related and _REVERSED.search(caption):
        matches.reverse()
    sides = (m["side"] or _SIDES.get(m["side_zh"]) for m in matches)
    rest, art = _OBJECT.sub(" ", caption), _ART.search(caption)
    rest = _ART.sub(" ", rest)
    for name, pattern in _PATTERNS.items():
        match = pattern.search(rest)
        attributes[name] = _PHRASES[name][match[0]] if match else _USUAL.get(name)
        rest = pattern.sub(" ", rest, count=1)
    return ParsedCaption(
        things=tuple(map(_to_object, matches)),
        rest=_GLUE.sub("", rest),
        sides=(None, None) if related else tuple(sides),
        art=_ART_SETS[art[0]] if art else None,
        **attributes,
    )


@dataclass(frozen=True)
class Difference:
    """One attribute in which two captions differ."""

    attribute: str  # "name", "finish", "accessory", or an attribute of the scene
    old: str | None  # None: there was nothing
    new: str | None  # None: it is gone
    object: str | None = None  # the object that changes, by its first name

    def as_edit(self) -> tuple[str, dict[str, str]]:
        """The edit type and the change, as ``instruct`` and ``could_ask`` take them."""
        kind, old, new = self.attribute, self.old, self.new
        if kind == "name":
            kind = "add" if old is None else "replace" if new else "remove"
        elif kind == "finish":
            kind = "material" if new in words.MATERIALS else "colour"
        taken_off = old if kind == "accessory" and new is None else None
        change = {"object": self.object, "new": new, "old": taken_off}
        return kind, {name: value for name, value in change.items() if value}


def _find_differences(before: ParsedCaption, after: ParsedCaption) -> list[Difference]:
    """All differences but for words of no attribute and places of objects."""
    names = [n for n in words.SCENE if getattr(before, n) != getattr(after, n)]
    differences = [Difference(n, getattr(before, n), getattr(after, n)) for n in names]
    first, second = Counter(before.things), Counter(after.things)
    changed = (first - second).elements(), (second - first).elements()
    for old, new in zip_longest(*changed):
        if new is None:
            differences.append(Difference("name", old.name, None, old.name))
        elif old is None:
            differences.append(Difference("name", None, new.name))
        else:
            rows = zip(ObjectWords._fields, old, new, strict=True)
            differences += [Difference(*r, old.name) for r in rows if r[1] != r[2]]
    return differences


def count_changes(before: ParsedCaption, after: ParsedCaption) -> int:
    """How many attributes differ: those of the scene, and of its objects.

    One object in place of another is one change; so is a new finish or accessory of one
    object, or its new place.
    """
    changes = len(_find_differences(before, after))
    changes += (before.rest, before.art) != (after.rest, after.art)
    sides = dict(zip(before.things, before.sides, strict=False))
    for obj, side in zip(after.things, after.sides, strict=False):
        changes += bool(side and sides.get(obj)) and side != sides[obj]
    return changes


def find_difference(before: ParsedCaption, after: ParsedCaption) -> Difference | None:
    """The difference of two captions, or None unless they differ in one attribute."""
    differences = _find_differences(before, after)
    same = (before.rest, before.art) == (after.rest, after.art)
    if not same or count_changes(before, after) != 1:
        return None
    return differences[0] if differences else None  # an object only stands elsewhere


def names_difference(
    instruction: str, before: ParsedCaption, after: ParsedCaption
) -> bool:
    """Whether an instruction names the one attribute in which two captions differ.

    It does if ``instruct`` can have written it. Otherwise its words decide: the new
    value must be among them, an object that is meant must not be another one, and no
    other edit may be mentioned. A free wording ("surprise me") is not understood and
    counts as no.
    """
    difference = find_difference(before, after)
    if difference is None:
        return False
    kind, change = difference.as_edit()
    worded = len(before.things) in (1, 2) and (
        kind == "remove" or not change.keys().isdisjoint(("new", "old"))
    )
    if worded and could_ask(instruction, before, kind, change):
        return True
    return _mentions(instruction, difference, before)


@lru_cache
def _spoken_words() -> tuple[dict[str, dict[str, str]], re.Pattern[str]]:
    """What names each attribute's values in instructions, and a pattern for it all."""
    attributes = {
        "object": "name",
        "material": "finish",
        "colour": "finish",
        "accessory": "accessory",
        "take off": "accessory",
        **{name: name for name in words.SCENE},
    }
    values_of = {name: dict(_PHRASES.get(name, {})) for name in attributes.values()}
    for book in map(load_phrasebook, LANGUAGES):
        for (table, _), values in book.words.items():
            for value, synonyms in values.items() if table in attributes else ():
                nouns = [re.sub("^(an?|the) ", "", word.lower()) for word in synonyms]
                values_of[attributes[table]] |= dict.fromkeys(nouns, value)
        for phrasing in chain(*(book.phrasings[name] for name in words.SCENE)):
            if len(phrasing.values) == 1 and not phrasing.fields:
                text = phrasing.text.lower().strip("?？")
                values_of[phrasing.kind][text] = phrasing.values[0]
    everything = [text for table in values_of.values() for text in table]
    pattern = re.compile(
        rf"\b(?:{_any_of(w for w in everything if w.isascii())})\b"
        rf"|{_any_of(w for w in everything if not w.isascii())}"
    )
    return values_of, pattern


_TAKES_AWAY = re.compile(
    r"\b(remove|delete|erase|disappear|get rid|without|only|take (?!place)|no|not|lose"
    r"|off|away|gone|don't|drop|minus)\b|去掉|移除|不|别|拿走|摘|删|没"
)
_LEFT, _RIGHT = re.compile(r"\bleft\b|左"), re.compile(r"\bright\b|右")


def _mentions(instruction: str, difference: Difference, before: ParsedCaption) -> bool:
    """Whether the words of a free instruction name a difference."""
    attribute, old, new = difference.attribute, difference.old, difference.new
    comes_or_goes = attribute in ("name", "accessory") and None in (old, new)
    if comes_or_goes and bool(_TAKES_AWAY.search(instruction)) != (new is None):
        return False
    tables, pattern = _spoken_words()
    mentioned = set(pattern.findall(instruction.lower()))
    values = {a: {t[word] for word in mentioned & t.keys()} for a, t in tables.items()}
    there, named = [name for name, _, _ in before.things], values["name"]
    if len(there) == 2 and not named & set(there):
        named |= {there[0]} if _LEFT.search(instruction) else set()
        named |= {there[1]} if _RIGHT.search(instruction) else set()
    if attribute == "name" and new is None:
        rest = {name for name in there if name != old}
        worn = {accessory for _, _, accessory in before.things}
        if not values["accessory"] <= worn:
            return False
        return named == (rest if "only" in instruction else {old})
    if attribute == "name":
        # What is added may be named with what it stands beside.
        allowed = {*there, new} if old is None else {old, new}
    else:
        allowed = {difference.object} - {None}
        if len(there) > 1 and not allowed <= named:
            return False  # of which object it speaks is not clear
    return (new or old) in values[attribute] and named <= allowed
