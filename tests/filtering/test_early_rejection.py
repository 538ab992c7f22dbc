"""Floors lose what they may lose, and what rejection costs is counted rightly."""

import pytest
import torch

from ip2p_lib.config import Filtering
from ip2p_lib.filtering.clip_filter import ClipScorer, Scores, keep_best, passes
from ip2p_lib.filtering.early_rejection import (
    ANY,
    NAMES,
    Contest,
    clip_preview,
    contested,
    finish_by_halves,
    fit_floors,
    outcome,
    score_rendered,
)
from ip2p_lib.rendering.render import Candidate, RenderedPair
from ip2p_lib.rng import key, uniform
from ip2p_lib.triplets.record import Triplet

LIMITS = Filtering(image=0.3, text=0.2, direction=0.3, keep=2)
N = 240
GROUPS = [row // 4 for row in range(N)]


def drawn(name):
    return uniform(key("test", name), torch.arange(N))


@pytest.fixture(scope="module")
def final():
    return Scores(*(drawn(name) for name in ("image", "before", "after", "direction")))


@pytest.fixture(scope="module")
def seen(final):
    """A preview: all lower than the finished scores, and not in the same order."""
    columns = vars(final).items()
    return Scores(*(0.5 * x + 0.1 * drawn(f"{name} seen") - 0.2 for name, x in columns))


@pytest.fixture(scope="module")
def kept(final):
    return keep_best(final, GROUPS, LIMITS)


@pytest.mark.parametrize("slack", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("names", [("image",), ("text",), ("direction",), NAMES])
def test_each_floor_loses_at_most_its_slack(seen, kept, slack, names):
    floors = fit_floors(seen, kept, LIMITS, slack=slack, names=names)
    lost = float((~passes(seen, floors)[kept]).double().mean())
    assert lost <= slack * len(names)
    higher = fit_floors(seen, kept, LIMITS, slack=slack, margin=-1e-4, names=names)
    more = float((~passes(seen, higher)[kept]).double().mean())
    assert more > lost, "no floor is lower than it must be"
    assert all(getattr(floors, name) == ANY for name in set(NAMES) - set(names))


def test_a_margin_lowers_every_floor(seen, kept):
    floors, lower = (
        fit_floors(seen, kept, LIMITS, slack=0.1, margin=m) for m in (0.0, 0.25)
    )
    for name in NAMES:
        assert getattr(floors, name) - getattr(lower, name) == pytest.approx(0.25)
    assert floors.keep == LIMITS.keep


def test_floors_need_a_pair_that_is_kept(seen):
    with pytest.raises(ValueError, match="kept none"):
        fit_floors(seen, [], LIMITS, slack=0.0)


def test_no_pair_is_judged_by_floors_of_its_own_half(seen, kept):
    first = [row for row in range(N) if GROUPS[row] % 2 == 0]
    plain = finish_by_halves(seen, kept, LIMITS, GROUPS, slack=0.02)
    # The first half's previews are spoilt: that must show in the second half alone.
    image = seen.image.clone()
    image[first] = 1.0 + drawn("spoilt")[first]
    spoilt = Scores(image, seen.before, seen.after, seen.direction)
    found = finish_by_halves(spoilt, kept, LIMITS, GROUPS, slack=0.02)
    second = [row for row in range(N) if GROUPS[row] % 2 == 1]
    assert plain[second].any() and not found[second].any()
    assert found[first].sum() >= plain[first].sum() > 0


def test_floors_of_the_other_half_hold_about_as_well(seen, kept):
    finish = finish_by_halves(seen, kept, LIMITS, GROUPS, slack=0.0, margin=0.02)
    own = passes(seen, fit_floors(seen, kept, LIMITS, slack=0.0, margin=0.02))
    assert own[kept].all()
    assert 0.9 < float(finish[kept].double().mean()) <= 1
    assert float((~finish).double().mean()) > 0.1, "rejection rejects"


@pytest.mark.parametrize("places", [1, 3, 7])
def test_a_contest_lets_pass_whoever_few_were_better_than_before(places):
    values = drawn("contest")
    groups = [row % 3 for row in range(N)]
    for row, passed in enumerate(Contest(places).enter(groups, values)):
        better = sum(
            values[other] >= values[row]
            for other in range(row)
            if groups[other] == groups[row]
        )
        assert passed == (better < places)


def test_a_contest_passes_the_best_and_about_as_many_as_told():
    n, places, values = 100, 8, torch.stack([drawn(f"run {i}") for i in range(40)])
    values, passed = values[:, :n], []
    for run in values:
        through = Contest(places).enter(["one"] * n, run)
        best = run.topk(places).indices.tolist()
        assert all(through[row] for row in best)
        passed.append(sum(through))
    told = places * (1 + torch.tensor(n / places).log().item())
    assert torch.tensor(passed).double().mean().item() == pytest.approx(told, rel=0.1)


def test_a_contest_goes_on_over_batches_and_knows_triplets_apart():
    values, groups = drawn("contest"), [row // 9 for row in range(N)]
    whole, parts = Contest(2).enter(groups, values), Contest(2)
    cut = [parts.enter(groups[i : i + 7], values[i : i + 7]) for i in range(0, N, 7)]
    assert whole == [passed for part in cut for passed in part]
    assert all(Contest(None).enter(groups, values))


def test_what_misses_a_floor_takes_no_place(seen):
    reach = (drawn("reach") > 0.5).tolist()
    found = contested(reach, seen, [0] * N, Contest(3))
    rows = [row for row, enters in enumerate(reach) if enters]
    alone = Contest(3).enter([0] * len(rows), seen.direction[rows])
    assert [found[row] for row in rows] == alone
    assert not any(found[row] for row in range(N) if not reach[row])


def test_rejecting_nothing_loses_nothing(final, kept):
    told = outcome(torch.ones(N, dtype=torch.bool), final, GROUPS, LIMITS)
    assert (told.recall.value, told.rejected.value, told.kept) == (1, 0, len(kept))


def test_the_outcome_is_a_count_of_pairs(final, kept):
    finish = drawn("finish") > 0.4
    told = outcome(finish, final, GROUPS, LIMITS)
    assert told.recall.value == pytest.approx(
        sum(map(finish.__getitem__, kept)) / len(kept)
    )
    assert told.rejected.value == pytest.approx(float((~finish).double().mean()))
    passed = (passes(final, LIMITS) & finish).tolist()
    each = [min(2, sum(passed[i : i + 4])) for i in range(0, N, 4)]
    assert told.kept == sum(each)


def test_a_next_best_takes_the_place_of_one_that_is_lost():
    column = torch.tensor([0.9, 0.8, 0.7, 0.1])
    scores = Scores(column, column, column, column)
    finish = torch.tensor([False, True, True, True])
    told = outcome(finish, scores, ["cat"] * 4, LIMITS)
    assert told.recall.value == 0.5 and told.kept == 2


class Colours(ClipScorer):
    """Embeds a picture by its mean colour, and a caption by the colour it names."""

    def __init__(self):
        super().__init__(torch.nn.Linear(1, 1), None, torch.zeros(3), torch.ones(3))

    def embed_images(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)) + 1e-6, dim=1)

    def embed_texts(self, texts):
        return torch.eye(3)[[("red", "green", "blue").index(text) for text in texts]]


def pair(before, after):
    """Of a caption that names red, and one that names green."""
    pictures = (torch.eye(3)[i][:, None, None].expand(3, 4, 4) for i in (before, after))
    triplet = Triplet("red", "make it green", "green")
    return RenderedPair(Candidate(triplet, 1, 0.5, 7.5), *pictures)


def test_a_tree_is_scored_as_its_pairs_are_and_its_first_picture_is_seen_once():
    clip, whole, seen = Colours(), pair(0, 1), []
    tree = [
        RenderedPair(whole.candidate, whole.before, pair(0, i).after) for i in (1, 2)
    ]
    alone = [score_rendered(clip, [one]) for one in [*tree, pair(2, 1)]]
    embed = clip.embed_images
    clip.embed_images = lambda pictures: seen.append(len(pictures)) or embed(pictures)
    scores = score_rendered(clip, [*tree, pair(2, 1)])
    assert seen == [2 + 3]
    for name, found in vars(scores).items():
        assert found.tolist() == [float(getattr(one, name)) for one in alone]


def test_a_preview_keeps_the_pairs_that_reach_its_floors():
    clip, pairs = Colours(), [pair(0, 1), pair(0, 0), pair(2, 1), pair(0, 1)]
    scores = score_rendered(clip, pairs)
    assert scores.before.tolist() == pytest.approx([1, 1, 0, 1], abs=1e-4)
    assert scores.after.tolist() == pytest.approx([1, 0, 1, 1], abs=1e-4)
    preview = clip_preview(clip, 3, Filtering(image=ANY, text=0.5, direction=0.5))
    assert preview.step == 3
    assert list(preview.keep(pairs)) == [True, False, False, True]
