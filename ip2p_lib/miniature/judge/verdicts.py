"""Says of a generated pair whether it teaches its edit, and if not, why not.

CLIP can only score a pair; of the miniature world more is known. The judge reads both
images, and what the second one should show follows from the reading of the first one,
with the edit applied. ``calibration`` evaluates CLIP's filter against these verdicts.

An answer is ruled out below a probability of 5 %. Every answer above is accepted, so
that two sprites which the judge confuses are no fault of a pair.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, starmap

from torch import Tensor

from ip2p_lib.miniature.judge.model import Judge
from ip2p_lib.miniature.judge.readings import (
    NONE,
    SCENE,
    SLOTS,
    Appearance,
    ObjectReading,
    Point,
    Reading,
)
from ip2p_lib.miniature.scenes import Scene

RULED_OUT = 0.05  # an answer that is less likely is not accepted
MOVED = 16.0  # pixels: an object that is further from its old place has moved
VERDICTS = ("good", "nothing to edit", "not done", "not kept")


def verdicts(
    judge: Judge,
    before: Tensor,
    after: Tensor,
    scenes: Sequence[Scene],
    targets: Sequence[Scene],
) -> list[str]:
    """Judge B pairs of known edits.

    Images are (B, 3, 128, 128) in [-1, 1]; ``scenes`` and ``targets`` are what the
    captions and the edited captions describe. ValueError if the four differ in number.

    Returns:
        One of ``VERDICTS`` each. "nothing to edit": the first image lacks what the
        edit changes. "not done": the second lacks the change. "not kept": it shows the
        change, and something else differs from the first image, or has moved.
    """
    rows = zip(judge.read(before), judge.read(after), scenes, targets, strict=True)
    return [_verdict(*row) for row in rows]


@dataclass(frozen=True)
class _Change:
    """What an edit changes: objects that go and come, and attributes of the scene."""

    removed: frozenset[Appearance]
    added: frozenset[Appearance]
    scene: Mapping[str, tuple[str, str]]  # old and new answer, by attribute


def _change(scene: Scene, target: Scene) -> _Change:
    old, new = (
        frozenset((o.name, o.finish or NONE, o.accessory or NONE) for o in s.things)
        for s in (scene, target)
    )
    answers = {name: (getattr(scene, name), getattr(target, name)) for name in SCENE}
    changed = {name: both for name, both in answers.items() if both[0] != both[1]}
    return _Change(old - new, new - old, changed)


def _verdict(before: Reading, after: Reading, scene: Scene, target: Scene) -> str:
    change = _change(scene, target)
    if not _can_begin(before, change):
        return "nothing to edit"
    if not _is_done(after, change):
        return "not done"
    return "good" if _keeps_the_rest(before, after, change) else "not kept"


def _can_begin(reading: Reading, change: _Change) -> bool:
    """Whether the first image shows what is to be changed."""
    chances = [_chance(reading, appearance) for appearance in change.removed]
    chances += [getattr(reading, n)[old] for n, (old, _) in change.scene.items()]
    return all(chance >= RULED_OUT for chance in chances)


def _is_done(reading: Reading, change: _Change) -> bool:
    """Whether the new is not ruled out, and is likelier than the old."""
    old = max((_chance(reading, gone) for gone in change.removed), default=0.0)
    if change.removed and not change.added:
        return old < RULED_OUT
    pairs = [(_chance(reading, new), old) for new in change.added]
    for name, (old_answer, new_answer) in change.scene.items():
        table = getattr(reading, name)
        pairs.append((table[new_answer], table[old_answer]))
    return all(new >= RULED_OUT and new > old for new, old in pairs)


def _chance(reading: Reading, appearance: Appearance) -> float:
    """Probability that one of the slots shows an object of this appearance."""
    return max(slot.probability(appearance) for slot in reading.slots)


def _keeps_the_rest(before: Reading, after: Reading, change: _Change) -> bool:
    """Whether all that the edit does not change is as the first image is read."""
    for name in SCENE.keys() - change.scene.keys():
        if getattr(after, name)[before.best(name)] < RULED_OUT:
            return False
    expected = _expected_objects(before, change)
    empty = [None] * (len(SLOTS) - len(expected))
    return len(expected) <= len(SLOTS) and any(
        all(starmap(_fits, zip(after.slots, order, strict=True)))
        for order in permutations([*expected, *empty])
    )


def _expected_objects(
    before: Reading, change: _Change
) -> list[tuple[Appearance, Point | None]]:
    """The first image's objects after the edit; a new one may stand anywhere (None)."""
    new = list(change.added)
    edited = [
        max(before.slots, key=lambda slot: slot.probability(appearance))
        for appearance in change.removed
    ]
    expected: list[tuple[Appearance, Point | None]] = []
    for slot in before.slots:
        if slot in edited:
            expected += [(new.pop(), slot.centre)] if new else []
        elif slot.best()[0] != NONE:
            expected.append((slot.best(), slot.centre))
    return [*expected, *((appearance, None) for appearance in new)]


def _fits(
    slot: ObjectReading, expected: tuple[Appearance, Point | None] | None
) -> bool:
    """Whether a slot can show this object, in its place, or is empty if it is None."""
    if expected is None:
        return slot.name[NONE] >= RULED_OUT
    appearance, place = expected
    if place is not None and math.dist(slot.centre, place) > MOVED:
        return False
    tables = zip((slot.name, slot.finish, slot.accessory), appearance, strict=True)
    return all(table[answer] >= RULED_OUT for table, answer in tables)
