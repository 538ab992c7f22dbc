"""Reads the phrasings of captions and instructions from ``data/phrasings``.

The files are the wordings, one phrasing a line; ``en.txt`` explains their format. A
fifth of the instructions' phrasings is held out: no model is trained on them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ip2p_lib.config import DATA
from ip2p_lib.miniature import vocabulary as words

FOLDER = DATA / "phrasings"
LANGUAGES = ("en", "zh")
FORMS = ("plain", "polite", "terse", "noun", "question", "wish", "implied")
# The values that words and headers may speak of.
TABLES: dict[str, dict] = {
    "object": words.OBJECTS,
    "side": {"left": None, "right": None},
    "place": words.PLACES,
    "time": words.TIMES,
    "weather": words.WEATHERS,
    "medium": words.MEDIA,
    "material": words.MATERIALS,
    "colour": words.COLOURS,
    "accessory": words.ACCESSORIES,
    "take off": words.ACCESSORIES,
}
# The fields of each edit type's phrasings, beside the words of its new value.
FIELDS = {
    "replace": {"x", "it", "name", "o", "n"},
    "add": {"x", "n", "side"},
    "remove": {"x", "name", "o"},
    **{kind: {"all"} for kind in ("place", "time", "weather", "medium")},
    **{kind: {"x", "it", "name"} for kind in ("material", "colour", "accessory")},
    "take off": {"x", "it", "name"},
}
_FIELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Phrasing:
    """One way of asking for an edit, or an opener that goes round one at "..."."""

    kind: str  # an edit type, "take off" or "openers"
    form: str
    text: str
    held_out: bool
    values: tuple[str, ...]  # the new values it can lead to; none: any
    before: str  # the value that the scene must have; "": any

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields in the text."""
        return frozenset(_FIELD.findall(self.text))


class Phrasebook:
    """The instructions' phrasings in one language.

    Attributes:
        phrasings: of each edit type (and of openers), in the order of the file.
        words: for each table and form, such as ``("weather", "adj")``, the words of
            each value, the commonest first.
        references: weighted ways to refer to one object or two, such as ``("x", 2)``.
    """

    def __init__(self, language: str) -> None:
        english = language == "en"
        nouns = {n: (n if english else zh,) for n, (_, zh) in words.OBJECTS.items()}
        self.phrasings = defaultdict[str, list[Phrasing]](list)
        self.words: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        self.words["object", "n"] = {**nouns}
        self.references = defaultdict[tuple[str, int], list[tuple[int, str]]](list)

    def add(self, header: str, line: str) -> None:
        """Take in one line of the file.

        Raises:
            ValueError: the line cannot be used under this header.
        """
        section, _, name = header.partition(" ")
        if section == "words":
            self._add_words(name, line)
        elif section == "refer":
            field, _, count = name.partition(" ")
            self.references[field, int(count)].append(_to_share(line))
        else:
            phrasing = _to_phrasing(header, line)
            self._check_fields(phrasing)
            if phrasing in self.phrasings[phrasing.kind]:
                raise ValueError(f"{line!r} stands in [{header}] twice.")
            self.phrasings[phrasing.kind].append(phrasing)

    def _add_words(self, name: str, line: str) -> None:
        """Take in ``value = word, word`` under ``words table form``."""
        table, form = (name, "n") if name in TABLES else name.rsplit(" ", 1)
        value, equals, rest = (part.strip() for part in line.partition("="))
        if value not in TABLES.get(table, {}) or not equals or not rest:
            raise ValueError(f"{line!r} is not 'value = word, word' of [words {name}].")
        synonyms = tuple(word.strip() for word in rest.split(","))
        self.words.setdefault((table, form), {})[value] = synonyms

    def _check_fields(self, phrasing: Phrasing) -> None:
        """Refuse a phrasing with fields that its edit type cannot fill."""
        kind, text = phrasing.kind, phrasing.text
        values = set(phrasing.values or TABLES.get(kind, ()))
        known = FIELDS.get(kind, set()) | {
            form
            for (table, form), synonyms in self.words.items()
            if table == kind and values <= synonyms.keys()
        }
        if phrasing.fields - known or {*"{}"} & {*_FIELD.sub("", text)}:
            raise ValueError(
                f"{text!r}: {kind} has the fields {', '.join(sorted(known))}."
            )
        if kind == "openers" and text.count("...") != 1:
            raise ValueError(f"An opener has '...' once, not {text!r}.")


def _to_phrasing(header: str, line: str) -> Phrasing:
    """Read ``form  phrasing`` under a header such as ``weather: clear < rain``."""
    match = re.fullmatch(r"(\w+)(\*?)\s+(.+)", line)
    if match is None or match[1] not in FORMS:
        raise ValueError(f"{line!r} is not 'form  phrasing', form: {', '.join(FORMS)}.")
    kind, _, rest = header.partition(":")
    names, _, before = (part.strip() for part in rest.partition("<"))
    values = tuple(name.strip() for name in names.split(",") if name)
    if kind not in (*FIELDS, "openers"):
        raise ValueError(f"{kind!r} is no edit type: {', '.join(FIELDS)}.")
    unknown = {*values, before} - {"", *TABLES.get(kind, ())}
    if unknown:
        raise ValueError(f"[{header}]: {kind} has no value {', '.join(unknown)}.")
    return Phrasing(kind, match[1], match[3], bool(match[2]), values, before)


def _to_share(line: str) -> tuple[int, str]:
    share, _, text = line.partition(" ")
    if not share.isdigit() or not text:
        raise ValueError(f"{line!r} is not 'share text'.")
    return int(share), text.strip()


def _read_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(where it stands, header, text) of every line that is not a comment."""
    header = ""
    for number, raw in enumerate(path.read_text("utf-8").splitlines(), 1):
        line, where = raw.strip(), f"{path.name}, line {number}"
        if line.startswith("[") and line.endswith("]"):
            header = line[1:-1]
        elif line and not line.startswith("#"):
            yield where, header, line


@lru_cache
def load_phrasebook(language: str, folder: Path | None = None) -> Phrasebook:
    """Read the phrasings of instructions in one language.

    Args:
        language: ``"en"`` or ``"zh"``.
        folder: with ``en.txt`` and ``zh.txt``; None is ``FOLDER``.

    Raises:
        ValueError: a line that cannot be used, with its file and number.
    """
    book = Phrasebook(language)
    lines = _read_lines((folder or FOLDER) / f"{language}.txt")
    # Phrasings last: words say which fields they may have.
    for where, header, line in sorted(lines, key=lambda x: x[1][:6] != "words "):
        try:
            book.add(header, line)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return book


@dataclass(frozen=True)
class CaptionPhrasings:
    """Patterns of captions in one language."""

    patterns: list[tuple[str, ...]]  # parts, each with a field
    objects: list[tuple[int, str, str]]  # share, of two objects, of one


@lru_cache
def load_captions(language: str, folder: Path | None = None) -> CaptionPhrasings:
    """Read the patterns of captions in one language from ``captions.txt``.

    Raises:
        ValueError: a line that cannot be used, with its file and number.
    """
    book = CaptionPhrasings([], [])
    for where, header, line in _read_lines((folder or FOLDER) / "captions.txt"):
        parts = tuple(part.strip() for part in line.split("|"))
        if header == language:
            if {*_FIELD.findall(line)} != {*"moptw"}:
                raise ValueError(f"{where}: {line!r} needs one each of m, o, p, t, w.")
            book.patterns.append(parts)
        elif header == f"objects {language}":
            share, two = _to_share(parts[0])
            book.objects.append((share, two, (*parts, "{left}")[1]))
    return book
