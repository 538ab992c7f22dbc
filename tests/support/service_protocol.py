"""How the stand-in service is spoken to: forms of asking, pages sent, paths called."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

if TYPE_CHECKING:
    from stand_in_server import StandInServer

KEY = "sk-canary-0123456789abcdef"
GOOD = {"instruction": "make it night", "edited_caption": "a castle at night"}
# What a good answer says, in each form of asking.
RIGHT = {"chat": json.dumps(GOOD), "completion": "\n%%\n".join(GOOD.values())}
FORMS = tuple(RIGHT)

Page = tuple[int, dict[str, str], bytes]


def page(status: int, content: Any, **headers: str) -> Page:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json"} | names, body


def completion(content: Any, usage: Any = None, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | more.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | more
    facts = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return {**facts, "choices": [choice]} | ({"usage": usage} if usage else {})


def continuation(text: Any, usage: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
    facts = {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
    return {**facts, "choices": [choice | more]} | ({"usage": usage} if usage else {})


BODIES = {"chat": completion, "completion": continuation}


def answer(content: Any, form: str = "chat", **more: Any) -> Page:
    return page(200, BODIES[form](content, **more))


def failure(status: int, code: str | None = None, message: str = "", **headers) -> Page:
    error = {"message": message, "type": "error", "code": code}
    return page(status, {"error": error}, **{"retry_after_ms": "1"} | headers)


def form_of(request: dict[str, Any]) -> str:
    return "chat" if "messages" in request else "completion"


def caption_of(request: dict[str, Any]) -> str:
    if form_of(request) == "completion":
        return request["prompt"].removesuffix("\n##\n")
    return json.loads(request["messages"][-1]["content"])["caption"]


class Handler(BaseHTTPRequestHandler):
    """Names each call, and sends what the server says to it."""

    server: StandInServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self) -> None:
        with self.server.lock:
            self.server.connected += 1
        try:
            super().handle()
        finally:
            with self.server.lock:
                self.server.connected -= 1

    def handle_call(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body, path = self.rfile.read(size), urlparse(self.path).path
        call = self.name_call(path)
        self.server.calls.append(call)
        if self.server.watch("before", call) == "unheard":
            self.close_connection = True
            return
        sent = self.respond(call, path, body)
        self.send(sent)
        if call in FORMS and isinstance(sent, tuple) and sent[0] == 200:
            self.server.answered.append(caption_of(json.loads(body)))
        if self.server.watch("after", call) == "unheard":
            self.close_connection = True

    do_POST = do_GET = handle_call  # noqa: N815 (the base class's names)

    def name_call(self, path: str) -> str:
        parts = path.removeprefix("/v1/").split("/")
        match self.command, parts:
            case "POST", ["chat", "completions"]:
                return "chat"
            case "POST", ["completions"]:
                return "completion"
            case "POST", ["moderations"]:
                return "moderate"
            case "POST", ["files"]:
                return "upload"
            case "POST", ["batches"]:
                return "create"
            case "GET", ["batches", _]:
                return "poll"
            case "GET", ["files", _, "content"]:
                return "download"
            case "GET", [("batches" | "files" | "models") as things]:
                return f"list {things}"
        return "unknown"

    def respond(self, call: str, path: str, body: bytes) -> Page | str:
        server, last = self.server, path.split("/")[-1]
        if call in FORMS:
            return server.ask(body)
        with server.lock:
            match call:
                case "upload":
                    return server.upload(self.headers["content-type"], body)
                case "moderate":
                    return server.moderate(body)
                case "list models" if server.models is None:
                    return server.listing_fault
                case "list models":
                    return page(200, {"object": "list", "data": server.models})
                case "create":
                    return server.create(body)
                case "poll":
                    return server.poll(last)
                case "download":
                    return page(200, server.files[path.split("/")[-2]]["content"])
                case "list batches":
                    return server.listing(server.batches)
                case "list files":
                    return server.listing(server.files)
        return failure(404)

    def send(self, sent: Page | str) -> None:
        status, headers, body = sent if isinstance(sent, tuple) else page(200, {})
        if sent in ("drop", "hang"):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(
            "content-length", str(len(body) + (99 if sent == "cut" else 0))
        )
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = self.close_connection or sent == "cut"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
