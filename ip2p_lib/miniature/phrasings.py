"""Reads the phrasings of captions and instructions from ``data/phrasings``.

The files are the wordings, one phrasing a line under the header of its section;
``en.txt`` explains their format. A fifth of the instructions' phrasings is held out: no
model is trained on them.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ip2p_lib.config import DATA
from ip2p_lib.miniature import vocabulary as words

FOLDER = DATA / "phrasings"
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Phrasing:
    """One way of asking for an edit, or an opener that goes round one at "..."."""

    kind: str  # an edit type, "take off" or "openers"
    form: str  # "plain", "polite", "terse", "noun", "question", "wish" or "implied"
    text: str
    held_out: bool
    values: tuple[str, ...]  # the new values it can lead to; none: any
    before: str  # the value that the scene must have; "": any

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the fields in the text."""
        return frozenset(re.findall(r"\{([^{}]*)\}", self.text))


class Phrasebook:
    """The instructions' phrasings in one language.

    Attributes:
        phrasings: of each edit type (and of openers), in the order of the file.
        words: for each table and form, such as ``("weather", "adj")``, the words of
            each value, the commonest first.
        references: weighted ways to refer to one object or two, such as ``("x", 2)``.
    """

    def __init__(self, language: str) -> None:
        """Read ``en.txt`` or ``zh.txt``."""
        self.phrasings = defaultdict[str, list[Phrasing]](list)
        self.words = defaultdict[tuple[str, str], dict[str, tuple[str, ...]]](dict)
        for name, (_, chinese) in words.OBJECTS.items():
            self.words["object", "n"][name] = (name if language == "en" else chinese,)
        self.references: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for header, lines in _read_sections(f"{language}.txt").items():
            section, _, name = header.partition(" ")
            if section == "words":  # "value = word, word" of one table
                one_form = name in ("object", "side")
                table, form = (name, "n") if one_form else name.rsplit(" ", 1)
                for value, synonyms in (line.split(" = ") for line in lines):
                    self.words[table, form][value] = tuple(synonyms.split(", "))
            elif section == "refer":
                field, count = name.split()
                self.references[field, int(count)] = [_to_share(line) for line in lines]
            else:
                phrasings = [_to_phrasing(header, line) for line in lines]
                self.phrasings[phrasings[0].kind] += phrasings


def _read_sections(name: str) -> dict[str, list[str]]:
    """The lines of a file in ``FOLDER`` by the header above them, without comments."""
    sections = defaultdict[str, list[str]](list)
    header = ""
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        if line.startswith("["):
            header = line.strip(" []")
        elif line.strip() and not line.startswith("#"):
            sections[header].append(line.strip())
    return sections


def _to_phrasing(header: str, line: str) -> Phrasing:
    """Read ``form  phrasing`` under a header such as ``weather: clear < rain``."""
    form, text = line.split(maxsplit=1)
    kind, _, rest = header.partition(":")
    names, _, before = (part.strip() for part in rest.partition("<"))
    values = tuple(names.split(", ")) if names else ()
    return Phrasing(kind, form.rstrip("*"), text, form.endswith("*"), values, before)


def _to_share(line: str) -> tuple[int, str]:
    share, text = line.split(maxsplit=1)
    return int(share), text


load_phrasebook = lru_cache(Phrasebook)  # each file is read once


@dataclass(frozen=True)
class CaptionPhrasings:
    """Patterns of captions in one language."""

    patterns: list[tuple[str, ...]]  # parts, each with a field
    objects: list[tuple[int, str, str]]  # share, of two objects, of one
    art: str  # names the art set; "" if no caption does
    art_share: int  # of captions that name it, percent


@lru_cache
def load_captions(language: str) -> CaptionPhrasings:
    """Read the patterns of captions in one language from ``captions.txt``."""
    sections = _read_sections("captions.txt")
    patterns = [re.split(r" ?\| ?", line) for line in sections[language]]
    objects = []
    for share, text in map(_to_share, sections[f"objects {language}"]):
        two, _, one = text.partition(" | ")
        objects.append((share, two, one or "{left}"))
    lines = sections[f"art {language}"]
    share, art = _to_share(lines[0]) if lines else (0, "")
    return CaptionPhrasings([*map(tuple, patterns)], objects, art, share)
