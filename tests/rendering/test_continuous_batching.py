"""Trees in a full batch equal candidates generated one by one, in less work."""

from dataclasses import replace

import pytest
import torch

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
def calls(backbone, monkeypatch):
    """The number of rows of every call of the U-Net."""
    rows, forward = [], backbone.unet.forward

    def counted(x, *args, **kwargs):
        rows.append(len(x))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(backbone.unet, "forward", counted)
    return rows


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
    by_candidate = {id(pair.candidate): pair for pair in pairs}
    for other in expected:
        pair = by_candidate[id(other.candidate)]
        assert gap(pair.before, other.before) < 1e-10, pair.candidate
        assert gap(pair.after, other.after) < 1e-10, pair.candidate
    images = [by_candidate[id(c)].after for c in TREE]
    assert min(gap(images[0], image) for image in images[1:]) > 1e-4, "p matters"


def test_a_tree_computes_nothing_twice(backbone, calls):
    tree = [Candidate(CAT, 1, p, 5.0) for p in (0.25, 0.5, 0.75, 1.0)]
    steps = 21
    flat(generate_batched(backbone, tree, steps=steps, batch_rows=2))
    # The source and the largest p; each other p shares its first 5, 10 or 15 steps.
    image_steps = 2 * steps + sum(steps - shared for shared in (5, 10, 15))
    assert sum(calls) == 2 * image_steps + 2  # one step with an empty row
    calls.clear()
    flat(generate_pairs(backbone, tree, steps=steps, batch_size=4))
    assert sum(calls) == 4 * 4 * steps
    assert image_steps / (2 * 4 * steps) < 0.59


def test_the_batch_keeps_its_shape_and_stays_full(backbone, calls):
    many = draw_candidates([CAT, HOUSE], 6, 0, Rendering())
    flat(generate_batched(backbone, many, steps=STEPS, batch_rows=4))
    assert set(calls) == {8}
    assert sum(calls) == 4 * len(many) * STEPS


def test_images_of_a_tree_share_one_image_before(backbone):
    pairs = flat(generate_batched(backbone, TREE, steps=2, batch_rows=3))
    assert len({id(pair.before) for pair in pairs}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_rows": 1}, "2 batch rows"),
        ({"steps": 0}, "steps"),
        ({"sampler": "heun"}, "heun"),
    ],
)
def test_bad_settings_are_refused(backbone, change, words):
    options = {"steps": STEPS, "batch_rows": 4} | change
    with pytest.raises(ValueError, match=words):
        flat(generate_batched(backbone, TREE, **options))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({"p": p}, "fraction") for p in (-0.1, 1.1, float("nan"))),
        ({"word_edit": WordEdit("replace", 0.5)}, "use generate_pairs"),
    ],
)
def test_bad_candidates_are_refused(backbone, change, words):
    candidate = replace(TREE[0], **change)
    with pytest.raises(ValueError, match=words):
        flat(generate_batched(backbone, [candidate], steps=3, batch_rows=2))


def test_in_float32_trees_differ_by_rounding_only(tiny_backbone):
    options = {"steps": STEPS, "sampler": "dpm_solver_pp"}
    alone = flat(generate_pairs(tiny_backbone, TREE, batch_size=1, **options))
    pairs = flat(generate_batched(tiny_backbone, TREE, batch_rows=4, **options))
    for pair in pairs:
        (other,) = (o for o in alone if o.candidate is pair.candidate)
        assert pair.after.dtype == torch.float32
        assert gap(pair.before, other.before) < 1e-4
        assert gap(pair.after, other.after) < 1e-4
