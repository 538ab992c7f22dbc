"""A dataset is encoded once, in shards, and read back as the encoders had it."""

import pytest
import torch

from ip2p_lib.config import Source
from ip2p_lib.dataset.dataset import PairDataset, write_shards
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion
from ip2p_lib.training.latents import store_latents
from jobs.latent_cache import cached_latents, crop_to_squares
from tests.support.pairs import make_pair


@pytest.fixture
def what(tmp_path, tiny_sd_folder):
    instructions = [f"make it {i % 3}" for i in range(10)]
    many = [make_pair(i, 48, instruction=text) for i, text in enumerate(instructions)]
    write_shards(many, tmp_path / "pairs")
    return tmp_path / "pairs", range(10), 64, Source(str(tiny_sd_folder))


def test_stored_latents_are_those_of_the_encoders(tiny_backbone, what, tmp_path):
    kept = cached_latents(tiny_backbone, *what, tmp_path / "kept")
    many = [PairDataset(what[0])[i] for i in range(10)]
    texts = [pair.instruction for pair in many]
    expected = store_latents(tiny_backbone, [crop_to_squares(many, 64)], texts)
    for name in ("target_mean", "target_logvar", "condition"):
        ours, theirs = (getattr(x, name).float() for x in (kept, expected))
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert torch.equal(kept.text[kept.text_row], tiny_backbone.tokenize(texts))


def test_nothing_is_encoded_twice_unless_the_cache_key_changed(
    tiny_sd_folder, what, tmp_path
):
    backbone = load_stable_diffusion(tiny_sd_folder, device="cpu")
    calls, encode = [], backbone.vae.encode
    backbone.vae.encode = lambda x: calls.append(len(x)) or encode(x)
    first = cached_latents(backbone, *what, tmp_path / "kept")
    once = len(calls)
    again = cached_latents(backbone, *what, tmp_path / "kept")
    assert once > 0 and len(calls) == once
    assert torch.equal(first.condition, again.condition)
    plain = cached_latents(backbone, *what, tmp_path / "kept", flips=False)
    assert len(calls) > once and torch.equal(plain.condition, first.condition[:, :1])
    fewer = what[0], range(4), *what[2:]
    assert len(cached_latents(backbone, *fewer, tmp_path / "kept")) == 4
    (file,) = tmp_path.glob("kept/shard-000/*.safetensors")
    file.write_bytes(b"spoilt")
    assert len(cached_latents(backbone, *fewer, tmp_path / "kept")) == 4, "encoded anew"
