"""A malformed reply has one reason, and is asked for again if it lacks the form."""

from __future__ import annotations

import json

import pytest

from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.record import tally
from tests.support.hasty_asking import NIGHT, ask
from tests.support.service_protocol import BODIES, FORMS, GOOD, RIGHT, answer, page


def in_chat(**texts) -> str:
    return json.dumps(GOOD | texts)


def in_completion(instruction=GOOD["instruction"], edited=GOOD["edited_caption"]):
    return f"{instruction}\n%%\n{edited}"


# Classes of texts that are no triplet, with the reason that each must get.
MALFORMED = {
    "chat": {
        "not JSON": ("schema", ["make it night", "", "{", in_chat()[:-3], "null"]),
        "another JSON": ("schema", ["{}", "[]", "3", "[" * 20_000, "9" * 5000]),
        "wrong types": (
            "schema",
            [in_chat(instruction=wrong) for wrong in (3, None, [], {})],
        ),
        "a field short": ("schema", [json.dumps({name: GOOD[name]}) for name in GOOD]),
        "control characters": (
            "schema",
            [in_chat(instruction=f"a {sign}") for sign in ("\0", "\x1b[2J", "\u202e")],
        ),
        "half a character": ("schema", ['{"instruction": "\\ud800"}', "\ufeff"]),
        "blank": ("blank", [in_chat(**{name: " \t"}) for name in GOOD]),
        "more lines": (
            "lines",
            [in_chat(**{n: t}) for n in GOOD for t in ("a\nb", "##", "a\u2028b")],
        ),
        "unchanged": (
            "unchanged",
            [
                in_chat(edited_caption=t)
                for t in ("a castle", "A castle.", " a castle!")
            ],
        ),
    },
    "completion": {
        "no parts": (
            "parts",
            ["make it night", "", "make it night\n%%", "%%", "\nEND"],
        ),
        "many parts": ("parts", [in_completion(in_completion()), "\n%%\n" * 3]),
        "another form": ("parts", [RIGHT["chat"], "[" * 20_000, "9" * 5000, "\ufeff"]),
        "ends early": ("parts", ["make it night\nEND\n%%\na castle at night"]),
        "control characters": (
            "schema",
            [in_completion(f"a {sign}") for sign in ("\0", "\x1b[2J", "\u202e", "\7")],
        ),
        "blank": ("blank", [in_completion(" \t"), in_completion(edited=" ")]),
        "more lines": (
            "lines",
            [
                in_completion("a\nb"),
                in_completion("##"),
                in_completion("a", "a\u2028b"),
            ],
        ),
        "unchanged": (
            "unchanged",
            [
                in_completion("keep it", t)
                for t in ("a castle", "A castle.", "a castle! ")
            ],
        ),
        "an end of its own": ("unchanged", [in_completion("x", "a castle\nEND\nmore")]),
    },
}


def malformed_pages(form: str) -> list[tuple[str, tuple]]:
    pages = [
        (reason, answer(text, form))
        for reason, texts in MALFORMED[form].values()
        for text in texts
    ]
    bodies = [b"", b"<html>", b"\xff\xfe", b"[" * 20_000, b"{}", b'{"choices": []}']
    bodies += [b'{"choices": [{"message": 3}]}', b'{"choices": {}}', b"null"]
    pages += [("schema", page(200, body)) for body in bodies]
    counts = {"prompt_tokens": 10**30, "completion_tokens": -1}
    pages += [("schema", page(200, BODIES[form](c, counts))) for c in (None, 3, [])]
    pages += [
        ("refused", answer("", form, finish_reason="content_filter")),
        ("unfinished", answer("{", form, finish_reason="length")),
        ("unfinished", answer(RIGHT[form], form, finish_reason="length")),
    ]
    if form == "chat":
        refusal = {"refusal": "I would rather not."}
        pages += [("refused", answer(None, message=refusal))]
    return pages


@pytest.mark.parametrize("form", FORMS)
def test_200_malformed_replies_fall_into_one_bin_each(server, client, tmp_path, form):
    pages = malformed_pages(form)
    assert len(MALFORMED[form]) + 3 == 12
    chosen = [pages[i % len(pages)] for i in range(200)]
    server.script = [page for _, page in chosen]
    with Ledger(tmp_path / "ledger") as ledger:
        asked = ["a castle"] * 200
        more = {"attempts": 1, "in_flight": 1, "ledger": ledger, "form": form}
        replies = list(ask(asked, client, **more))
        assert [reply.reason for reply in replies] == [reason for reason, _ in chosen]
        assert tally(replies)["kept"] == 0
        assert sum(tally(replies).values()) == len(server.asked) == 200
        again = list(ask(asked, client, **more))  # all from the ledger
    assert again == replies
    assert len(server.asked) == 200


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("chat", RIGHT["chat"]),
        ("chat", f"```json\n{RIGHT['chat']}\n```"),
        ("chat", f" {RIGHT['chat']}\n"),
        ("completion", RIGHT["completion"]),
        ("completion", RIGHT["completion"] + "\nEND"),
        ("completion", RIGHT["completion"] + "\nEND\nand more\n%%\n"),
    ],
)
def test_a_right_reply_may_be_wrapped(server, client, form, text) -> None:
    server.script = [answer(text, form)]
    (reply,) = ask(["a castle"], client, form=form)
    assert reply.triplet == NIGHT


@pytest.mark.parametrize(
    ("form", "text", "reason"),
    [
        *[("chat", t, "schema") for t in ("make it night", "{}", '{"instruction": 3}')],
        *[
            ("completion", t, "parts")
            for t in ("make it night", "{}", "a\n%%\nb\n%%\nc")
        ],
        ("completion", "\x1b[2J\n%%\nb", "schema"),
    ],
)
def test_a_reply_that_lacks_the_form_is_asked_for_again(
    server, client, form, text, reason
) -> None:
    wrong, right = answer(text, form), answer(RIGHT[form], form)
    server.script = [wrong, right, wrong, wrong]
    first, second = ask(["a castle"] * 2, client, in_flight=1, form=form)
    assert first.triplet is not None
    assert second.reason == reason
    assert len(server.asked) == 4


@pytest.mark.parametrize(("form", "asked"), [("chat", 1), ("completion", 2)])
def test_an_unfinished_completion_only_is_asked_for_again(server, client, form, asked):
    server.script = [answer("so long", form, finish_reason="length")]
    (reply,) = ask(["a castle"], client, form=form)
    assert (reply.reason == "unfinished") == (form == "chat")
    assert len(server.asked) == asked
