"""How fast a service is asked, and how the asker's memory grows with the captions.

python benchmarks/asking.py        writes data/results/asking.json

The service is the tests' stand-in, in a process of its own and over real sockets. It
takes half a second for an answer, then none, so that only our side takes time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from ip2p_lib.config import RESULTS
from ip2p_lib.results import write_results
from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.record import tally
from ip2p_lib.triplets.service import ask_service, connect

TESTS = Path(__file__).resolve().parents[1] / "tests"
ANSWER = 0.5  # seconds
MANY, EVERY = 20_000, 5_000  # captions, and between two looks at the memory
SERVE = """
import sys, time
from stand_in_server import StandInServer
server = StandInServer()
server.watch = lambda when, call: time.sleep(float(sys.argv[1]) * (when == "before"))
print(server.url, flush=True)
server.serve_forever()
"""


@contextmanager
def service(seconds: float) -> Iterator[OpenAI]:
    """A client of a stand-in that takes ``seconds`` for an answer."""
    command = [sys.executable, "-c", SERVE, str(seconds)]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip()
        yield connect(url)
        server.kill()


def captions(n: int) -> Iterator[str]:
    """Synthetic captions, made as they are read."""
    return (f"castle {i} by the sea in the evening, a photo" for i in range(n))


def throughput(in_flight: int, answers: int = 200) -> dict[str, Any]:
    """Captions a second where the service takes its time."""
    with service(ANSWER) as client:
        began = time.monotonic()
        ask = partial(ask_service, model="stand-in", client=client)
        kept = tally(ask(captions(answers), in_flight=in_flight))
        seconds = time.monotonic() - began
    return {
        "in_flight": in_flight,
        "answer_seconds": ANSWER,
        "outcomes": kept,
        "captions_a_second": round(answers / seconds, 2),
        "at_most": in_flight / ANSWER,
    }


def memory(folder: Path) -> Iterator[dict[str, Any]]:
    """Memory of this process after every few thousand answers, with a ledger."""
    began = time.monotonic()
    with service(0) as client, Ledger(folder / "book.sqlite", run="many") as ledger:
        replies = ask_service(
            captions(MANY), model="stand-in", client=client, ledger=ledger
        )
        for done in range(EVERY, MANY + 1, EVERY):
            answered = sum(reply.reason is None for reply in islice(replies, EVERY))
            yield {
                "captions": done,
                "kept_of_last": answered,
                "captions_a_second": round(done / (time.monotonic() - began), 1),
                "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            }


def main() -> None:
    """Measure both."""
    began, rows = time.monotonic(), [throughput(n) for n in (1, 8)]
    with tempfile.TemporaryDirectory() as folder:
        rows += memory(Path(folder))
    for row in rows:
        print(row)
    path, seconds = RESULTS / "asking.json", round(time.monotonic() - began, 1)
    print(write_results(path, rows, seed=0, seconds=seconds, device="cpu"))


if __name__ == "__main__":
    main()
