"""A data set is encoded once, in shares, and read back as the encoders had it."""

import pytest
import torch

from ip2p_lib.config import Source
from ip2p_lib.dataset.dataset import PairDataset, write_shards
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.training.latent_cache import CacheKey, cached_latents, crop_to_squares
from ip2p_lib.training.latents import store_latents
from tests.support.pairs import make_pair


@pytest.fixture
def order(tmp_path, tiny_sd_folder):
    wishes = [f"make it {i % 3}" for i in range(10)]
    many = [make_pair(i, 48, instruction=wish) for i, wish in enumerate(wishes)]
    write_shards(many, tmp_path / "pairs")
    return CacheKey(tmp_path / "pairs", (0, 10), Source(str(tiny_sd_folder)), 64)


def test_stored_latents_are_those_of_the_encoders(tiny_backbone, order, tmp_path):
    kept = cached_latents(tiny_backbone, order, tmp_path / "kept")
    many = [PairDataset(order.data)[i] for i in range(10)]
    texts = [pair.instruction for pair in many]
    expected = store_latents(tiny_backbone, [crop_to_squares(many, 64)], texts)
    for name in ("target_mean", "target_logvar", "condition"):
        ours, theirs = (getattr(x, name).float() for x in (kept, expected))
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert torch.equal(kept.text[kept.instruction], tiny_backbone.tokenize(texts))


def test_nothing_is_encoded_twice_unless_the_order_changed(
    tiny_sd_folder, order, tmp_path
):
    backbone = load_stable_diffusion(tiny_sd_folder, device="cpu")
    calls, encode = [], backbone.vae.encode
    backbone.vae.encode = lambda x: calls.append(len(x)) or encode(x)
    first = cached_latents(backbone, order, tmp_path / "kept")
    once = len(calls)
    again = cached_latents(backbone, order, tmp_path / "kept")
    assert once > 0 and len(calls) == once
    assert torch.equal(first.condition, again.condition)
    fewer = CacheKey(order.data, (0, 4), order.backbone, 64)
    assert len(cached_latents(backbone, fewer, tmp_path / "kept")) == 4
    (file,) = tmp_path.glob("kept/share-000/*.safetensors")
    file.write_bytes(b"spoilt")
    assert len(cached_latents(backbone, fewer, tmp_path / "kept")) == 4, "encoded anew"


def test_both_pictures_are_cut_to_the_same_square():
    wide = make_pair(0, 48)
    wide.before.paste((0, 0, 0), (0, 0, 48, 48))
    before, after = crop_to_squares([wide], 64)
    assert before.shape == after.shape == (1, 3, 64, 64)
    assert before.min() == before.max() == -1
