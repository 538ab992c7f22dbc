"""CLIP scores equal transformers' own, and the filter keeps what the paper keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.clip_filter import (
    Scores,
    drop_reasons,
    keep_best,
    load_clip,
    passes,
    score_pairs,
)
from ip2p_lib.images import to_tensor

LIMITS = Filtering(image=0.75, text=0.2, direction=0.2, keep=2)


@pytest.fixture(scope="module")
def clip(tiny_clip_folder):
    return load_clip(tiny_clip_folder, device="cpu")


def pictures(n, size=(64, 64), seed=0):
    """Smooth random pictures: noise would make the two resizers' rounding matter."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in small]


def reference(folder, images, texts):
    """Unit embeddings by transformers' model and Pillow processor."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**pixels, **tokens)
    return pixels["pixel_values"], out.image_embeds, out.text_embeds


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (90, 64), (48, 70)])
def test_embeddings_equal_those_of_transformers(clip, tiny_clip_folder, size):
    images, texts = pictures(3, size), ["a photo of a cat", "the dog", "a house " * 60]
    pixels, image, text = reference(tiny_clip_folder, images, texts)
    ours = clip.prepare(to_tensor(images))
    assert (ours - pixels).abs().max() < 1.1 / 255 / 0.26  # one level of 8 bits
    assert (clip.embed_images(to_tensor(images)) - image).abs().max() < 5e-3
    assert (clip.embed_texts(texts) - text).abs().max() < 1e-5


def test_scores_are_the_cosines_of_the_released_code(clip, tiny_clip_folder):
    before, after = pictures(4, seed=1), pictures(4, seed=2)
    captions, edited = ["a cat", "a dog", "a cat", "the river"], ["a dog"] * 4
    _, image, text = reference(tiny_clip_folder, before + after, captions + edited)
    i0, i1, t0, t1 = *image.double().chunk(2), *text.double().chunk(2)
    cosine = torch.nn.functional.cosine_similarity
    scores = score_pairs(clip, to_tensor(before), to_tensor(after), captions, edited)
    assert torch.allclose(scores.image.double(), cosine(i0, i1), atol=2e-3)
    assert torch.allclose(scores.before.double(), cosine(i0, t0), atol=2e-3)
    assert torch.allclose(scores.after.double(), cosine(i1, t1), atol=2e-3)
    assert torch.allclose(
        scores.direction.double(), cosine(i1 - i0, t1 - t0), atol=0.01
    )


def test_an_unchanged_picture_is_all_image_and_no_direction(clip):
    x = to_tensor(pictures(2))
    scores = score_pairs(clip, x, x, ["a cat"] * 2, ["a dog"] * 2)
    assert torch.allclose(scores.image, torch.ones(2))
    assert torch.equal(scores.direction, torch.zeros(2))


def test_direction_does_not_mind_running_the_edit_backwards(clip):
    x, y = to_tensor(pictures(2, seed=3)), to_tensor(pictures(2, seed=4))
    there = score_pairs(clip, x, y, ["a cat"] * 2, ["a dog"] * 2)
    back = score_pairs(clip, y, x, ["a dog"] * 2, ["a cat"] * 2)
    assert torch.allclose(there.direction, back.direction, atol=1e-5)


def test_a_pairs_scores_do_not_depend_on_its_batch(clip):
    x, y = to_tensor(pictures(5, seed=5)), to_tensor(pictures(5, seed=6))
    texts = ["a cat", "a dog", "a cat", "a tree", "a long photo of the river"]
    edited = texts[::-1]
    whole = score_pairs(clip, x, y, texts, edited)
    alone = score_pairs(clip, x[3:4], y[3:4], texts[3:4], edited[3:4])
    for name in ("image", "before", "after", "direction"):
        together = getattr(whole, name)[3]
        assert torch.allclose(together, getattr(alone, name)[0], atol=1e-5)


def test_the_released_range_skips_the_step_to_0_1(clip):
    x = to_tensor(pictures(2))
    slip = replace(clip, released_range=True)
    small = torch.nn.functional.interpolate(x, 32, mode="bicubic", antialias=True)
    mean, std = clip.mean[:, None, None], clip.std[:, None, None]
    assert torch.allclose(slip.prepare(x), (small - mean) / std, atol=1e-6)
    assert not torch.allclose(slip.embed_images(x), clip.embed_images(x), atol=1e-2)


def test_pictures_of_another_shape_and_uneven_batches_are_refused(clip):
    x = to_tensor(pictures(2))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(3, 64, 64\)"):
        clip.embed_images(x[0])
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 1\]"):
        score_pairs(clip, x, x, ["a", "b"], ["c"])


def test_a_folder_without_clip_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json.*SCALE='miniature'"):
        load_clip(tmp_path)


def scores(*rows):
    return Scores(*torch.tensor(rows).T)


GOOD, NAN = (0.8, 0.3, 0.3, 0.25), (math.nan, 0.3, 0.3, 0.3)
TABLE = scores(
    GOOD, (0.7, 0.3, 0.3, 0.3), (0.8, 0.1, 0.3, 0.3), (0.8, 0.3, 0.1, 0.3),
    (0.8, 0.3, 0.3, 0.1), NAN,
)  # fmt: skip


def test_each_threshold_drops_and_is_named():
    assert passes(TABLE, LIMITS).tolist() == [True] + [False] * 5
    assert drop_reasons(TABLE, LIMITS) == [
        None,
        "image 0.700 < 0.750",
        "before 0.100 < 0.200",
        "after 0.100 < 0.200",
        "direction 0.100 < 0.200",
        "image nan < 0.750",
    ]


def test_a_threshold_itself_passes():
    exact = Filtering(image=0.5, text=0.25, direction=0.125, keep=1)
    assert passes(scores((0.5, 0.25, 0.25, 0.125)), exact).item()


def test_the_best_of_each_triplet_are_kept_by_direction():
    table = scores(*[(0.8, 0.3, 0.3, d) for d in (0.3, 0.5, 0.1, 0.4, 0.9, 0.2)])
    groups = ["x", "x", "y", "x", "x", "y"]
    assert keep_best(table, groups, LIMITS) == [4, 1, 5]
    assert keep_best(table, groups, replace(LIMITS, keep=1)) == [4, 5]
