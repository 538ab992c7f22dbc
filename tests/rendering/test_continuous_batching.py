"""Trees in slots equal candidates rendered one by one, in less work."""

from dataclasses import replace

import pytest
import torch

from ip2p_lib.diffusion.sampler_steps import advance, begin, step_table
from ip2p_lib.diffusion.samplers import SAMPLERS, Schedule, trajectory
from ip2p_lib.rendering.continuous_batching import Preview, render_in_slots
from ip2p_lib.rendering.render import Candidate, RenderedPair, draw_candidates, render
from ip2p_lib.rendering.trees import draw_trees
from ip2p_lib.rendering.word_edits import WordEdit
from ip2p_lib.rng import key, normal
from tests.support.small_rendering import CAT, HOUSE, exact_backbone

TREE = [Candidate(CAT, 11, p, 7.5) for p in (0.3, 0.9, 0.0, 0.55)]
CANDIDATES = [
    *TREE,
    Candidate(CAT, 3, 0.5, 2.0),
    Candidate(HOUSE, 2**47 + 1, 0.3, 15.0),
    Candidate(HOUSE, 5, 1.0, 4.0),
]
STEPS = 6


class Ranges:
    p_min, p_max, cfg_min, cfg_max = 0.1, 0.9, 7.5, 15.0


@pytest.fixture(scope="module")
def backbone(tiny_sd_folder):
    return exact_backbone(tiny_sd_folder)


@pytest.fixture
def counted(backbone, monkeypatch):
    """The rows of every call of the U-Net."""
    rows, unet = [], backbone.unet
    forward = unet.forward
    monkeypatch.setattr(
        unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    )
    return rows


def flat(batches):
    return [pair for batch in batches for pair in batch]


def in_order(pairs, candidates):
    """The pairs of some candidates; slots yield them as they are finished."""
    assert len(pairs) == len(candidates)
    return [next(p for p in pairs if p.candidate is c) for c in candidates]


@pytest.fixture(scope="module", params=SAMPLERS)
def alone(request, backbone):
    options = {"steps": STEPS, "batch_size": 1, "sampler": request.param}
    return request.param, flat(render(backbone, CANDIDATES, **options))


@pytest.mark.parametrize("slots", [2, 3, 5, 16])
def test_every_candidate_is_as_if_rendered_alone(backbone, alone, slots):
    sampler, expected = alone
    options = {"steps": STEPS, "slots": slots, "sampler": sampler}
    pairs = in_order(flat(render_in_slots(backbone, CANDIDATES, **options)), CANDIDATES)
    for pair, other in zip(pairs, expected, strict=True):
        for name in ("before", "after"):
            gap = (getattr(pair, name) - getattr(other, name)).abs().max()
            assert gap < 1e-10, (name, pair.candidate)
    different = [(pairs[i].after - pairs[0].after).abs().max() for i in (1, 2, 3)]
    assert min(different) > 1e-4, "p makes a difference"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_one_formula_steps_as_every_sampler_does(sampler, steps):
    schedule, ids = Schedule.scaled_linear(), torch.arange(2)

    def noise(i):
        return normal(key("noise", i), ids, (4, 4, 4)).double()

    def denoise(x, t):
        return (x * 0.7 + t.reshape(-1, 1, 1, 1) / 1000).sin()

    table = step_table(schedule, steps, sampler)
    x = begin(noise(-1), table, sampler)
    x0 = torch.zeros_like(x)
    walk = trajectory(sampler, denoise, noise(-1), schedule, steps, step_noise=noise)
    for i, expected in enumerate(walk):
        numbers = table[[i, i]]
        assert torch.equal(numbers[:, 0], expected.t)
        x, x0 = advance(x, denoise(x, numbers[:, 0]), x0, noise(i), numbers)
        torch.testing.assert_close(x, expected.x, rtol=0, atol=1e-11)
        torch.testing.assert_close(x0, expected.x0, rtol=0, atol=1e-11)


def test_rows_may_be_at_different_steps():
    schedule = Schedule.scaled_linear()
    table = step_table(schedule, 9, "dpm_solver_pp")
    x, eps, x0 = (normal(key(n), torch.arange(3), (4, 2, 2)).double() for n in "xyz")
    together = advance(x, eps, x0, None, table[[0, 4, 8]])
    for row, i in enumerate((0, 4, 8)):
        one = advance(x[[row]], eps[[row]], x0[[row]], None, table[[i]])
        for a, b in zip(together, one, strict=True):
            assert torch.equal(a[row], b[0])


