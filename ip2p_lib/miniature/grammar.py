"""Puts scenes and edits into words: captions and instructions in two languages.

The wordings are read from ``data/phrasings``; ``parsing`` is the inverse.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.phrasings import (
    LANGUAGES,
    Phrasebook,
    Phrasing,
    load_captions,
    load_phrasebook,
)
from ip2p_lib.miniature.scenes import CENTRES, Scene, SceneObject

SIDES = {
    "en": ("on the left", "in the middle", "on the right"),
    "zh": ("左边", "中间", "右边"),
}
# Edit types whose phrasings must say which object they mean if there are two.
REFERRING = ("replace", "remove", "material", "colour", "accessory", "take off")
_SPECIFIC = 0.4  # share of phrasings of one value, where there are any
_OPENED = 0.25  # share of plain phrasings with an opener


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    # "a unicorn", "an hourglass": as they are spoken, not as they are written.
    an = noun[0] in "aeiou" and not noun.startswith(("uni", "ufo"))
    an = an or noun.startswith("hour")
    return f"{'an' if an else 'a'} {noun}"


def describe(scene: Scene, seed: int, language: str) -> str:
    """Describe a scene as ``world.caption`` does: the sentence derived from a seed.

    Every choice is drawn whether or not it is used, so that captions of two scenes
    with one seed differ only where the scenes do.
    """
    if language not in LANGUAGES:
        raise ValueError(f"Captions are in 'en' or 'zh', not in {language!r}.")
    rng = random.Random(f"caption {seed}")
    phrasings = load_captions(language)
    pattern = rng.choice(phrasings.patterns)
    pick = [rng.randrange(2) for _ in range(6)]
    shares = [share for share, _, _ in phrasings.objects]
    ((_, two, one),) = rng.choices(phrasings.objects, shares)
    if " with {" in two:
        pick[5] = 0  # "wearing a crown": one "with" is enough
    said = [
        _describe_object(thing, (pick[4], pick[5]), language) for thing in scene.things
    ]
    sides = [SIDES[language][_nearest(thing.x)] for thing in scene.things]
    objects = (two if len(said) == 2 else one).format_map(
        {
            "left": said[0],
            "right": said[-1],
            "left side": sides[0],
            "right side": sides[-1],
        }
    )
    return _join(
        pattern, {"o": objects, **_attributes(scene, pick, language)}, language
    )


def _nearest(x: int) -> int:
    """Index of the centre that is nearest to a position: left, middle or right."""
    return min(range(3), key=lambda index: abs(CENTRES[index] - x))


def _attributes(scene: Scene, pick: list[int], language: str) -> dict[str, str]:
    """What a caption says of the scene's attributes; "" of what is usual."""
    entries = {
        "m": words.MEDIA[scene.medium],
        "p": words.PLACES[scene.place],
        "t": words.TIMES[scene.time],
        "w": words.WEATHERS[scene.weather],
    }
    if language == "en":
        pairs = zip(entries.items(), pick, strict=False)
        return {name: entry.captions[i] for (name, entry), i in pairs}
    return {
        name: entry.zh if all(entry.captions) else "" for name, entry in entries.items()
    }


def _join(pattern: Sequence[str], parts: dict[str, str], language: str) -> str:
    """Fill a caption's pattern and close it up where a part says nothing."""
    if pattern[0] == "{m}" and not parts["m"]:
        parts["m"] = "a picture"
    filled = [
        part.format_map(parts)
        for part in pattern
        if all(parts[name] for name in re.findall(r"\{(\w)\}", part))
    ]
    if language == "zh":
        return "".join(filled).lstrip("，")
    return re.sub(r" (?=[,:])", "", " ".join(filled)).lstrip(",: ")


def _describe_object(
    thing: SceneObject, synonyms: tuple[int, int], language: str
) -> str:
    if language == "zh":
        worn = f"戴{words.ACCESSORIES[thing.accessory].zh}的" if thing.accessory else ""
        finish = words.FINISHES[thing.finish].zh if thing.finish else ""
        return f"{worn}{finish}{words.OBJECTS[thing.name][1]}"
    noun = thing.name
    if thing.finish:
        noun = words.FINISHES[thing.finish].captions[synonyms[0]].format(noun)
    if thing.accessory:
        noun += f" {words.ACCESSORIES[thing.accessory].captions[synonyms[1]]}"
    return article(noun)


