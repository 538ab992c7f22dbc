"""A word's map is its column of the maps, and a mask is where either word looks."""

import pytest
import torch

from ip2p_lib import rng
from ip2p_lib.rendering.cross_attention import blend_mask, map_grid, word_maps
from ip2p_lib.rendering.word_edits import EVERYWHERE
from tests.support.materialised_words import mask

EXACT = 1e-12


def test_a_words_map_is_its_column():
    q, k = (
        rng.normal(rng.key("map", name), torch.arange(3), (2, n, 4)).double()
        for name, n in (("q", 5), ("k", 6))
    )
    words = torch.zeros(3, 6).double()
    words[0, 2] = words[1, [0, 4]] = 1
    maps = (q @ k.mT / 2).softmax(-1).mean(1)
    expected = [maps[0, :, 2], maps[1, :, 0] + maps[1, :, 4], torch.zeros(5)]
    assert (word_maps(q, k, words) - torch.stack(expected)).abs().max() < EXACT


@pytest.mark.parametrize(
    ("grid", "size"), [((6, 6), (16, 16)), ((5, 6), (10, 12)), ((5, 6), (9, 11))]
)
def test_the_mask_is_that_of_either_word(grid, size):
    ids = torch.arange(6)
    heat = rng.uniform(rng.key("heat"), ids, (grid[0] * grid[1],)).double() ** 9
    heat[1] = 0  # the second pair has no first word, the third none at all
    heat[2] = heat[5] = 0
    threshold = torch.tensor([0.5, 0.8, EVERYWHERE])
    found = blend_mask(heat, grid, size, threshold)
    assert found.shape == (3, 1, *size) and found[2].all()
    for i, k in enumerate((0.5, 0.8)):
        first, second = (mask(heat[n], grid, size, k) for n in (i, 3 + i))
        assert torch.equal(found[i, 0], first | second)
        assert found[i].any() and not found[i].all()


def test_the_released_codes_maps_are_read():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        sd15 = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert map_grid(sd15, (64, 64)) == (16, 16)
    assert map_grid(sd15, (64, 90)) == (16, 23)
