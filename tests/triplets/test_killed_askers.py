"""An asker that is killed anywhere loses no answer and asks for none twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from ip2p_lib.triplets.ledger import Ledger
from tests.support.kill_batches import PRICE
from tests.support.service_protocol import FORMS, caption_of

TESTS = Path(__file__).parents[1] / "support"


@pytest.mark.parametrize("form", FORMS)
def test_killed_20_times_no_answer_is_asked_for_again(server, tmp_path, form) -> None:
    path, count, kills = tmp_path / "ledger", 200, 20
    chance, lost, asked_before = random.Random(0), {}, 0
    environment = os.environ | {"PYTHONPATH": str(TESTS.parents[1])}
    command = [sys.executable, "-B", str(TESTS / "kill_service.py")]
    command += [server.url, str(path), str(count), form]
    for turn in range(kills + 1):
        done = known(path, count)
        child = subprocess.Popen(command, env=environment)
        after = len(server.asked) + chance.randrange(1, 11)
        moment, delay = chance.choice(["before", "after"]), chance.random() * 0.004

        def kill(when, call, child=child, after=after, moment=moment, delay=delay):
            if when == moment and len(server.asked) >= after:
                time.sleep(delay)
                child.kill()

        server.watch = kill if turn < kills else lambda when, call: None
        assert child.wait() == (-signal.SIGKILL if turn < kills else 0)
        server.wait_until_read()  # it is on the books
        now = {caption_of(request) for request in server.asked[asked_before:]}
        asked_before = len(server.asked)
        assert not now & done
        with Ledger(path, "killed") as ledger:
            losses = {loss.place: loss.times for loss in ledger.losses()}
        assert sum(losses.values()) - sum(lost.values()) <= 8
        lost = losses
    assert len(known(path, count)) == count
    times = Counter(caption_of(request) for request in server.asked)
    twice = {caption for caption, n in times.items() if n > 1}
    assert twice <= {f"caption {place}" for place in lost}


def known(path: Path, count: int) -> set[str]:
    """The captions whose answers are in the ledger."""
    with Ledger(path, "killed") as ledger:
        captions = [f"caption {place}" for place in range(count)]
        return {c for place, c in enumerate(captions) if ledger.find(place, c)}


# When, at which call, and whether that call (or, after it, the next one) is heard.
KILLS = [
    ("before", "upload", "unheard"),
    ("before", "upload", "heard"),
    ("before", "create", "unheard"),
    ("before", "create", "heard"),
    ("after", "upload", "unheard"),
    ("after", "create", "unheard"),
    ("before", "poll", "heard"),
    ("after", "poll", "unheard"),
    ("before", "download", "heard"),
    ("after", "download", "unheard"),
    ("before", "create", "heard"),  # of the second round
]


def test_killed_11_times_there_is_no_second_batch(server, tmp_path) -> None:
    server.outcome = lambda n: ("expired", 0.5) if n < 2 else ("completed", 1.0)
    path = tmp_path / "ledger"
    environment = os.environ | {"PYTHONPATH": str(TESTS.parents[1])}
    command = [sys.executable, "-B", str(TESTS / "kill_batches.py")]
    command += [server.url, str(path), "40"]
    for turn in (*KILLS, None):
        child = subprocess.Popen(command, env=environment)

        def kill(when, call, child=child, turn=turn):
            if turn and (when, call) == turn[:2]:
                child.kill()
                child.wait()
                return turn[2]

        server.watch = kill
        assert child.wait() == (-signal.SIGKILL if turn else 0)
        server.wait_until_read()
    server.watch = lambda when, call: None
    sizes = [
        server.files[batch["input_file_id"]]["content"].count(b"\n")
        for batch in server.batches.values()
    ]
    # Two that expired half done, then their rests, together or each for itself.
    assert sizes in ([20, 20, 20], [20, 20, 10, 10])
    tags = [tuple(batch["metadata"].items()) for batch in server.batches.values()]
    assert len(set(tags)) == len(tags)
    uploads = [f["filename"] for f in server.files.values() if f["purpose"] == "batch"]
    assert len(set(uploads)) == len(uploads) == len(sizes)
    asked = [caption_of(request) for request in server.asked]
    assert len(asked) == 60
    assert set(asked) == {f"caption {place}" for place in range(40)}
    with Ledger(path, "killed") as ledger:
        totals = ledger.totals()
    assert totals.answers == 40 and totals.held == totals.lost == 0
    assert totals.spent == PRICE.batched().cost(server.read, server.written)
