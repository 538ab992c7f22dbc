"""What the attribute classifier answers: its attributes, their answers, its readings.

An image has two slots for objects, left and right, in the order of ``Scene.things``. A
lone object is in the left slot wherever it stands, and the right one is then "none". So
one or two objects in any order have the same eleven attributes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.render import split_codes

NONE = "none"  # no finish, no accessory, no object on the right
# All answers about a scene and an object, in the order of the scene's code.
SCENE: dict[str, tuple[str, ...]] = {
    **{name: tuple(table) for name, table in words.SCENE.items()},
    "art": words.ART_SETS,
}
OBJECT: dict[str, tuple[str, ...]] = {
    "name": (NONE, *words.OBJECTS),
    "finish": (NONE, *words.MATERIALS_AND_COLOURS),
    "accessory": (NONE, *words.ACCESSORIES),
}
SLOTS = ("left", "right")
# Every attribute of a reading, such as "place" and "left.name", with its answers.
ANSWERS: dict[str, tuple[str, ...]] = {
    **SCENE,
    **{f"{slot}.{name}": OBJECT[name] for slot in SLOTS for name in OBJECT},
}
Table = Mapping[str, float]  # answer -> probability
Point = tuple[float, float]  # x and y, pixels
Appearance = tuple[str, str, str]  # name, finish and accessory, "none" for neither


@dataclass(frozen=True)
class ObjectReading:
    """What is read in one slot; "none" is an answer in each table."""

    name: Table
    finish: Table
    accessory: Table
    centre: Point  # of no meaning where there is no object

    def best(self) -> Appearance:
        """The likeliest answers."""
        name, finish, accessory = (
            max(table, key=table.__getitem__)
            for table in (self.name, self.finish, self.accessory)
        )
        return name, finish, accessory

    def probability(self, appearance: Appearance) -> float:
        """Probability that the slot shows an object of this appearance."""
        name, finish, accessory = appearance
        return self.name[name] * self.finish[finish] * self.accessory[accessory]


@dataclass(frozen=True)
class Reading:
    """What is read of one image: a table of probabilities for each attribute."""

    place: Table
    time: Table
    weather: Table
    medium: Table
    art: Table
    left: ObjectReading
    right: ObjectReading  # of an image with one object: "none"

    @property
    def slots(self) -> tuple[ObjectReading, ObjectReading]:
        """What is read of the objects, from left to right."""
        return self.left, self.right

    def best(self, attribute: str) -> str:
        """The likeliest answer; ValueError for no key of ``ANSWERS``."""
        if attribute not in ANSWERS:
            known = ", ".join(ANSWERS)
            raise ValueError(f"No attribute {attribute!r}. Choose one of {known}.")
        table: Table = attrgetter(attribute)(self)
        return max(table, key=table.__getitem__)

    def objects(self) -> tuple[str, ...]:
        """Names of the objects, from left to right."""
        names = (slot.best()[0] for slot in self.slots)
        return tuple(name for name in names if name != NONE)


def readings_of(logits: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Turn the logits of B images, from ``Judge.predict``, into B readings."""
    columns = [logits[name].double().softmax(1).tolist() for name in ANSWERS]
    centres = [_centres(logits[f"{slot}.where"]).tolist() for slot in SLOTS]
    for *row, left, right in zip(*columns, *centres, strict=True):
        tables = {
            name: dict(zip(answers, probabilities, strict=True))
            for (name, answers), probabilities in zip(ANSWERS.items(), row, strict=True)
        }
        objects = [
            ObjectReading(
                **{name: tables[f"{slot}.{name}"] for name in OBJECT},
                centre=(centre[0], centre[1]),
            )
            for slot, centre in zip(SLOTS, (left, right), strict=True)
        ]
        scene = {name: tables[name] for name in SCENE}
        yield Reading(**scene, left=objects[0], right=objects[1])


def _centres(where: Tensor) -> Tensor:
    """Mean position, (B, 2) in pixels, from (B, cells) logits."""
    side = int(where.shape[1] ** 0.5)
    axis = (torch.arange(side) + 0.5) * (RESOLUTION / side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return where.float().softmax(1) @ torch.stack([x.flatten(), y.flatten()], 1)


def labels(codes: Tensor) -> dict[str, Tensor]:
    """The right answers of (B, 20) codes: (B,) index into each of ``ANSWERS``."""
    scene, *objects = split_codes(codes)
    answers = dict(zip(SCENE, scene.unbind(1), strict=False))
    for slot, obj in zip(SLOTS, objects, strict=True):
        for name, column in zip(OBJECT, (0, 5, 6), strict=True):
            answers[f"{slot}.{name}"] = obj[:, column] + 1  # -1 is "none"
    return answers
