"""Moderation by a service's endpoint: one request a triplet, and no way round it."""

from __future__ import annotations

import logging
import traceback

import pytest

from ip2p_lib.triplets.moderation import service_moderation
from ip2p_lib.triplets.quality_filters import filter_replies
from ip2p_lib.triplets.record import Reply, Triplet, tally
from ip2p_lib.triplets.service import Patience, ServiceError, ask_service
from tests.support.service_protocol import KEY, failure, page

HASTE = Patience(tries=3, first=0.001, longest=0.01)


def replies(n: int) -> list[Reply]:
    triplets = [Triplet(f"a cat {i}", "a hat, please", f"a hat {i}") for i in range(n)]
    return [Reply(triplet.caption, "text", triplet) for triplet in triplets]


def moderated(client, given):
    objects = service_moderation(client, patience=HASTE)
    return list(filter_replies(given, objects=objects))


def test_what_the_service_flags_falls_and_the_counts_add_up(server, client) -> None:
    server.flags = lambda text: text in ("a cat 1", "a hat 3")
    given = [*replies(6), Reply("a cat", "???", reason="parts"), replies(1)[0]]
    found = moderated(client, given)
    counts = tally(found)
    assert counts == {"kept": 4, "moderation": 2, "parts": 1, "duplicate": 1}
    assert [i for i, r in enumerate(found) if r.reason == "moderation"] == [1, 3]
    assert [r.text for r in found] == [r.text for r in given]
    assert server.moderated == [
        [f"a cat {i}", "a hat, please", f"a hat {i}"] for i in range(6)
    ]


def test_it_judges_what_a_service_wrote_as_it_comes(server, client) -> None:
    server.flags = lambda text: text == "a castle"
    captions = ["a castle", "a house", "a tree"]
    answers = ask_service(captions, model="m", client=client)
    objects = service_moderation(client)
    counts = tally(filter_replies(answers, objects=objects, once_a_caption=True))
    assert counts == {"kept": 2, "moderation": 1}
    assert server.calls.count("moderate") == server.calls.count("chat") == 3


def test_half_a_character_is_sent_as_a_question_mark(server, client) -> None:
    server.flags = lambda text: "?" in text
    assert service_moderation(client)(["a \ud800 cat"]) is True


@pytest.mark.parametrize("kind", ["drop", "cut", 429, 503, 408])
def test_a_fault_that_passes_is_waited_for(server, client, kind) -> None:
    faults = {1: failure(kind) if isinstance(kind, int) else kind}
    server.fault, server.flags = faults.get, lambda text: False
    assert tally(moderated(client, replies(3))) == {"kept": 3}
    assert len(server.moderated) == 4


@pytest.mark.parametrize(
    ("status", "code", "says", "requests"),
    [
        (404, None, r"no moderation model .* objects=word_list\(\)", 1),
        (401, "invalid_api_key", "refuses the API key", 1),
        (429, "insufficient_quota", "no credit", 1),
        (503, None, "status 503", 3),
    ],
)
def test_a_service_that_cannot_judge_ends_the_run_in_words(
    server, client, caplog, status, code, says, requests
) -> None:
    caplog.set_level(logging.DEBUG)
    server.flags = lambda text: False
    server.fault = lambda n: failure(status, code, f"Incorrect API key: {KEY}.")
    with pytest.raises(ServiceError, match=says) as caught:
        moderated(client, replies(3))
    assert len(server.moderated) == requests
    told = [*traceback.format_exception(caught.value), repr(caught.value), caplog.text]
    parts = {KEY[i : i + 6] for i in range(9, len(KEY) - 5)}
    assert [part for part in parts if any(part in text for text in told)] == []


def test_a_service_without_the_endpoint_is_not_taken_for_content(
    server, client
) -> None:
    with pytest.raises(ServiceError, match="word_list"):
        moderated(client, replies(1))
    assert server.calls == ["moderate"]


GOOD = {"flagged": False}
MALFORMED = [b"", b"<html>", b"null", b"[" * 20_000, {}, {"results": 3}]
MALFORMED += [
    {"results": rows} for rows in ([], [GOOD] * 2, [GOOD] * 4, [GOOD, GOOD, 3])
]
MALFORMED += [{"results": [GOOD, GOOD, {"flagged": f}]} for f in (None, 0, "no", [])]


@pytest.mark.parametrize("body", MALFORMED, ids=str)
def test_an_answer_that_does_not_judge_each_text_keeps_nothing(
    server, client, body
) -> None:
    server.fault = lambda n: page(200, body)
    with pytest.raises(ServiceError, match="did not say of each of 3 texts"):
        moderated(client, replies(1))
