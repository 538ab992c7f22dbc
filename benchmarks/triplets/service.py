"""Captions a second from a service, and memory and time of a run of 20,000 captions.

    python -m benchmarks.triplets.service    writes data/results/triplet-service.json

The service is the tests' fake, in a process of its own and over real sockets. It takes
half a second for a reply, then none, so that only the client takes time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

from ip2p_lib.config import RESULTS, ROOT
from ip2p_lib.results import write_results
from ip2p_lib.triplets import ask_service, connect, count_outcomes

REPLY_SECONDS = 0.5
MANY, EVERY = 20_000, 5_000  # captions, and between two readings of the memory
SERVE = """
import sys, time
from tests.support.service import FakeService
server = FakeService()
server.watch = lambda when: time.sleep(float(sys.argv[1]) * (when == "before"))
print(server.url, flush=True)
server.serve_forever()
"""


@contextmanager
def service(seconds: float) -> Iterator[OpenAI]:
    """A client of a fake service that takes ``seconds`` for a reply."""
    command = [sys.executable, "-c", SERVE, str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield connect(server.stdout.readline().decode().strip())
        server.kill()


def captions(n: int) -> Iterator[str]:
    """Synthetic captions, created as they are read."""
    return (f"castle {i} by the sea in the evening, a photo" for i in range(n))


def throughput(workers: int, n: int = 200) -> dict[str, Any]:
    """Captions a second where the service takes its time."""
    with service(REPLY_SECONDS) as client:
        start, options = time.monotonic(), {"model": "m", "max_workers": workers}
        outcomes = count_outcomes(ask_service(captions(n), client=client, **options))
        seconds = time.monotonic() - start
    return {
        "max_workers": workers,
        "reply_seconds": REPLY_SECONDS,
        "outcomes": outcomes,
        "captions_per_second": round(n / seconds, 2),
        "upper_bound": workers / REPLY_SECONDS,
    }


def memory(path: Path) -> Iterator[dict[str, Any]]:
    """Memory of this process after every few thousand replies, stored in a file."""
    start = time.monotonic()
    with service(0) as client:
        replies = ask_service(
            captions(MANY), model="m", client=client, replies_path=path
        )
        for done in range(EVERY, MANY + 1, EVERY):
            outcomes = count_outcomes(islice(replies, EVERY))
            yield {
                "captions": done,
                "outcomes": outcomes,
                "captions_per_second": round(done / (time.monotonic() - start), 1),
                "memory_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
            }


def main() -> None:
    """Measure both."""
    start, rows = time.monotonic(), [throughput(n) for n in (1, 8)]
    with tempfile.TemporaryDirectory() as folder:
        rows += memory(Path(folder) / "replies.jsonl")
    for row in rows:
        print(row)
    path, seconds = RESULTS / "triplet-service.json", time.monotonic() - start
    print(write_results(path, rows, seed=0, seconds=round(seconds, 1), device="cpu"))


if __name__ == "__main__":
    main()
