"""Pairs equal the papers' algorithms, and do not depend on how they are batched."""

import copy
from dataclasses import replace

import diffusers.schedulers.scheduling_euler_ancestral_discrete as euler_module
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ip2p_lib.config import Rendering
from ip2p_lib.diffusion.samplers import SAMPLERS
from ip2p_lib.rendering import (
    Candidate,
    LocalBlend,
    WordEdit,
    draw_candidates,
    generate_images,
    generate_pairs,
    render,
)
from ip2p_lib.triplets.record import Triplet
from tests.support.materialised_attention import (
    MaterialisedCrossAttention,
    MaterialisedSelfAttention,
    Pair,
    mask,
    same,
)
from tests.support.pipelines import scheduler_of, stock_pipeline
from tests.support.small_rendering import (
    CANDIDATES,
    CAT,
    HOUSE,
    exact_stable_diffusion,
    flat,
    gap,
    generate_by_hand,
    noise_of,
    pair_gap,
)

STEPS = 6
EXACT = 1e-9


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
    scheduler = scheduler_of("euler_ancestral")
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


@pytest.mark.usefixtures("float64_schedulers")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image_is_that_of_the_stock_pipeline(backbone, sampler, monkeypatch):
    pipeline = stock_pipeline(backbone, StableDiffusionPipeline, sampler)
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


SIZE, GRID = 16, (4, 4)  # of the latents, and of the coarsest maps


def candidate(pair, seed, p, tau, cfg=4.0):
    """The library's candidate of a pair that was written by hand."""
    before, after = (tuple(sorted(words)) for words in pair.blend_words)
    blend = pair.threshold and LocalBlend(before, after, pair.threshold)
    weights = tuple(pair.weights.items())
    edit = WordEdit(pair.mode, tau, weights, blend)
    first, second = pair.captions
    return Candidate(Triplet(first, "edit it", second), seed, p, cfg, edit)


SWAP = Pair([*same("a", "photo", "of", "the"), ("cat", "elephant")], "replace")
ADDED = Pair([*same("a", "dog"), (None, "with"), (None, "hats"), *same("in", "tree")])
REWEIGHTED = Pair(same("a", "house", "by", "river"), weights={"river": 2.0})
BLENDED = replace(SWAP, blend_words=({"cat"}, {"elephant"}), threshold=0.9)
ONE_SIDED = replace(ADDED, blend_words=(set(), {"hats"}), threshold=0.98)
PAIRS = [SWAP, ADDED, REWEIGHTED, BLENDED, ONE_SIDED]
WORD_EDITS = [
    candidate(SWAP, seed=0, p=0.0, tau=0.5),
    candidate(ADDED, seed=1, p=0.5, tau=1.0),
    candidate(REWEIGHTED, seed=2, p=0.9, tau=0.3),
    candidate(BLENDED, seed=3, p=0.0, tau=0.9),
    candidate(ONE_SIDED, seed=4, p=0.7, tau=0.5),
]


def generate(backbone, candidates, batch_size=5, sampler="ddim"):
    options = {"steps": STEPS, "batch_size": batch_size, "sampler": sampler}
    return flat(generate_pairs(backbone, candidates, **options))


@pytest.fixture(scope="module")
def large(tiny_sd_folder):
    """With latents that leave room to blend."""
    backbone = exact_stable_diffusion(tiny_sd_folder)
    backbone.unet.register_to_config(sample_size=SIZE)
    return backbone


def by_hand(backbone, pair, candidate):
    """Algorithm 1 of Hertz et al. with all maps written out."""
    scheduler = scheduler_of("ddim")
    scheduler.set_timesteps(STEPS)
    unet, masks = copy.deepcopy(backbone.unet), []
    words = MaterialisedCrossAttention(backbone.tokenizer, [pair], unet, positions=16)
    sharing = MaterialisedSelfAttention(unet)

    def blend(first, second):
        both = (mask(m, GRID, (SIZE, SIZE), pair.threshold) for m in words.total[:, 0])
        masks.append(torch.stack(list(both)).any(dim=0))
        return torch.where(masks[-1], second, first)

    layers = [(sharing, candidate.p), (words, candidate.word_edit.tau)]
    blends = blend if pair.threshold else None
    arguments = backbone, candidate, scheduler, unet, layers, blends
    return generate_by_hand(*arguments), masks


@pytest.mark.slow
@pytest.mark.usefixtures("float64_schedulers")
def test_a_batch_of_all_edits_equals_the_method_by_hand(large):
    ours = generate(large, WORD_EDITS)  # here, so that all embed t in float64
    for pair, made, result in zip(PAIRS, WORD_EDITS, ours, strict=True):
        (before, after), masks = by_hand(large, pair, made)
        assert gap(result.before, before) < EXACT and gap(result.after, after) < EXACT
        assert all(m.any() for m in masks)
        assert not masks or not all(m.all() for m in masks), "it blends"


def test_the_image_after_may_be_the_source(large):
    """It gives the same pair, with captions and images exchanged."""
    swapped = [
        replace(
            c,
            triplet=Triplet(c.triplet.edited_caption, "undo it", c.triplet.caption),
            word_edit=c.word_edit.swapped(),
        )
        for c in WORD_EDITS
    ]
    both = generate(large, WORD_EDITS), generate(large, swapped)
    for one, other in zip(*both, strict=True):
        assert gap(one.before, other.after) < EXACT
        assert gap(one.after, other.before) < EXACT


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_blend_keeps_the_first_latent_outside_its_mask(large, monkeypatch, sampler):
    """The mask is given, so that no random weight decides how much there is to keep."""
    left = (torch.arange(SIZE) < SIZE // 2).expand(1, 1, SIZE, SIZE)
    monkeypatch.setattr(render, "blend_mask", lambda *_: left)
    monkeypatch.setattr(large, "decode", lambda latents: latents)
    for pair, blends in ((SWAP, False), (BLENDED, True)):
        candidates = [candidate(pair, 3, 0.0, 0.9)]
        (result,) = generate(large, candidates, sampler=sampler)
        equal = (result.before == result.after).all(dim=0)
        assert not equal[left[0, 0]].any()
        assert (equal[~left[0, 0]] == blends).all()
