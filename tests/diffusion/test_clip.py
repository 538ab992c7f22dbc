"""CLIP embeddings equal those of transformers' own model and image processor."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.images import to_tensor
from tests.support.images import clip_reference, smooth_images


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (90, 64), (48, 70)])
def test_embeddings_equal_those_of_transformers(clip, tiny_clip_folder, size):
    images = smooth_images(3, size)
    texts = ["a photo of a cat", "the dog", "a house " * 60]
    pixels, image, text = clip_reference(tiny_clip_folder, images, texts)
    ours = clip.preprocess(to_tensor(images))
    assert (ours - pixels).abs().max() < 1.1 / 255 / 0.26  # one level of 8 bits
    assert (clip.embed_images(to_tensor(images)) - image).abs().max() < 5e-3
    assert (clip.embed_texts(texts) - text).abs().max() < 1e-5


def test_the_released_range_skips_the_step_to_0_1(clip):
    x = to_tensor(smooth_images(2))
    slip = replace(clip, released_range=True)
    small = torch.nn.functional.interpolate(x, 32, mode="bicubic", antialias=True)
    mean, std = clip.mean[:, None, None], clip.std[:, None, None]
    assert torch.allclose(slip.preprocess(x), (small - mean) / std, atol=1e-6)
    assert not torch.allclose(slip.embed_images(x), clip.embed_images(x), atol=1e-2)
