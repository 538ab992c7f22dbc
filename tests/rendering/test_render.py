"""Pairs equal the released algorithm's, and do not depend on how they are batched."""

import copy
from dataclasses import replace

import diffusers.schedulers.scheduling_euler_ancestral_discrete as euler_module
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
)

from ip2p_lib import rng
from ip2p_lib.rendering import render as rendering
from ip2p_lib.rendering.render import Candidate, render, render_images
from tests.support.small_rendering import CANDIDATES, CAT, HOUSE, exact_backbone

STEPS = 6
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def flat(batches):
    return [pair for batch in batches for pair in batch]


def gap(a, b):
    return (a - b).abs().max().item()


def noise_of(candidate, step):
    key = rng.key("rendering", "noise", step)
    return rng.normal(key, torch.tensor([candidate.seed]), (4, 8, 8)).double()


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_backbone(tiny_sd_folder)


@pytest.fixture(scope="module")
def pairs(backbone):
    return flat(render(backbone, CANDIDATES, steps=STEPS, batch_size=3))


EXACT = 1e-9


@torch.no_grad()
def released_algorithm(backbone, candidate, unet, controller):
    """One candidate in four rows, as generate_img_dataset.py does: maps and all."""
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="linspace", **SCHEDULE)
    scheduler.set_timesteps(STEPS)
    triplet = candidate.triplet
    captions = ["", "", triplet.caption, triplet.edited_caption]
    text = backbone.encode_text(captions)
    x = noise_of(candidate, -1).repeat(2, 1, 1, 1) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        controller.active = [candidate.p > i / (STEPS - 1)]
        rows = scheduler.scale_model_input(x, t).repeat(2, 1, 1, 1)
        uncond, cond = unet(rows, t, text).sample.chunk(2)
        x = scheduler.step(
            uncond + candidate.cfg_scale * (cond - uncond), t, x
        ).prev_sample
    return backbone.decode(x)


@pytest.mark.usefixtures("float64_schedulers")
def test_a_batch_equals_the_released_algorithm_run_one_by_one(
    backbone, materialised_sharing, monkeypatch
):
    # Rendered here, so that the U-Net embeds timesteps in float64 for both.
    pairs = flat(render(backbone, CANDIDATES, steps=STEPS, batch_size=3))
    unet = copy.deepcopy(backbone.unet)
    materialised_sharing.install(unet)
    for candidate, pair in zip(CANDIDATES, pairs, strict=True):
        fresh = (noise_of(candidate, i).repeat(2, 1, 1, 1) for i in range(STEPS))
        monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(fresh))  # noqa: B023
        before, after = released_algorithm(
            backbone, candidate, unet, materialised_sharing
        )
        assert gap(pair.before, before) < EXACT and gap(pair.after, after) < EXACT


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_and_order_do_not_matter(backbone, pairs, batch_size):
    backwards = flat(
        render(backbone, CANDIDATES[::-1], steps=STEPS, batch_size=batch_size)
    )
    assert [pair.candidate for pair in backwards] == CANDIDATES[::-1]
    for one, other in zip(pairs, backwards[::-1], strict=True):
        assert gap(one.before, other.before) < EXACT
        assert gap(one.after, other.after) < EXACT


def test_in_float32_batches_differ_by_rounding_only(tiny_backbone):
    one, three = (
        flat(render(tiny_backbone, CANDIDATES, steps=STEPS, batch_size=n))
        for n in (1, 3)
    )
    for a, b in zip(one, three, strict=True):
        assert a.after.dtype == torch.float32
        assert gap(a.before, b.before) < 1e-4 and gap(a.after, b.after) < 1e-4


def test_pictures_come_in_batches_of_the_size_asked_for(backbone):
    sizes = [
        len(batch) for batch in render(backbone, CANDIDATES, steps=1, batch_size=2)
    ]
    assert sizes == [2, 1]
    assert list(render(backbone, [], steps=1, batch_size=2)) == []


