"""Imagic trains an embedding, then a copy of the U-Net, and draws between the two."""

import pytest
import torch
from diffusers import DDPMScheduler

from ip2p_lib.evaluation.imagic import Stage, fit_imagic
from ip2p_lib.evaluation.sdedit import preprocess, text_to_image
from ip2p_lib.images import to_tensor
from ip2p_lib.rng import integers, key, normal
from tests.support.images import smooth_image
from tests.support.models import BETAS

NONE, FEW = Stage(0, 1e-2), Stage(2, 1e-2)
CAPTION, IMAGE = "a photo of the dog", smooth_image()


def weights(unet):
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


def test_each_stage_trains_its_own_and_leaves_the_backbone_alone(tiny_backbone):
    before = weights(tiny_backbone.unet)
    first = fit_imagic(tiny_backbone, IMAGE, CAPTION, embedding=FEW, unet=NONE)
    assert torch.equal(weights(first.finetuned.unet), before)
    assert not torch.equal(first.optimized_embedding, first.target_embedding)
    both = fit_imagic(tiny_backbone, IMAGE, CAPTION, embedding=FEW, unet=FEW)
    assert not torch.equal(weights(both.finetuned.unet), before)
    assert torch.equal(both.optimized_embedding, first.optimized_embedding)
    assert torch.equal(weights(tiny_backbone.unet), before)
    assert len(both.losses) == 4 and both.losses[:2] == first.losses


def test_untrained_it_is_text_to_image_at_the_images_own_aspect(tiny_backbone):
    wide, options = IMAGE.resize((128, 64)), {"cfg_scale": 3.0, "steps": 3}
    untrained = fit_imagic(tiny_backbone, wide, CAPTION, embedding=NONE, unet=NONE)
    edit = untrained.edit(1.0, seed=7, **options)
    assert edit.width == 2 * edit.height
    before = preprocess(tiny_backbone, wide)
    expected = text_to_image(tiny_backbone, before, [CAPTION], seeds=[7], **options)
    assert (to_tensor(edit) - expected).abs().max() < 1 / 127


def test_a_loss_is_that_of_denoising_by_diffusers(tiny_backbone):
    fitted = fit_imagic(tiny_backbone, IMAGE, CAPTION, embedding=FEW, unet=NONE)
    scheduler = DDPMScheduler(**BETAS)
    latent = tiny_backbone.vae.encode(preprocess(tiny_backbone, IMAGE)).latent_dist
    rows = (tiny_backbone.vae.config.scaling_factor * latent.mode()).repeat(4, 1, 1, 1)
    ids = torch.arange(4)
    t = integers(key("imagic", "timestep", 0, 0), ids, 1000)
    noise = normal(key("imagic", "noise", 0, 0), ids, tuple(rows.shape[1:]))
    text = tiny_backbone.encode_text([CAPTION]).repeat(4, 1, 1)
    with torch.no_grad():
        guess = tiny_backbone.unet(scheduler.add_noise(rows, noise, t), t, text).sample
    assert fitted.losses[0] == pytest.approx(float((guess - noise).square().mean()))


@pytest.mark.slow
def test_training_lowers_the_loss(tiny_backbone):
    stages = {"embedding": Stage(10, 1e-2), "unet": Stage(40, 3e-3)}
    losses = fit_imagic(tiny_backbone, IMAGE, CAPTION, **stages).losses
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_same_seed_is_the_same_edit_and_another_is_another(tiny_backbone):
    fitted = fit_imagic(tiny_backbone, IMAGE, CAPTION, embedding=FEW, unet=FEW)
    again = fit_imagic(tiny_backbone, IMAGE, CAPTION, embedding=FEW, unet=FEW)
    edits = [
        one.edit(0.7, cfg_scale=3.0, steps=3, seed=seed).tobytes()
        for one, seed in ((fitted, 1), (again, 1), (fitted, 2))
    ]
    assert edits[0] == edits[1] != edits[2]
