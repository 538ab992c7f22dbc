"""Scenes and edits as data: everything an image of the miniature world shows."""

from dataclasses import dataclass
from typing import NamedTuple

# Left, middle and right of the image, in pixels; two objects stand left and right.
CENTRES = (32, 64, 96)
SIZES = (48, 56, 64)  # a single object; two objects take the smaller ones
BASES = (104, 112, 120)  # the line an object stands on, in pixels from the top
VARIATIONS = 64  # of land, sun and flakes, which captions do not mention


@dataclass(frozen=True)
class SceneObject:
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
    """Everything an image of the miniature world shows."""

    things: tuple[SceneObject, ...]  # one or two, from left to right
    place: str
    time: str
    weather: str
    medium: str
    art: str  # the emoji set of the sprites, one of ``vocabulary.ART_SETS``
    variation: int  # 0 .. VARIATIONS - 1


@dataclass(frozen=True)
class Edit:
    """One change of a scene: as an instruction, and as the scene it leads to."""

    kind: str  # edit type, one of ``world.KINDS``
    instruction: str
    target: Scene
    language: str = "en"


class ObjectWords(NamedTuple):
    """One object as a caption describes it."""

    name: str
    finish: str | None
    accessory: str | None


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption says of a scene, its objects from left to right."""

    things: tuple[ObjectWords, ...]
    medium: str
    place: str | None
    time: str
    weather: str
    rest: str  # what this world has no words for
    sides: tuple[str | None, ...] = ()  # left, middle, right, or not said
    art: str | None = None  # the art set, or not said
