"""Puts edits into instructions, and recognises the instructions of an edit.

Both read ``data/phrasings``. A phrasing has fields, such as ``{x}`` for the object that
changes: ``instruct`` draws one text for each field, ``could_ask`` allows them all.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

from ip2p_lib.miniature.captions import article
from ip2p_lib.miniature.phrasings import Phrasebook, Phrasing, load_phrasebook
from ip2p_lib.miniature.scenes import ParsedCaption, Scene

# Edit types whose phrasings must say which object they mean if there are two.
_REFERRING = ("replace", "remove", "material", "colour", "accessory", "take off")
_SPECIFIC = 0.4  # share of phrasings of one value, where there are any
_OPENED = 0.25  # share of plain phrasings with an opener
_CHINESE = re.compile("[\u3400-\u9fff]")
# One text of several with their shares; without shares the first is the commonest.
Choose = Callable[[Sequence[str], Sequence[int] | None], str]


def instruct(
    scene: Scene,
    kind: str,
    change: dict[str, str],
    rng: random.Random,
    wording: str,
    language: str,
) -> str:
    """Put an edit of a type, ``kind``, into words.

    Args:
        scene: the scene before the edit.
        change: ``new``, the new value; ``object``, the name of the object concerned;
            ``old``, an accessory that is taken off; ``side``, where an object is added.
        rng: chooses the phrasing and the synonyms.
        wording, language: ``"train"`` or ``"held-out"``, else ValueError; ``"en"`` or
            ``"zh"``.
    """
    if wording not in ("train", "held-out"):
        raise ValueError(f"The wording is 'train' or 'held-out', not {wording!r}.")
    general, specific = _fitting_phrasings(scene, kind, change, wording, language)
    use_specific = specific and rng.random() < _SPECIFIC
    phrasing = rng.choice(specific if use_specific else general)
    book = load_phrasebook(language)
    fields = _fill_fields(scene, kind, change, book, partial(_draw, rng))
    text = re.sub(r"\ba \{(\w+)\}", lambda m: article(fields[m[1]]), phrasing.text)
    text = text.format_map(fields)
    if phrasing.form == "plain" and rng.random() < _OPENED:
        held_out = wording == "held-out"
        openers = [o for o in book.phrasings["openers"] if o.held_out == held_out]
        text = rng.choice(openers).text.replace("...", text)
    return _punctuate(text, phrasing.form, rng, language)


def _draw(
    rng: random.Random, texts: Sequence[str], shares: Sequence[int] | None
) -> str:
    """One text by the shares; without them half of the time the first, else any."""
    if shares:
        return rng.choices(texts, shares)[0]
    return texts[0] if rng.random() < 0.5 else rng.choice(texts)


def _fitting_phrasings(
    scene: Scene | ParsedCaption,
    kind: str,
    change: dict[str, str],
    wording: str,
    language: str,
) -> tuple[list[Phrasing], list[Phrasing]]:
    """The phrasings that say without doubt what changes: of any value, of this one."""
    section, pair = "take off" if "old" in change else kind, len(scene.things) == 2
    value = change.get("new", change.get("old"))
    before = getattr(scene, kind, "")
    accessories = [obj.accessory for obj in scene.things]
    # What only one of two objects wears needs no other name.
    needs_name = pair and section in _REFERRING
    needs_name = needs_name and accessories.count(change.get("old", "")) != 1
    fitting = [
        phrasing
        for phrasing in load_phrasebook(language).phrasings[section]
        if phrasing.held_out == (wording == "held-out")
        and (not phrasing.values or value in phrasing.values)
        and phrasing.before in ("", before)
        and (pair or "o" not in phrasing.fields)
        and not (needs_name and phrasing.fields.isdisjoint(("x", "it", "name", "o")))
    ]
    general = [phrasing for phrasing in fitting if not phrasing.values]
    return general, [phrasing for phrasing in fitting if phrasing.values]


def _fill_fields(
    scene: Scene | ParsedCaption,
    kind: str,
    change: dict[str, str],
    book: Phrasebook,
    choose: Choose,
) -> dict[str, str]:
    """A text for every field that a phrasing of this edit may have."""
    names = [obj.name for obj in scene.things]
    nouns, sides = book.words["object", "n"], book.words["side", "n"]
    noun_of = {name: choose(nouns[name], None) for name in names}

    def refer(field: str, index: int) -> str:
        """Refer to the object at ``index``, from the left."""
        ways = book.references.get((field, len(names))) or book.references["x", 2]
        shares, texts = zip(*ways, strict=True)
        return choose(texts, shares).format(
            name=noun_of[names[index]],
            side=sides["right" if index else "left"][0],
            other=noun_of[names[-1]],
        )

    index = names.index(change["object"]) if "object" in change else 0
    fields = {"all": refer("all", 0), "x": refer("x", index), "it": refer("it", index)}
    fields |= {"name": noun_of[names[index]], "o": refer("x", len(names) - 1 - index)}
    if "side" in change:
        fields["side"] = sides[change["side"]][0]
    if kind in ("replace", "add"):
        fields["n"] = choose(nouns[change["new"]], None)
    section = "take off" if "old" in change else kind
    value = change.get("old", change.get("new"))
    for (table, form), synonyms in book.words.items():
        if table == section and value in synonyms:
            fields[form] = choose(synonyms[value], None)
    return fields


def _punctuate(text: str, form: str, rng: random.Random, language: str) -> str:
    """As people type: mostly as it stands, sometimes with a capital and a full stop."""
    style = rng.random()
    if style < 0.6:
        return text
    if style < 0.8:
        return text.rstrip("?？")
    stop = "" if form == "question" or text[-1] in "?？" else "."
    return text[0].upper() + text[1:] + (stop if language == "en" else stop and "。")


def normalise(text: str) -> str:
    """Lower case and single spaces, without punctuation but for braces of fields."""
    text = re.sub(r"[^\w\s{}]", "", text.lower().replace("-", " "))
    return " ".join(text.split())


def could_ask(
    instruction: str,
    scene: Scene | ParsedCaption,
    kind: str,
    change: dict[str, str],
    wordings: Sequence[str] = ("train", "held-out"),
) -> bool:
    """Whether ``instruct`` can have worded this edit as this instruction.

    Args:
        instruction: in English or Chinese; capitals and punctuation do not matter.
        scene: the scene before the edit, or what its caption says.
        kind, change: as in ``instruct``; without ``side`` any side will do.
        wordings: of the phrasings to compare with.
    """
    language = "zh" if _CHINESE.search(instruction) else "en"
    book, text = load_phrasebook(language), normalise(instruction)
    fields = _fill_fields(scene, kind, change, book, _any_of)
    fields.setdefault("side", _any_of([*chain(*book.words["side", "n"].values())]))
    opened = list(_without_openers(text, book))
    for wording in wordings:
        fitting = _fitting_phrasings(scene, kind, change, wording, language)
        for phrasing in chain(*fitting):
            template = re.sub(r"\ba (?=\{)", "an? ", normalise(phrasing.text))
            literals = re.split(r"(?:\ban\? )?\{\w+\}", template)
            if all(part in text for part in literals):  # cheap, and seldom true
                plain = phrasing.form == "plain"
                texts = [t for t, held_out in opened if held_out == phrasing.held_out]
                pattern = re.compile(template.format_map(fields))
                if any(map(pattern.fullmatch, [text, *texts] if plain else [text])):
                    return True
    return False


def _any_of(texts: Sequence[str], shares: Sequence[int] | None = None) -> str:
    """A pattern for any of the texts, whatever their shares."""
    return f"(?:{'|'.join(map(normalise, texts))})"


def _without_openers(text: str, book: Phrasebook) -> Iterator[tuple[str, bool]]:
    """The text inside each opener that fits, and whether the opener is held out."""
    for opener in book.phrasings["openers"]:
        # An opener is normalised with a word in place of its dots, to keep the spaces.
        pattern = normalise(opener.text.replace("...", "{}")).replace("{}", "(.+)")
        if match := re.fullmatch(pattern, text):
            yield match[1], opener.held_out
