"""SDEdit equals diffusers' image-to-image, and text-to-image its text-to-image."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_img2img as img2img,
)
from PIL import ImageChops

from ip2p_lib.evaluation import sdedit as module_under_test
from ip2p_lib.evaluation.sdedit import sdedit, sdedit_tensors, text_to_image
from ip2p_lib.images import to_tensor
from ip2p_lib.training.surgery import widen_conv_in
from tests.support.images import smooth_image
from tests.support.pipelines import stock_pipeline

DOG = "a photo of a dog"
GUIDED = {"cfg_scale": 5.0, "seeds": [0]}


@pytest.fixture
def stock(tiny_backbone, monkeypatch):
    """A stock pipeline's image, whose noise a seed of 0 of ours has too."""

    def draw(key, ids, shape):
        generator = torch.Generator().manual_seed(5)
        return torch.randn((len(ids), *shape), generator=generator)

    def run(kind, **options):
        generator = torch.Generator().manual_seed(5)
        options |= {"guidance_scale": 5.0, "generator": generator, "output_type": "pt"}
        return stock_pipeline(tiny_backbone, kind)(DOG, **options).images

    monkeypatch.setattr(module_under_test, "normal", draw)
    return run


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_sdedit_equals_diffusers_image_to_image(
    tiny_backbone, stock, monkeypatch, strength
):
    def mode(encoded, generator):
        return encoded.latent_dist.mode()

    monkeypatch.setattr(img2img, "retrieve_latents", mode)
    options = {"image": smooth_image(), "num_inference_steps": 10}
    theirs = stock(StableDiffusionImg2ImgPipeline, strength=strength, **options)
    before, options = to_tensor(smooth_image()), {"steps": 10, **GUIDED}
    ours = sdedit_tensors(tiny_backbone, before, [DOG], strength=strength, **options)
    assert (ours / 2 + 0.5 - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.01, "a flat image would prove nothing"


def test_ignoring_the_input_equals_text_to_image(tiny_backbone, stock, monkeypatch):
    """Of the input only the size counts, for which nothing is encoded."""
    theirs = stock(StableDiffusionPipeline, num_inference_steps=8)
    monkeypatch.setattr(tiny_backbone.vae, "encode", None)
    for seed in (0, 1):
        before = to_tensor(smooth_image(seed=seed))
        ours = text_to_image(tiny_backbone, before, [DOG], steps=8, **GUIDED)
        assert (ours / 2 + 0.5 - theirs).abs().max() < 1e-4


def test_images_of_any_size_keep_their_aspect_and_seed(tiny_backbone):
    options = {"strength": 0.5, "cfg_scale": 3.0, "steps": 3}
    first, same, other = (
        sdedit(tiny_backbone, smooth_image(120, 80), DOG, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    assert abs(first.width / first.height - 1.5) < 0.2
    assert ImageChops.difference(first, same).getbbox() is None
    assert ImageChops.difference(first, other).getbbox() is not None


def test_a_wrong_strength_or_an_editors_u_net_is_refused(tiny_backbone):
    editor = replace(tiny_backbone, unet=widen_conv_in(tiny_backbone.unet))
    for backbone, strength, words in (
        (tiny_backbone, 0.0, "strength"),
        (tiny_backbone, 1.5, "strength"),
        (editor, 0.5, "4 channels, not 8"),
    ):
        options = {"strength": strength, "cfg_scale": 3.0, "steps": 2}
        with pytest.raises(ValueError, match=words):
            sdedit(backbone, smooth_image(), DOG, **options)
