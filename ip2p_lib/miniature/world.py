"""Scenes as data, and edits that change one attribute of a scene.

A scene says everything a picture shows, so the exact result of an edit can be rendered:
``render([edit.target])`` is the ground truth. Captions and instructions are put into
words by ``phrases``, pixels by ``render``.

Seeds from ``config.HELD_OUT`` (10^9) on are never trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ip2p_lib.miniature import vocabulary as words

# Left, middle and right of the picture, in pixels; two objects stand left and right.
CENTRES = (32, 64, 96)
SIZES = (48, 56, 64)  # a single object; two objects take the smaller ones
BASES = (104, 112, 120)  # the line an object stands on, in pixels from the top
VARIATIONS = 64  # lie of the land, sun, flakes: what captions do not mention


@dataclass(frozen=True)
class Thing:
    """One object of a scene: a sprite, where it stands and what it looks like."""

    name: str
    x: int  # centre, pixels
    base: int  # bottom edge, pixels from the top
    size: int  # side of the sprite, pixels
    mirrored: bool = False
    finish: str | None = None  # a material or a colour
    accessory: str | None = None


@dataclass(frozen=True)
class Scene:
    """Everything a picture of the miniature world shows."""

    things: tuple[Thing, ...]  # one or two, from left to right
    place: str
    time: str
    weather: str
    medium: str
    art: str  # the emoji set the sprites come from
    variation: int  # 0 .. VARIATIONS - 1


@dataclass(frozen=True)
class Edit:
    """One change of a scene: in words, and as the scene it leads to."""

    kind: str
    instruction: str
    target: Scene
    language: str = "en"


def _thing(rng: random.Random, name: str, x: int, sizes: tuple[int, ...]) -> Thing:
    return Thing(
        name=name,
        x=x,
        base=rng.choice(BASES),
        size=rng.choice(sizes),
        mirrored=rng.random() < 0.5,
        finish=rng.choice(list(words.FINISHES)) if rng.random() < 0.2 else None,
        accessory=rng.choice(list(words.ACCESSORIES)) if rng.random() < 0.2 else None,
    )


def _things(rng: random.Random) -> tuple[Thing, ...]:
    if rng.random() < 0.6:
        name = rng.choice(list(words.OBJECTS))
        return (_thing(rng, name, rng.choice(CENTRES), SIZES),)
    names = rng.sample(list(words.OBJECTS), 2)
    places = (CENTRES[0], CENTRES[2])
    pairs = zip(names, places, strict=True)
    return tuple(_thing(rng, name, x, SIZES[:2]) for name, x in pairs)


def _often(rng: random.Random, values: list[str], usual: float) -> str:
    """The first value with probability ``usual``, else any of the others."""
    return values[0] if rng.random() < usual else rng.choice(values[1:])


def sample_scene(seed: int) -> Scene:
    """Draw one scene.

    Args:
        seed: any integer; the same seed always gives the same scene. Models are
            trained on seeds below ``config.HELD_OUT`` only.
    """
    rng = random.Random(f"scene {seed}")
    return Scene(
        things=_things(rng),
        place=rng.choice(list(words.PLACES)),
        time=_often(rng, list(words.TIMES), 0.5),
        weather=_often(rng, list(words.WEATHERS), 0.4),
        medium=_often(rng, list(words.MEDIA), 0.5),
        art=rng.choice(words.ART_SETS),
        variation=rng.randrange(VARIATIONS),
    )


def _other(rng: random.Random, table: dict, *taken: str | None) -> str:
    return rng.choice([name for name in table if name not in taken])


def _put(scene: Scene, index: int, thing: Thing) -> Scene:
    things = list(scene.things)
    things[index] = thing
    return replace(scene, things=tuple(things))


# What an edit did: the attribute's old and new value, and the object it concerns.
Change = tuple[Scene, dict[str, str]]


def _replace(rng: random.Random, scene: Scene) -> Change:
    index = rng.randrange(len(scene.things))
    old = scene.things[index]
    new = _other(rng, words.OBJECTS, *(thing.name for thing in scene.things))
    target = _put(scene, index, replace(old, name=new))
    return target, {"object": old.name, "new": new}


def _add(rng: random.Random, scene: Scene) -> Change:
    (old,) = scene.things
    name = _other(rng, words.OBJECTS, old.name)
    # The free side; beside an object in the middle that is the right, further out.
    x = CENTRES[0] if old.x == CENTRES[2] else CENTRES[2] + (old.x == CENTRES[1]) * 8
    new = replace(_thing(rng, name, x, SIZES[:1]), finish=None, accessory=None)
    things = sorted((old, new), key=lambda thing: thing.x)
    return replace(scene, things=tuple(things)), {"new": name, "object": old.name}


def _remove(rng: random.Random, scene: Scene) -> Change:
    index = rng.randrange(2)
    left = scene.things[1 - index]
    target = replace(scene, things=(left,))
    return target, {"object": scene.things[index].name, "other": left.name}


def _whole(attribute: str, table: dict) -> Callable[[random.Random, Scene], Change]:
    """An edit of one attribute of the whole scene."""

    def change(rng: random.Random, scene: Scene) -> Change:
        new = _other(rng, table, getattr(scene, attribute))
        return replace(scene, **{attribute: new}), {"new": new}  # type: ignore[arg-type]

    return change


def _finish(table: dict) -> Callable[[random.Random, Scene], Change]:
    """An edit of the material or colour of one object."""

    def change(rng: random.Random, scene: Scene) -> Change:
        index = rng.randrange(len(scene.things))
        thing = scene.things[index]
        new = _other(rng, table, thing.finish)
        target = _put(scene, index, replace(thing, finish=new))
        return target, {"object": thing.name, "new": new}

    return change


def _accessory(rng: random.Random, scene: Scene) -> Change:
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    if thing.accessory and rng.random() < 0.5:
        target = _put(scene, index, replace(thing, accessory=None))
        return target, {"object": thing.name, "old": thing.accessory}
    new = _other(rng, words.ACCESSORIES, thing.accessory)
    target = _put(scene, index, replace(thing, accessory=new))
    return target, {"object": thing.name, "new": new}


CHANGES: dict[str, Callable[[random.Random, Scene], Change]] = {
    "replace": _replace,
    "add": _add,
    "remove": _remove,
    "place": _whole("place", words.PLACES),
    "time": _whole("time", words.TIMES),
    "weather": _whole("weather", words.WEATHERS),
    "medium": _whole("medium", words.MEDIA),
    "material": _finish(words.MATERIALS),
    "colour": _finish(words.COLOURS),
    "accessory": _accessory,
}
KINDS = tuple(CHANGES)


def possible_kinds(scene: Scene) -> tuple[str, ...]:
    """The kinds of edit a scene allows.

    Adding needs one object, removing two; a drawing without colours shows neither a
    colour nor a material.
    """
    barred = {"remove" if len(scene.things) == 1 else "add"}
    if scene.medium in ("black and white", "line drawing"):
        barred |= {"colour", "material"}
    return tuple(kind for kind in KINDS if kind not in barred)


def sample_edit(
    scene: Scene, seed: int, kind: str | None = None, wording: str = "train"
) -> Edit:
    """Draw one edit of a scene, with its instruction and its exact result.

    Args:
        scene: the scene to edit.
        seed: any integer; decides the change, the language and the phrasing.
        kind: one of ``KINDS``; ``None`` draws among those the scene allows.
        wording: ``"train"``, or ``"held-out"`` for phrasings no model was trained on.

    Raises:
        ValueError: an unknown kind or wording, or a kind this scene does not allow.
    """
    from ip2p_lib.miniature.phrases import instruct

    rng = random.Random(f"edit {seed}")
    allowed = possible_kinds(scene)
    chosen = rng.choice(allowed) if kind is None else kind
    if chosen not in allowed:
        raise ValueError(
            f"An edit of kind {chosen!r} is not possible here: this scene is a "
            f"{scene.medium} of {len(scene.things)} object(s). Choose one of "
            f"{', '.join(allowed)}."
        )
    target, change = CHANGES[chosen](rng, scene)
    language = "zh" if rng.random() < 0.25 else "en"
    instruction = instruct(chosen, change, rng, wording, language)
    return Edit(chosen, instruction, target, language)


def caption(scene: Scene, seed: int = 0, language: str = "en") -> str:
    """Describe a scene in one sentence.

    Args:
        scene: the scene to describe.
        seed: chooses the phrasing and the synonyms; equal seeds describe two scenes
            alike, so that captions before and after an edit differ where scenes do.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: another language.
    """
    from ip2p_lib.miniature.phrases import describe

    return describe(scene, seed, language)
