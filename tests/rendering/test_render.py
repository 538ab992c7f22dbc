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
from ip2p_lib.config import Rendering
from ip2p_lib.rendering import (
    Candidate,
    draw_candidates,
    generate_images,
    generate_pairs,
)
from tests.support.materialised_attention import MaterialisedSelfAttention
from tests.support.small_rendering import (
    CANDIDATES,
    CAT,
    HOUSE,
    exact_stable_diffusion,
    flat,
    gap,
)

STEPS = 6
EXACT = 1e-9
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def noise_of(candidate, step):
    key = rng.key("rendering", "noise", step)
    return rng.normal(key, torch.tensor([candidate.seed]), (4, 8, 8)).double()


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_stable_diffusion(tiny_sd_folder)


@pytest.fixture(scope="module")
def pairs(backbone):
    return flat(generate_pairs(backbone, CANDIDATES, steps=STEPS, batch_size=3))


@torch.no_grad()
def released_algorithm(backbone, candidate, unet, attention):
    """One candidate in four rows, as generate_img_dataset.py does: maps and all."""
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="linspace", **SCHEDULE)
    scheduler.set_timesteps(STEPS)
    triplet = candidate.triplet
    captions = ["", "", triplet.caption, triplet.edited_caption]
    text = backbone.encode_text(captions)
    x = noise_of(candidate, -1).repeat(2, 1, 1, 1) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        attention.active = [candidate.p > i / (STEPS - 1)]
        rows = scheduler.scale_model_input(x, t).repeat(2, 1, 1, 1)
        uncond, cond = unet(rows, t, text).sample.chunk(2)
        x = scheduler.step(
            uncond + candidate.cfg_scale * (cond - uncond), t, x
        ).prev_sample
    return backbone.decode(x)


@pytest.mark.usefixtures("float64_schedulers")
def test_a_batch_equals_the_released_algorithm_run_one_by_one(backbone, monkeypatch):
    # Generated here, so that the U-Net embeds timesteps in float64 for both.
    pairs = flat(generate_pairs(backbone, CANDIDATES, steps=STEPS, batch_size=3))
    unet = copy.deepcopy(backbone.unet)
    attention = MaterialisedSelfAttention(unet)
    for candidate, pair in zip(CANDIDATES, pairs, strict=True):
        fresh = (noise_of(candidate, i).repeat(2, 1, 1, 1) for i in range(STEPS))
        monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(fresh))  # noqa: B023
        before, after = released_algorithm(backbone, candidate, unet, attention)
        assert gap(pair.before, before) < EXACT and gap(pair.after, after) < EXACT


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_and_order_do_not_matter(backbone, pairs, batch_size):
    backwards = flat(
        generate_pairs(backbone, CANDIDATES[::-1], steps=STEPS, batch_size=batch_size)
    )
    assert [pair.candidate for pair in backwards] == CANDIDATES[::-1]
    for one, other in zip(pairs, backwards[::-1], strict=True):
        assert gap(one.before, other.before) < EXACT
        assert gap(one.after, other.after) < EXACT


def test_pairs_come_in_batches(backbone):
    batches = generate_pairs(backbone, CANDIDATES, steps=1, batch_size=2)
    assert [len(batch) for batch in batches] == [2, 1]
    assert list(generate_pairs(backbone, [], steps=1, batch_size=2)) == []


def test_images_have_the_models_size_and_range(pairs):
    for pair in pairs:
        for image in (pair.before, pair.after):
            assert image.shape == (3, 64, 64)
            assert image.abs().max() <= 1 and image.std() > 0.01
            assert not image.requires_grad


def test_sharing_brings_the_images_closer(backbone):
    def distance(p):
        candidates = [
            Candidate(t, seed, p, 7.5) for t in (CAT, HOUSE) for seed in range(4)
        ]
        pairs = flat(generate_pairs(backbone, candidates, steps=STEPS, batch_size=8))
        return sum((r.before - r.after).abs().mean().item() for r in pairs)

    assert distance(1.0) < distance(0.0)


def test_both_images_have_the_same_noise(backbone):
    same = Candidate(replace(CAT, edited_caption=CAT.caption), 5, 0.5, 7.5)
    (pair,) = flat(generate_pairs(backbone, [same], steps=STEPS, batch_size=1))
    assert gap(pair.before, pair.after) < EXACT


@pytest.mark.parametrize("change", [{"seed": 12}, {"cfg_scale": 9.0}, {"p": 0.1}])
def test_every_setting_of_a_candidate_matters(backbone, pairs, change):
    other = replace(CANDIDATES[0], **change)
    (pair,) = flat(generate_pairs(backbone, [other], steps=STEPS, batch_size=1))
    assert gap(pair.after, pairs[0].after) > 1e-2


def test_the_unet_gets_its_attention_back_between_batches(backbone):
    before = backbone.unet.attn_processors
    for _ in generate_pairs(backbone, CANDIDATES, steps=1, batch_size=1):
        now = backbone.unet.attn_processors
        assert all(now[name] is before[name] for name in before)


def test_the_image_before_is_plain_text_to_image(backbone, pairs):
    options = {"steps": STEPS, "cfg_scale": 7.5, "batch_size": 4}
    (images,) = generate_images(backbone, [CAT.caption], [11], **options)
    assert gap(images[0], pairs[0].before) < EXACT


@pytest.fixture(scope="module")
def pipeline(tiny_sd_folder, backbone):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.unet = backbone.unet
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


@pytest.mark.usefixtures("float64_schedulers")
@pytest.mark.parametrize(
    ("sampler", "scheduler", "options"),
    [
        (
            "euler_ancestral",
            EulerAncestralDiscreteScheduler,
            {"timestep_spacing": "linspace"},
        ),
        (
            "ddim",
            DDIMScheduler,
            {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        ),
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
        ({"p": 1.1}, {}, "fraction"),
        ({}, {"batch_size": 0}, "batch_size"),
        ({}, {"sampler": "plms"}, "plms"),
        ({}, {"steps": 0}, "steps"),
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


@pytest.fixture
def encoded(backbone, monkeypatch):
    """The texts that were encoded, in order."""
    texts = []

    def encode_text(batch):
        texts.extend(batch)
        return type(backbone).encode_text(backbone, batch)

    monkeypatch.setattr(backbone, "encode_text", encode_text, raising=False)
    backbone.__dict__.pop("null_text", None)
    return texts


def test_a_caption_is_encoded_once(backbone, encoded):
    candidates = draw_candidates([CAT, HOUSE], 3, 0, Rendering())
    list(generate_pairs(backbone, candidates, steps=1, batch_size=2))
    captions = {t for c in (CAT, HOUSE) for t in (c.caption, c.edited_caption)}
    assert sorted(encoded) == sorted(["", *captions])


def test_memory_does_not_grow_with_the_number_of_captions(backbone, encoded):
    """Only the last batch's embeddings stay: what comes again is encoded again."""
    cat, house = CANDIDATES[:2]
    list(generate_pairs(backbone, [cat, house, cat], steps=1, batch_size=1))
    assert encoded.count(CAT.caption) == 2 and encoded.count(HOUSE.caption) == 1
