"""The verdict on a pair: exact, and broken in known ways."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.config import HELD_OUT
from ip2p_lib.miniature.judge.model import load_judge
from ip2p_lib.miniature.judge.readings import ANSWERS, Reading, labels, readings_of
from ip2p_lib.miniature.judge.verdicts import VERDICTS, verdicts
from ip2p_lib.miniature.render import encode, render
from ip2p_lib.miniature.scenes import CENTRES, Scene, SceneObject
from ip2p_lib.miniature.world import KINDS, possible_kinds, sample_edit, sample_scene

SEEDS = range(HELD_OUT + 3 * 10**6, HELD_OUT + 3 * 10**6 + 60)
CAT = SceneObject("cat", x=32, base=112, size=56)
BUS = SceneObject("bus", x=96, base=112, size=56)
SCENE = Scene((CAT, BUS), "beach", "day", "clear", "photo", "noto", 3)


class Oracle:
    """A judge that cannot err: given what each image shows, and with what doubt."""

    def __init__(self, *scenes: Scene, doubt: dict | None = None):
        self.scenes, self.doubt = list(scenes), doubt or {}

    def read(self, images: torch.Tensor) -> list[Reading]:
        shown = [self.scenes.pop(0) for _ in images]
        right = labels(encode(shown))
        logits = {}
        for name, answers in ANSWERS.items():
            chances = torch.nn.functional.one_hot(right[name], len(answers)).double()
            for row, answer in zip(chances, right[name].tolist(), strict=True):
                doubts = self.doubt.get((name, answers[answer]), {})
                for other, chance in doubts.items():
                    row[answers.index(other)] = chance
            logits[name] = chances.clamp(min=1e-9).log()
        for i, slot in enumerate(("left", "right")):
            logits[f"{slot}.where"] = torch.stack([_cell(s, i) for s in shown])
        return list(readings_of(logits))


def _cell(scene, index):
    """All attention in the cell where the object's middle is, of 8 x 8."""
    logits = torch.full((64,), -50.0)
    if index < len(scene.things):
        thing = scene.things[index]
        logits[(thing.base - thing.size // 2) // 16 * 8 + thing.x // 16] = 50.0
    return logits


def judge_pair(before, after, scene, target, **options):
    """The verdict of a judge that reads exactly what these two scenes are."""
    images = torch.zeros(2, 3, 128, 128)
    oracle = Oracle(before, after, **options)
    (verdict,) = verdicts(oracle, images[:1], images[1:], [scene], [target])
    return verdict


def things(*objects):
    return replace(SCENE, things=objects)


NIGHT = replace(SCENE, time="night")
GOLD = things(replace(CAT, finish="gold"), BUS)
ALONE = things(CAT)
SWAPPED = (replace(BUS, x=32), replace(CAT, x=96))  # no caption says who is left


def test_a_pair_that_shows_both_scenes_is_good():
    for seed in SEEDS:
        scene = sample_scene(seed)
        for kind in possible_kinds(scene):
            target = sample_edit(scene, seed, kind=kind).target
            assert judge_pair(scene, target, scene, target) == "good", kind
            assert judge_pair(scene, scene, scene, target) == "not done", kind


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
        (things(*SWAPPED), replace(NIGHT, things=SWAPPED), NIGHT, "good"),
        (things(*SWAPPED), things(SWAPPED[1]), ALONE, "good"),
    ],
)
def test_what_is_wrong_is_named(before, after, target, verdict):
    assert judge_pair(before, after, SCENE, target) == verdict


@pytest.mark.parametrize(
    ("doubt", "verdict"),
    [
        ({"wood": 5.0}, "good"),  # something like gold is enough
        ({"wood": 30.0}, "not done"),
        ({"none": 2.0}, "not done"),  # more like what it was
    ],
)
def test_the_new_is_accepted_if_it_is_not_ruled_out_and_beats_the_old(doubt, verdict):
    doubts = {("left.finish", "gold"): doubt}
    assert judge_pair(SCENE, GOLD, SCENE, GOLD, doubt=doubts) == verdict


@pytest.mark.parametrize(("weight", "verdict"), [(10.0, "good"), (30.0, "not kept")])
def test_what_should_stay_may_be_read_with_doubt(weight, verdict):
    doubts = {("place", "city"): {"beach": 1.0, "forest": weight}}
    after = replace(NIGHT, place="city")  # half beach, half city, and much forest
    assert judge_pair(SCENE, after, SCENE, NIGHT, doubt=doubts) == verdict


def test_pairs_without_scenes_are_refused():
    images = torch.zeros(2, 3, 128, 128)
    with pytest.raises(ValueError, match="shorter"):
        verdicts(Oracle(*[SCENE] * 4), images, images, [SCENE] * 2, [NIGHT])


@pytest.fixture(scope="module")
def judge():
    return load_judge(device="cpu")


@pytest.mark.slow
def test_the_shipped_judge_distinguishes_exact_pairs_from_broken_ones(judge):
    scenes = [sample_scene(seed) for seed in SEEDS]
    edits = [sample_edit(*both) for both in zip(scenes, SEEDS, strict=True)]
    targets = [edit.target for edit in edits]
    assert {edit.kind for edit in edits} == set(KINDS)
    before, after = render(scenes), render(targets)
    moved = render([_move_objects(target) for target in targets])
    shares = []
    for second in (after, before, after.roll(1, 0), moved):
        labels_of_pairs = verdicts(judge, before, second, scenes, targets)
        assert set(labels_of_pairs) <= set(VERDICTS)
        shares.append(labels_of_pairs.count("good") / len(SEEDS))
    exact, *broken = shares
    assert exact > 0.8 and max(broken) < 0.05


def _move_objects(scene):
    """The same objects in other places."""
    free = [x for x in CENTRES if x not in {thing.x for thing in scene.things}]
    xs = free[:1] if len(scene.things) == 1 else [t.x for t in scene.things][::-1]
    moved = (replace(t, x=x) for t, x in zip(scene.things, xs, strict=True))
    return replace(scene, things=tuple(moved))
