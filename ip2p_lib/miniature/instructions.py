"""Reads instructions of the world's grammar back into the edit they ask for.

The inverse of ``grammar.instruct``, exact for every phrasing in ``data/phrasings``,
train or held out. ``parsing`` compares the result with what two captions say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from ip2p_lib.miniature.grammar import article
from ip2p_lib.miniature.phrasings import FIELDS, Phrasing, load_phrasebook

_CHINESE = re.compile("[\u3400-\u9fff]")
_FIELD = re.compile(r"((?:\ba )?\{\w+\})")
# A text that may stand in a field, and what it means: a value or a Reference.
Surfaces = dict[str, Any]


class Reference(NamedTuple):
    """An object as an instruction refers to it: by name, by side, or as "it"."""

    name: str | None = None
    side: str | None = None

    def resolve(self, names: list[str]) -> str | None:
        """The object's name among those of the scene, or None if that is unclear."""
        if self.side and len(names) == 2:
            name = names[self.side == "right"]
            return name if self.name in (None, name) else None
        if self.name is None:
            return names[0] if len(names) == 1 and self.side is None else None
        return self.name if self.name in names else None


class Request(NamedTuple):
    """What an instruction asks for."""

    kind: str  # an edit type, or "take off"
    value: str | None  # the new value; of "take off" the accessory, of "remove" None
    phrasing: Phrasing
    object: Reference | None = None
    other: Reference | None = None  # the object that is named as the other one


class _Template(NamedTuple):
    phrasing: Phrasing
    parts: tuple[tuple[str, str | Surfaces], ...]  # (field, surfaces) or ("", text)
    longest: str  # of the texts between the fields


def normalise(text: str) -> str:
    """Lower case and single spaces, without punctuation but for braces of fields."""
    text = re.sub(r"[^\w\s{}]", "", text.lower().replace("-", " "))
    return " ".join(text.split())


def _references(language: str, field: str) -> Surfaces:
    """Every text that ``{x}``, ``{it}`` or ``{all}`` can become."""
    book, surfaces = load_phrasebook(language), Surfaces()
    sides = {words[0]: side for side, words in book.words["side", "n"].items()}
    names = {word: n for n, said in book.words["object", "n"].items() for word in said}
    ways = [*book.references[field, 1], *book.references[field, 2]]
    for _, way in ways if field == "all" else [*ways, *book.references["x", 2]]:
        for name in names if "{name}" in way else [None]:
            for side in sides if "{side}" in way else [None]:
                for other in names if "{other}" in way else [None]:
                    text = way.format(name=name, side=side, other=other)
                    reference = Reference(name and names[name], side and sides[side])
                    surfaces[normalise(text)] = reference
    return surfaces


@lru_cache
def _templates(language: str) -> tuple[_Template, ...]:
    """All phrasings of a language, cut into texts and fields."""
    book = load_phrasebook(language)
    tables: dict[tuple[str, str], Surfaces] = {
        place: {normalise(word): v for v, said in table.items() for word in said}
        for place, table in book.words.items()
    }
    names = tables["object", "n"]
    tables |= {
        ("", field): _references(language, field) for field in ("x", "it", "all")
    }
    tables |= {("", "o"): tables["", "x"], ("", "side"): tables["side", "n"]}
    tables["", "name"] = {text: Reference(name) for text, name in names.items()}
    tables["replace", "n"] = tables["add", "n"] = names
    templates = []
    for phrasing in chain(*(book.phrasings[kind] for kind in FIELDS)):
        parts = list[tuple[str, str | Surfaces]]()
        for text in filter(None, _FIELD.split(normalise(phrasing.text))):
            field = text.removeprefix("a ").strip("{}") if "{" in text else ""
            table = tables.get((phrasing.kind, field)) or tables.get(("", field), {})
            if text.startswith("a {"):
                table = {article(word): meaning for word, meaning in table.items()}
            parts.append((field, table if field else text))
        texts = [part for _, part in parts if isinstance(part, str)]
        longest = max(texts, key=len, default="")
        templates.append(_Template(phrasing, tuple(parts), longest))
    return tuple(templates)


def _match(
    parts: tuple[tuple[str, str | Surfaces], ...], text: str
) -> Iterator[dict[str, Any]]:
    """Every way in which a text is these parts in a row: the meaning of each field."""
    if not parts:
        if not text:
            yield {}
        return
    (field, part), rest = parts[0], parts[1:]
    if isinstance(part, str):
        if text.startswith(part):
            yield from _match(rest, text[len(part) :])
        return
    for end in range(1, len(text) + 1):
        if text[:end] in part:
            for meanings in _match(rest, text[end:]):
                yield {field: part[text[:end]], **meanings}


def _without_openers(text: str, language: str) -> Iterator[tuple[str, bool]]:
    """The text inside each opener that fits, and whether that opener is held out."""
    for opener in load_phrasebook(language).phrasings["openers"]:
        gap = " " if language == "en" else ""
        first, last = map(normalise, opener.text.split("..."))
        first, last = first and first + gap, last and gap + last
        if text.startswith(first) and text.endswith(last):
            yield text[len(first) : len(text) - len(last)], opener.held_out


def read_instruction(instruction: str) -> list[Request]:
    """Read an instruction of the world's grammar.

    Args:
        instruction: in English or Chinese, with any capitals and punctuation.

    Returns:
        Every reading; none if the grammar cannot have written it.
    """
    language = "zh" if _CHINESE.search(instruction) else "en"
    whole = normalise(instruction)
    opened, requests = list(_without_openers(whole, language)), []
    for phrasing, parts, longest in _templates(language):
        texts = [whole]
        if phrasing.form == "plain":
            texts += [text for text, split in opened if split == phrasing.held_out]
        for text in texts:
            if longest in text:
                requests += [
                    _to_request(phrasing, found) for found in _match(parts, text)
                ]
    return list(dict.fromkeys(requests))


def _to_request(phrasing: Phrasing, meanings: dict[str, Any]) -> Request:
    values = [
        meaning
        for field, meaning in meanings.items()
        if isinstance(meaning, str) and field != "side"
    ]
    value = [*values, *(phrasing.values or (None,))][0]
    concerned = (meanings[f] for f in ("x", "it", "name") if f in meanings)
    return Request(
        phrasing.kind, value, phrasing, next(concerned, None), meanings.get("o")
    )
