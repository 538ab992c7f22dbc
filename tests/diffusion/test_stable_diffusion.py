"""The loaded model is the pipeline diffusers would load, with its conventions named."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ip2p_lib import rng
from ip2p_lib.config import Source
from ip2p_lib.diffusion.stable_diffusion import load_stable_diffusion

TEXTS = ["a photo of the cat", "", "a horse by the river, 猫!"]
IMAGES = rng.uniform(rng.key("images"), torch.arange(2), (3, 64, 64)) * 2 - 1


@pytest.fixture(scope="module")
def pipeline(tiny_sd_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    for module in (pipe.vae, pipe.text_encoder, pipe.unet):
        module.requires_grad_(False)
    return pipe


@pytest.fixture
def copied(tiny_sd_folder, tmp_path):
    return shutil.copytree(tiny_sd_folder, tmp_path / "model")


def configure(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_text_is_encoded_as_by_the_pipeline(tiny_backbone, pipeline):
    theirs, null = pipeline.encode_prompt(TEXTS, "cpu", 1, True)
    ours = tiny_backbone.encode_text(TEXTS)
    assert ours.shape == (3, 77, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(tiny_backbone.null_text, null[:1], rtol=0, atol=1e-6)


def test_encoding_gives_the_mode_unscaled_and_draws_the_training_target(
    tiny_backbone, pipeline
):
    theirs = pipeline.vae.encode(IMAGES).latent_dist
    exact = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(tiny_backbone.encode(IMAGES), theirs.mode(), **exact)
    noise = rng.normal(rng.key("posterior"), torch.arange(2), (4, 8, 8))
    mean, logvar = tiny_backbone.encode_moments(IMAGES)
    ours = tiny_backbone.scaling_factor * (mean + (logvar / 2).exp() * noise)
    theirs = (theirs.mean + theirs.std * noise) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(ours, theirs, **exact)


def test_decoding_is_that_of_the_pipeline(tiny_backbone, pipeline):
    latents = rng.normal(rng.key("latents"), torch.arange(2), (4, 8, 8))
    theirs = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    ours = tiny_backbone.decode(latents)
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), rtol=0, atol=1e-5)
    assert tiny_backbone.decode(1e6 * latents).abs().max() <= 1


def test_sizes_scaling_and_schedule_come_from_the_configuration(
    copied, tiny_backbone, pipeline
):
    theirs = pipeline.scheduler.alphas_cumprod.double()
    ours = tiny_backbone.schedule.alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    configure(copied / "vae" / "config.json", scaling_factor=0.5)
    scheduler = copied / "scheduler" / "scheduler_config.json"
    configure(scheduler, num_train_timesteps=50)
    backbone = load_stable_diffusion(copied, device="cpu")
    assert backbone.scaling_factor == 0.5
    assert (backbone.latent_shape, backbone.resolution) == ((4, 8, 8), 64)
    assert len(backbone.schedule.alphas_cumprod) == 50
    configure(scheduler, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="must predict epsilon"):
        load_stable_diffusion(copied, device="cpu")


def test_only_the_unet_can_be_trained_on_what_the_encoders_give(tiny_backbone):
    frozen = [*tiny_backbone.vae.parameters(), *tiny_backbone.text_encoder.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in tiny_backbone.unet.parameters())
    assert not tiny_backbone.unet.training
    text = tiny_backbone.encode_text(["a cat"])
    assert not text.requires_grad
    weight = torch.ones(16, 1, requires_grad=True)
    (text @ weight).sum().backward()  # autograd may not save inference tensors
    assert weight.grad.abs().sum() > 0


def test_half_precision_files_are_read_as_float32_on_a_cpu(copied, tiny_backbone):
    for path in copied.glob("*/*.safetensors"):
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(half, path, metadata={"format": "pt"})
    backbone = load_stable_diffusion(copied, device="cpu")
    parts = (backbone.text_encoder, backbone.vae, backbone.unet)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    full = tiny_backbone.encode_text(TEXTS)
    torch.testing.assert_close(backbone.encode_text(TEXTS), full, rtol=0, atol=1e-2)


def test_a_long_text_is_refused_or_cut(tiny_backbone, pipeline):
    long = "a photo of the cat with " + "a dog and " * 40
    with pytest.raises(ValueError, match=r"a photo of the cat.* tokens long.*reads 77"):
        tiny_backbone.encode_text(["a cat", long])
    ours = tiny_backbone.tokenize([long], truncate=True)
    theirs = pipeline.tokenizer(long, max_length=77, truncation=True).input_ids
    assert ours.tolist() == [theirs]
    with pytest.raises(ValueError, match="put it into a list"):
        tiny_backbone.encode_text("a cat")


def test_a_wrong_folder_is_named_and_a_hub_model_needs_a_revision(tmp_path):
    for source in (tmp_path / "nowhere", "someone/model", Source("someone/model")):
        with pytest.raises(FileNotFoundError, match=r"model\b.*config\.Source"):
            load_stable_diffusion(source)


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_missing_weights_are_an_error_not_a_random_layer(copied, part):
    (path,) = (copied / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model/{part} lacks 1 weights"):
        load_stable_diffusion(copied, device="cpu")
