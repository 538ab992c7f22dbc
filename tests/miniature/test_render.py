"""The renderer of the miniature world."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.config import DATA
from ip2p_lib.miniature import vocabulary as words
from ip2p_lib.miniature.media import apply_media
from ip2p_lib.miniature.render import load_sprites, render
from ip2p_lib.miniature.world import Scene, SceneObject, sample_scene

OIL = list(words.MEDIA).index("oil painting")
SCENES = [sample_scene(seed) for seed in range(24)]


def _plain(**changes: object) -> Scene:
    sunflower = SceneObject("sunflower", x=64, base=112, size=64)
    scene = Scene((sunflower,), "meadow", "day", "clear", "photo", "noto", 3)
    return replace(scene, **changes)  # type: ignore[arg-type]


def test_images_are_128_pixels_in_range():
    images = render(SCENES)
    assert images.shape == (24, 3, 128, 128) and images.dtype == torch.float32
    assert images.amin() >= -1 and images.amax() <= 1


def test_an_image_does_not_depend_on_its_batch():
    together = render(SCENES)
    alone = torch.cat([render([scene]) for scene in SCENES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_compositing_equals_pillow():
    """The sprite of a 64 px object, not scaled, against Pillow's own compositing."""
    scene = _plain()
    sheet = Image.open(DATA / "emoji" / "noto.png").convert("RGBA")
    row, column = divmod(words.SPRITES.index("sunflower"), 16)
    box = (64 * column, 64 * row, 64 * column + 64, 64 * row + 64)
    ground = load_sprites().clone()
    ground[:, words.SPRITES.index("sunflower")] = 0
    empty = render([scene], sprites=ground)[0]
    image = Image.fromarray(
        ((empty / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
    )
    sprite = sheet.crop(box)
    image.paste(sprite, (32, 48), sprite)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(render([scene])[0], expected, rtol=0, atol=0.02)


def test_other_sprites_can_be_given_by_art_set():
    sprites = dict(zip(words.ART_SETS, load_sprites(), strict=True))
    torch.testing.assert_close(render(SCENES[:2], sprites=sprites), render(SCENES[:2]))


def test_a_missing_atlas_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"noto\.png is missing"):
        load_sprites(tmp_path)


@pytest.mark.parametrize("medium", words.MEDIA)
def test_rounding_as_devices_differ_by_does_not_show(medium: str):
    """A filter that chose by a hair would draw another image on a GPU."""
    images = render([replace(sample_scene(i), medium="photo") for i in range(16)])
    drawn = images / 2 + 0.5
    chosen = torch.full((16,), list(words.MEDIA).index(medium))
    hair = 2e-7 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    gap = apply_media(drawn, chosen) - apply_media(drawn + hair, chosen)
    assert gap.abs().max() < 0.5 / 255


def test_an_oil_painting_takes_the_calmest_window():
    """As Kuwahara's filter does in float64, wherever one window is clearly calmest."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image, scale_factor=4)
    (painted,) = apply_media(image, torch.tensor([OIL])).numpy()
    padded = np.pad(image[0].double().numpy(), [(0, 0), (4, 4), (4, 4)], "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    means, spreads = windows.mean((3, 4)), windows.var((3, 4)).sum(0)
    clear = 0
    for y, x in np.ndindex(128, 128):
        corners = [(y + dy, x + dx) for dy in (0, 4) for dx in (0, 4)]
        first, second = sorted(corners, key=lambda corner: spreads[corner])[:2]
        if spreads[second] > 2 * spreads[first] + 0.01:
            mean = means[:, first[0], first[1]]
            expected = ((mean - 0.5) * 1.2 + 0.52).clip(0, 1)
            assert np.abs(painted[:, y, x] - expected).max() < 1 / 255, (y, x)
            clear += 1
    assert clear > 1000
