"""The judge, untrained: its labels, its answers, its files, and mirrored images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.judge.model import load_judge, save_judge
from ip2p_lib.miniature.judge.readings import (
    ANSWERS,
    NONE,
    Reading,
    labels,
    readings_of,
)
from ip2p_lib.miniature.render import encode, render
from ip2p_lib.miniature.scenes import Scene
from ip2p_lib.miniature.world import sample_edit, sample_scene
from jobs.miniature.train_judge import agreement, augment, mirror_codes
from tests.support.small_judge import BUS, CAT, LONE, PAIR, small_judge


def perfect(codes: torch.Tensor) -> list[Reading]:
    """What a judge that is sure and right reads."""
    right = labels(codes)
    logits = {
        name: 50.0 * torch.nn.functional.one_hot(right[name], len(ANSWERS[name]))
        for name in ANSWERS
    }
    where = torch.zeros(len(codes), 64)
    return list(readings_of(logits | {"left.where": where, "right.where": where}))


def test_labels_are_the_attributes_of_every_scene_and_edit():
    scenes = [sample_scene(seed) for seed in range(200)]
    scenes += [sample_edit(scene, i).target for i, scene in enumerate(scenes)]
    for scene, reading in zip(scenes, perfect(encode(scenes)), strict=True):
        for name in ("place", "time", "weather", "medium", "art"):
            assert reading.best(name) == getattr(scene, name)
        shown = [(o.name, o.finish or NONE, o.accessory or NONE) for o in scene.things]
        # One object is in the left slot wherever it stands.
        shown += [(NONE, NONE, NONE)] * (2 - len(shown))
        assert [slot.best() for slot in reading.slots] == shown
        assert reading.objects() == tuple(o.name for o in scene.things)
        assert reading.best("left.finish") == shown[0][1]


def test_agreement_counts_what_is_wrong():
    def agree(shown: list[Scene], read: list[Scene]) -> dict[str, float]:
        return agreement(labels(encode(read)), encode(shown))

    scenes = [sample_scene(seed) for seed in range(64)]
    scene = {"place", "time", "weather", "medium", "art", "objects"}
    shares = agree(scenes, scenes)
    assert shares == dict.fromkeys(scene | {"name", "finish", "accessory"}, 1.0)
    wrong = replace(PAIR, things=(replace(CAT, finish="ice"), BUS), time="day")
    shares = agree([PAIR, wrong], [PAIR, PAIR])
    assert shares["time"] == 0.5 and shares["finish"] == 0.75
    assert shares["place"] == shares["objects"] == shares["name"] == 1.0
    swapped = replace(PAIR, things=(replace(BUS, x=32), replace(CAT, x=96)))
    shares = agree([swapped], [PAIR])
    assert (shares["objects"], shares["name"]) == (1.0, 0.0)
    fewer = agree([replace(PAIR, things=(CAT,))], [PAIR])
    assert (fewer["objects"], fewer["name"]) == (0.0, 1.0)
    assert "finish" not in agree([LONE], [LONE]), "a drawing shows no colours"


def test_a_reading_depends_on_its_image_alone():
    judge, images = small_judge(), render([PAIR, LONE, PAIR])
    together, apart = judge.predict(images), judge.predict(images, batch=1)
    for name, logits in together.items():
        torch.testing.assert_close(logits, apart[name], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together["place"][0], together["place"][1], atol=1e-3)


def test_questions_that_cannot_be_answered_are_refused():
    judge = small_judge()
    with pytest.raises(ValueError, match=r"Resize them"):
        judge.read(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"left\.name"):
        perfect(encode([PAIR]))[0].best("colour")


def test_a_saved_judge_reads_the_same(tmp_path: Path):
    judge = small_judge().half().float()  # the file is in half precision
    save_judge(judge, tmp_path / "judge")
    again = load_judge(tmp_path / "judge", device="cpu")
    assert again.places.dtype == torch.float32
    images = render([PAIR, LONE])
    assert again.read(images) == judge.read(images)
    names = {path.name for path in (tmp_path / "judge").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_a_missing_judge_or_one_of_another_vocabulary_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"train_judge"):
        load_judge(tmp_path)
    save_judge(small_judge(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8").replace('"cat"', '"lynx"'), "utf-8")
    with pytest.raises(ValueError, match="Train it again"):
        load_judge(tmp_path)


def test_mirrored_codes_are_what_the_mirror_image_shows():
    half = torch.tensor([1.0, 0.2])[None, None, :, None, None].expand(4, 1, 2, 1, 32)
    light = half.transpose(2, 3).reshape(4, 1, 1, 1, 64)
    solid = light.expand(4, len(words.SPRITES), 3, 64, 64)
    sprites = torch.cat([solid, torch.ones_like(solid[:, :, :1])], dim=2)
    objects = (replace(CAT, finish=None), replace(BUS, x=104, accessory=None))
    scene = replace(PAIR, things=objects, weather="clear")
    mirrored = tuple(
        replace(obj, x=128 - obj.x, mirrored=not obj.mirrored)
        for obj in reversed(objects)
    )
    other = replace(scene, things=mirrored)
    assert torch.equal(mirror_codes(encode([scene, other])), encode([other, scene]))
    assert perfect(mirror_codes(encode([LONE])))[0].objects() == ("bus",)
    image, mirror = render([scene, other], sprites=sprites)
    for obj in mirrored:
        rows = slice(obj.base - obj.size + 2, obj.base - 2)
        columns = slice(obj.x - obj.size // 2 + 2, obj.x + obj.size // 2 - 2)
        both = image.flip(-1)[:, rows, columns], mirror[:, rows, columns]
        torch.testing.assert_close(*both, rtol=0, atol=1e-4)


def test_augmented_images_still_show_their_scene():
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
