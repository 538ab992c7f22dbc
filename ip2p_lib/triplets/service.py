"""Generate triplets with any service that speaks the OpenAI protocol (section 3.1.1).

The authors fine-tuned GPT-3; here a chat model sees a few examples before each caption
and replies in JSON. Read ``ask_service``, then ``_Run.answer``, which takes one caption
to a triplet or to a reason for none.
Retries, exponential back-off and ``Retry-After`` are the ``openai`` package's own. A
failure that concerns all captions (wrong key, no credit) stops the run in a sentence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ip2p_lib.checks import check_number, check_whole, each_text
from ip2p_lib.triplets.chat_format import (
    MAX_TOKENS,
    SCHEMA,
    EditReply,
    caption_message,
    few_shot_messages,
    parse_reply,
    read_response,
)
from ip2p_lib.triplets.pricing import Price, price_of, read_prices
from ip2p_lib.triplets.record import Reply, Triplet
from ip2p_lib.triplets.reply_file import ReplyFile, ServiceError

if TYPE_CHECKING:
    from openai import OpenAI

MAX_REPLY_TOKENS = 256  # as in the released ``generate_txt_dataset.py``
_REJECTED = (400, 413, 422)  # the request is at fault
_CONCERNS_ALL = (401, 403, 404, "insufficient_quota")
_MAX_FAILURES = 3  # captions in a row
MAX_ATTEMPTS = 2  # requests for a caption, if a reply is not the JSON requested
MAX_BYTES = 2**20  # of one answer; longer ones have no end
_OVERSIZED = "oversized"
_TOKEN_LIMITS = {"max_tokens", "max_completion_tokens"}
SILENCE = 60.0  # seconds for which a service may send nothing during a request


class CostLimitError(RuntimeError):
    """The next request could exceed ``max_cost``; it was not sent."""


def connect(base_url: str | None = None, *, max_retries: int = 6) -> OpenAI:
    """Create a client for OpenAI, or for a compatible server at ``base_url``.

    The address usually ends in ``/v1``; ``None`` reads ``OPENAI_BASE_URL``. The key is
    read from ``OPENAI_API_KEY``; a local server usually needs none. Raises ServiceError
    without a key and an address, or for a malformed key.
    """
    from openai import DefaultHttpxClient, OpenAI

    api_key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (api_key or base_url or os.environ.get("OPENAI_BASE_URL")):
        raise ServiceError(
            "There is no API key. Set the environment variable OPENAI_API_KEY, give "
            "the base_url of a compatible server, or use the miniature language model."
        )
    if not re.fullmatch("[!-~]*", api_key):  # no HTTP header can carry it
        raise ServiceError("OPENAI_API_KEY holds a space or a letter of no API key.")
    http = DefaultHttpxClient(event_hooks={"response": [_limit_size]})
    options: Any = {"max_retries": max_retries, "timeout": SILENCE, "http_client": http}
    return OpenAI(api_key=api_key or "none", base_url=base_url, **options)


def _limit_size(response: Any) -> None:
    """Let an answer of more than ``MAX_BYTES`` fail as a broken connection does."""
    stream = response.stream
    package = type(response).__module__.partition(".")[0]
    http: Any = import_module(package)  # httpx, or since openai 3 httpx2

    class Limited(http.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in stream:
                if (size := size + len(part)) > MAX_BYTES:
                    raise http.ReadError(_OVERSIZED)
                yield part

        def close(self) -> None:
            stream.close()

    response.stream = Limited()


def ask_service(
    captions: Iterable[str],
    *,
    model: str,
    client: OpenAI | None = None,
    examples: Sequence[Triplet] = (),
    replies_path: str | Path | None = None,
    max_cost: float | None = None,
    price: Price | None = None,
    max_workers: int = 8,
    deadline: float = 600.0,
    **options: Any,
) -> Iterator[Reply]:
    """Generate one triplet for each caption; replies come in order.

    Args:
        captions: any number, read at most ``2 * max_workers`` ahead.
        model, client, examples: its name; from ``connect``; of the few-shot prompt.
        replies_path: JSON-lines file of replies, which answers the same requests.
        max_cost: dollars for all replies in that file (without those in flight, up to
            ``max_workers``, when a run is killed).
        price: of the model; ``None`` is the table's, which a limit needs.
        max_workers: requests at once; the first goes alone, to test key and address.
        deadline: seconds to wait for a caption, retries included.
        options: of the request, such as ``temperature=0.7``.

    Raises:
        ServiceError: the service cannot answer any caption.
        CostLimitError: the next request could exceed ``max_cost``.
        ValueError: a number is out of range or missing, or a caption is no text.
    """
    check_number("max_cost", 0 if max_cost is None else max_cost)
    check_number("deadline", deadline, high=threading.TIMEOUT_MAX)
    price = price or (read_prices().get(model) if max_cost is None else price_of(model))
    price = price or Price(model, 0.0, 0.0)
    options = _complete(options, price)
    prompt, client = few_shot_messages(examples), client or connect()
    with closing(ReplyFile(replies_path)) as file:
        run = _Run(client, model, prompt, options, file, price, max_cost)
        yield from _in_order(run, captions, max_workers, deadline)


def _complete(options: dict[str, Any], price: Price) -> dict[str, Any]:
    """Options of the request, with our defaults; their sizes bound what it costs."""
    if not options.keys() & _TOKEN_LIMITS:
        options["max_completion_tokens"] = MAX_REPLY_TOKENS
    for name in options.keys() & {*_TOKEN_LIMITS, "n"}:
        check_whole(name, options[name], high=MAX_TOKENS)
    if price.reasoning_effort:
        options.setdefault("reasoning_effort", price.reasoning_effort)
    return options


def _in_order(
    run: _Run, captions: Iterable[str], max_workers: int, deadline: float
) -> Iterator[Reply]:
    """Answer captions in a thread pool, in order."""
    pending: deque[tuple[str, Future[Reply]]] = deque()
    pool, wait = ThreadPoolExecutor(max_workers, "ask_service"), True
    try:
        for caption in each_text("captions", captions):
            same = (future for text, future in pending if text == caption)
            future = next(same, None) or pool.submit(run.answer, caption)
            pending.append((caption, future))
            while pending and (not run.answered or len(pending) >= 2 * max_workers):
                yield pending.popleft()[1].result(deadline)
        while pending:
            yield pending.popleft()[1].result(deadline)
    except TimeoutError:
        wait = False  # for a request that never ends
        raise ServiceError(
            f"The service did not complete a reply in {deadline:.0f} s. Check that it "
            "is up, choose a faster model, or raise the deadline."
        ) from None
    finally:
        run.stop.set()
        # Requests in flight are paid for: their replies still go into the file.
        pool.shutdown(wait=wait, cancel_futures=True)


@dataclass
class _Run:
    """One run over many captions; any number of threads call ``answer``."""

    client: OpenAI
    model: str
    prompt: list[dict[str, str]]
    options: dict[str, Any]
    file: ReplyFile
    price: Price
    max_cost: float | None
    answered: bool = False  # whether any request has succeeded
    failures: int = 0  # captions in a row
    in_flight: int = 0  # requests
    reserved: float = 0.0  # dollars, by these
    error: Exception | None = None  # that ended the run
    stop: threading.Event = field(default_factory=threading.Event)
    settled: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, caption: str) -> Reply:
        """Answer one caption; an error ends the run, for all captions."""
        try:
            return self._answer(caption)
        except Exception as error:
            self.error = self.error or error
        self.stop.set()
        raise self.error from None

    def _answer(self, caption: str) -> Reply:
        messages = [*self.prompt, caption_message(caption)]
        request = {"model": self.model, "messages": messages, **self.options}
        text = json.dumps(request, ensure_ascii=False, default=str) + SCHEMA
        key = hashlib.sha256(text.encode()).hexdigest()
        if row := self.file.rows.get(key):
            return _to_reply(caption, row["text"], row["reason"])
        for _ in range(MAX_ATTEMPTS):
            # A token has at least one byte; markup takes less than 16 a message.
            max_input = len(text.encode()) + 16 * (len(messages) + 1)
            reply = self._ask(caption, request, key, max_input)
            if reply.reason != "schema":
                break
        return reply

    def _ask(
        self, caption: str, request: dict[str, Any], key: str, max_input: int
    ) -> Reply:
        """Send one request, retries included, and store what came back."""
        limits = [request[name] for name in request.keys() & _TOKEN_LIMITS]
        max_output = max(limits) * request.get("n", 1)
        most = self.price.cost(max_input, max_output)
        reserved = most * (self.client.max_retries + 1)
        self._reserve(reserved)
        try:
            response, error = self._send(request)
            if response is None:
                return self._fail(caption, key, error, reserved)
            tokens, choice = read_response(response.text)
            cost = self.price.cost(*tokens) if tokens else most
            cost += most * response.retries_taken  # these may have been billed too
            row = {"key": key, "cost": cost, "tokens": tokens, "caption": caption}
            if choice is None:
                self.file.append(row)
                raise ServiceError(explain("no choices", self.model))
            text, reason = choice
            self.file.append({**row, "text": text, "reason": reason})
            self.answered, self.failures = True, 0
            return _to_reply(caption, text, reason)
        finally:
            with self.settled:
                self.in_flight -= 1
                self.reserved = self.reserved - reserved if self.in_flight else 0.0
                self.settled.notify_all()

    def _reserve(self, dollars: float) -> None:
        """Reserve the cost of a request; near the limit, wait for those in flight."""
        with self.settled:
            limit = float("inf") if self.max_cost is None else self.max_cost
            while self.file.cost + self.reserved + dollars > limit:
                if not self.in_flight:
                    raise CostLimitError(
                        f"max_cost is ${limit:,.6f}, ${self.file.cost:,.6f} is spent, "
                        f"and the next request could cost ${dollars:,.6f} with its "
                        "retries. It was not sent."
                    )
                self.settled.wait()
            self.in_flight += 1
            self.reserved += dollars

    def _send(self, request: dict[str, Any]) -> tuple[Any, Any]:
        """The response or the error, which quotes the key and must not be chained."""
        import openai

        if self.stop.is_set():
            raise self.error or ServiceError("The run was stopped.")
        chat = self.client.chat.completions.with_raw_response
        try:
            return chat.parse(response_format=EditReply, **request), None
        except openai.APIError as error:
            return None, error

    def _fail(self, caption: str, key: str, error: Any, reserved: float) -> Reply:
        """End this caption, or the run if other captions would fail too."""
        status = getattr(error, "status_code", None)
        if status not in (*_REJECTED, *_CONCERNS_ALL):  # it may have been billed
            self.file.append({"key": key, "cost": reserved})
        self.failures += 1
        cause = error.code if error.code in _CONCERNS_ALL else status
        if str(error.__cause__) == _OVERSIZED:
            cause = _OVERSIZED
        hopeless = not self.answered or self.failures >= _MAX_FAILURES
        if hopeless or cause in _CONCERNS_ALL:
            raise ServiceError(explain(cause, self.model))
        reason = "rejected" if status in _REJECTED else "unanswered"
        return Reply(caption, "", reason=reason)


def _to_reply(caption: str, text: str, reason: str | None) -> Reply:
    return Reply(caption, text, None, reason) if reason else parse_reply(caption, text)


_ADVICE: dict[int | str | None, str] = {
    None: "The service does not answer. Check the network and the base_url.",
    401: "The service refuses the API key. Check OPENAI_API_KEY.",
    403: "The API key may not use the model {model!r}. Check OPENAI_API_KEY.",
    404: "The service has no model {model!r} at this address. Check the name, and "
    "whether base_url must end in /v1.",
    429: "The service limits the rate. Run again later, with fewer workers.",
    "insufficient_quota": "The account has no credit left. Add some, then run again.",
    _OVERSIZED: "An answer of the service is longer than {limit:,} bytes. Check the "
    "base_url.",
    "no choices": "The service answered without 'choices'. Check that base_url is the "
    "address of its API, which usually ends in /v1, and serves the model {model!r}.",
}


def explain(cause: int | str | None, model: str) -> str:
    """Say what a failure means, by HTTP status, OpenAI's error code or None.

    The service's own message is not used: it quotes the request and part of the key.
    """
    advice = _ADVICE.get(cause) or (
        "The service failed with status {cause}. If it is 400, the model {model!r} or "
        "one of the options does not suit it; otherwise run again later."
    )
    return advice.format(cause=cause, model=model, limit=MAX_BYTES)
