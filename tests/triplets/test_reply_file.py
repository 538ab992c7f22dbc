"""No reply on disk is paid for twice, however a run ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from ip2p_lib.config import ROOT
from ip2p_lib.triplets.reply_file import ReplyFile, ServiceError
from ip2p_lib.triplets.service import ask_service
from tests.support.pairs import file_size_limit
from tests.support.service import GOOD, caption_of, reply

ROW = {"key": "k", "cost": 0.5, "text": "t", "reason": None}


def stored_captions(path: Path) -> set[str]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return {json.loads(line)["caption"] for line in lines}


@pytest.mark.slow
def test_killed_20_times_no_stored_reply_is_requested_again(server, tmp_path) -> None:
    path, count, kills = tmp_path / "replies.jsonl", 200, 20
    chance, requested = random.Random(0), 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-B", str(ROOT / "tests/support/kill_service.py")]
    command += [server.url, str(path), str(count)]
    for turn in range(kills + 1):
        stored = stored_captions(path)
        child = subprocess.Popen(command, env=environment)
        after = len(server.requests) + chance.randrange(1, 11)
        moment, delay = chance.choice(["before", "after"]), chance.random() * 0.004

        def kill(when, child=child, after=after, moment=moment, delay=delay):
            if when == moment and len(server.requests) >= after:
                time.sleep(delay)
                child.kill()

        server.watch = kill if turn < kills else lambda when: None
        assert child.wait() == (-signal.SIGKILL if turn < kills else 0)
        server.wait_until_read()
        now = {caption_of(request) for request in server.requests[requested:]}
        requested = len(server.requests)
        assert not now & stored
    assert len(stored_captions(path)) == count
    times = Counter(caption_of(request) for request in server.requests)
    # Twice only what was in flight at a kill.
    assert sum(times.values()) - count <= 8 * kills


def test_a_run_goes_on_from_its_file_and_its_replies_are_the_same(
    server, client, tmp_path
) -> None:
    captions = [f"caption {position}" for position in range(40)]
    options = {"model": "m", "client": client, "replies_path": tmp_path / "r.jsonl"}
    first = ask_service(captions, **options)
    begun = [next(first) for _ in range(10)]
    first.close()  # what was in flight is stored too
    sent = len(server.requests)
    assert 10 <= sent < 40
    whole = list(ask_service(captions, **options))
    assert whole[:10] == begun and len(server.requests) == 40
    assert list(ask_service(captions, **options)) == whole
    assert len(server.requests) == 40


def test_another_prompt_model_or_option_is_another_request(
    server, client, tmp_path
) -> None:
    options = {"model": "m", "client": client, "replies_path": tmp_path / "r.jsonl"}
    for changed in ({}, {"model": "n"}, {"temperature": 0.5}, {}):
        list(ask_service(["a castle"], **options | changed))
    assert len(server.requests) == 3


def test_the_same_caption_is_requested_once(server, client) -> None:
    server.script = [reply("later"), reply(json.dumps(GOOD))]
    replies = list(ask_service(["a castle"] * 40, model="m", client=client))
    assert len({answer.triplet for answer in replies}) == 1
    assert len(server.requests) == 2


def test_a_line_that_was_cut_off_is_removed(tmp_path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    file = ReplyFile(path)
    file.append(ROW)
    file.close()
    whole = path.read_bytes()
    for cut in (whole + b'{"key": "half', whole[:-1]):  # the second lacks nothing
        path.write_bytes(cut)
        file = ReplyFile(path)
        assert file.rows == {"k": ROW} and file.cost == 0.5
        assert path.read_bytes() == whole
        file.close()
    file = ReplyFile(path)
    file.append(ROW | {"key": "l"})
    file.close()
    assert len(path.read_bytes().splitlines()) == 2


def test_on_a_full_disk_no_part_of_a_reply_stays(tmp_path) -> None:
    path, line = tmp_path / "r.jsonl", len(json.dumps(ROW)) + 1
    with closing(ReplyFile(path)) as file, file_size_limit(line + 5):
        file.append(ROW)
        with pytest.raises(OSError, match="No room"):
            file.append(ROW)
        assert file.cost == 0.5 and path.stat().st_size == line


COSTS = [json.dumps(ROW | {"cost": x}).encode() for x in (-1, float("nan"), None)]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"{}", b"\xff", b"[" * 9999, *COSTS])
def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path, line) -> None:
    path = tmp_path / "r.jsonl"
    text = json.dumps(ROW).encode() + b"\n" + line + b"\n"
    path.write_bytes(text)
    for _ in range(2):  # the lock is released
        with pytest.raises(ServiceError, match=r"r\.jsonl:2 .*this line only"):
            ReplyFile(path)
    assert path.read_bytes() == text


def test_one_process_at_a_time_opens_a_file(tmp_path) -> None:
    file = ReplyFile(tmp_path / "r.jsonl")
    with pytest.raises(ServiceError, match="Another run"):
        ReplyFile(tmp_path / "r.jsonl")
    file.close()
    ReplyFile(tmp_path / "r.jsonl").close()
