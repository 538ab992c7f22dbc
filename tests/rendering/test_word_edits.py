"""A plan holds each pair's own edit, and refuses words that are not there."""

import pytest
import torch

from ip2p_lib.rendering.token_alignment import align, positions, refinement, replacement
from ip2p_lib.rendering.word_edits import EVERYWHERE, LocalBlend, WordEdit, plan

CAT, DOG = "a photo of the cat", "a photo of the dog"
HATS = "a photo of the cat with hats"


def one(backbone, edit, before=CAT, after=DOG):
    return plan(backbone, [edit], [before], [after])


@pytest.mark.parametrize(
    ("kind", "routing", "after"),
    [("replace", replacement, DOG), ("refine", refinement, HATS)],
)
def test_a_plan_is_the_routing_of_the_captions_tokens(
    tiny_backbone, kind, routing, after
):
    ids = tiny_backbone.tokenize([CAT, after]).tolist()
    expected = routing(align(*ids, tiny_backbone.tokenizer.eos_token_id))
    made = one(tiny_backbone, WordEdit(kind, 0.4), after=after)
    assert torch.equal(made.route[0], expected.route)
    assert torch.equal(made.own[0], expected.own)
    assert made.tau.tolist() == [0.4] and not made.blends
    assert not made.words.any() and made.threshold.tolist() == [EVERYWHERE]


def test_every_pair_has_its_own_edit(tiny_backbone):
    edits = [WordEdit("replace", 0.3), None, WordEdit("refine", 1.0)]
    made = plan(tiny_backbone, edits, [CAT] * 3, [DOG, DOG, HATS])
    assert made.tau.tolist() == [0.3, 0.0, 1.0]
    alone = [one(tiny_backbone, edits[i], after=a) for i, a in ((0, DOG), (2, HATS))]
    assert torch.equal(made.route[[0, 2]], torch.cat([a.route for a in alone]))
    assert torch.equal(made.own[[0, 2]], torch.cat([a.own for a in alone]))
    assert not made.route[1].any() and made.own[1].all()


def test_a_weight_multiplies_its_words_map_wherever_it_comes_from(tiny_backbone):
    plain = one(tiny_backbone, WordEdit("refine"), after=HATS)
    weights = (("photo", -2.0), ("hats", 3.0))
    made = one(tiny_backbone, WordEdit("refine", weights=weights), after=HATS)
    factor = torch.ones(77)
    for word, c in weights:
        factor[positions(tiny_backbone.tokenizer, HATS, word)] = c
    assert torch.equal(made.route, plain.route * factor)
    assert torch.equal(made.own, plain.own * factor)
    assert (made.own == 3).any() and (made.route == -2).any()


@pytest.mark.parametrize(
    ("blend", "before", "after"),
    [
        (LocalBlend(), ["cat"], ["dog"]),
        (LocalBlend(before=("the cat",)), ["the", "cat"], []),
        (
            LocalBlend(before=("cat",), after=("photo", "dog")),
            ["cat"],
            ["photo", "dog"],
        ),
    ],
)
def test_a_blend_is_marked_by_its_words_or_by_those_that_differ(
    tiny_backbone, blend, before, after
):
    made = one(tiny_backbone, WordEdit("replace", blend=blend))
    for row, caption, words in zip(
        made.words, (CAT, DOG), (before, after), strict=True
    ):
        at = [i for w in words for i in positions(tiny_backbone.tokenizer, caption, w)]
        assert row.nonzero().flatten().tolist() == sorted(at)
    assert made.blends and made.threshold.tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("edit", "after", "message"),
    [
        (WordEdit("replace"), HATS, "a word for a word.*Captions: .*with hats"),
        (WordEdit("replace", weights=(("cat", 2.0),)), DOG, "'cat' is not in 'a photo"),
        (WordEdit("refine", blend=LocalBlend(("dog",))), DOG, "'dog' is not in"),
        (WordEdit("refine", blend=LocalBlend()), CAT, "stays as it is: name words"),
        (WordEdit("refine"), "dog " * 80, "tokens long"),
    ],
)
def test_bad_edits_are_refused(tiny_backbone, edit, after, message):
    with pytest.raises(ValueError, match=message):
        one(tiny_backbone, edit, after=after)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "swap"}, r"one of \['replace', 'refine'\], not 'swap'"),
        ({"kind": "refine", "tau": 1.5}, r"share of steps in \[0, 1\], not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WordEdit(**settings)
