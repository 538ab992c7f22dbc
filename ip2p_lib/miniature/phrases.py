"""The grammar of the miniature world: captions and instructions in two languages.

Captions have six phrasings in English and three in Chinese; each kind of edit has nine
English and four Chinese phrasings, of which the last two and the last one are held out.
"""

from __future__ import annotations

import random

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.world import Scene, Thing

# {m} medium, {o} objects, {p} place, {t} time, {w} weather; empty parts close up.
_CAPTIONS = (
    ("{m}", "of {o}", "{p}", "{t}", "{w}"),
    ("{o}", "{p}", "{w}", "{t}", ", {m}"),
    ("{o}", "{p}", "{t}", "{w}", ", {m}"),
    ("{p}", "{t}", "{w}", ": {o}", ", {m}"),
    ("{m}", "showing {o}", "{p}", "{w}", "{t}"),
    ("{t}", "{w}", "{p}", "there is {o}", ", {m}"),
)
_CAPTIONS_ZH = ("{t}{w}{p}的{o}{m}", "{p}有{o}{t}{w}{m}", "{m}{t}{w}{p}的{o}")

# {x} object, {ax} with its article, {n} new value (a noun), {an} with its article.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "replace": (
        "replace the {x} with {an}",
        "turn the {x} into {an}",
        "swap the {x} for {an}",
        "change the {x} to {an}",
        "make the {x} {an}",
        "put {an} in place of the {x}",
        "have {an} instead of the {x}",
        "have {an} in place of the {x}",
        "let the {x} be {an}",
    ),
    "add": (
        "add {an}",
        "put {an} next to the {x}",
        "add {an} beside the {x}",
        "place {an} in the picture",
        "have {an} stand by the {x}",
        "let there be {an} too",
        "include {an}",
        "put in {an} too",
        "have {an} by the {x}",
    ),
    "remove": (
        "remove the {x}",
        "take the {x} away",
        "delete the {x}",
        "get rid of the {x}",
        "make the {x} disappear",
        "leave only the {o}",
        "erase the {x}",
        "the {x} should disappear",
        "take out the {x}",
    ),
    "place": (
        "change the background to {n}",
        "put it in {n}",
        "move it to {n}",
        "make the background {n}",
        "set the scene in {n}",
        "replace the background with {n}",
        "have it take place in {n}",
        "as if it were in {n}",
        "turn the background into {n}",
    ),
    "time": (
        "make it {n}",
        "turn it into {n}",
        "change the time to {n}",
        "it should be {n}",
        "as if it were {n}",
        "what if it were {n}",
        "have it take place at {n}",
        "set it at {n}",
        "let it be {n}",
    ),
    "weather": (
        "make it {n}",
        "turn it into {n}",
        "change the weather to {n}",
        "as if it were {n}",
        "what if it were {n}",
        "change the season to {n}",
        "have it be {n}",
        "it should be {n}",
        "let it be {n}",
    ),
    "medium": (
        "turn it into {n}",
        "make it {n}",
        "in the style of {n}",
        "as {n}",
        "change the style to {n}",
        "convert it to {n}",
        "have it look like {n}",
        "it should be {n}",
        "make the picture look like {n}",
    ),
    "material": (
        "make the {x} out of {n}",
        "turn the {x} into {n}",
        "change the {x} to {n}",
        "have the {x} made of {n}",
        "make the {x} look like {n}",
        "replace the {x} with one made of {n}",
        "as if the {x} were made of {n}",
        "the {x} should be made of {n}",
        "let the {x} be {n}",
    ),
    "colour": (
        "make the {x} {n}",
        "turn the {x} {n}",
        "change the colour of the {x} to {n}",
        "paint the {x} {n}",
        "colour the {x} {n}",
        "have the {x} be {n}",
        "as if the {x} were {n}",
        "the {x} should be {n}",
        "let the {x} be {n}",
    ),
    "accessory": (
        "give the {x} {n}",
        "put {n} on the {x}",
        "add {n} to the {x}",
        "make the {x} wear {n}",
        "have the {x} wear {n}",
        "dress the {x} with {n}",
        "the {x} with {n}",
        "the {x} should wear {n}",
        "let the {x} have {n}",
    ),
    "take off": (
        "take the {n} off the {x}",
        "remove the {n} from the {x}",
        "the {x} without the {n}",
        "take away the {n} of the {x}",
        "get rid of the {n} on the {x}",
        "make the {n} disappear from the {x}",
        "delete the {n} of the {x}",
        "take the {n} away from the {x}",
        "erase the {n} on the {x}",
    ),
}
INSTRUCTIONS_ZH: dict[str, tuple[str, ...]] = {
    "replace": ("把{x}换成{n}", "用{n}代替{x}", "把{x}变成{n}", "让{x}变成{n}"),
    "add": ("加上{n}", "添加{n}", "在{x}旁边加上{n}", "在{x}旁边放上{n}"),
    "remove": ("去掉{x}", "把{x}去掉", "移除{x}", "把{x}移除"),
    "place": ("把背景换成{n}", "背景变成{n}", "把它放到{n}", "让背景变成{n}"),
    "time": ("变成{n}", "改成{n}", "如果是{n}", "换成{n}"),
    "weather": ("变成{n}", "改成{n}", "如果是{n}", "换成{n}"),
    "medium": ("变成{n}", "改成{n}风格", "画成{n}", "换成{n}"),
    "material": ("把{x}变成{n}做的", "用{n}做{x}", "{x}改成{n}做的", "让{x}变成{n}的"),
    "colour": ("把{x}变成{n}", "{x}改成{n}", "把{x}涂成{n}", "让{x}变成{n}"),
    "accessory": ("给{x}戴上{n}", "让{x}戴上{n}", "{x}戴上{n}", "给{x}加上{n}"),
    "take off": ("去掉{x}的{n}", "把{x}的{n}去掉", "移除{x}的{n}", "把{x}的{n}移除"),
}
_HELD_OUT = {"en": 2, "zh": 1}  # phrasings at the end of each list


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
    phrasing = rng.choice(_CAPTIONS)
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
    phrasing = rng.choice(_CAPTIONS_ZH)
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
    split = len(phrasings) - _HELD_OUT[language]
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
