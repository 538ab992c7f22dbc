"""The verdict on a pair: drawn as it should be, and broken in known ways."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.judge.model import load_judge
from ip2p_lib.miniature.judge.readings import ANSWERS, readings_of
from ip2p_lib.miniature.judge.verdicts import VERDICTS, look, verdicts
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.scenes import CENTRES, Scene, SceneObject
from ip2p_lib.miniature.world import KINDS, possible_kinds, sample_edit, sample_scene

SEEDS = range(HELD_OUT + 3 * 10**6, HELD_OUT + 3 * 10**6 + 60)
CAT = SceneObject("cat", x=32, base=112, size=56)
BUS = SceneObject("bus", x=96, base=112, size=56)
SCENE = Scene((CAT, BUS), "beach", "day", "clear", "photo", "noto", 3)


class Oracle:
    """A judge that cannot err: told what each picture shows, and with what doubt."""

    places = torch.zeros(1)

    def __init__(self, *scenes: Scene, doubt: dict | None = None) -> None:
        self.scenes, self.doubt = list(scenes), doubt or {}

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        shown = [self.scenes.pop(0) for _ in images]
        logits = {}
        for name, answers in ANSWERS.items():
            rows = [self._row(scene, name, answers) for scene in shown]
            logits[name] = torch.tensor(rows).clamp(min=1e-9).log()
        for i, slot in enumerate(("left", "right")):
            logits[f"{slot}.where"] = torch.stack([_cell(s, i) for s in shown])
        return logits

    def _row(self, scene, name, answers):
        right = _answer(scene, name)
        chances = {right: 1.0} | self.doubt.get((name, right), {})
        return [chances.get(answer, 0.0) for answer in answers]


def _answer(scene, name):
    slot, _, attribute = name.partition(".")
    if not attribute:
        return getattr(scene, name)
    index = ("left", "right").index(slot)
    if index >= len(scene.things):
        return "none"
    return getattr(scene.things[index], attribute) or "none"


def _cell(scene, index):
    """All attention in the cell where the thing's middle is, of 8 x 8."""
    logits = torch.full((64,), -50.0)
    if index < len(scene.things):
        thing = scene.things[index]
        logits[(thing.base - thing.size // 2) // 16 * 8 + thing.x // 16] = 50.0
    return logits


def told(before, after, scene, target, **options):
    """The verdict of a judge who sees just what these two scenes are."""
    pictures = torch.zeros(2, 3, 128, 128)
    oracle = Oracle(before, after, **options)
    (verdict,) = verdicts(oracle, pictures[:1], pictures[1:], [scene], [target])
    return verdict


def things(*found):
    return replace(SCENE, things=found)


NIGHT = replace(SCENE, time="night")
GOLD = things(replace(CAT, finish="gold"), BUS)
ALONE = things(CAT)
TURNED = (replace(BUS, x=32), replace(CAT, x=96))  # no caption says who is left


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pair_that_shows_both_scenes_is_good(seed):
    scene = sample_scene(seed)
    for kind in possible_kinds(scene):
        target = sample_edit(scene, seed, kind=kind).target
        assert told(scene, target, scene, target) == "good", kind
        assert told(scene, scene, scene, target) == "not done", kind


@pytest.mark.parametrize(
    ("before", "after", "target", "verdict"),
    [
        (NIGHT, NIGHT, NIGHT, "nothing to edit"),
        (ALONE, ALONE, ALONE, "nothing to edit"),  # no bus to take away
        (GOLD, GOLD, GOLD, "nothing to edit"),
        (SCENE, replace(SCENE, time="sunset"), NIGHT, "not done"),
        (SCENE, things(BUS), ALONE, "not done"),  # the wrong one is gone
        (SCENE, things(CAT, replace(BUS, finish="gold")), GOLD, "not done"),
        (SCENE, replace(NIGHT, place="forest"), NIGHT, "not kept"),
        (SCENE, replace(NIGHT, art="twemoji"), NIGHT, "not kept"),
        (SCENE, replace(NIGHT, things=(CAT,)), NIGHT, "not kept"),
        (SCENE, replace(NIGHT, things=(replace(CAT, x=64), BUS)), NIGHT, "not kept"),
        (SCENE, replace(GOLD, time="night"), GOLD, "not kept"),
        (things(*TURNED), replace(NIGHT, things=TURNED), NIGHT, "good"),
        (things(*TURNED), things(TURNED[1]), ALONE, "good"),
    ],
)
def test_what_is_wrong_is_named(before, after, target, verdict):
    assert told(before, after, SCENE, target) == verdict


@pytest.mark.parametrize(
    ("doubt", "verdict"),
    [
        ({"wood": 5.0}, "good"),  # something like gold is enough
        ({"wood": 30.0}, "not done"),
        ({"none": 2.0}, "not done"),  # more like what it was
    ],
)
def test_the_new_is_seen_if_it_is_not_ruled_out_and_beats_the_old(doubt, verdict):
    doubts = {("left.finish", "gold"): doubt}
    assert told(SCENE, GOLD, SCENE, GOLD, doubt=doubts) == verdict


@pytest.mark.parametrize(("weight", "verdict"), [(10.0, "good"), (30.0, "not kept")])
def test_what_should_stay_may_be_read_with_doubt(weight, verdict):
    doubts = {("place", "city"): {"beach": 1.0, "forest": weight}}
    after = replace(NIGHT, place="city")  # half beach, half city, and much forest
    assert told(SCENE, after, SCENE, NIGHT, doubt=doubts) == verdict


def test_pairs_without_scenes_are_refused():
    pictures = torch.zeros(2, 3, 128, 128)
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 1\]"):
        verdicts(Oracle(), pictures, pictures, [SCENE] * 2, [NIGHT])


@pytest.fixture(scope="module")
def judge():
    return load_judge(device="cpu")


def test_a_look_reads_what_the_judge_reads_and_where(judge):
    scenes = [SCENE, ALONE]
    pictures = render(scenes)
    seen = look(judge, pictures, batch=1)
    expected = list(readings_of(judge(pictures)))
    assert [one.reading.objects() for one in seen] == [r.objects() for r in expected]
    for one, scene in zip(seen, scenes, strict=True):
        for (x, y), thing in zip(one.points, scene.things, strict=False):
            assert abs(x - thing.x) < 8
            assert thing.base - thing.size < y < thing.base


def test_the_shipped_judge_tells_right_pairs_from_broken_ones(judge):
    scenes = [sample_scene(seed) for seed in SEEDS]
    edits = [sample_edit(*both) for both in zip(scenes, SEEDS, strict=True)]
    targets = [edit.target for edit in edits]
    moved = [_moved(target) for target in targets]
    assert {edit.kind for edit in edits} == set(KINDS)
    before, after = render(scenes), render(targets)
    shares = {}
    for name, second in (
        ("right", after),
        ("nothing happened", before),
        ("another scene", after.roll(1, 0)),
        ("moved", render(moved)),
    ):
        said = Counter(verdicts(judge, before, second, scenes, targets))
        assert set(said) <= set(VERDICTS)
        shares[name] = said["good"] / len(SEEDS)
    assert shares.pop("right") > 0.8
    assert max(shares.values()) < 0.05


def _moved(scene):
    """The same things in other places."""
    free = [x for x in CENTRES if x not in {thing.x for thing in scene.things}]
    places = free[:1] if len(scene.things) == 1 else [t.x for t in scene.things][::-1]
    found = zip(scene.things, places, strict=True)
    return replace(scene, things=tuple(replace(t, x=x) for t, x in found))
