"""The files that a batch is made of: requests out, results in (section 3.1.1).

A batch is a file of up to 50,000 requests, one JSON object a line, and comes back as
files of results in any order. ``custom_id`` says which caption a line is about: it is
the caption's place. A file of requests is complete before anybody hears of it, and its
hash names the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ip2p_lib.files import atomic_write
from ip2p_lib.triplets.chat_format import (
    longest_reply,
    question,
    read_answer,
    read_usage,
)
from ip2p_lib.triplets.cost import Price, most_tokens
from ip2p_lib.triplets.ledger import Answer, Ledger, LedgerError, digest

MOST_BYTES = 190 * 10**6  # the service takes 200 MB a file
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_REJECTED = (400, 413, 422)

Result = tuple[int, Answer, int]  # place, answer, cost


@dataclass(frozen=True)
class BatchFiles:
    """Writes and reads the files of one run.

    ``request`` is what all captions share but for the messages, and ``lead`` the
    messages before each caption; ``price`` is the one in batches.
    """

    ledger: Ledger
    captions: Sequence[str]
    request: dict[str, Any]
    lead: list[dict[str, str]]
    price: Price

    def path(self, part: int) -> Path:
        """Where a part's requests are, beside the ledger.

        Raises:
            LedgerError: the ledger is not on disk.
        """
        if self.ledger.path is None:
            raise LedgerError("Batches need a ledger on disk: give it a path.")
        folder = self.ledger.path.with_name(self.ledger.path.name + ".batches")
        return folder / f"{digest(self.ledger.run)[:12]}-{part}.jsonl"

    def tags(self, part: int) -> dict[str, str]:
        """What the service keeps with a batch, to find it by."""
        with self.path(part).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        return {"run": self.ledger.run, "part": str(part), "file": content}

    def most_read(self, place: int) -> int:
        """The most tokens that the request about a caption can have."""
        form = self.request["response_format"]
        return most_tokens({"messages": self._messages(place), "form": form})

    def most_cost(self, place: int) -> int:
        """The most that a caption can cost."""
        return self.price.cost(self.most_read(place), longest_reply(self.request))

    def write(self, part: int, places: Sequence[int]) -> int:
        """Write the requests of a part, as many as a file may hold; how many."""
        taken = size = 0
        with atomic_write(self.path(part)) as file:
            for place in places:
                line = json.dumps(self._line(place), ensure_ascii=False).encode()
                size += len(line) + 1
                if taken and size > MOST_BYTES:
                    break
                file.write(line + b"\n")
                taken += 1
        return taken

    def read(self, content: bytes, waiting: Collection[int]) -> Iterator[Result]:
        """Read a file of results.

        Args:
            content: lines in any order; what is no result is passed over, and so is a
                request that failed in a way that may pass.
            waiting: the places that have no answer yet.
        """
        # Not splitlines: JSON may hold the other characters that end a line.
        for line in content.split(b"\n"):
            place, response = _outcome(line)
            if place in waiting:
                yield from self._read_response(place, response)

    def _read_response(self, place: int, response: Any) -> Iterable[Result]:
        match response:
            case {"status_code": 200, "body": body}:
                reply, usage = read_answer(self.captions[place], body), read_usage(body)
                cost = self.price.cost(*usage) if usage else self.most_cost(place)
                answer = Answer(reply.text, reply.reason, *(usage or (0, 0)))
                return [(place, answer, cost)]
            case {"status_code": int(status)} if status in _REJECTED:
                return [(place, Answer("", "rejected"), 0)]
        return []

    def _messages(self, place: int) -> list[dict[str, str]]:
        return [*self.lead, question(self.captions[place])]

    def _line(self, place: int) -> dict[str, Any]:
        body = self.request | {"messages": self._messages(place)}
        return {"custom_id": str(place), "method": "POST", "url": URL, "body": body}


def _outcome(line: bytes) -> tuple[int, Any]:
    """Which caption a result is about, -1 for none, and what the service answered."""
    try:
        match json.loads(line):
            case {"custom_id": str(name), "response": response} if name.isdecimal():
                return int(name), response
    except (ValueError, RecursionError):
        pass
    return -1, None
