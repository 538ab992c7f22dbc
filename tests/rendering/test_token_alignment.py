"""Tokens are aligned as a reader would align the words, in any language."""

from zlib import crc32

import pytest
import torch

from ip2p_lib.config import MODELS
from ip2p_lib.rendering.token_alignment import (
    Block,
    align,
    changed_tokens,
    find_tokens,
    get_refinement_mapper,
    get_replacement_mapper,
)

END = 99


def ids(words, length=8):
    """One token a word, the same for the same word; marked and padded."""
    tokens = [crc32(word.encode()) for word in words.split()]
    return ([98, *tokens] + [END] * length)[:length]


def aligned(before, after):
    return align(ids(before), ids(after), END)


@pytest.fixture(scope="module")
def miniature_tokenizer():
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(MODELS / "miniature-sd" / "tokenizer")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a cat", "a dog", [("equal", 0, 2, 0, 2), ("replace", 2, 3, 2, 3)]),
        ("a cat", "a sad cat", [("insert", 2, 2, 2, 3), ("equal", 2, 3, 3, 4)]),
        ("a sad cat", "a cat", [("delete", 2, 3, 2, 2), ("equal", 3, 4, 2, 3)]),
        ("a cat", "a cat", [("equal", 0, 3, 0, 3)]),
    ],
)
def test_blocks_cover_both_captions(before, after, expected):
    blocks = aligned(before, after)
    n, m = (1 + len(text.split()) for text in (before, after))
    assert [b for b in blocks if b in expected] == expected
    assert blocks[-1] == Block("end", n, 8, m, 8)
    for start, stop in ((1, 2), (3, 4)):  # i1, i2 and j1, j2
        covered = [i for b in blocks for i in range(b[start], b[stop])]
        assert covered == list(range(8))


def test_replacement_maps_word_for_word_and_other_lengths_in_equal_parts():
    """hot dog (2, 3) becomes extra large pizza (2, 3, 4): a third of the sum each."""
    columns = get_replacement_mapper(aligned("a cat in hats", "a dog in rain"))
    assert torch.equal(columns.mapper, torch.eye(8)) and not columns.keep.any()
    blocks = aligned("a hot dog now", "a extra large pizza now")
    expected = torch.zeros(8, 8)
    expected[0, 0] = expected[1, 1] = 1
    expected[2:4, 2:5] = 1 / 3
    expected[4, 5] = 1
    expected[5, 6] = expected[6, 7] = expected[7, 7] = 1  # ends and padding
    assert torch.equal(get_replacement_mapper(blocks).mapper, expected)
    for before, after in (("a dog", "a tall tree"), ("a tall tree", "a dog")):
        mapper = get_replacement_mapper(aligned(before, after)).mapper
        assert (mapper.sum(dim=1) == 1).all(), "attention still sums to one"


@pytest.mark.parametrize(("before", "after"), [("cat", "sad cat"), ("sad cat", "cat")])
def test_replacement_refuses_added_and_dropped_words(before, after):
    with pytest.raises(ValueError, match="refine"):
        get_replacement_mapper(aligned(before, after))


def test_refinement_maps_common_tokens_and_keeps_the_others():
    columns = get_refinement_mapper(aligned("a cat sits", "a sad cat runs"))
    assert columns.keep.tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    pairs = columns.mapper.nonzero().tolist()
    assert pairs == [[0, 0], [1, 1], [2, 3], [4, 5], [5, 6], [6, 7], [7, 7]]
    equal = get_refinement_mapper(aligned("a cat", "a cat"))
    assert torch.equal(equal.mapper, torch.eye(8)) and not equal.keep.any()
    assert changed_tokens(aligned("a cat sits", "a sad cat runs")) == ([3], [2, 4])


@pytest.mark.parametrize("tokenizer", ["tiny_tokenizer", "miniature_tokenizer"])
@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("The  Caterpillar and the CAT", "cat"),
        ("a horse on a horse", "horse"),
        ("a watercolour of a fir tree at night", "Fir  tree"),
        ("café with a cat", "café"),
        ("森林里有戴蝴蝶结的郁金香，日落", "郁金香"),
    ],
)
def test_a_phrase_is_found_in_any_language(request, tokenizer, caption, phrase):
    """Its tokens spell the phrase, with at most a neighbour's letters besides."""
    tokenizer = request.getfixturevalue(tokenizer)
    tokens = find_tokens(tokenizer, caption, phrase)
    all_ids = tokenizer(caption).input_ids
    assert tokens == sorted(set(tokens)) and tokens[0] > 0
    assert tokens[-1] < len(all_ids) - 1
    spelled = tokenizer.decode([all_ids[i] for i in tokens]).replace(" ", "")
    wanted = phrase.lower().replace(" ", "")
    count = 2 if caption == "a horse on a horse" else 1
    assert spelled.count(wanted) == count
    if caption.isascii():
        assert spelled == wanted * count


@pytest.mark.parametrize("phrase", ["ca", "at", "photo cat", "  "])
def test_a_phrase_that_is_not_there_is_refused(tiny_tokenizer, phrase):
    with pytest.raises(ValueError, match="word"):
        find_tokens(tiny_tokenizer, "a photo of the cat", phrase)


def test_captions_without_spaces_align(miniature_tokenizer):
    captions = ["村庄里有龙，夜晚", "村庄里有龙，日落"]
    both = miniature_tokenizer(captions, padding="max_length", max_length=77).input_ids
    changed = changed_tokens(align(*both, miniature_tokenizer.eos_token_id))
    for ids, at, word in zip(both, changed, ("夜晚", "日落"), strict=True):
        assert miniature_tokenizer.decode([ids[i] for i in at]).strip() == word
