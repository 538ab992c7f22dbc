"""Imagic trains an embedding, then a copy of the U-Net, and draws between the two."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ip2p_lib.evaluation.imagic import Stage, fit_imagic
from ip2p_lib.evaluation.sdedit import preprocess, text_to_image
from ip2p_lib.images import to_tensor
from ip2p_lib.rng import integers, key, normal
from ip2p_lib.training.surgery import widen_conv_in

NONE, FEW = Stage(0, 1e-2), Stage(2, 1e-2)
CAPTION = "a photo of the dog"


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)


def weights(unet):
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


def test_each_stage_trains_its_own_and_leaves_the_backbone_alone(
    tiny_backbone, picture
):
    before = weights(tiny_backbone.unet)
    first = fit_imagic(tiny_backbone, picture, CAPTION, embedding=FEW, unet=NONE)
    assert torch.equal(weights(first.finetuned.unet), before)
    assert not torch.equal(first.optimized_embedding, first.target_embedding)
    both = fit_imagic(tiny_backbone, picture, CAPTION, embedding=FEW, unet=FEW)
    assert not torch.equal(weights(both.finetuned.unet), before)
    assert torch.equal(both.optimized_embedding, first.optimized_embedding)
    assert torch.equal(weights(tiny_backbone.unet), before)
    assert len(both.losses) == 4 and both.losses[:2] == first.losses


def test_untrained_it_draws_the_caption_as_from_nothing(tiny_backbone, picture):
    untrained = fit_imagic(tiny_backbone, picture, CAPTION, embedding=NONE, unet=NONE)
    drawn = untrained.edit(1.0, cfg_scale=3.0, steps=3, seed=7)
    before, options = preprocess(tiny_backbone, picture), {"cfg_scale": 3.0, "steps": 3}
    right = text_to_image(tiny_backbone, before, [CAPTION], seeds=[7], **options)
    assert (to_tensor(drawn) - right).abs().max() < 1 / 127


def test_a_picture_that_is_not_square_is_edited_at_its_own_aspect(
    tiny_backbone, picture
):
    wide = picture.resize((128, 64))
    fitted = fit_imagic(tiny_backbone, wide, CAPTION, embedding=NONE, unet=NONE)
    drawn = fitted.edit(0.5, cfg_scale=3.0, steps=2)
    assert drawn.width == 2 * drawn.height


def test_a_loss_is_that_of_denoising_by_diffusers(tiny_backbone, picture):
    from diffusers import DDPMScheduler

    fitted = fit_imagic(
        tiny_backbone, picture, CAPTION, embedding=replace(FEW, steps=1), unet=NONE
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    latent = tiny_backbone.vae.encode(preprocess(tiny_backbone, picture)).latent_dist
    rows = (tiny_backbone.vae.config.scaling_factor * latent.mode()).repeat(4, 1, 1, 1)
    ids = torch.arange(4)
    t = integers(key("imagic", "timestep", 0, 0), ids, 1000)
    noise = normal(key("imagic", "noise", 0, 0), ids, tuple(rows.shape[1:]))
    text = tiny_backbone.encode_text([CAPTION]).repeat(4, 1, 1)
    with torch.no_grad():
        guess = tiny_backbone.unet(scheduler.add_noise(rows, noise, t), t, text).sample
    assert fitted.losses[0] == pytest.approx(float((guess - noise).square().mean()))


def test_training_explains_the_picture_better(tiny_backbone, picture):
    stages = {"embedding": Stage(10, 1e-2), "unet": Stage(40, 3e-3)}
    losses = fit_imagic(tiny_backbone, picture, CAPTION, **stages).losses
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_same_seed_is_the_same_edit_and_another_is_another(tiny_backbone, picture):
    fitted = fit_imagic(tiny_backbone, picture, CAPTION, embedding=FEW, unet=FEW)
    again = fit_imagic(tiny_backbone, picture, CAPTION, embedding=FEW, unet=FEW)
    edits = [
        one.edit(0.7, cfg_scale=3.0, steps=3, seed=seed).tobytes()
        for one, seed in ((fitted, 1), (again, 1), (fitted, 2))
    ]
    assert edits[0] == edits[1] != edits[2]


def test_an_editors_unet_is_refused_before_it_is_trained(tiny_backbone, picture):
    editor = replace(tiny_backbone, unet=widen_conv_in(tiny_backbone.unet))
    with pytest.raises(ValueError, match="4 channels, not 8"):
        fit_imagic(editor, picture, CAPTION)
