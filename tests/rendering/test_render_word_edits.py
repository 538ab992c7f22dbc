"""Whole trajectories with word edits equal the method pair by pair with its maps."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler

from ip2p_lib.diffusion.samplers import SAMPLERS
from ip2p_lib.rendering import (
    Candidate,
    LocalBlend,
    WordEdit,
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
from tests.support.small_rendering import (
    DDIM,
    SCHEDULE,
    exact_stable_diffusion,
    flat,
    gap,
    generate_by_hand,
    pair_gap,
)

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
def backbone(tiny_sd_folder):
    """With latents that leave room to blend."""
    backbone = exact_stable_diffusion(tiny_sd_folder)
    backbone.unet.register_to_config(sample_size=SIZE)
    return backbone


@pytest.fixture(scope="module")
def pairs(backbone):
    return generate(backbone, CANDIDATES)


def by_hand(backbone, pair, candidate):
    """Algorithm 1 of Hertz et al. with all maps written out."""
    scheduler = DDIMScheduler(**DDIM, **SCHEDULE)
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
def test_a_batch_of_all_edits_equals_the_method_by_hand(backbone):
    ours = generate(backbone, CANDIDATES)  # here, so that all embed t in float64
    for pair, made, result in zip(PAIRS, CANDIDATES, ours, strict=True):
        (before, after), masks = by_hand(backbone, pair, made)
        assert gap(result.before, before) < EXACT and gap(result.after, after) < EXACT
        assert all(m.any() for m in masks)
        assert not masks or not all(m.all() for m in masks), "it blends"


def test_batch_size_and_order_do_not_matter(backbone, pairs):
    backwards = generate(backbone, CANDIDATES[::-1], batch_size=2)[::-1]
    assert pair_gap(pairs, backwards) < EXACT


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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_blend_keeps_the_first_latent_outside_its_mask(
    backbone, monkeypatch, sampler
):
    """The mask is given, so that no random weight decides how much there is to keep."""
    left = (torch.arange(SIZE) < SIZE // 2).expand(1, 1, SIZE, SIZE)
    monkeypatch.setattr(render, "blend_mask", lambda *_: left)
    monkeypatch.setattr(backbone, "decode", lambda latents: latents)
    for pair, blends in ((SWAP, False), (BLENDED, True)):
        candidates = [candidate(pair, 3, 0.0, 0.9)]
        (result,) = generate(backbone, candidates, sampler=sampler)
        equal = (result.before == result.after).all(dim=0)
        assert not equal[left[0, 0]].any()
        assert (equal[~left[0, 0]] == blends).all()
