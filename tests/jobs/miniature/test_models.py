"""The shipped miniature: what it reaches, and that stock classes open it."""

from pathlib import Path

import pytest
import torch

from ip2p_lib.config import MODELS, preset
from ip2p_lib.diffusion.clip import load_clip
from ip2p_lib.miniature.corpus import build_corpus
from ip2p_lib.miniature.render import render_codes
from jobs.miniature import measure as quality
from jobs.miniature import models
from jobs.miniature.saving import save_text_encoder, save_tokenizer

SD = MODELS / "miniature-sd"


@pytest.fixture(scope="module")
def held_out() -> tuple[torch.Tensor, list[str]]:
    corpus = quality.held_out(256)
    return torch.cat([render_codes(part) for part in corpus.before.split(64)]), [
        *corpus.captions
    ]


def test_clip_finds_the_right_caption(held_out):
    images, captions = held_out
    clip = load_clip(preset("miniature").clip, device="cpu")
    assert quality.retrieval(clip, images, captions) >= 0.97


def test_the_autoencoder_keeps_images_and_its_latents_have_unit_variance(held_out):
    from diffusers import AutoencoderKL

    vae, images = AutoencoderKL.from_pretrained(SD / "vae"), held_out[0][:48]
    assert quality.psnr(images, quality.reconstruct(vae, images)) >= 29
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
    assert (latents * vae.config.scaling_factor).std() == pytest.approx(1, abs=0.1)


def test_stock_classes_open_what_is_shipped():
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoModelForCausalLM, CLIPModel

    pipeline = StableDiffusionPipeline.from_pretrained(
        SD, safety_checker=None, requires_safety_checker=False
    )
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {next(part.parameters()).dtype for part in parts} == {torch.float32}
    editor = UNet2DConditionModel.from_pretrained(MODELS / "miniature-ip2p" / "unet")
    assert editor.config.in_channels == 8 and pipeline.unet.config.in_channels == 4
    CLIPModel.from_pretrained(MODELS / "miniature-clip")
    AutoModelForCausalLM.from_pretrained(MODELS / "miniature-lm")


def test_the_pipelines_text_encoder_is_clips():
    from transformers import CLIPTextModel, CLIPTokenizer

    clip = load_clip(MODELS / "miniature-clip", device="cpu")
    tokenizer = CLIPTokenizer.from_pretrained(SD / "tokenizer")
    ids = tokenizer(["a red cat", "把猫换成狗"], padding=True, return_tensors="pt")
    encoder = CLIPTextModel.from_pretrained(SD / "text_encoder")
    with torch.no_grad():
        ours = encoder(ids.input_ids).last_hidden_state
        theirs = clip.model.text_model(input_ids=ids.input_ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)


def test_weights_fit_their_budget():
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 110e6
    assert max(path.stat().st_size for path in files) <= 14.1e6
    assert {p.suffix for p in files} <= {".json", ".txt", ".md", ".safetensors"}
    configs = [p.read_text("utf-8") for p in files if p.name == "config.json"]
    assert not any("_name_or_path" in text for text in configs)


def test_the_tokenizer_can_write_anything(tmp_path: Path):
    texts = build_corpus(0, 200).captions
    tokenizer = models.train_tokenizer(texts)
    save_tokenizer(tokenizer, tmp_path)
    from transformers import CLIPTokenizer

    read = CLIPTokenizer.from_pretrained(tmp_path)
    strange = ["naïve jazz 🙂", "把向日葵换成玫瑰", "\u0000 \u2028 ﷽"]
    for text in [*texts[:50], *strange]:
        ids = read(text).input_ids
        assert ids == tokenizer(text).input_ids
        assert read.unk_token_id not in ids[:-1], "no unknown token in mid-text"


def test_old_transformers_find_their_prefix(tmp_path: Path):
    from safetensors import safe_open

    clip = models.new_clip(models.train_tokenizer(build_corpus(0, 50).captions))
    save_text_encoder(clip, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
