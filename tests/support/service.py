"""A stand-in for a paid service over real sockets: its endpoints, and its faults.

It keeps the books that the service would keep: what was asked, answered and billed. Its
faults come where a test puts them, never by chance, and ``watch`` is called before and
after every request is handled, so that a test can kill the asking process right there;
if it says ``"unheard"`` before, the request goes no further, and if it says so after,
no request that the connection may hold by then does.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.service_protocol import (
    BODIES,
    RIGHT,
    Handler,
    Page,
    caption_of,
    failure,
    form_of,
    page,
)

# Counted once by OpenAI's o200k_base (the package bpe-openai 0.1.4).
COUNTS = json.loads((Path(__file__).parent / "o200k_counts.json").read_text())


def tokens(text: str) -> int:
    """As the service counts them; what is in no list has four bytes each."""
    return COUNTS.get(text, -(-len(text.encode()) // 4))


class StandInServer(ThreadingHTTPServer):
    """Answers from ``script`` while it lasts, then as ``write`` says.

    ``fault(n)`` may name a fault of the n-th question: a page, or ``"drop"`` (no
    answer), ``"cut"`` (half of one) or ``"hang"`` (one that comes too late).
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Page] = []
        self.asked: list[dict[str, Any]] = []
        self.answered: list[str] = []  # captions whose answers were sent in full
        self.calls: list[str] = []
        self.read = self.written = 0  # tokens billed
        self.files: dict[str, dict[str, Any]] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.lock = threading.RLock()
        self.connected = 0
        self.fault: Callable[[int], Page | str | None] = lambda n: None
        self.watch: Callable[[str, str], Any] = lambda when, call: None
        self.write: Callable[[str], str] | None = None  # a good answer
        self.flags: Callable[[str], Any] | None = None  # no moderation
        self.moderated: list[list[str]] = []
        self.models: list[Any] | None = None  # no list of them
        self.listing_fault = failure(404)  # what is said where there is none
        # How the n-th batch ends, and the share of its requests that it finished.
        self.outcome: Callable[[int], tuple[str, float]] = lambda n: ("completed", 1.0)
        self.polls = 1  # until a batch ends
        self.hang = 1.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> StandInServer:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def wait_until_read(self) -> None:
        """Once all askers are gone: wait until what they sent has been handled."""
        while self.connected:
            time.sleep(0.001)

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that were killed."""

    # chat, completions and moderation

    def ask(self, body: bytes) -> Page | str:
        with self.lock:
            request = json.loads(body)
            number = len(self.asked)
            self.asked.append(request)
            fault = self.fault(number)
            if isinstance(fault, tuple):
                return fault
            if self.script:
                return self.script.pop(0)
            sent = page(200, self.complete(request))
        if fault == "hang":
            time.sleep(self.hang)
        return fault or sent

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write a reply and bill it, whether or not it will arrive."""
        form = form_of(request)
        content = self.write(caption_of(request)) if self.write else RIGHT[form]
        usage = {"prompt_tokens": self.count(request)}
        usage["completion_tokens"] = tokens(content)
        usage["total_tokens"] = sum(usage.values())
        self.read += usage["prompt_tokens"]
        self.written += usage["completion_tokens"]
        return BODIES[form](content, usage)

    @staticmethod
    def count(request: dict[str, Any]) -> int:
        if form_of(request) == "completion":
            return tokens(request["prompt"])
        form = json.dumps(request["response_format"]["json_schema"]["schema"])
        read = sum(tokens(m["content"]) + 3 for m in request["messages"]) + 3
        return read + tokens(form)

    def moderate(self, body: bytes) -> Page:
        request, number = json.loads(body), len(self.moderated)
        self.moderated.append(request["input"])
        fault = self.fault(number)
        if fault or self.flags is None:
            return fault or failure(404)
        results = [{"flagged": self.flags(text)} for text in request["input"]]
        return page(200, {"id": "1", "model": request["model"], "results": results})

    # files and batches

    def upload(self, kind: str, body: bytes) -> Page:
        boundary = kind.partition("boundary=")[2].strip('"').encode()
        content = name = None
        for part in body.split(b"--" + boundary):
            head, _, data = part.partition(b"\r\n\r\n")
            if b'name="file"' in head:
                content = data.removesuffix(b"\r\n")
                name = head.partition(b'filename="')[2].partition(b'"')[0].decode()
        return page(200, self.store(content, name, "batch"))

    def store(self, content: Any, name: Any, purpose: str) -> dict[str, Any]:
        file = {"id": f"file-{len(self.files)}", "object": "file", "created_at": 0}
        file |= {"filename": name, "purpose": purpose, "bytes": len(content)}
        self.files[file["id"]] = {**file, "content": content}
        return file

    def create(self, body: bytes) -> Page:
        request = json.loads(body)
        batch = {"id": f"batch-{len(self.batches)}", "object": "batch", "created_at": 0}
        batch |= {
            "status": "in_progress",
            "polls": 0,
            "output_file_id": None,
            **request,
        }
        self.batches[batch["id"]] = batch
        return page(200, batch)

    def poll(self, name: str) -> Page:
        batch = self.batches[name]
        batch["polls"] += 1
        if batch["polls"] >= self.polls and batch["status"] == "in_progress":
            self.finish(batch)
        return page(200, batch)

    def finish(self, batch: dict[str, Any]) -> None:
        lines = self.files[batch["input_file_id"]]["content"].splitlines()
        requests = [json.loads(line) for line in lines]
        batch["status"], share = self.outcome(int(batch["id"].split("-")[1]))
        done = round(len(requests) * share)
        good = [
            self.line(r, {"status_code": 200, "body": self.complete(r["body"])})
            for r in requests[:done]
        ]
        late = {"code": "batch_expired", "message": "late"}
        bad = [self.line(r, None, late) for r in requests[done:]]
        self.asked += [r["body"] for r in requests]
        for name, rows in (("output_file_id", good[::-1]), ("error_file_id", bad)):
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            if rows:
                batch[name] = self.store(text, name, "batch_output")["id"]

    @staticmethod
    def line(request: dict[str, Any], response: Any, error: Any = None) -> Any:
        return {
            "custom_id": request["custom_id"],
            "response": response,
            "error": error,
        }

    def listing(self, things: dict[str, dict[str, Any]]) -> Page:
        rows = [{k: v for k, v in t.items() if k != "content"} for t in things.values()]
        return page(200, {"object": "list", "data": rows[::-1], "has_more": False})
