"""SDEdit equals diffusers' image-to-image, and text-to-image its text-to-image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from ip2p_lib.evaluation import sdedit as baselines
from ip2p_lib.evaluation.sdedit import sdedit, sdedit_tensors, text_to_image
from ip2p_lib.images import to_tensor
from ip2p_lib.training.surgery import widen_conv_in


def picture(seed=0, size=(64, 64)):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def stock_text_to_image(backbone, kind):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        clip_sample=False,
        steps_offset=1,
    )
    pipe = kind(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def known_noise(monkeypatch):
    """The noise a seed of 5 gives both pipelines."""

    def draw(key, ids, shape):
        generator = torch.Generator().manual_seed(5)
        return torch.randn((len(ids), *shape), generator=generator)

    monkeypatch.setattr(baselines, "normal", draw)


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_sdedit_equals_diffusers_image_to_image(
    tiny_backbone, known_noise, monkeypatch, strength
):
    from diffusers import StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import (
        pipeline_stable_diffusion_img2img as module,
    )

    monkeypatch.setattr(
        module, "retrieve_latents", lambda out, generator: out.latent_dist.mode()
    )
    pipe = stock_text_to_image(tiny_backbone, StableDiffusionImg2ImgPipeline)
    stock = pipe(
        "a photo of a dog",
        image=picture(),
        strength=strength,
        num_inference_steps=10,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    ours = sdedit_tensors(
        tiny_backbone,
        to_tensor(picture()),
        ["a photo of a dog"],
        strength=strength,
        cfg_scale=5.0,
        steps=10,
        seeds=[0],
    )
    assert (ours / 2 + 0.5 - stock).abs().max() < 1e-4
    assert stock.std() > 0.01, "a flat picture would prove nothing"


def test_ignoring_the_input_equals_text_to_image(tiny_backbone, known_noise):
    from diffusers import StableDiffusionPipeline

    stock = stock_text_to_image(tiny_backbone, StableDiffusionPipeline)(
        "a photo of a dog",
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    options = {"cfg_scale": 5.0, "steps": 8, "seeds": [0]}
    for seed in (0, 1):
        before = to_tensor(picture(seed))
        ours = text_to_image(tiny_backbone, before, ["a photo of a dog"], **options)
        assert (ours / 2 + 0.5 - stock).abs().max() < 1e-4


def test_strength_is_the_share_of_the_walk_and_of_the_change(tiny_backbone):
    before = to_tensor(picture())
    rebuilt = tiny_backbone.decode(
        tiny_backbone.scaling_factor * tiny_backbone.encode(before)
    )
    options = {"cfg_scale": 1.0, "steps": 20, "seeds": [3]}
    calls, changes = [], []
    handle = tiny_backbone.unet.register_forward_hook(lambda *_: calls.append(1))
    for strength in (0.05, 0.3, 1.0):
        calls.clear()
        edit = sdedit_tensors(
            tiny_backbone, before, ["a dog"], strength=strength, **options
        )
        assert len(calls) == round(20 * strength)
        changes.append((edit - rebuilt).abs().mean().item())
    handle.remove()
    assert changes[0] < 0.7 * changes[2]


def test_pictures_of_any_size_keep_their_aspect_and_seed(tiny_backbone):
    wide = picture(size=(120, 80))
    options = {"cfg_scale": 3.0, "steps": 3}
    edits = [
        sdedit(tiny_backbone, wide, "a dog", strength=0.5, seed=seed, **options)
        for seed in (1, 1, 2)
    ]
    assert (
        edits[0].size == (64, 40) or abs(edits[0].width / edits[0].height - 1.5) < 0.2
    )
    assert ImageChops.difference(edits[0], edits[1]).getbbox() is None
    assert ImageChops.difference(edits[0], edits[2]).getbbox() is not None


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5])
def test_a_strength_outside_its_range_is_refused(tiny_backbone, strength):
    with pytest.raises(ValueError, match=r"strength.*\(0, 1\]"):
        sdedit(
            tiny_backbone, picture(), "a dog", strength=strength, cfg_scale=3.0, steps=2
        )


def test_an_editors_u_net_is_refused(tiny_backbone):
    editor = replace(tiny_backbone, unet=widen_conv_in(tiny_backbone.unet))
    with pytest.raises(ValueError, match="4 channels, not 8"):
        sdedit(editor, picture(), "a dog", strength=0.5, cfg_scale=3.0, steps=2)
