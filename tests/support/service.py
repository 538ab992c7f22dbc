"""A fake of a paid chat service over real sockets: its replies, bills and faults.

Faults come where a test puts them, never by chance. ``watch`` is called before and
after every request is handled, so that a test can kill the client right there.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-canary-0123456789abcdef"
GOOD = {"instruction": "make it night", "edited_caption": "a castle at night"}
# Counted once by OpenAI's o200k_base (the package bpe-openai 0.1.4).
COUNTS = json.loads((Path(__file__).parent / "o200k_counts.json").read_text())

Page = tuple[int, dict[str, str], bytes]


def page(status: int, content: Any, **headers: str) -> Page:
    """A response: status, headers and body."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json"} | names, body


def completion(content: Any, usage: Any = None, **choice: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": content} | choice.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | choice
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return {**body, "choices": [choice]} | ({"usage": usage} if usage else {})


def reply(content: Any, **choice: Any) -> Page:
    return page(200, completion(content, **choice))


def failure(status: int, code: str | None = None, message: str = "", **headers) -> Page:
    error = {"message": message, "type": "error", "code": code}
    return page(status, {"error": error}, **{"retry_after_ms": "1"} | headers)


def caption_of(request: dict[str, Any]) -> str:
    return json.loads(request["messages"][-1]["content"])["caption"]


def tokens(text: str) -> int:
    """As the service counts them; texts that are not listed at four bytes each."""
    return COUNTS.get(text, -(-len(text.encode()) // 4))


class FakeService(ThreadingHTTPServer):
    """Answers from ``script`` while it lasts, then as ``write`` says.

    ``fault(n)`` may give a fault of the n-th request: a page, or ``"drop"`` (no reply),
    ``"cut"`` (half of one) or ``"hang"`` (one that comes too late). Replies are billed
    before they are dropped.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Page] = []
        self.requests: list[dict[str, Any]] = []
        self.input_tokens = self.output_tokens = 0  # billed
        self.lock = threading.RLock()
        self.connected = 0
        self.fault: Callable[[int], Page | str | None] = lambda n: None
        self.watch: Callable[[str], Any] = lambda when: None
        self.write: Callable[[str], str] = lambda caption: json.dumps(GOOD)
        self.hang = 1.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: Any):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def wait_until_read(self):
        """After all clients have gone: wait until their requests are handled."""
        while self.connected:
            time.sleep(0.001)

    def handle_error(self, *_: Any):
        """Say nothing of clients that were killed."""

    def answer(self, body: bytes) -> Page | str:
        with self.lock:
            request, number = json.loads(body), len(self.requests)
            self.requests.append(request)
            fault = self.fault(number)
            if isinstance(fault, tuple):
                return fault
            if self.script:
                return self.script.pop(0)
            response = page(200, self.complete(request))
        if fault == "hang":
            time.sleep(self.hang)
        return fault or response

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Write a reply and bill it, whether or not it will arrive."""
        content = self.write(caption_of(request))
        schema = json.dumps(request["response_format"]["json_schema"]["schema"])
        prompt = sum(tokens(m["content"]) + 3 for m in request["messages"]) + 3
        usage = {"prompt_tokens": prompt + tokens(schema)}
        usage["completion_tokens"] = tokens(content)
        self.input_tokens += usage["prompt_tokens"]
        self.output_tokens += usage["completion_tokens"]
        return completion(content, usage)


class _Handler(BaseHTTPRequestHandler):
    server: FakeService
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self):
        with self.server.lock:
            self.server.connected += 1
        try:
            super().handle()
        finally:
            with self.server.lock:
                self.server.connected -= 1

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.watch("before")
        known = self.path == "/v1/chat/completions"
        self.send(self.server.answer(body) if known else failure(404))
        self.server.watch("after")

    def send(self, response: Page | str):
        if response in ("drop", "hang"):
            self.close_connection = True
            return
        status, headers, body = response if response != "cut" else page(200, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        length = len(body) + (99 if response == "cut" else 0)
        self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = self.close_connection or response == "cut"

    def log_message(self, *_: Any):
        """Say nothing."""
