"""A service that writes triplets, played by a small server over real sockets."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from email.utils import formatdate

import pytest

from ip2p_lib.triplets import errors as service_faults
from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.record import tally
from ip2p_lib.triplets.service import Patience, ServiceError, ask_service, connect
from tests.support.hasty_asking import ask
from tests.support.service_protocol import FORMS, KEY, RIGHT, answer, failure

GOOD = answer(RIGHT["chat"])


def refusal(status: int, code: str | None = None):
    return failure(status, code, f"Incorrect API key provided: {KEY}. Quota, rate.")


def test_eight_at_a_time_come_back_in_order_and_are_read_as_needed(server, client):
    running, most, taken = set(), [], []

    def watch(when, call):
        (running.add if when == "before" else running.discard)(threading.get_ident())
        most.append(len(running))
        if when == "before":  # later captions overtake earlier ones
            time.sleep(0.001 * (7 - len(most) % 7))

    def captions():
        for place in range(100):
            taken.append(place)
            yield f"caption {place}"

    server.watch = watch
    for place, reply in enumerate(ask(captions(), client)):
        assert reply.caption == f"caption {place}"
        assert len(taken) <= place + 16
    assert place == 99 and max(most) <= 8


def test_the_first_request_goes_alone(server, client) -> None:
    server.watch = lambda when, call: time.sleep(0.05 if when == "before" else 0)
    replies = ask([f"caption {place}" for place in range(20)], client)
    next(replies)
    assert len(server.asked) == 1
    replies.close()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "invalid_api_key", "refuses the API key"),
        (403, None, "may not use the model 'm'"),
        (404, "model_not_found", "has no model 'm'"),
        (429, "insufficient_quota", "no credit"),
        (400, None, "status 400"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_a_hopeless_fault_stops_after_one_request_in_words(
    server, client, form, status, code, says, tmp_path, caplog
):
    caplog.set_level(logging.DEBUG)
    server.fault = lambda number: refusal(status, code)
    with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(ServiceError, match=says) as caught:
            next(ask(["a castle"] * 99, client, ledger=ledger, form=form))
        assert ledger.losses() == []
    assert len(server.asked) == 1
    # The service named the key in its answer; nobody repeats it.
    told = [*traceback.format_exception(caught.value), repr(caught.value), caplog.text]
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    parts = {KEY[i : i + 6] for i in range(9, len(KEY) - 5)}
    assert [part for part in parts if any(part in text for text in told)] == []
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_later_it_stops_with_what_was_in_flight(server, client) -> None:
    server.fault = lambda number: refusal(401) if number >= 50 else None
    captions = (f"caption {place}" for place in range(10**9))
    replies = []
    with pytest.raises(ServiceError, match="refuses the API key"):
        replies.extend(ask(captions, client))
    assert 50 <= len(server.asked) <= 50 + 8


def test_a_caption_that_the_service_rejects_costs_only_itself(server, client) -> None:
    server.script = [GOOD, failure(400), failure(413), GOOD]
    replies = list(ask(["a castle"] * 4, client, in_flight=1))
    assert tally(replies) == {"kept": 2, "rejected": 2}
    server.script = [GOOD, *[failure(400)] * 9]
    with pytest.raises(ServiceError, match="status 400"):
        list(ask(["a castle"] * 9, client, in_flight=1))
    assert len(server.asked) == 4 + 1 + 3


FAULTS = ("drop", 429, "cut", 503, 500, "hang", 408, "drop", 502, 409)


@pytest.mark.parametrize("form", FORMS)
def test_1000_requests_with_a_fifth_of_them_faulty(
    server, client, tmp_path, form
) -> None:
    def fault(number):
        kind = FAULTS[number // 5 % len(FAULTS)] if number % 5 == 4 else None
        return failure(kind) if isinstance(kind, int) else kind

    server.fault, server.hang = fault, 1.2
    captions = [f"caption {place}" for place in range(1000)]
    with Ledger(tmp_path / "ledger") as ledger:
        quick = client.with_options(timeout=1.0)
        replies = list(ask(captions, quick, ledger=ledger, form=form))
        lost = sum(loss.times for loss in ledger.losses())
    assert [reply.caption for reply in replies] == captions
    assert tally(replies) == {"kept": 1000}
    assert len(server.asked) <= 1.3 * len(replies)
    silent = [kind in ("drop", "cut", "hang", 408, 502) for kind in FAULTS]
    faults = [FAULTS[n // 5 % 10] for n in range(4, len(server.asked), 5)]
    assert lost == sum(silent[FAULTS.index(kind)] for kind in faults)


def test_a_fault_that_does_not_pass_leaves_one_caption_or_ends_the_run(server, client):
    server.script = [GOOD, *[failure(503)] * 6, GOOD]
    replies = list(ask(["a castle"] * 3, client, in_flight=1))
    assert tally(replies) == {"kept": 2, "unanswered": 1}
    server.fault = lambda number: failure(503)
    with pytest.raises(ServiceError, match="status 503"):
        list(ask(["a castle"] * 3, client))


def headers(**values: str) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("asks", "seconds"),
    [
        (headers(retry_after="7"), 7),
        (headers(retry_after="0.5"), 0.5),
        (headers(retry_after_ms="20", retry_after="9"), 0.02),
        (headers(retry_after="-3"), 0),
        (headers(retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), 0),
        *[
            (headers(retry_after=text), None)
            for text in ("", "nan", "inf", "-inf", "soon", "1e999", "\x00")
        ],
        (headers(retry_after="Fri, 31 Dec 100000 23:59:59 GMT"), None),
        ({}, None),
    ],
)
def test_what_a_service_asks_to_wait_is_read_or_ignored(asks, seconds) -> None:
    assert service_faults.requested_pause(asks) == seconds
    soon = {"retry-after": formatdate(time.time() + 50, usegmt=True)}
    assert service_faults.requested_pause(soon) == pytest.approx(50, abs=2)


def test_waiting_doubles_and_is_spread(server, client) -> None:
    class Fault:
        response = None

    patience = Patience()
    times = [
        [service_faults.pause(Fault(), attempt, place, patience) for place in range(99)]
        for attempt in range(1, 12)
    ]
    for attempt, row in enumerate(times):
        full = min(0.5 * 2**attempt, 30.0)
        assert full / 2 <= min(row) < 0.55 * full and 0.95 * full < max(row) <= full
        assert len(set(row)) == 99
    assert times[0][:9] == [
        service_faults.pause(Fault(), 1, place, patience) for place in range(9)
    ]
    server.fault = lambda number: failure(429, retry_after_ms="", retry_after="3600")
    with pytest.raises(ServiceError, match="wait for 3600 seconds"):
        list(ask(["a castle"], client))


def test_what_the_service_asks_to_wait_is_waited(server, client) -> None:
    server.script = [failure(429, retry_after_ms="150"), GOOD]
    start = time.monotonic()
    assert next(ask(["a castle"], client)).triplet
    assert time.monotonic() - start >= 0.15


def test_no_server_is_said_in_plain_words(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    silent = connect("http://127.0.0.1:9/v1")
    with silent as client, pytest.raises(ServiceError, match="does not answer"):
        next(ask(["a castle"], client))


def test_without_a_key_it_says_where_to_put_one(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServiceError, match="OPENAI_API_KEY"):
        next(ask_service(["a castle"], model="m"))
    with connect("http://127.0.0.1:9/v1") as client:  # a server of one's own needs none
        assert client.api_key == "none"


def test_a_key_pasted_with_its_line_is_read_and_no_other_character_is_sent(
    server, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with connect(server.url) as client:
        assert [reply.reason for reply in ask(["a castle"], client)] == [None]
    for key in ("sk-k\u00e4se", "sk-one sk-two", "sk-one\nsk-two"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ServiceError, match="OPENAI_API_KEY holds") as error:
            connect(server.url)
        assert "sk-" not in str(error.value)
