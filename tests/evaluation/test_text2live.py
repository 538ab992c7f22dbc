"""Text2LIVE trains a layer; what is not covered stays as it was."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.evaluation.text2live import (
    LayerNet,
    LayerTraining,
    composite,
    layer_loss,
    random_crops,
    sparsity,
    text2live,
)
from ip2p_lib.filtering.clip_filter import score_pairs

TEXTS = ["a photo of a cat", "a photo of the dog"]
FEW = LayerTraining(steps=3, crops=2)


@pytest.fixture(scope="module")
def clip(tiny_clip_folder):
    return load_clip(tiny_clip_folder, device="cpu")


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)


def test_a_layer_covers_as_its_opacity_says():
    picture, colour = torch.rand(2, 1, 3, 4, 4)
    opacity = torch.tensor([0.0, 0.25, 1.0, 1.0]).expand(1, 1, 4, 4)
    found = composite(picture, colour, opacity)
    assert torch.equal(found[..., 0], picture[..., 0])
    assert torch.equal(found[..., 2:], colour[..., 2:])
    mixed = 0.25 * colour[..., 1] + 0.75 * picture[..., 1]
    assert torch.allclose(found[..., 1], mixed)


def test_sparsity_is_none_without_a_layer_and_counts_what_is_barely_covered():
    faint, half, full = (float(sparsity(torch.full((1,), a))) for a in (0.1, 0.5, 1.0))
    assert float(sparsity(torch.zeros(3))) == 0
    assert full == pytest.approx(1 + math.tanh(2.5))
    assert faint > 0.1 * full and half > 0.5 * full


def test_the_loss_is_made_of_the_filters_cosines(clip):
    both = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = score_pairs(clip, both[:3], both[3:], [TEXTS[0]] * 3, [TEXTS[1]] * 3)
    found = layer_loss(clip, both, clip.embed_texts(TEXTS), structure=0)
    right = (2 - scores.after - scores.direction).mean()
    assert torch.allclose(found, right, atol=1e-5)


def test_crops_are_slices_of_both_images_alike():
    grid = torch.stack(
        torch.meshgrid(torch.arange(20.0), torch.arange(40.0), indexing="ij"), 0
    )
    first = torch.cat([grid, torch.zeros(1, 20, 40)])
    crops = random_crops(torch.stack([first, first + 1]), 3, seed=0, step=5)
    assert crops.shape == (6, 3, 20, 40)
    torch.testing.assert_close(crops[3:], crops[:3] + 1)
    spans = (crops[:3, :2].amax((2, 3)) - crops[:3, :2].amin((2, 3))) + 1
    assert (spans >= torch.tensor([16, 32])).all() and spans[:, 1].min() < 40
    again = random_crops(torch.stack([first, first]), 3, seed=0, step=6)
    assert not torch.equal(again[:3], crops[:3])


def test_structure_minds_moved_patches_and_nothing_else(clip):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    wanted, same = clip.embed_texts(TEXTS), torch.cat([picture, picture])
    flipped = torch.cat([picture, picture.flip(-1)])
    terms = [
        layer_loss(clip, both, wanted, 1) - layer_loss(clip, both, wanted, 0)
        for both in (same, flipped)
    ]
    assert float(terms[0]) == pytest.approx(0, abs=1e-6) and float(terms[1]) > 1e-4


def test_a_network_gives_colour_and_opacity_in_their_ranges():
    colour, opacity = LayerNet(8)(torch.randn(2, 3, 16, 24))
    assert colour.shape == (2, 3, 16, 24) and opacity.shape == (2, 1, 16, 24)
    assert colour.min() >= -1 and colour.max() <= 1
    assert opacity.min() >= 0 and opacity.max() <= 1


def test_training_brings_the_edit_nearer_to_its_caption(clip, picture):
    """Among crops of another kind: the measure is of whole pictures."""
    from ip2p_lib.images import to_tensor

    start, end = (
        to_tensor([text2live(clip, picture, *TEXTS, training=LayerTraining(steps=n))])
        for n in (0, 40)
    )
    before = to_tensor([picture])
    first, last = (
        score_pairs(clip, before, edit, TEXTS[:1], TEXTS[1:]) for edit in (start, end)
    )
    assert last.after + last.direction > first.after + first.direction + 0.1


def test_the_same_seed_is_the_same_edit_and_torchs_own_numbers_go_on(clip, picture):
    torch.manual_seed(3)
    right = torch.rand(1)
    torch.manual_seed(3)
    edits = [
        text2live(clip, picture, *TEXTS, training=FEW, seed=seed).tobytes()
        for seed in (1, 1, 2)
    ]
    assert edits[0] == edits[1] != edits[2]
    assert torch.equal(torch.rand(1), right)


def test_a_picture_that_cannot_be_halved_twice_is_refused(clip, picture):
    with pytest.raises(ValueError, match=r"\(34, 36\).*multiples of 4"):
        text2live(clip, picture.resize((36, 34)), *TEXTS)


def test_clip_in_half_precision_is_refused(tiny_clip_folder, picture):
    half = load_clip(tiny_clip_folder, device="cpu")
    half.model.half()
    with pytest.raises(ValueError, match=r"float16.*dtype=torch\.float32"):
        text2live(half, picture, *TEXTS)
