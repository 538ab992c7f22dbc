"""Text2LIVE trains a layer; what is not covered stays as it was."""

import math

import pytest
import torch

from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.evaluation.text2live import (
    LayerTraining,
    layer_loss,
    random_crops,
    sparsity,
    text2live,
)
from ip2p_lib.filtering.clip_filter import score_pairs
from ip2p_lib.images import to_tensor
from tests.support.images import smooth_image

TEXTS = ["a photo of a cat", "a photo of the dog"]
FEW = LayerTraining(steps=3, crops=2)
IMAGE = smooth_image(32, 32)


def test_sparsity_is_none_without_a_layer_and_counts_what_is_barely_covered():
    faint, half, full = (float(sparsity(torch.full((1,), a))) for a in (0.1, 0.5, 1.0))
    assert float(sparsity(torch.zeros(3))) == 0
    assert full == pytest.approx(1 + math.tanh(2.5))
    assert faint > 0.1 * full and half > 0.5 * full


def test_the_loss_is_made_of_the_filters_cosines(clip):
    crops = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = score_pairs(clip, crops[:3], crops[3:], [TEXTS[0]] * 3, [TEXTS[1]] * 3)
    loss = layer_loss(clip, crops, clip.embed_texts(TEXTS), structure=0)
    expected = (2 - scores.after - scores.direction).mean()
    assert torch.allclose(loss, expected, atol=1e-5)


def test_crops_are_slices_of_crops_images_alike():
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


def test_structure_is_zero_but_for_moved_patches(clip):
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts, same = clip.embed_texts(TEXTS), torch.cat([image, image])
    flipped = torch.cat([image, image.flip(-1)])
    terms = [
        layer_loss(clip, crops, texts, 1) - layer_loss(clip, crops, texts, 0)
        for crops in (same, flipped)
    ]
    assert float(terms[0]) == pytest.approx(0, abs=1e-6) and float(terms[1]) > 1e-4


def test_training_brings_the_edit_nearer_to_its_caption(clip):
    """Among crops of another kind: the measure is of whole images."""
    similarities = []
    for steps in (0, 40):
        edit = text2live(clip, IMAGE, *TEXTS, training=LayerTraining(steps=steps))
        images = to_tensor([IMAGE]), to_tensor([edit])
        scores = score_pairs(clip, *images, TEXTS[:1], TEXTS[1:])
        similarities.append(scores.after + scores.direction)
    assert similarities[1] > similarities[0] + 0.1


def test_the_same_seed_is_the_same_edit_and_torchs_own_numbers_go_on(clip):
    torch.manual_seed(3)
    right = torch.rand(1)
    torch.manual_seed(3)
    edits = [
        text2live(clip, IMAGE, *TEXTS, training=FEW, seed=seed).tobytes()
        for seed in (1, 1, 2)
    ]
    assert edits[0] == edits[1] != edits[2]
    assert torch.equal(torch.rand(1), right)


def test_odd_sides_or_clip_in_half_precision_are_refused(clip, tiny_clip_folder):
    with pytest.raises(ValueError, match="multiples of 4"):
        text2live(clip, IMAGE.resize((36, 34)), *TEXTS)
    half = load_clip(tiny_clip_folder, device="cpu")
    half.model.half()
    with pytest.raises(ValueError, match="float32"):
        text2live(half, IMAGE, *TEXTS)
