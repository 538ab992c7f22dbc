"""Every reply that falls has one reason, and the counts add up."""

import pytest

from ip2p_lib.config import DATA
from ip2p_lib.triplets.quality_filters import filter_replies, has_blocked_word
from ip2p_lib.triplets.record import Reply, Triplet, count_outcomes, read_jsonl


def reply(caption="a cat", instruction="make it a dog", edited="a dog"):
    triplet = Triplet(caption, instruction, edited)
    return Reply(caption, f"{instruction} {edited}", triplet)


def test_each_reply_falls_for_one_reason_and_keeps_its_text():
    replies = [
        reply(),
        reply(edited="A  DOG"),  # the same but for case and spaces
        reply(instruction="make it " + "very " * 80 + "big"),
        reply(instruction="make it nude"),
        reply(caption="裸体雕像", edited="雕像"),
        Reply("a cat", "???", reason="parts"),
        reply(instruction="now a fox", edited="a fox"),
    ]
    filtered = list(filter_replies(replies, count_tokens=lambda t: len(t.split()) + 2))
    expected = [None, "duplicate", "length", "moderation", "moderation", "parts", None]
    assert [r.reason for r in filtered] == expected
    assert [r.text for r in filtered] == [r.text for r in replies]
    assert all((r.triplet is None) == (r.reason is not None) for r in filtered)
    counts = count_outcomes(filtered)
    assert sum(counts.values()) == len(replies)
    assert list(counts.items())[:2] == [("kept", 2), ("moderation", 2)]


def test_another_moderator_may_judge_each_triplet_once():
    moderated = []

    def is_flagged(texts):
        moderated.append(texts[-1])
        return "a fox" in texts

    replies = [reply(), reply(), reply(edited="a fox")]
    filtered = filter_replies(replies, is_flagged=is_flagged)
    assert [r.reason for r in filtered] == [None, "duplicate", "moderation"]
    assert moderated == ["a dog", "a fox"]


def test_words_match_whole_in_english_and_anywhere_in_chinese():
    for text in ("a naked statue", "Naked!", "血腥的场面"):
        assert has_blocked_word(["a cat", text, "a dog"])
    assert not has_blocked_word(["a snaked road", "the Essex coast", "一只猫"])


@pytest.mark.parametrize("name", ["general", "miniature"])
def test_the_hand_written_sets_pass(name):
    triplets = read_jsonl(DATA / "triplets" / f"{name}.jsonl")
    replies = [Reply(t.caption, "", t) for t in triplets]
    assert count_outcomes(filter_replies(replies)) == {"kept": len(triplets)}