def test_a_tree_does_nothing_twice(backbone, counted):
    tree = [Candidate(CAT, 1, p, 5.0) for p in (0.25, 0.5, 0.75, 1.0)]
    steps = 41
    flat(render_in_slots(backbone, tree, steps=steps, slots=2))
    # The source and the trunk; each other p shares the trunk's first 10, 20, 30 steps.
    walked = 2 * steps + sum(steps - shared for shared in (10, 20, 30))
    assert sum(counted) == 2 * walked + 2  # one step with an empty slot
    counted.clear()
    flat(render(backbone, tree, steps=steps, batch_size=4))
    assert sum(counted) == 4 * 4 * steps
    assert walked / (2 * 4 * steps) < 0.57


def test_the_batch_keeps_its_shape_and_is_hardly_ever_empty(backbone, counted):
    many = draw_candidates([CAT, HOUSE], 6, 0, Ranges)
    flat(render_in_slots(backbone, many, steps=STEPS, slots=4))
    assert set(counted) == {8}
    assert sum(counted) == 4 * len(many) * STEPS


def test_trees_share_seed_and_scale_and_spread_p():
    drawn = draw_trees([CAT, HOUSE], 3, 4, 0, Ranges)
    assert len(drawn) == 24 and len(set(drawn)) == 24
    assert draw_trees([HOUSE], 3, 4, 0, Ranges) == drawn[12:]
    for i in range(0, 24, 4):
        tree = drawn[i : i + 4]
        assert len({(c.triplet, c.seed, c.cfg_scale) for c in tree}) == 1
        assert [int((c.p - 0.1) / 0.2) for c in tree] == [0, 1, 2, 3]


def test_a_preview_stops_those_that_it_does_not_keep(backbone, counted):
    shown = []

    def keep(pairs):
        shown.extend(pairs)
        return [pair.candidate.seed == 11 for pair in pairs]

    options = {"steps": STEPS, "slots": 4, "preview": Preview(3, keep)}
    pairs = flat(render_in_slots(backbone, CANDIDATES, **options))
    assert {id(p.candidate) for p in pairs} == {id(c) for c in TREE}
    expected = in_order(
        flat(render_in_slots(backbone, TREE, steps=STEPS, slots=4)), TREE
    )
    for pair, other in zip(in_order(pairs, TREE), expected, strict=True):
        assert (pair.after - other.after).abs().max() < 1e-10
    # Of the tree, p 0 and 0.3 have left the trunk by then; 0.55 and 0.9 are one walk.
    assert sorted(p.candidate.p for p in shown) == [0.0, 0.3, 0.3, 0.5, 0.9, 1.0]
    assert all(isinstance(pair, RenderedPair) for pair in shown)


def test_a_preview_that_keeps_nothing_saves_the_rest(backbone, counted):
    nothing = Preview(2, lambda pairs: [False] * len(pairs))
    options = {"steps": STEPS, "slots": 2, "preview": nothing}
    candidate = Candidate(CAT, 1, 1.0, 5.0)
    assert flat(render_in_slots(backbone, [candidate], **options)) == []
    assert len(counted) == 2


def test_a_preview_at_the_last_step_shows_the_finished_pair(backbone):
    shown = []
    last = Preview(STEPS, lambda pairs: shown.extend(pairs) or [True] * len(pairs))
    options = {"steps": STEPS, "slots": 2, "sampler": "ddim"}
    candidate = Candidate(CAT, 1, 0.5, 5.0)
    (pair,) = flat(render_in_slots(backbone, [candidate], **options, preview=last))
    # DDIM ends at the first noise level, hence not quite at its prediction.
    assert 0 < (pair.after - shown[0].after).abs().max() < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 1}, "needs 2 slots"),
        ({"steps": 0}, "steps must be"),
        ({"sampler": "heun"}, "Unknown sampler"),
    ],
)
def test_bad_settings_are_refused(backbone, change, words):
    options = {"steps": STEPS, "slots": 4} | change
    with pytest.raises(ValueError, match=words):
        flat(render_in_slots(backbone, TREE, **options))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_p_that_is_no_share_is_refused(backbone, p):
    with pytest.raises(ValueError, match="share of steps"):
        flat(render_in_slots(backbone, [replace(TREE[0], p=p)], steps=3, slots=2))


def test_words_are_not_lost_in_silence(backbone):
    edited = replace(TREE[0], words=WordEdit("replace", 0.5))
    with pytest.raises(ValueError, match="use render"):
        flat(render_in_slots(backbone, [edited], steps=3, slots=2))
