"""Whole trajectories with word edits equal the method pair by pair with its maps."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from ip2p_lib import rng
from ip2p_lib.diffusion.samplers import SAMPLERS
from ip2p_lib.rendering import Candidate, LocalBlend, WordEdit, generate_pairs
from ip2p_lib.rendering.cross_attention import AttentionController
from ip2p_lib.rendering.paired_sampling import sample_pairs
from ip2p_lib.triplets.record import Triplet
from tests.support.materialised_attention import (
    MaterialisedCrossAttention,
    MaterialisedSelfAttention,
    Pair,
    mask,
    same,
)
from tests.support.small_rendering import exact_stable_diffusion, flat, gap

STEPS = 6
SIZE, GRID = 16, (4, 4)  # of the latents, and of the coarsest maps
EXACT = 1e-9


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
CANDIDATES = [
    candidate(pair, seed, p, tau)
    for pair, seed, p, tau in zip(
        PAIRS,
        range(5),
        (0.0, 0.5, 0.9, 0.0, 0.7),
        (0.5, 1.0, 0.3, 0.9, 0.5),
        strict=True,
    )
]


def generate(backbone, candidates, batch_size=5, sampler="ddim"):
    options = {"steps": STEPS, "batch_size": batch_size, "sampler": sampler}
    return flat(generate_pairs(backbone, candidates, **options))


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    """With latents that leave room to blend."""
    backbone = exact_stable_diffusion(tiny_sd_folder)
    backbone.unet.register_to_config(sample_size=SIZE)
    return backbone


@pytest.fixture(scope="module")
def pairs(backbone):
    return generate(backbone, CANDIDATES)


@torch.no_grad()
def by_hand(backbone, pair, candidate):
    """One pair in four rows; Algorithm 1 of Hertz et al. with all maps written out."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(STEPS)
    unet = copy.deepcopy(backbone.unet)
    words = MaterialisedCrossAttention(backbone.tokenizer, [pair], unet, positions=16)
    sharing = MaterialisedSelfAttention(unet)
    text = backbone.encode_text(["", "", *pair.captions])
    noise = rng.key("rendering", "noise", -1)
    x = rng.normal(noise, torch.tensor([candidate.seed]), (4, SIZE, SIZE)).double()
    x = x.repeat(2, 1, 1, 1)
    masks = []
    for i, t in enumerate(scheduler.timesteps):
        sharing.active = [candidate.p > i / (STEPS - 1)]
        words.active = [candidate.word_edit.tau > i / (STEPS - 1)]
        uncond, cond = unet(x.repeat(2, 1, 1, 1), t, text).sample.chunk(2)
        eps = uncond + candidate.cfg_scale * (cond - uncond)
        x = scheduler.step(eps, t, x).prev_sample
        if pair.threshold:
            m = [
                mask(total, GRID, (SIZE, SIZE), pair.threshold)
                for total in words.total[:, 0]
            ]
            masks.append(m[0] | m[1])
            x[1] = torch.where(masks[-1], x[1], x[0])
    return backbone.decode(x), masks


@pytest.mark.slow
@pytest.mark.usefixtures("float64_schedulers")
def test_a_batch_of_all_edits_equals_the_method_by_hand(backbone):
    ours = generate(backbone, CANDIDATES)  # here, so that all embed t in float64
    for pair, made, result in zip(PAIRS, CANDIDATES, ours, strict=True):
        (before, after), masks = by_hand(backbone, pair, made)
        assert gap(result.before, before) < EXACT and gap(result.after, after) < EXACT
        assert all(m.any() for m in masks)
        assert not masks or not all(m.all() for m in masks), "it blends"


def test_batch_size_and_order_do_not_matter(backbone, pairs):
    backwards = generate(backbone, CANDIDATES[::-1], batch_size=2)[::-1]
    for one, other in zip(pairs, backwards, strict=True):
        assert gap(one.before, other.before) < EXACT
        assert gap(one.after, other.after) < EXACT


def test_the_first_image_does_not_depend_on_the_second(backbone, pairs):
    plain = generate(backbone, [replace(c, word_edit=None, p=0.0) for c in CANDIDATES])
    for one, other in zip(pairs, plain, strict=True):
        assert gap(one.before, other.before) < EXACT


def test_the_image_after_may_be_the_source(backbone, pairs):
    """It gives the same pair, with captions and images exchanged."""
    swapped = [
        replace(
            c,
            triplet=Triplet(c.triplet.edited_caption, "undo it", c.triplet.caption),
            word_edit=c.word_edit.swapped(),
        )
        for c in CANDIDATES
    ]
    for one, other in zip(pairs, generate(backbone, swapped), strict=True):
        assert gap(one.before, other.after) < EXACT
        assert gap(one.after, other.before) < EXACT


def test_an_edit_that_is_never_active_is_no_edit(backbone):
    never = [replace(c, word_edit=WordEdit("refine", tau=0.0)) for c in CANDIDATES]
    plain = [replace(c, word_edit=None) for c in CANDIDATES]
    for one, other in zip(*map(generate, [backbone] * 2, (never, plain)), strict=True):
        assert torch.equal(one.after, other.after)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_blend_keeps_the_first_latent_outside_its_mask(
    backbone, monkeypatch, sampler
):
    """The mask is given, so that no random weight decides how much there is to keep."""
    left = (torch.arange(SIZE) < SIZE // 2).expand(1, 1, SIZE, SIZE)
    monkeypatch.setattr(AttentionController, "blend_mask", lambda *_: left)
    monkeypatch.setattr(backbone, "decode", lambda latents: latents)
    for pair, blends in ((SWAP, False), (BLENDED, True)):
        candidates = [candidate(pair, 3, 0.0, 0.9)]
        (result,) = generate(backbone, candidates, sampler=sampler)
        equal = (result.before == result.after).all(dim=0)
        assert not equal[left[0, 0]].any()
        assert (equal[~left[0, 0]] == blends).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_blend_that_lets_everything_through_changes_nothing(backbone, sampler):
    everywhere = replace(BLENDED, threshold=-1.0)
    (free,), (blended,) = (
        generate(backbone, [candidate(p, 3, 0.5, 0.9)], sampler=sampler)
        for p in (SWAP, everywhere)
    )
    assert gap(free.after, blended.after) < EXACT
    assert gap(free.before, blended.before) < EXACT


def test_the_unet_gets_its_attention_back(backbone):
    before = backbone.unet.attn_processors
    bad = replace(CANDIDATES[3], triplet=Triplet("a cat", "add a dog", "a cat dog"))
    with pytest.raises(ValueError, match="replace"):
        generate(backbone, [CANDIDATES[0], bad], batch_size=1)
    now = backbone.unet.attn_processors
    assert all(now[name] is before[name] for name in before)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_attention_is_replaced_only_where_something_is_shared(backbone, p):
    calls = []

    def denoise(x, t):
        calls.append(dict(backbone.unet.attn_processors))
        return x

    before = backbone.unet.attn_processors
    noise = torch.zeros(2, 4, SIZE, SIZE, dtype=torch.float64)
    settings = backbone.schedule, 2, "ddim", torch.tensor([p], dtype=torch.float64)
    sample_pairs(backbone.unet, denoise, lambda step: noise, *settings)
    for processors in calls:
        replaced = [name for name in before if processors[name] is not before[name]]
        assert replaced == [name for name in before if p and "attn1" in name]
    assert len(calls) == 2
