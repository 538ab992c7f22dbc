"""What the judge is asked about a picture, its answers, and how many are right.

Things have two slots, from left to right as in a ``Scene``; a lone thing is the left
one wherever it stands, and the right one is then "none". So one or two things in either
order are the same eleven questions, each with one table of answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product, starmap
from operator import attrgetter

from torch import Tensor

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.render import OBJECT_COLUMNS, SCENE_COLUMNS, encode
from ip2p_lib.miniature.scenes import Scene

NONE = "none"  # no finish, no accessory, no right thing
COLOURLESS = ("black and white", "line drawing")  # media that hide every finish
# The questions about a scene and about a thing, each with the column of the scene's
# code that answers it and all answers in the order of that code.
SCENE: dict[str, tuple[int, tuple[str, ...]]] = {
    "place": (0, tuple(words.PLACES)),
    "time": (1, tuple(words.TIMES)),
    "weather": (2, tuple(words.WEATHERS)),
    "medium": (3, tuple(words.MEDIA)),
    "art": (4, words.ART_SETS),
}
THING: dict[str, tuple[int, tuple[str, ...]]] = {
    "name": (0, (NONE, *words.OBJECTS)),
    "finish": (5, (NONE, *words.FINISHES)),
    "accessory": (6, (NONE, *words.ACCESSORIES)),
}
SLOTS = ("left", "right")
# Every attribute of a reading, such as "place" and "left.name", with its answers.
ANSWERS: dict[str, tuple[str, ...]] = {
    **{name: answers for name, (_, answers) in SCENE.items()},
    **{f"{s}.{name}": answers for s in SLOTS for name, (_, answers) in THING.items()},
}
Table = Mapping[str, float]  # answer -> probability


@dataclass(frozen=True)
class ThingReading:
    """What is read of one thing; "none" is an answer in each table."""

    name: Table
    finish: Table
    accessory: Table


@dataclass(frozen=True)
class Reading:
    """What is read of one picture: a table of probabilities for each attribute."""

    place: Table
    time: Table
    weather: Table
    medium: Table
    art: Table
    left: ThingReading
    right: ThingReading  # of a lone thing's picture: "none"

    def best(self, attribute: str) -> str:
        """The likeliest answer; ``attribute`` is a key of ``ANSWERS``.

        Raises:
            ValueError: there is no such attribute.
        """
        if attribute not in ANSWERS:
            known = ", ".join(ANSWERS)
            raise ValueError(f"No attribute {attribute!r}. Choose one of {known}.")
        table: Table = attrgetter(attribute)(self)
        return max(table, key=table.__getitem__)

    def objects(self) -> tuple[str, ...]:
        """Names of the things read, from left to right."""
        names = (self.best(f"{slot}.name") for slot in SLOTS)
        return tuple(name for name in names if name != NONE)

    def probability(self, name: str) -> float:
        """Probability that an object of this name is shown, in either slot.

        Raises:
            KeyError: the world has no such object.
        """
        # The two things of a scene differ, so the two events exclude each other.
        return min(1.0, self.left.name[name] + self.right.name[name])


def readings_of(logits: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Turn logits, (B, answers) for each attribute, into B readings."""
    chances = {name: logits[name].double().softmax(1).tolist() for name in ANSWERS}
    for row in zip(*chances.values(), strict=True):
        tables = {
            name: dict(zip(ANSWERS[name], shares, strict=True))
            for name, shares in zip(ANSWERS, row, strict=True)
        }
        things = [
            ThingReading(**{name: tables[f"{slot}.{name}"] for name in THING})
            for slot in SLOTS
        ]
        scene = {name: tables[name] for name in SCENE}
        yield Reading(**scene, left=things[0], right=things[1])


def labels(codes: Tensor) -> dict[str, Tensor]:
    """The right answers: (B,) index into ``ANSWERS[attribute]`` for each attribute.

    Args:
        codes: (B, 20) from ``render.encode``.
    """
    found = {name: codes[:, column] for name, (column, _) in SCENE.items()}
    for index, slot in enumerate(SLOTS):
        start = SCENE_COLUMNS + index * OBJECT_COLUMNS
        for name, (column, _) in THING.items():
            found[f"{slot}.{name}"] = codes[:, start + column] + 1  # -1 is "none"
    return found


def agreement(
    readings: Sequence[Reading], scenes: Sequence[Scene] | Tensor
) -> dict[str, float]:
    """Share of right answers, 0 to 1, of readings of the pictures of known scenes.

    Args:
        readings: B readings.
        scenes: the B scenes, or their codes from ``render.encode``, (B, 20).

    Returns:
        ``place``, ``time``, ``weather``, ``medium``, ``art``: of all scenes;
        ``objects``: of the scenes, all names right and none too many, in either order;
        ``name``, ``finish``, ``accessory``: of the things, each in its slot, and
        ``finish`` only where the medium shows colours. An attribute that no scene asks
        for is left out.

    Raises:
        ValueError: there are more readings than scenes, or fewer.
    """
    codes = scenes if isinstance(scenes, Tensor) else encode(scenes)
    right: dict[str, list[bool]] = {}
    rows = zip(readings, _answers(codes), strict=True)
    for name, is_right in chain.from_iterable(starmap(_verdicts, rows)):
        right.setdefault(name, []).append(is_right)
    return {name: sum(found) / len(found) for name, found in right.items()}


def _answers(codes: Tensor) -> list[dict[str, str]]:
    columns = {name: rows.tolist() for name, rows in labels(codes).items()}
    return [
        {name: ANSWERS[name][columns[name][row]] for name in ANSWERS}
        for row in range(len(codes))
    ]


def _verdicts(
    reading: Reading, answers: Mapping[str, str]
) -> Iterator[tuple[str, bool]]:
    """Each question that counts, and whether it was answered rightly."""
    for name in SCENE:
        yield name, reading.best(name) == answers[name]
    shown = [slot for slot in SLOTS if answers[f"{slot}.name"] != NONE]
    names = sorted(answers[f"{slot}.name"] for slot in shown)
    yield "objects", sorted(reading.objects()) == names
    for slot, name in product(shown, THING):
        if name != "finish" or answers["medium"] not in COLOURLESS:
            attribute = f"{slot}.{name}"
            yield name, reading.best(attribute) == answers[attribute]
