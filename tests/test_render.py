"""The renderer of the miniature world."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.config import DATA
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.render import load_sprites, render
from ip2p_lib.miniature.world import Scene, Thing, sample_edit, sample_scene

SCENES = [sample_scene(seed) for seed in range(24)]


def _plain(**changes: object) -> Scene:
    thing = Thing("sunflower", x=64, base=112, size=64)
    scene = Scene((thing,), "meadow", "day", "clear", "photo", "noto", 3)
    return replace(scene, **changes)  # type: ignore[arg-type]


def test_pictures_are_128_pixels_in_range() -> None:
    pictures = render(SCENES)
    assert pictures.shape == (24, 3, 128, 128) and pictures.dtype == torch.float32
    assert pictures.amin() >= -1 and pictures.amax() <= 1


def test_a_picture_does_not_depend_on_its_batch() -> None:
    together = render(SCENES)
    alone = torch.cat([render([scene]) for scene in SCENES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_sprite_stands_where_the_scene_says() -> None:
    with_it = render([_plain()])
    other = replace(_plain().things[0], name="cactus")
    changed = (with_it - render([_plain(things=(other,))])).abs().amax((0, 1)) > 0.02
    rows, columns = changed.nonzero().unbind(1)
    assert rows.min() >= 48 and rows.max() < 112
    assert columns.min() >= 32 and columns.max() < 96


def test_compositing_equals_pillow() -> None:
    """The sprite of a 64 px object, not scaled, against Pillow's own compositing."""
    scene = _plain()
    sheet = Image.open(DATA / "emoji" / "noto.png").convert("RGBA")
    row, column = divmod(words.SPRITES.index("sunflower"), 16)
    box = (64 * column, 64 * row, 64 * column + 64, 64 * row + 64)
    ground = load_sprites().clone()
    ground[:, words.SPRITES.index("sunflower")] = 0
    empty = render([scene], sprites=ground)[0]
    picture = Image.fromarray(
        ((empty / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
    )
    sprite = sheet.crop(box)
    picture.paste(sprite, (32, 48), sprite)
    expected = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(render([scene])[0], expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["time", "weather", "medium", "place", "replace"])
def test_an_edit_shows(kind: str) -> None:
    for seed in range(5):
        target = sample_edit(_plain(), seed, kind).target
        difference = (render([_plain()]) - render([target])).abs().mean()
        assert difference > 0.01


def test_a_mirrored_object_is_mirrored() -> None:
    thing = replace(_plain().things[0], name="duck")
    one = render([_plain(things=(thing,))], sprites=load_sprites())
    two = render([_plain(things=(replace(thing, mirrored=True),))])
    bare = load_sprites().clone()
    bare[:, words.SPRITES.index("duck")] = 0
    empty = render([_plain(things=(thing,))], sprites=bare)
    box = (slice(None), slice(None), slice(48, 112), slice(32, 96))
    shown, flipped = ((x - empty)[box].abs().sum(1) > 0.05 for x in (one, two))
    assert (shown == flipped.flip(-1)).float().mean() > 0.97


def test_other_sprites_can_be_given_by_art_set() -> None:
    sprites = dict(zip(words.ART_SETS, load_sprites(), strict=True))
    torch.testing.assert_close(render(SCENES[:2], sprites=sprites), render(SCENES[:2]))


def test_a_missing_atlas_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"noto\.png is missing"):
        load_sprites(tmp_path)
