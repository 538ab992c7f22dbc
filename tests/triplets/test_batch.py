"""Batches cost half, are never sent twice, and lose nothing when they expire."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ip2p_lib.triplets.batch import ask_in_batches
from ip2p_lib.triplets.batch_files import BatchFiles
from ip2p_lib.triplets.chat_format import lead, response_format, with_defaults
from ip2p_lib.triplets.cost import CeilingError, Price
from ip2p_lib.triplets.ledger import Answer, Ledger, LedgerError
from ip2p_lib.triplets.record import Triplet, tally
from ip2p_lib.triplets.service import ServiceError, ask_service, connect
from tests.support.service_protocol import GOOD, KEY, caption_of, completion, page

PRICE = Price("m", read=0.1, written=0.5)
CAPTIONS = [f"caption {place}" for place in range(40)]


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger", "a run/of mine") as ledger:
        yield ledger


def ask(client, ledger, captions=CAPTIONS, **more):
    more = {"model": "m", "price": PRICE, "poll_seconds": 0.01} | more
    return list(ask_in_batches(captions, client=client, ledger=ledger, **more))


def test_a_batch_is_asked_like_a_single_caption_at_half_the_price(
    server, client, ledger
) -> None:
    examples = [Triplet("a cat", "a dog, please", "a dog")]
    replies = ask(client, ledger, examples=examples)
    assert [reply.caption for reply in replies] == CAPTIONS
    assert tally(replies) == {"kept": 40}
    batched = server.asked[:]
    more = {"model": "m", "client": client, "examples": examples}
    assert list(ask_service(CAPTIONS, **more)) == replies
    single = sorted(server.asked[40:], key=lambda r: CAPTIONS.index(caption_of(r)))
    assert batched == single
    totals = ledger.totals()
    bill = PRICE.cost(server.read // 2, server.written // 2)  # of one of the two
    assert (totals.spent, totals.held) == (bill // 2, 0)
    (batch,) = server.batches.values()
    assert batch["metadata"]["run"] == "a run/of mine"
    assert batch["completion_window"] == "24h"


def test_what_an_expired_batch_finished_is_used_and_the_rest_sent_again(
    server, client, ledger
) -> None:
    ends = [("expired", 0.25), ("cancelled", 0.5), ("completed", 1.0)]
    server.outcome = lambda number: ends[number]
    assert tally(ask(client, ledger)) == {"kept": 40}
    sizes = [
        server.files[batch["input_file_id"]]["content"].count(b"\n")
        for batch in server.batches.values()
    ]
    assert sizes == [40, 30, 15]
    assert ledger.totals().spent == PRICE.batched().cost(server.read, server.written)
    assert ledger.losses() == []


def test_what_never_comes_is_unanswered_and_may_be_asked_for_later(
    server, client, ledger
) -> None:
    server.outcome = lambda number: ("expired", 0.5)
    assert tally(ask(client, ledger)) == {"kept": 35, "unanswered": 5}
    server.outcome = lambda number: ("completed", 1.0)
    assert tally(ask(client, ledger)) == {"kept": 40}
    assert len(ask(client, ledger)) == 40 and len(server.batches) == 4


def test_replies_without_the_form_are_asked_for_again(server, client, ledger) -> None:
    right = json.dumps(GOOD)
    server.write = lambda c: right if len(server.batches) > 1 or "1" in c else "{"
    assert tally(ask(client, ledger)) == {"kept": 40}
    assert len(server.batches) == 2
    server.write = lambda caption: "{"
    more = Ledger(ledger.path.with_name("second"), "second")
    with more:
        assert tally(ask(client, more)) == {"kept": 0, "schema": 40}
        assert more.totals().answers == 40
    assert len(server.batches) == 5


def test_parts_keep_to_the_limits_of_a_file(server, client, ledger, monkeypatch):
    ask(client, ledger, most_requests=15)
    monkeypatch.setattr("ip2p_lib.triplets.batch_files.MOST_BYTES", 10_000)
    with Ledger(ledger.path.with_name("second"), "second") as second:
        ask(client, second)
    contents = [f["content"] for f in server.files.values() if f["purpose"] == "batch"]
    assert [content.count(b"\n") for content in contents[:3]] == [15, 15, 10]
    assert len(contents) > 5
    assert all(len(content) <= 10_000 for content in contents[3:])


def test_the_ceiling_holds_for_all_captions_before_any_is_sent(server, client, ledger):
    with pytest.raises(CeilingError):
        ask(client, ledger, ceiling=0.001)
    assert server.calls == []
    assert ledger.parts() == {}
    ask(client, ledger, ceiling=0.02)
    assert PRICE.batched().cost(server.read, server.written) < 0.02 * 10**12


def test_a_batch_that_the_service_does_not_accept_is_no_loss(server, client, ledger):
    server.outcome = lambda number: ("failed", 0.0)
    with pytest.raises(ServiceError, match="did not accept the batch 'batch-0'"):
        ask(client, ledger)
    server.outcome = lambda number: ("completed", 1.0)
    assert tally(ask(client, ledger)) == {"kept": 40}
    assert len(server.batches) == 2


@pytest.mark.parametrize("call", ["list batches", "upload", "create", "poll"])
def test_faults_are_said_in_words_and_nothing_is_sent_twice(
    server, client, ledger, call
) -> None:
    words = {"error": {"message": f"wrong key {KEY}", "code": "invalid_api_key"}}
    respond = server.RequestHandlerClass.respond

    class Refusing(server.RequestHandlerClass):
        def respond(self, asked, path, body):
            return (
                page(401, words) if asked == call else respond(self, asked, path, body)
            )

    server.RequestHandlerClass, usual = Refusing, server.RequestHandlerClass
    client.close()
    said = pytest.raises(ServiceError, match="Nothing is lost")
    with connect(server.url) as first, said as caught:
        ask(first, ledger)
    assert "canary" not in f"{caught.value} {caught.value.__context__}"
    server.RequestHandlerClass = usual
    with connect(server.url) as second:
        assert tally(ask(second, ledger)) == {"kept": 40}
    assert len(server.batches) == 1


def test_a_create_whose_answer_got_lost_is_not_repeated(server, client, ledger) -> None:
    respond = server.RequestHandlerClass.respond

    class Silent(server.RequestHandlerClass):
        def respond(self, call, path, body):
            sent = respond(self, call, path, body)
            return "drop" if call == "create" else sent

    server.RequestHandlerClass = Silent
    with pytest.raises(ServiceError, match="does not answer"):
        ask(client, ledger)
    assert tally(ask(client, ledger)) == {"kept": 40}
    assert server.calls.count("create") == len(server.batches) == 1


def test_lines_of_results_that_make_no_sense_are_passed_over(ledger) -> None:
    request = {"model": "m", "response_format": response_format()}
    request |= with_defaults({}, None)
    files = BatchFiles(ledger, CAPTIONS, request, lead([]), PRICE)
    body = completion(json.dumps(GOOD | {"instruction": "make it\u2028night"}))
    lines = [
        {"custom_id": "3", "response": {"status_code": 200, "body": body}},
        {"custom_id": "4", "response": {"status_code": 400, "body": {}}},
        {"custom_id": "5", "response": {"status_code": 500, "body": {}}},
        {"custom_id": "6", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "99", "response": {"status_code": 200, "body": body}},
        *({"custom_id": name, "response": {}} for name in ("", "-1", "x", 3, None)),
        *([], 3, None, {}),
    ]
    content = "\n".join(json.dumps(x, ensure_ascii=False) for x in lines).encode()
    content += b"\n{\n" + b"[" * 20_000 + b"\n\xff\n\n"
    found = {place: answer for place, answer, _ in files.read(content, range(40))}
    assert {place: answer.reason for place, answer in found.items()} == {
        3: "lines",
        4: "rejected",
    }
    assert found[4] == Answer("", "rejected")


def test_a_ledger_in_memory_or_captions_in_a_batch_are_refused(
    server, client, ledger
) -> None:
    with Ledger() as gone, pytest.raises(LedgerError, match="on disk"):
        ask(client, gone)
    ledger.intend([(30, CAPTIONS[30], 1, 0)])
    with pytest.raises(LedgerError, match="wait in a batch"):
        next(ask_service(CAPTIONS, model="m", client=client, ledger=ledger))
    assert tally(ask(client, ledger)) == {"kept": 40}  # its file is not there
