"""What was asked and answered survives whatever happens to the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ip2p_lib.triplets.ledger import Answer, Ledger, LedgerError, Loss, Totals

GOOD = Answer('{"instruction": "make it night"}', None, read=300, written=20)

# Answers captions 0, 1, 2... and dies in the middle of one, between its two lines.
DIES = """
import os, signal, sys
from ip2p_lib.triplets.ledger import Answer, Ledger
with Ledger(sys.argv[1], "r") as ledger:
    for place in range(5):
        ledger.intend([(place, f"caption {place}", 7, None)])
        if place == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        ledger.settle([(place, Answer("text", None, 3, 2), 5)])
"""


def ask(ledger: Ledger, place: int, held: int = 10, part: int | None = None) -> None:
    ledger.intend([(place, f"caption {place}", held, part)])


def test_an_answer_is_found_again_by_its_place_and_caption(tmp_path: Path) -> None:
    with Ledger(tmp_path / "new" / "ledger", "r") as ledger:
        assert ledger.find(0, "caption 0") is None
        ask(ledger, 0)
        assert ledger.find(0, "caption 0") is None
        ledger.settle([(0, GOOD, 4)])
    with Ledger(tmp_path / "new" / "ledger", "r") as ledger:
        assert ledger.find(0, "caption 0") == GOOD
        assert ledger.totals() == Totals(1, 300, 20, spent=4)
        with pytest.raises(LedgerError, match="another caption at place 0"):
            ledger.find(0, "caption 1")
    with Ledger(tmp_path / "new" / "ledger", "another run") as ledger:
        assert ledger.find(0, "caption 0") is None


def test_a_killed_run_keeps_its_answers_and_knows_what_it_may_pay_twice(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger"
    child = subprocess.run([sys.executable, "-c", DIES, path], check=False)
    assert child.returncode == -signal.SIGKILL
    with Ledger(path, "r") as ledger:
        found = [ledger.find(place, f"caption {place}") for place in range(5)]
        assert [answer is not None for answer in found] == [True] * 3 + [False] * 2
        assert ledger.losses() == [Loss(3, times=1, cost=7)]
        assert ledger.totals() == Totals(3, 9, 6, spent=15, lost=7)
        ask(ledger, 3)
        ledger.settle([(3, GOOD, 5)])
        assert ledger.losses() == [Loss(3, times=1, cost=7)]  # paid twice, possibly


def test_money_is_held_until_the_answer_or_the_refusal(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        for place in range(4):
            ask(ledger, place)
        assert ledger.totals().held == 40
        ledger.withdraw([0])
        ledger.lose(1)
        ledger.settle([(2, GOOD, 3)], final=False)
        assert ledger.totals() == Totals(0, 300, 20, spent=3, lost=10, held=10)
        assert ledger.find(2, "caption 2") is None
        assert [loss.place for loss in ledger.losses()] == [1]


def test_captions_in_a_batch_wait_there_and_are_not_lost(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        for place in range(5):
            ask(ledger, place, part=place % 2)
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.losses() == []
        assert ledger.parts() == {0: 3, 1: 2}
        ledger.settle([(1, GOOD, 3)])
        assert ledger.waiting(1) == [3]
        ledger.withdraw(ledger.waiting(0))
        assert ledger.parts() == {1: 1}


def test_one_file_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path), pytest.raises(LedgerError, match="close it there"):
        Ledger(path)
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(tmp_path / "text")


def test_lines_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def breaks_off():
        yield (0, "caption 0", 10, None)
        raise KeyboardInterrupt

    with Ledger(tmp_path / "ledger") as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.intend(breaks_off())
        assert ledger.totals() == Totals()


def test_threads_share_a_ledger() -> None:
    def work(first: int) -> None:
        for place in range(first, 400, 8):
            ask(ledger, place)
            ledger.settle([(place, GOOD, 1)])

    with Ledger() as ledger:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.totals() == Totals(400, 120_000, 8_000, spent=400)


def test_it_is_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        settings = {
            name: ledger._file.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        }
        assert settings == {"journal_mode": "wal", "synchronous": 2}
        assert os.listdir(tmp_path)
