"""The grammar of the miniature world: scenes and changes put into words."""

from __future__ import annotations

import random

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.phrasings import (
    CAPTIONS,
    CAPTIONS_ZH,
    HELD_OUT_PHRASINGS,
    INSTRUCTIONS,
    INSTRUCTIONS_ZH,
)
from ip2p_lib.miniature.scenes import Scene, Thing


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    # "a unicorn": a vowel that is spoken as a consonant.
    an = noun[0] in "aeiou" and not noun.startswith("uni")
    return f"{'an' if an else 'a'} {noun}"


def describe(scene: Scene, seed: int, language: str) -> str:
    """``world.caption``: the sentence that the grammar derives from a seed."""
    rng = random.Random(f"caption {seed}")
    if language == "en":
        return _describe_en(scene, rng)
    if language == "zh":
        return _describe_zh(scene, rng)
    raise ValueError(f"Captions are in 'en' or 'zh', not in {language!r}.")


def _thing(thing: Thing, synonyms: tuple[int, int]) -> str:
    finish, worn_as = synonyms
    noun = thing.name
    if thing.finish:
        noun = words.FINISHES[thing.finish].captions[finish].format(noun)
    worn = (
        f" {words.ACCESSORIES[thing.accessory].captions[worn_as]}"
        if thing.accessory
        else ""
    )
    return article(noun) + worn


def _describe_en(scene: Scene, rng: random.Random) -> str:
    phrasing = rng.choice(CAPTIONS)
    # Every choice is drawn whether or not it is used, so that captions of two scenes
    # with one seed differ only where the scenes do.
    pick = [rng.randrange(2) for _ in range(6)]
    joint = rng.choice((" and ", " next to ", " beside "))
    parts = {
        "m": words.MEDIA[scene.medium].captions[pick[0]],
        "p": words.PLACES[scene.place].captions[pick[1]],
        "t": words.TIMES[scene.time].captions[pick[2]],
        "w": words.WEATHERS[scene.weather].captions[pick[3]],
        "o": joint.join(_thing(thing, (pick[4], pick[5])) for thing in scene.things),
    }
    if phrasing[0] == "{m}" and not parts["m"]:
        parts["m"] = "a picture"
    filled = [part.format(**parts) for part in phrasing]
    kept = [part for part in filled if part.strip(" ,")]
    return " ".join(kept).replace(" ,", ",").replace(" :", ":")


def _thing_zh(thing: Thing) -> str:
    worn = f"戴{words.ACCESSORIES[thing.accessory].zh}的" if thing.accessory else ""
    finish = f"{words.FINISHES[thing.finish].zh}" if thing.finish else ""
    return f"{worn}{finish}{words.OBJECTS[thing.name][1]}"


def _describe_zh(scene: Scene, rng: random.Random) -> str:
    phrasing = rng.choice(CAPTIONS_ZH)
    time = words.TIMES[scene.time].zh if scene.time != "day" else ""
    weather = words.WEATHERS[scene.weather].zh if scene.weather != "clear" else ""
    medium = words.MEDIA[scene.medium].zh if scene.medium != "photo" else ""
    before = phrasing.startswith("{m}")
    return phrasing.format(
        o="和".join(_thing_zh(thing) for thing in scene.things),
        p=words.PLACES[scene.place].zh,
        t=f"，{time}" if time and "有" in phrasing else time,
        w=f"，{weather}" if weather and "有" in phrasing else weather,
        m=(f"{medium}，" if before else f"，{medium}") if medium else "",
    )


_TABLES = {
    "place": words.PLACES,
    "time": words.TIMES,
    "weather": words.WEATHERS,
    "medium": words.MEDIA,
    "material": words.MATERIALS,
    "colour": words.COLOURS,
    "accessory": words.ACCESSORIES,
}


def _value(kind: str, value: str, language: str) -> str:
    """A new value as an instruction says it."""
    if kind in _TABLES:
        entry = _TABLES[kind][value]
        return entry.noun if language == "en" else entry.zh.rstrip("上里中")
    return value if language == "en" else words.OBJECTS[value][1]


def _object(name: str | None, language: str) -> str:
    if name is None or language == "en":
        return name or ""
    return words.OBJECTS[name][1]


def instruct(
    kind: str, change: dict[str, str], rng: random.Random, wording: str, language: str
) -> str:
    """Put a change into words.

    Args:
        kind: a kind of edit.
        change: ``object``, ``new``, ``old`` and ``other`` as the edit gives them.
        rng: chooses the phrasing.
        wording: ``"train"`` or ``"held-out"``.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: another wording.
    """
    if wording not in ("train", "held-out"):
        raise ValueError(f"The wording is 'train' or 'held-out', not {wording!r}.")
    table = INSTRUCTIONS if language == "en" else INSTRUCTIONS_ZH
    off = "old" in change
    phrasings = table["take off" if off else kind]
    split = len(phrasings) - HELD_OUT_PHRASINGS[language]
    phrasing = rng.choice(
        phrasings[:split] if wording == "train" else phrasings[split:]
    )
    if off:
        accessory = change["old"]
        new = accessory if language == "en" else words.ACCESSORIES[accessory].zh
    else:
        new = _value(kind, change["new"], language) if "new" in change else ""
    return phrasing.format(
        x=_object(change.get("object"), language),
        o=_object(change.get("other"), language),
        n=new,
        an=article(new) if new and language == "en" else new,
    )
