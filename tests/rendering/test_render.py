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

from ip2p_lib.config import Rendering
from ip2p_lib.rendering import draw_candidates, generate_images, generate_pairs
from tests.support.materialised_attention import MaterialisedSelfAttention
from tests.support.small_rendering import (
    CANDIDATES,
    CAT,
    DDIM,
    HOUSE,
    SCHEDULE,
    exact_stable_diffusion,
    flat,
    gap,
    generate_by_hand,
    noise_of,
    pair_gap,
)

STEPS = 6
EXACT = 1e-9
LINSPACE = {"timestep_spacing": "linspace"}


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_stable_diffusion(tiny_sd_folder)


@pytest.fixture(scope="module")
def pairs(backbone):
    return flat(generate_pairs(backbone, CANDIDATES, steps=STEPS, batch_size=3))


@pytest.mark.usefixtures("float64_schedulers")
def test_a_batch_equals_the_released_algorithm_run_one_by_one(backbone, monkeypatch):
    # Generated here, so that the U-Net embeds timesteps in float64 for both.
    pairs = flat(generate_pairs(backbone, CANDIDATES, steps=STEPS, batch_size=3))
    unet = copy.deepcopy(backbone.unet)
    attention = MaterialisedSelfAttention(unet)
    scheduler = EulerAncestralDiscreteScheduler(**LINSPACE, **SCHEDULE)
    for one, pair in zip(CANDIDATES, pairs, strict=True):
        scheduler.set_timesteps(STEPS)
        fresh = iter([noise_of(one, i).repeat(2, 1, 1, 1) for i in range(STEPS)])
        monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(fresh))  # noqa: B023
        layers = [(attention, one.p)]
        before, after = generate_by_hand(backbone, one, scheduler, unet, layers)
        assert gap(pair.before, before) < EXACT and gap(pair.after, after) < EXACT


def test_batch_size_and_order_do_not_matter(backbone, pairs):
    """And between batches the U-Net has its own attention."""
    old, backwards = backbone.unet.attn_processors, []
    options = {"steps": STEPS, "batch_size": 2}
    for batch, size in zip(
        generate_pairs(backbone, CANDIDATES[::-1], **options), (2, 1), strict=True
    ):
        assert len(batch) == size
        now = backbone.unet.attn_processors
        assert all(now[name] is old[name] for name in old)
        backwards += batch
    assert [pair.candidate for pair in backwards] == CANDIDATES[::-1]
    assert pair_gap(pairs, backwards[::-1]) < EXACT
    assert list(generate_pairs(backbone, [], **options)) == []


def test_the_image_before_is_plain_text_to_image(backbone, pairs):
    options = {"steps": STEPS, "cfg_scale": 7.5, "batch_size": 4}
    (images,) = generate_images(backbone, [CAT.caption], [11], **options)
    assert gap(images[0], pairs[0].before) < EXACT


@pytest.fixture(scope="module")
def pipeline(tiny_sd_folder, backbone):
    networks = {"unet": backbone.unet, "safety_checker": None}
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, **networks)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


@pytest.mark.usefixtures("float64_schedulers")
@pytest.mark.parametrize(
    ("sampler", "scheduler", "options"),
    [
        ("euler_ancestral", EulerAncestralDiscreteScheduler, LINSPACE),
        ("ddim", DDIMScheduler, DDIM),
        ("dpm_solver_pp", DPMSolverMultistepScheduler, {}),
    ],
)
def test_text_to_image_is_that_of_the_stock_pipeline(
    backbone, pipeline, sampler, scheduler, options, monkeypatch
):
    pipeline.scheduler = scheduler(**options, **SCHEDULE)
    fresh = (noise_of(CANDIDATES[0], i) for i in range(STEPS))
    monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(fresh))
    theirs = pipeline(
        CAT.caption,
        latents=noise_of(CANDIDATES[0], -1),
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        output_type="pt",
    ).images
    settings = {"steps": STEPS, "cfg_scale": 7.5, "batch_size": 1, "sampler": sampler}
    (ours,) = generate_images(backbone, [CAT.caption], [CANDIDATES[0].seed], **settings)
    assert gap(ours, theirs * 2 - 1) < EXACT


@pytest.mark.parametrize(
    ("change", "settings", "word"),
    [
        ({}, {"batch_size": 0}, "batch_size"),
        ({}, {"sampler": "plms"}, "plms"),
        ({"triplet": replace(CAT, edited_caption="dog " * 80)}, {}, "tokens"),
    ],
)
def test_bad_requests_are_refused(backbone, change, settings, word):
    candidates = [replace(CANDIDATES[0], **change)]
    options = {"steps": 2, "batch_size": 1} | settings
    with pytest.raises(ValueError, match=word):
        list(generate_pairs(backbone, candidates, **options))


def test_captions_and_seeds_must_match(backbone):
    options = {"steps": 1, "cfg_scale": 7.5, "batch_size": 1}
    with pytest.raises(ValueError, match="seeds"):
        next(generate_images(backbone, ["a cat"], [1, 2], **options))


def test_a_caption_is_encoded_once_and_forgotten_after_the_next_batch(
    backbone, monkeypatch
):
    """So memory does not grow with the number of captions."""
    encoded = []

    def encode_text(batch):
        encoded.extend(batch)
        return type(backbone).encode_text(backbone, batch)

    monkeypatch.setattr(backbone, "encode_text", encode_text, raising=False)
    _ = backbone.null_text
    encoded.clear()
    drawn = draw_candidates([CAT, HOUSE], 3, 0, Rendering())
    list(generate_pairs(backbone, drawn, steps=1, batch_size=2))
    captions = [t for c in (CAT, HOUSE) for t in (c.caption, c.edited_caption)]
    assert sorted(encoded) == sorted(captions)
    encoded.clear()
    again = [drawn[0], drawn[3], drawn[0]]
    list(generate_pairs(backbone, again, steps=1, batch_size=1))
    assert encoded.count(CAT.caption) == 2 and encoded.count(HOUSE.caption) == 1
