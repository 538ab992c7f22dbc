"""Every reply that falls has one reason, and the counts add up."""

import pytest

from ip2p_lib.config import DATA
from ip2p_lib.triplets.quality_filters import filter_replies, word_list_moderator
from ip2p_lib.triplets.record import Reply, Triplet, count_outcomes, read_jsonl


def reply(caption="a cat", instruction="make it a dog", edited="a dog", **changes):
    text = f"{instruction} {edited}"
    return Reply(caption, text, Triplet(caption, instruction, edited), **changes)


def reasons(replies, **options):
    return [r.reason for r in filter_replies(replies, **options)]


def test_each_reply_falls_for_one_reason_and_keeps_its_text():
    given = [
        reply(),
        reply(edited="A  DOG"),  # the same but for case and spaces
        reply(instruction="make it " + "very " * 80 + "big"),
        reply(instruction="make it nude"),
        reply(caption="裸体雕像", edited="雕像"),
        Reply("a cat", "???", reason="parts"),
        reply(instruction="now a fox", edited="a fox"),
    ]
    filtered = list(
        filter_replies(given, count_tokens=lambda text: len(text.split()) + 2)
    )
    expected = [None, "duplicate", "length", "moderation", "moderation", "parts", None]
    assert [r.reason for r in filtered] == expected
    assert [r.text for r in filtered] == [r.text for r in given]
    assert all((r.triplet is None) == (r.reason is not None) for r in filtered)
    counts = count_outcomes(filtered)
    assert sum(counts.values()) == len(given) and counts["kept"] == 2


def test_a_caption_may_be_kept_once_only():
    given = [reply(), reply(instruction="add a hat", edited="a cat in a hat")]
    assert reasons(given) == [None, None]
    assert reasons(given, one_per_caption=True) == [None, "duplicate"]


def test_another_moderator_may_judge_each_triplet_once():
    moderated = []

    def is_flagged(texts):
        moderated.append(tuple(texts))
        return "a fox" in texts

    given = [
        reply(),
        reply(),
        reply(edited="a fox"),
        Reply("a cat", "", reason="parts"),
    ]
    expected = [None, "duplicate", "moderation", "parts"]
    assert reasons(given, is_flagged=is_flagged) == expected
    assert moderated == [
        ("a cat", "make it a dog", "a dog"),
        ("a cat", "make it a dog", "a fox"),
    ]


@pytest.mark.parametrize(
    ("text", "blocked"),
    [
        ("a naked statue", True),
        ("Naked!", True),
        ("a snaked road", False),  # not the whole word
        ("the Essex coast", False),
        ("血腥的场面", True),
        ("一只猫", False),
    ],
)
def test_words_match_whole_in_english_and_anywhere_in_chinese(text, blocked):
    assert word_list_moderator()([text]) is blocked
    assert word_list_moderator()(["a cat", text, "a dog"]) is blocked


@pytest.mark.parametrize("name", ["general", "miniature"])
def test_the_hand_written_sets_pass(name):
    triplets = read_jsonl(DATA / "triplets" / f"{name}.jsonl")
    replies = [Reply(t.caption, "", t) for t in triplets]
    assert count_outcomes(filter_replies(replies)) == {"kept": len(triplets)}
