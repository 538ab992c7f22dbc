"""The loaded model is the pipeline diffusers would load, with its conventions named."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from ip2p_lib import rng
from ip2p_lib.config import Source
from ip2p_lib.diffusion.loading import load_network
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


def test_text_is_encoded_as_by_the_pipeline(tiny_backbone, pipeline):
    theirs, null = pipeline.encode_prompt(TEXTS, "cpu", 1, True)
    ours = tiny_backbone.encode_text(TEXTS)
    assert ours.shape == (3, 77, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(tiny_backbone.null_text, null[:1], rtol=0, atol=1e-6)


def test_null_text_is_encoded_once(tiny_backbone):
    assert tiny_backbone.null_text is tiny_backbone.null_text


def test_the_condition_latent_is_the_mode_and_unscaled(tiny_backbone, pipeline):
    mode = pipeline.vae.encode(IMAGES).latent_dist.mode()
    torch.testing.assert_close(tiny_backbone.encode(IMAGES), mode, rtol=0, atol=1e-5)


def test_moments_draw_the_training_target(tiny_backbone, pipeline):
    noise = rng.normal(rng.key("posterior"), torch.arange(2), (4, 8, 8))
    mean, logvar = tiny_backbone.encode_moments(IMAGES)
    ours = tiny_backbone.scaling_factor * (mean + (logvar / 2).exp() * noise)
    theirs = pipeline.vae.encode(IMAGES).latent_dist
    theirs = (theirs.mean + theirs.std * noise) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_decoding_is_that_of_the_pipeline(tiny_backbone, pipeline):
    latents = rng.normal(rng.key("latents"), torch.arange(2), (4, 8, 8))
    theirs = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    ours = tiny_backbone.decode(latents)
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), rtol=0, atol=1e-5)
    assert tiny_backbone.decode(1e6 * latents).abs().max() <= 1


def test_sizes_and_scaling_come_from_the_configuration(copied):
    path = copied / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"scaling_factor": 0.5}))
    backbone = load_stable_diffusion(copied, device="cpu")
    assert backbone.scaling_factor == 0.5
    assert backbone.latent_shape == (4, 8, 8)
    assert backbone.resolution == 64


def test_the_schedule_is_that_of_the_scheduler(copied, tiny_backbone, pipeline):
    theirs = pipeline.scheduler.alphas_cumprod.double()
    ours = tiny_backbone.schedule.alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    path = copied / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_train_timesteps": 50}))
    other = load_stable_diffusion(copied, device="cpu").schedule
    assert len(other.alphas_cumprod) == 50


def test_only_the_unet_can_be_trained(tiny_backbone):
    frozen = [*tiny_backbone.vae.parameters(), *tiny_backbone.text_encoder.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in tiny_backbone.unet.parameters())
    assert not tiny_backbone.unet.training
    assert not tiny_backbone.encode_text(["a cat"]).requires_grad


def test_what_it_encodes_can_be_trained_on(tiny_backbone):
    """Inference tensors could not: autograd may not save them."""
    text = tiny_backbone.encode_text(["a cat"])
    weight = torch.ones(16, 1, requires_grad=True)
    (text @ weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_half_precision_files_are_read_as_float32_on_a_cpu(copied, tiny_backbone):
    for part, name in (
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
    ):
        path = copied / part / f"{name}.safetensors"
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(half, path, metadata={"format": "pt"})
    backbone = load_stable_diffusion(copied, device="cpu")
    parts = (backbone.text_encoder, backbone.vae, backbone.unet)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    full = tiny_backbone.encode_text(TEXTS)
    torch.testing.assert_close(backbone.encode_text(TEXTS), full, rtol=0, atol=1e-2)


def test_float64_is_kept_throughout(tiny_sd_folder):
    backbone = load_stable_diffusion(tiny_sd_folder, device="cpu", dtype=torch.float64)
    assert backbone.dtype == backbone.encode_text(["a"]).dtype == torch.float64
    assert backbone.decode(backbone.encode(IMAGES)).dtype == torch.float64


def test_loading_says_nothing_about_precision(tiny_sd_folder, caplog, capsys):
    load_stable_diffusion(tiny_sd_folder, device="cpu", dtype=torch.float64)
    assert "float32" not in caplog.text + capsys.readouterr().err


LONG = "a photo of the cat with " + "a dog and " * 40


def test_a_long_text_is_named_and_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"a photo of the cat.* tokens long.*reads 77"):
        tiny_backbone.encode_text(["a cat", LONG])


def test_a_long_text_is_cut_when_asked(tiny_backbone, pipeline):
    ours = tiny_backbone.tokenize([LONG], truncate=True)
    theirs = pipeline.tokenizer(LONG, max_length=77, truncation=True).input_ids
    assert ours.tolist() == [theirs]


def test_one_string_in_place_of_a_list_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="Give a list of texts"):
        tiny_backbone.encode_text("a cat")


def test_a_wrong_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a model folder"):
        load_stable_diffusion(tmp_path / "nowhere")


@pytest.mark.parametrize("wrap", [str, Source])
def test_a_hub_model_needs_a_revision(wrap):
    with pytest.raises(FileNotFoundError, match=r"pass config\.Source"):
        load_stable_diffusion(wrap("someone/some-model"))


def test_a_source_may_be_a_local_folder(tiny_sd_folder):
    backbone = load_stable_diffusion(Source(str(tiny_sd_folder)), device="cpu")
    assert backbone.resolution == 64


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet"])
def test_missing_weights_are_an_error_not_a_random_layer(copied, part):
    (path,) = (copied / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[max(weights)]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model/{part} lacks 1 weights"):
        load_stable_diffusion(copied, device="cpu")


def test_loading_shows_no_bar_and_leaves_the_setting_alone(tiny_sd_folder, capsys):
    logging.enable_progress_bar()
    where = {"pretrained_model_name_or_path": tiny_sd_folder, "subfolder": "unet"}
    load_network(UNet2DConditionModel, where)
    assert "Loading" not in capsys.readouterr().err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    "change", [{"prediction_type": "v_prediction"}, {"beta_schedule": "linear"}]
)
def test_another_kind_of_model_is_refused(copied, change):
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="must predict epsilon"):
        load_stable_diffusion(copied, device="cpu")
