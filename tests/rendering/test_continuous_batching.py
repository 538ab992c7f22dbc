"""Trees in a full batch equal candidates generated one by one, in less work."""

from dataclasses import replace

import pytest

from ip2p_lib.config import Rendering
from ip2p_lib.diffusion.samplers import SAMPLERS
from ip2p_lib.rendering import (
    Candidate,
    WordEdit,
    draw_candidates,
    generate_batched,
    generate_pairs,
)
from tests.support.small_rendering import (
    CAT,
    HOUSE,
    exact_stable_diffusion,
    flat,
    gap,
    pair_gap,
)

TREE = [Candidate(CAT, 11, p, 7.5) for p in (0.3, 0.9, 0.0, 0.55)]
CANDIDATES = [
    *TREE,
    Candidate(CAT, 3, 0.5, 2.0),
    Candidate(HOUSE, 2**47 + 1, 0.3, 15.0),
    Candidate(HOUSE, 5, 1.0, 4.0),
]
STEPS = 6


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_stable_diffusion(tiny_sd_folder)


@pytest.fixture
def calls(backbone):
    """The number of rows of every call of the U-Net."""
    rows, unet = [], backbone.unet
    hook = unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    hook.remove()


@pytest.fixture(scope="module", params=SAMPLERS)
def plain(request, backbone):
    options = {"steps": STEPS, "batch_size": 1, "sampler": request.param}
    return request.param, flat(generate_pairs(backbone, CANDIDATES, **options))


@pytest.mark.parametrize("batch_rows", [2, 3, 5, 16])
def test_every_candidate_is_as_if_generated_alone(backbone, plain, batch_rows):
    sampler, expected = plain
    options = {"steps": STEPS, "batch_rows": batch_rows, "sampler": sampler}
    pairs = flat(generate_batched(backbone, CANDIDATES, **options))
    assert len(pairs) == len(CANDIDATES)
    by_candidate = {pair.candidate: pair for pair in pairs}
    assert pair_gap([by_candidate[c] for c in CANDIDATES], expected) < 1e-10
    tree = [by_candidate[c] for c in TREE]
    assert min(gap(tree[0].after, pair.after) for pair in tree[1:]) > 1e-4, "p matters"
    assert len({id(pair.before) for pair in tree}) == 1


def test_a_tree_computes_nothing_twice(backbone, calls):
    tree = [Candidate(CAT, 1, p, 5.0) for p in (0.25, 0.5, 0.75, 1.0)]
    steps = 21
    flat(generate_batched(backbone, tree, steps=steps, batch_rows=2))
    # The source and the largest p; each other p shares its first 5, 10 or 15 steps.
    image_steps = 2 * steps + sum(steps - shared for shared in (5, 10, 15))
    assert sum(calls) == 2 * image_steps + 2  # one step with an empty row


def test_the_batch_keeps_its_shape_and_stays_full(backbone, calls):
    many = draw_candidates([CAT, HOUSE], 6, 0, Rendering())
    flat(generate_batched(backbone, many, steps=STEPS, batch_rows=4))
    assert set(calls) == {8}
    assert sum(calls) == 4 * len(many) * STEPS


@pytest.mark.parametrize(
    ("change", "batch_rows", "words"),
    [
        ({}, 1, "2 batch rows"),
        ({"word_edit": WordEdit("replace", 0.5)}, 2, "use generate_pairs"),
    ],
)
def test_bad_requests_are_refused(backbone, change, batch_rows, words):
    candidates = [replace(TREE[0], **change)]
    with pytest.raises(ValueError, match=words):
        flat(generate_batched(backbone, candidates, steps=3, batch_rows=batch_rows))
