"""Samples scenes of the miniature world, and edits that change one attribute.

A scene says everything an image shows, so the exact result of an edit can be rendered:
``render([edit.target])`` is the ground truth. Seeds from ``config.HELD_OUT`` (10^9) on
are never trained on.
"""

import random
from dataclasses import replace

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.captions import caption as caption  # mypy: re-exported
from ip2p_lib.miniature.instructions import instruct
from ip2p_lib.miniature.scenes import (
    BASES,
    CENTRES,
    SIZES,
    VARIATIONS,
    Edit,
    Scene,
    SceneObject,
)


def _draw_object(
    rng: random.Random, name: str, x: int, sizes: tuple[int, ...]
) -> SceneObject:
    """One object of a given name and centre, everything else drawn."""
    return SceneObject(
        name=name,
        x=x,
        base=rng.choice(BASES),
        size=rng.choice(sizes),
        mirrored=rng.random() < 0.5,
        finish=rng.choice(list(words.MATERIALS_AND_COLOURS))
        if rng.random() < 0.2
        else None,
        accessory=rng.choice(list(words.ACCESSORIES)) if rng.random() < 0.2 else None,
    )


def _draw_objects(rng: random.Random) -> tuple[SceneObject, ...]:
    if rng.random() < 0.6:
        name = rng.choice(list(words.OBJECTS))
        return (_draw_object(rng, name, rng.choice(CENTRES), SIZES),)
    pairs = zip(rng.sample(list(words.OBJECTS), 2), CENTRES[::2], strict=True)
    return tuple(_draw_object(rng, name, x, SIZES[:2]) for name, x in pairs)


def _draw_value(rng: random.Random, table: dict, usual: float) -> str:
    """The first value with probability ``usual``, else any of the others."""
    first, *others = table
    return first if rng.random() < usual else rng.choice(others)


def sample_scene(seed: int) -> Scene:
    """Draw the scene of any integer; ``config.HELD_OUT`` and above train no model."""
    rng = random.Random(f"scene {seed}")
    return Scene(
        things=_draw_objects(rng),
        place=rng.choice(list(words.PLACES)),
        time=_draw_value(rng, words.TIMES, 0.5),
        weather=_draw_value(rng, words.WEATHERS, 0.4),
        medium=_draw_value(rng, words.MEDIA, 0.5),
        art=rng.choice(words.ART_SETS),
        variation=rng.randrange(VARIATIONS),
    )


# Edit types of one object: the attribute that gets another value of a table.
_OF_OBJECTS: dict[str, tuple[str, dict]] = {
    "replace": ("name", words.OBJECTS),
    "material": ("finish", words.MATERIALS),
    "colour": ("finish", words.COLOURS),
    "accessory": ("accessory", words.ACCESSORIES),
}
KINDS = ("replace", "add", "remove", *words.SCENE, "material", "colour", "accessory")
# What an edit leads to, and what ``instruct`` needs to word it.
Change = tuple[Scene, dict[str, str]]


def _draw_other(rng: random.Random, table: dict, *excluded: str | None) -> str:
    return rng.choice([name for name in table if name not in excluded])


def _with_object(scene: Scene, index: int, **changes: str | None) -> Scene:
    """The scene with other attributes of one object."""
    objects = list(scene.things)
    objects[index] = replace(objects[index], **changes)  # type: ignore[arg-type]
    return replace(scene, things=tuple(objects))


def _add(rng: random.Random, scene: Scene) -> Change:
    (old,) = scene.things
    name = _draw_other(rng, words.OBJECTS, old.name)
    # The free side; beside an object in the middle that is the right, further out.
    x = CENTRES[0] if old.x == CENTRES[2] else CENTRES[2] + (old.x == CENTRES[1]) * 8
    new = replace(_draw_object(rng, name, x, SIZES[:1]), finish=None, accessory=None)
    objects = sorted((old, new), key=lambda obj: obj.x)
    change = {"new": name, "side": "left" if x < old.x else "right"}
    return replace(scene, things=tuple(objects)), change


def _draw_change(rng: random.Random, scene: Scene, kind: str) -> Change:
    """Draw an edit of one type, which the scene allows."""
    if kind in words.SCENE:
        new = _draw_other(rng, words.SCENE[kind], getattr(scene, kind))
        return replace(scene, **{kind: new}), {"new": new}  # type: ignore[arg-type]
    if kind == "add":
        return _add(rng, scene)
    index = rng.randrange(len(scene.things))
    obj, change = scene.things[index], {"object": scene.things[index].name}
    if kind == "remove":
        return replace(scene, things=(scene.things[1 - index],)), change
    if kind == "accessory" and obj.accessory and rng.random() < 0.5:
        target = _with_object(scene, index, accessory=None)
        return target, {**change, "old": obj.accessory}
    attribute, table = _OF_OBJECTS[kind]
    # A new object is another one than both; a new finish only than that of this one.
    compared = scene.things if kind == "replace" else [obj]
    new = _draw_other(rng, table, *(getattr(thing, attribute) for thing in compared))
    return _with_object(scene, index, **{attribute: new}), {**change, "new": new}


def possible_kinds(scene: Scene) -> tuple[str, ...]:
    """The edit types a scene allows.

    Adding needs one object, removing two; a drawing without colours shows neither a
    colour nor a material.
    """
    barred = {"remove" if len(scene.things) == 1 else "add"}
    if scene.medium in words.COLOURLESS:
        barred |= {"colour", "material"}
    return tuple(kind for kind in KINDS if kind not in barred)


def sample_edit(
    scene: Scene, seed: int, kind: str | None = None, wording: str = "train"
) -> Edit:
    """Draw one edit of a scene, with its instruction and its ground truth.

    Args:
        seed: any integer; decides the change, the language and the phrasing.
        kind: one of ``KINDS``, ValueError if the scene does not allow it; ``None``
            draws among those that it allows.
        wording: ``"train"``, or ``"held-out"`` for phrasings no model was trained on.
    """
    rng = random.Random(f"edit {seed}")
    allowed = possible_kinds(scene)
    edit_type = rng.choice(allowed) if kind is None else kind
    if edit_type not in allowed:
        raise ValueError(
            f"An edit of type {edit_type!r} is not possible here: this scene is a "
            f"{scene.medium} of {len(scene.things)} object(s). Choose one of "
            f"{', '.join(allowed)}."
        )
    target, change = _draw_change(rng, scene, edit_type)
    language = "zh" if rng.random() < 0.25 else "en"
    instruction = instruct(scene, edit_type, change, rng, wording, language)
    return Edit(edit_type, instruction, target, language)
