"""Scenes as data, and edits that change one attribute of a scene.

A scene says everything a picture shows, so the exact result of an edit can be rendered:
``render([edit.target])`` is the ground truth. Captions and instructions are put into
words by ``phrases``, pixels by ``render``.

Seeds from ``config.HELD_OUT`` (10^9) on are never trained on.
"""

from __future__ import annotations

import random

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.edits import CHANGES, KINDS, draw_thing
from ip2p_lib.miniature.grammar import describe, instruct
from ip2p_lib.miniature.scenes import (
    CENTRES,
    SIZES,
    VARIATIONS,
    Edit,
    Scene,
    Thing,
)

__all__ = [
    "KINDS",
    "Edit",
    "Scene",
    "Thing",
    "caption",
    "possible_kinds",
    "sample_edit",
    "sample_scene",
]


def _things(rng: random.Random) -> tuple[Thing, ...]:
    if rng.random() < 0.6:
        name = rng.choice(list(words.OBJECTS))
        return (draw_thing(rng, name, rng.choice(CENTRES), SIZES),)
    names = rng.sample(list(words.OBJECTS), 2)
    places = (CENTRES[0], CENTRES[2])
    pairs = zip(names, places, strict=True)
    return tuple(draw_thing(rng, name, x, SIZES[:2]) for name, x in pairs)


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
    return describe(scene, seed, language)
