"""A chat model's reply is a triplet, or has one reason why it is none."""

import json

import pytest

from ip2p_lib.triplets.chat_format import parse_reply
from ip2p_lib.triplets.record import Triplet
from tests.support.service import GOOD

RIGHT = json.dumps(GOOD)
DRAFT = json.dumps({"instruction": "a draft", "edited_caption": "a drafted castle"})


def changed(**texts) -> str:
    return json.dumps(GOOD | texts)


MALFORMED = [
    ("schema", ["make it night", "", "{", RIGHT[:-3], "null", "{}", "[]", "3"]),
    ("schema", ["[" * 20_000, "9" * 5000, "\ufeff", '{"instruction": "\\ud800"}']),
    ("schema", [changed(instruction=wrong) for wrong in (3, None, [], {})]),
    ("schema", ["<think>" + RIGHT, "<reasoning> a {draft}: " + RIGHT]),
    ("schema", [f"<{t} id=1>{DRAFT}</{t}> No." for t in ("thought", "analysis")]),
    ("schema", [part * 30_000 for part in ("{", '{"a":')] + [f"{DRAFT}</think> No."]),
    ("blank", [changed(instruction="\u200b")]),
    ("blank", [changed(**{name: " \t"}) for name in GOOD]),
    ("lines", [changed(**{n: t}) for n in GOOD for t in ("a\nb", "##", "a\u2028b")]),
    ("unchanged", [changed(edited_caption=" A castle. ")]),
]


@pytest.mark.parametrize(("reason", "texts"), MALFORMED)
def test_a_malformed_reply_has_one_reason_and_keeps_its_text(reason, texts):
    for text in texts:
        reply = parse_reply("a castle", text)
        assert (reply.triplet, reply.reason, reply.text) == (None, reason, text)


def test_a_reply_may_follow_reasoning_or_be_fenced():
    for text in (
        f" {RIGHT}\n",
        f"```json\n{RIGHT}\n```",
        f"Here you are:\n```\n{RIGHT}\n```\nAnything else?",
        f"<think>\nA castle {{at night}}?\n```json\n{{}}\n```</think>\n\n{RIGHT}",
        f"the template opened the block</think>```json\n{RIGHT}```",
        f"```{RIGHT}",
        *(f"<{t}>{DRAFT}</{t}>{RIGHT}" for t in ("think", "thinking", "THINK")),
        f"[THINK]{DRAFT}[/THINK]{RIGHT}",
        f"◁think▷{DRAFT}◁/think▷{RIGHT}",
        f"{DRAFT} no, better:</think>{RIGHT}",
        f"{{note}} <think>{DRAFT}</think>{RIGHT}",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|>final<|message|>{RIGHT}",
        f"First: {DRAFT}\nBetter: {RIGHT}",
        f"Sure! For {{this}} castle: {RIGHT} I hope that it helps {{you}}.",
        f'{{"result": {{"edits": [{RIGHT}]}}}}',
        f"[{RIGHT}]",
    ):
        triplet = parse_reply("a castle", text).triplet
        assert triplet == Triplet("a castle", "make it night", "a castle at night")
    fence_in_json = changed(instruction="add a sign that says ```go```")
    assert parse_reply("a castle", fence_in_json).triplet is not None
