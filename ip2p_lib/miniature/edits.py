"""What each kind of edit does to a scene."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.scenes import BASES, CENTRES, SIZES, Scene, Thing


def draw_thing(rng: random.Random, name: str, x: int, sizes: tuple[int, ...]) -> Thing:
    """One object of a given name and centre, everything else drawn."""
    return Thing(
        name=name,
        x=x,
        base=rng.choice(BASES),
        size=rng.choice(sizes),
        mirrored=rng.random() < 0.5,
        finish=rng.choice(list(words.FINISHES)) if rng.random() < 0.2 else None,
        accessory=rng.choice(list(words.ACCESSORIES)) if rng.random() < 0.2 else None,
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
    new = replace(draw_thing(rng, name, x, SIZES[:1]), finish=None, accessory=None)
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
