"""The judge, untrained: its labels, its answers, its files, and pictures mirrored."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.judge.model import Judge, load_judge, save_judge
from ip2p_lib.miniature.judge.readings import (
    ANSWERS,
    NONE,
    Reading,
    agreement,
    labels,
    readings_of,
)
from ip2p_lib.miniature.render import encode, render
from ip2p_lib.miniature.world import sample_edit, sample_scene
from jobs.miniature.train_judge import augment, mirror_codes
from tests.support.small_judge import BUS, CAT, LONE, PAIR, small_judge


def perfect(codes: torch.Tensor) -> list[Reading]:
    """What a judge that is sure and right reads."""
    right = labels(codes)
    logits = {
        name: 50.0 * torch.nn.functional.one_hot(right[name], len(ANSWERS[name]))
        for name in ANSWERS
    }
    return list(readings_of(logits))


def test_labels_are_the_attributes_of_the_scene() -> None:
    pair, lone = perfect(encode([PAIR, LONE]))
    assert [pair.best(name) for name in ("place", "time", "weather")] == [
        "beach",
        "night",
        "rain",
    ]
    assert (pair.best("medium"), pair.best("art")) == ("photo", "noto")
    assert pair.objects() == ("cat", "bus")
    assert (pair.best("left.finish"), pair.best("right.finish")) == ("gold", NONE)
    assert (pair.best("left.accessory"), pair.best("right.accessory")) == (
        NONE,
        "crown",
    )
    # A lone thing is the left one, though this one stands on the right.
    assert lone.objects() == ("bus",) and lone.best("left.accessory") == "crown"
    empty = {lone.best(f"right.{name}") for name in ("name", "finish", "accessory")}
    assert empty == {NONE}


def test_labels_fit_every_scene_and_edit_of_the_world() -> None:
    scenes = [sample_scene(seed) for seed in range(200)]
    scenes += [sample_edit(scene, i).target for i, scene in enumerate(scenes)]
    for scene, reading in zip(scenes, perfect(encode(scenes)), strict=True):
        assert reading.objects() == tuple(thing.name for thing in scene.things)
        assert reading.best("place") == scene.place
        assert reading.best("medium") == scene.medium
        for slot, thing in zip(("left", "right"), scene.things, strict=False):
            assert reading.best(f"{slot}.finish") == (thing.finish or NONE)
            assert reading.best(f"{slot}.accessory") == (thing.accessory or NONE)


def test_perfect_readings_agree() -> None:
    scenes = [sample_scene(seed) for seed in range(64)]
    shares = agreement(perfect(encode(scenes)), scenes)
    assert set(shares.values()) == {1.0}
    scene = {"place", "time", "weather", "medium", "art", "objects"}
    assert set(shares) == scene | {"name", "finish", "accessory"}


def test_agreement_counts_what_is_wrong() -> None:
    wrong = replace(PAIR, things=(replace(CAT, finish="ice"), BUS), time="day")
    shares = agreement(perfect(encode([PAIR, PAIR])), [PAIR, wrong])
    assert shares["time"] == 0.5 and shares["finish"] == 0.75
    assert shares["place"] == shares["objects"] == shares["name"] == 1.0
    swapped = replace(PAIR, things=(replace(BUS, x=32), replace(CAT, x=96)))
    shares = agreement(perfect(encode([PAIR])), [swapped])
    assert (shares["objects"], shares["name"]) == (1.0, 0.0)
    fewer = agreement(perfect(encode([PAIR])), [replace(PAIR, things=(CAT,))])
    assert (fewer["objects"], fewer["name"]) == (0.0, 1.0)


def test_a_finish_counts_only_where_colours_show() -> None:
    assert "finish" not in agreement(perfect(encode([LONE])), [LONE])
    with pytest.raises(ValueError, match="zip"):
        agreement(perfect(encode([LONE])), [LONE, PAIR])


def test_the_tables_are_probabilities() -> None:
    reading = small_judge().read(render([PAIR]))[0]
    for attribute, answers in ANSWERS.items():
        owner, _, name = attribute.rpartition(".")
        table = getattr(getattr(reading, owner) if owner else reading, name)
        assert tuple(table) == answers
        assert min(table.values()) >= 0
        assert sum(table.values()) == pytest.approx(1, abs=1e-12)
    both = reading.left.name["cat"] + reading.right.name["cat"]
    assert reading.probability("cat") == pytest.approx(both)


def test_a_reading_depends_on_its_picture_alone() -> None:
    judge, images = small_judge(), render([PAIR, LONE, PAIR])
    together, apart = judge.read(images), judge.read(images, batch=1)
    for a, b in zip(together, apart, strict=True):
        assert a.left.name == pytest.approx(b.left.name, rel=1e-4)
    assert together[0].place != pytest.approx(together[1].place, rel=1e-4)


def test_questions_that_cannot_be_answered_are_refused() -> None:
    judge = small_judge()
    with pytest.raises(ValueError, match=r"Resize them"):
        judge.read(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"left\.name"):
        perfect(encode([PAIR]))[0].best("colour")


def test_a_saved_judge_reads_the_same(tmp_path: Path) -> None:
    judge = small_judge().half().float()  # the file is in half precision
    save_judge(judge, tmp_path / "judge")
    again = load_judge(tmp_path / "judge", device="cpu")
    assert again.places.dtype == torch.float32
    images = render([PAIR, LONE])
    assert again.read(images) == judge.read(images)
    names = {path.name for path in (tmp_path / "judge").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_the_shipped_size_stays_small(tmp_path: Path) -> None:
    judge = Judge().to(memory_format=torch.channels_last)  # as it leaves a GPU
    save_judge(judge, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 10e6


def test_a_missing_judge_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train_judge"):
        load_judge(tmp_path / "nowhere")


def test_a_judge_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    save_judge(small_judge(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8").replace('"cat"', '"lynx"'), "utf-8")
    with pytest.raises(ValueError, match="Train it again"):
        load_judge(tmp_path)


def test_a_mirror_swaps_two_things_and_keeps_a_lone_one() -> None:
    codes = encode([PAIR, LONE])
    pair, lone = perfect(mirror_codes(codes))
    assert pair.objects() == ("bus", "cat") and lone.objects() == ("bus",)
    assert (pair.best("right.finish"), pair.best("left.accessory")) == ("gold", "crown")
    assert torch.equal(mirror_codes(mirror_codes(codes)), codes)


def test_mirrored_codes_are_what_the_mirror_image_shows() -> None:
    half = torch.tensor([1.0, 0.2])[None, None, :, None, None].expand(4, 1, 2, 1, 32)
    light = half.transpose(2, 3).reshape(4, 1, 1, 1, 64)
    solid = light.expand(4, len(words.SPRITES), 3, 64, 64)
    sprites = torch.cat([solid, torch.ones_like(solid[:, :, :1])], dim=2)
    things = (replace(CAT, finish=None), replace(BUS, x=104, accessory=None))
    scene = replace(PAIR, things=things, weather="clear")
    turned = tuple(
        replace(thing, x=128 - thing.x, mirrored=not thing.mirrored)
        for thing in reversed(things)
    )
    other = replace(scene, things=turned)
    assert torch.equal(mirror_codes(encode([scene])), encode([other]))
    image, mirror = (
        render([scene], sprites=sprites).flip(-1),
        render([other], sprites=sprites),
    )
    for thing in turned:
        left, top = thing.x - thing.size // 2, thing.base - thing.size
        inside = (
            ...,
            slice(top + 2, thing.base - 2),
            slice(left + 2, left + thing.size - 2),
        )
        torch.testing.assert_close(image[inside], mirror[inside], rtol=0, atol=1e-4)


def test_augmented_pictures_still_show_their_scene() -> None:
    scenes = [sample_scene(seed) for seed in range(48)]
    images, codes = render(scenes), encode(scenes)
    changed, shown = augment(images, codes, step=1)
    assert changed.shape == images.shape and changed.abs().max() <= 1
    flipped = (shown[:, 7] != codes[:, 7]).float().mean()  # x of the left thing
    assert 0.1 < flipped < 0.7  # half, but a lone thing in the middle stays there
    straight, mirror = (
        (changed - x).abs().mean((1, 2, 3)) for x in (images, images.flip(-1))
    )
    assert torch.minimum(straight, mirror).max() < 0.25
    again, _ = augment(images[:4], codes[:4], step=1)
    torch.testing.assert_close(again, changed[:4], rtol=0, atol=1e-5)