def instruct(
    scene: Scene,
    kind: str,
    change: dict[str, str],
    rng: random.Random,
    wording: str,
    language: str,
) -> str:
    """Put an edit into words.

    Args:
        scene: the scene before the edit.
        kind: an edit type.
        change: ``new``, the new value; ``object``, the name of the object concerned;
            ``old``, an accessory that is taken off; ``side``, where an object is added.
        rng: chooses the phrasing and the synonyms.
        wording: ``"train"`` or ``"held-out"``.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: another wording.
    """
    if wording not in ("train", "held-out"):
        raise ValueError(f"The wording is 'train' or 'held-out', not {wording!r}.")
    held_out, book = wording == "held-out", load_phrasebook(language)
    name = "take off" if "old" in change else kind
    fitting = [
        phrasing
        for phrasing in book.phrasings[name]
        if phrasing.held_out == held_out and _fits(phrasing, scene, change)
    ]
    general = [phrasing for phrasing in fitting if not phrasing.values]
    specific = [phrasing for phrasing in fitting if phrasing.values]
    chosen = rng.choice(specific if specific and rng.random() < _SPECIFIC else general)
    text = _fill(chosen.text, _fields(scene, name, change, rng, book))
    if chosen.form == "plain" and rng.random() < _OPENED:
        openers = book.phrasings["openers"]
        opener = rng.choice([o for o in openers if o.held_out == held_out])
        text = opener.text.replace("...", text)
    return _punctuate(text, chosen.form, rng, language)


def _fits(phrasing: Phrasing, scene: Scene, change: dict[str, str]) -> bool:
    """Whether a phrasing says what changes, without doubt, in this scene."""
    value = change.get("new", change.get("old"))
    if phrasing.values and value not in phrasing.values:
        return False
    if phrasing.before and getattr(scene, phrasing.kind) != phrasing.before:
        return False
    fields = phrasing.fields
    if len(scene.things) == 1:
        return "o" not in fields
    if phrasing.kind not in REFERRING or fields & {"x", "it", "name", "o"}:
        return True
    # What only one of the two wears needs no other name.
    worn = [thing.accessory for thing in scene.things]
    return "old" in change and worn.count(change["old"]) == 1


def _synonym(rng: random.Random, said: tuple[str, ...]) -> str:
    """The commonest word half of the time, else any."""
    return said[0] if rng.random() < 0.5 else rng.choice(said)


def _fields(
    scene: Scene,
    kind: str,
    change: dict[str, str],
    rng: random.Random,
    book: Phrasebook,
) -> dict[str, str]:
    """A text for every field that a phrasing of this edit type may have."""
    names = [thing.name for thing in scene.things]
    nouns = book.words["object", "n"]
    found = {name: _synonym(rng, nouns[name]) for name in names}

    def refer(field: str, index: int) -> str:
        """Refer to the object at ``index``, from the left."""
        ways = book.references.get((field, len(names))) or book.references["x", 2]
        ((_, text),) = rng.choices(ways, [share for share, _ in ways])
        side = book.words["side", "n"][("left", "right")[index]][0]
        return text.format(name=found[names[index]], side=side, other=found[names[-1]])

    index = names.index(change["object"]) if "object" in change else 0
    fields = {"all": refer("all", 0), "x": refer("x", index), "it": refer("it", index)}
    fields |= {"name": found[names[index]], "o": refer("x", len(names) - 1 - index)}
    if "side" in change:
        fields["side"] = book.words["side", "n"][change["side"]][0]
    if "new" in change and kind in ("replace", "add"):
        fields["n"] = _synonym(rng, nouns[change["new"]])
    value = change.get("old", change.get("new"))
    for (table, form), said in book.words.items():
        if table == kind and value in said:
            fields[form] = _synonym(rng, said[value])
    return fields


def _fill(text: str, fields: dict[str, str]) -> str:
    """A phrasing with its fields filled, and "an" for "a" where it must be."""
    text = re.sub(r"\ba \{(\w+)\}", lambda match: article(fields[match[1]]), text)
    return text.format_map(fields)


def _punctuate(text: str, form: str, rng: random.Random, language: str) -> str:
    """As people type: mostly as it stands, sometimes with a capital and a full stop."""
    style = rng.random()
    if style < 0.6:
        return text
    if style < 0.8:
        return text.rstrip("?？")
    stop = "" if form == "question" or text[-1] in "?？" else "."
    return text[0].upper() + text[1:] + (stop if language == "en" else stop and "。")
