"""Says of a rendered pair whether it teaches its edit, and if not, why not.

CLIP can only score a pair; of the miniature world more is known. The judge reads both
pictures, and what the second one should show follows from the first one as it is read,
with the edit applied. So a filter's choice can be marked (see ``calibrate``).

A reading is a table of probabilities. An answer counts as seen while it is not ruled
out, so that two sprites which look alike for the judge are no fault of a pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p_lib.miniature.backdrop import RESOLUTION
from ip2p_lib.miniature.judge.model import Judge
from ip2p_lib.miniature.judge.readings import (
    NONE,
    SLOTS,
    THING,
    Reading,
    ThingReading,
    readings_of,
)
from ip2p_lib.miniature.scenes import Scene, SceneObject

RULED_OUT = 0.05  # an answer that is less likely is not seen
MOVED = 16.0  # pixels: a thing that is further from its place has moved
VERDICTS = ("good", "nothing to edit", "not done", "not kept")
_WHOLE = ("place", "time", "weather", "medium", "art")
Look = tuple[str, str, str]  # name, finish and accessory, "none" for neither
Point = tuple[float, float]


@dataclass(frozen=True)
class Seen:
    """One picture as it is read: its answers, and where its two slots look (x, y)."""

    reading: Reading
    points: tuple[Point, Point]

    def slots(self) -> Iterator[tuple[ThingReading, Point]]:
        """Both slots from left to right; a lone thing is in the first."""
        yield from zip(
            (self.reading.left, self.reading.right), self.points, strict=True
        )

    def read_thing(self, index: int) -> Look:
        """What a slot shows, by its likeliest answers."""
        name, finish, worn = (self.reading.best(f"{SLOTS[index]}.{a}") for a in THING)
        return name, finish, worn


def verdicts(
    judge: Judge,
    before: Tensor,
    after: Tensor,
    scenes: Sequence[Scene],
    targets: Sequence[Scene],
) -> list[str]:
    """Judge B pairs of known edits.

    Args:
        judge: reads the pictures.
        before, after: (B, 3, 128, 128) in [-1, 1].
        scenes: what the captions describe.
        targets: what the edited captions describe.

    Returns:
        One of ``VERDICTS`` each. "nothing to edit": the first picture lacks what the
        edit changes. "not done": the second lacks the change. "not kept": it shows the
        change, and something else differs from the first picture, or has moved.

    Raises:
        ValueError: the four differ in number.
    """
    lengths = [len(before), len(after), len(scenes), len(targets)]
    if len(set(lengths)) != 1:
        raise ValueError(
            "Each pair needs two pictures and two scenes, but before, after, scenes "
            f"and targets hold {lengths} of them."
        )
    seen = look(judge, before), look(judge, after)
    return [_verdict(*row) for row in zip(*seen, scenes, targets, strict=True)]


@torch.inference_mode()
def look(judge: Judge, images: Tensor, batch: int = 64) -> list[Seen]:
    """Read (B, 3, 128, 128) pictures in [-1, 1], with the places of the things."""
    found: list[Seen] = []
    for part in images.split(batch):
        logits = judge(part.to(judge.places))
        points = torch.stack([_centre(logits[f"{slot}.where"]) for slot in SLOTS], 1)
        for reading, (left, right) in zip(
            readings_of(logits), points.tolist(), strict=True
        ):
            found.append(Seen(reading, (tuple(left), tuple(right))))
    return found


def _centre(where: Tensor) -> Tensor:
    """Mean place of each row's cells, (B, 2) pixels, from (B, cells) logits."""
    side = int(where.shape[1] ** 0.5)
    axis = (torch.arange(side, device=where.device) + 0.5) * (RESOLUTION / side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return where.float().softmax(1) @ torch.stack([x.flatten(), y.flatten()], 1)


@dataclass(frozen=True)
class _Change:
    """What an edit asks for: things that go and come, and new answers of the scene."""

    gone: frozenset[Look]
    come: frozenset[Look]
    whole: Mapping[str, tuple[str, str]]  # old and new answer, by attribute


def _change(scene: Scene, target: Scene) -> _Change:
    was, becomes = (frozenset(map(_look, s.things)) for s in (scene, target))
    answers = {name: (getattr(scene, name), getattr(target, name)) for name in _WHOLE}
    differs = {name: both for name, both in answers.items() if both[0] != both[1]}
    return _Change(was - becomes, becomes - was, differs)


def _look(thing: SceneObject) -> Look:
    return thing.name, thing.finish or NONE, thing.accessory or NONE


def _verdict(before: Seen, after: Seen, scene: Scene, target: Scene) -> str:
    change = _change(scene, target)
    if not _can_begin(before.reading, change):
        return "nothing to edit"
    if not _is_done(after.reading, change):
        return "not done"
    return "good" if _is_kept(before, after, change) else "not kept"


def _can_begin(reading: Reading, change: _Change) -> bool:
    """Whether there is what is to be changed."""
    chances = [_chance_of(reading, look) for look in change.gone]
    chances += [getattr(reading, n)[old] for n, (old, _) in change.whole.items()]
    return all(chance >= RULED_OUT for chance in chances)


def _is_done(reading: Reading, change: _Change) -> bool:
    """Whether the new is seen, and is likelier than the old."""
    left = max((_chance_of(reading, look) for look in change.gone), default=0.0)
    if change.gone and not change.come:
        return left < RULED_OUT
    pairs = [(_chance_of(reading, look), left) for look in change.come]
    pairs += [
        (getattr(reading, name)[new], getattr(reading, name)[old])
        for name, (old, new) in change.whole.items()
    ]
    return all(new >= RULED_OUT and new > old for new, old in pairs)


def _is_kept(before: Seen, after: Seen, change: _Change) -> bool:
    """Whether all that the edit does not name is as it was read."""
    stays = (name for name in _WHOLE if name not in change.whole)
    return all(
        getattr(after.reading, name)[before.reading.best(name)] >= RULED_OUT
        for name in stays
    ) and _fits(after, _expected_things(before, change))


def _chance_of(reading: Reading, look: Look) -> float:
    """Probability that one of the slots shows this thing."""
    return max(_chance(slot, look) for slot in (reading.left, reading.right))


def _chance(slot: ThingReading, look: Look) -> float:
    return slot.name[look[0]] * slot.finish[look[1]] * slot.accessory[look[2]]


def _expected_things(before: Seen, change: _Change) -> list[tuple[Look, Point | None]]:
    """The things of the first picture after the edit; what is new may be anywhere."""
    slots, new = list(before.slots()), list(change.come)
    edited = {
        max((0, 1), key=lambda i: _chance(slots[i][0], look)) for look in change.gone
    }  # the slots of what goes
    expected: list[tuple[Look, Point | None]] = []
    for index, (_, point) in enumerate(slots):
        if index in edited:
            expected += [(new.pop(), point)] if new else []
        elif before.read_thing(index)[0] != NONE:
            expected.append((before.read_thing(index), point))
    return [*expected, *((look, None) for look in new)]


def _fits(after: Seen, expected: list[tuple[Look, Point | None]]) -> bool:
    """Whether the second picture shows these things in some order, and no others."""
    empty = [None] * (len(SLOTS) - len(expected))
    return len(expected) <= len(SLOTS) and any(
        all(itertools.starmap(_slot_fits, zip(after.slots(), order, strict=True)))
        for order in itertools.permutations([*expected, *empty])
    )


def _slot_fits(
    slot: tuple[ThingReading, Point], thing: tuple[Look, Point | None] | None
) -> bool:
    reading, point = slot
    if thing is None:
        return reading.name[NONE] >= RULED_OUT
    look, place = thing
    seen = zip((reading.name, reading.finish, reading.accessory), look, strict=True)
    stays = place is None or math.dist(point, place) <= MOVED
    return stays and all(table[answer] >= RULED_OUT for table, answer in seen)
