"""Describes scenes in one sentence; ``parsing.read_caption`` is the inverse."""

import random
import re
from collections.abc import Sequence

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.phrasings import LANGUAGES, load_captions
from ip2p_lib.miniature.scenes import CENTRES, Scene, SceneObject

SIDES = {
    "en": ("on the left", "in the middle", "on the right"),
    "zh": ("左边", "中间", "右边"),
}


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    # "a unicorn", "an hourglass": as they are spoken, not as they are written.
    an = noun[0] in "aeiou" and not noun.startswith(("uni", "ufo"))
    an = an or noun.startswith("hour")
    return f"{'an' if an else 'a'} {noun}"


def caption(
    scene: Scene, seed: int = 0, language: str = "en", art: bool | None = None
) -> str:
    """Describe a scene in one sentence.

    Args:
        seed: chooses the phrasing and the synonyms; equal seeds describe two scenes
            alike, so that captions before and after an edit differ where scenes do.
        language: ``"en"`` or ``"zh"``, else ValueError.
        art: whether to name the art set, so that images of both captions are drawn
            alike; None leaves it to ``seed``.
    """
    if language not in LANGUAGES:
        raise ValueError(f"Captions are in 'en' or 'zh', not in {language!r}.")
    rng = random.Random(f"caption {seed}")
    phrasings = load_captions(language)
    pattern = rng.choice(phrasings.patterns)
    # Every choice is drawn whether or not it is used: see ``seed``.
    synonyms = [rng.randrange(2) for _ in range(6)]
    shares = [share for share, _, _ in phrasings.objects]
    ((_, two, one),) = rng.choices(phrasings.objects, shares)
    if " with {" in two:
        synonyms[5] = 0  # "wearing a crown": one "with" is enough
    texts = [_describe_object(t, synonyms[4:], language) for t in scene.things]
    centres = [min(CENTRES, key=lambda x: abs(x - t.x)) for t in scene.things]
    sides = [SIDES[language][CENTRES.index(centre)] for centre in centres]
    fields = {"left": texts[0], "right": texts[-1]}
    fields |= {"left side": sides[0], "right side": sides[-1]}
    objects = (two if len(texts) == 2 else one).format_map(fields)
    parts = {"o": objects, **_attributes(scene, synonyms, language)}
    text = _join(pattern, parts, language)
    if art is None:
        art = random.Random(f"art {seed}").random() * 100 < phrasings.art_share
    style = words.ART_STYLES[language][scene.art]
    return text + phrasings.art.format(style=style) if art else text


def _attributes(scene: Scene, synonyms: list[int], language: str) -> dict[str, str]:
    """What a caption says of the scene's attributes; "" of what is usual."""
    entries = {
        "m": words.MEDIA[scene.medium],
        "p": words.PLACES[scene.place],
        "t": words.TIMES[scene.time],
        "w": words.WEATHERS[scene.weather],
    }
    if language == "zh":
        return {n: e.zh if all(e.captions) else "" for n, e in entries.items()}
    pairs = zip(entries.items(), synonyms, strict=False)
    return {name: entry.captions[i] for (name, entry), i in pairs}


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


def _describe_object(obj: SceneObject, synonyms: list[int], language: str) -> str:
    """Name an object, its finish and its accessory."""
    finish = words.MATERIALS_AND_COLOURS[obj.finish] if obj.finish else None
    accessory = words.ACCESSORIES[obj.accessory] if obj.accessory else None
    if language == "zh":
        worn = f"戴{accessory.zh}的" if accessory else ""
        return worn + (finish.zh if finish else "") + words.OBJECTS[obj.name][1]
    noun = finish.captions[synonyms[0]].format(obj.name) if finish else obj.name
    return article(f"{noun} {accessory.captions[synonyms[1]]}" if accessory else noun)