def test_pictures_have_the_models_size_and_range(pairs):
    for pair in pairs:
        for image in (pair.before, pair.after):
            assert image.shape == (3, 64, 64)
            assert image.abs().max() <= 1 and image.std() > 0.01
            assert not image.requires_grad


def test_sharing_brings_the_pictures_closer(backbone):
    def distance(p):
        candidates = [
            Candidate(t, seed, p, 7.5) for t in (CAT, HOUSE) for seed in range(4)
        ]
        rendered = flat(render(backbone, candidates, steps=STEPS, batch_size=8))
        return sum((r.before - r.after).abs().mean().item() for r in rendered)

    assert distance(1.0) < distance(0.0)


def test_both_pictures_share_all_noise(backbone):
    same = Candidate(replace(CAT, edited_caption=CAT.caption), 5, 0.5, 7.5)
    (pair,) = flat(render(backbone, [same], steps=STEPS, batch_size=1))
    assert gap(pair.before, pair.after) < EXACT


@pytest.mark.parametrize("change", [{"seed": 12}, {"cfg_scale": 9.0}, {"p": 0.1}])
def test_every_part_of_a_candidate_counts(backbone, pairs, change):
    other = replace(CANDIDATES[0], **change)
    (pair,) = flat(render(backbone, [other], steps=STEPS, batch_size=1))
    assert gap(pair.after, pairs[0].after) > 1e-2


def test_the_unet_gets_its_attention_back_between_batches(backbone):
    before = backbone.unet.attn_processors
    for _ in render(backbone, CANDIDATES, steps=1, batch_size=1):
        now = backbone.unet.attn_processors
        assert all(now[name] is before[name] for name in before)


def test_the_before_picture_is_plain_text_to_image(backbone, pairs):
    (images,) = render_images(
        backbone, [CAT.caption], [11], steps=STEPS, cfg_scale=7.5, batch_size=4
    )
    assert gap(images[0], pairs[0].before) < EXACT


@pytest.fixture(scope="module")
def pipeline(tiny_sd_folder, backbone):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.unet = backbone.unet
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


@pytest.mark.usefixtures("float64_schedulers")
@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim", "dpm_solver_pp"])
def test_text_to_image_is_that_of_the_stock_pipeline(
    backbone, pipeline, sampler, monkeypatch
):
    pipeline.scheduler = {
        "euler_ancestral": lambda: EulerAncestralDiscreteScheduler(
            timestep_spacing="linspace", **SCHEDULE
        ),
        "ddim": lambda: DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SCHEDULE
        ),
        "dpm_solver_pp": lambda: DPMSolverMultistepScheduler(**SCHEDULE),
    }[sampler]()
    fresh = (noise_of(CANDIDATES[0], i) for i in range(STEPS))
    monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(fresh))
    theirs = pipeline(
        CAT.caption,
        latents=noise_of(CANDIDATES[0], -1),
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        output_type="pt",
    ).images
    (ours,) = render_images(
        backbone,
        [CAT.caption],
        [CANDIDATES[0].seed],
        steps=STEPS,
        cfg_scale=7.5,
        batch_size=1,
        sampler=sampler,
    )
    assert gap(ours, theirs * 2 - 1) < EXACT


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"p": 1.1}, {}, r"share of steps in \[0, 1\], not 1.1"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1"),
        ({}, {"sampler": "plms"}, "Unknown sampler 'plms'"),
        ({}, {"steps": 0}, "steps must be 1 to 999"),
        ({"triplet": replace(CAT, edited_caption="dog " * 80)}, {}, "tokens long"),
    ],
)
def test_bad_requests_are_refused(backbone, change, settings, message):
    candidates = [replace(CANDIDATES[0], **change)]
    with pytest.raises(ValueError, match=message):
        list(render(backbone, candidates, **{"steps": 2, "batch_size": 1} | settings))


def test_captions_and_seeds_must_match(backbone):
    images = rendering.render_images(
        backbone, ["a cat"], [1, 2], steps=1, cfg_scale=7.5, batch_size=1
    )
    with pytest.raises(ValueError, match="1 captions, but 2 seeds"):
        next(images)
