"""Triplets at half the price, for those who can wait a day (section 3.1.1).

The authors' 454,445 captions are no hurry. A service takes them as files of requests,
works through them within a day and charges half. Read ``ask_in_batches``: it *plans*
the captions that have no answer into numbered parts, *submits* each part (upload, then
create), and *collects* it (poll, then download), until all are answered.

It may be killed anywhere and called again. The plan is in the ledger and its files are
on disk before anything is sent; and a batch carries the run's name, its part and its
file's hash, by which the service is asked for it before another one is made. What an
expired batch finished is paid for and used; only the rest is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from ip2p_lib.triplets.batch_files import URL, BatchFiles
from ip2p_lib.triplets.chat_format import (
    lead,
    longest_reply,
    response_format,
    with_defaults,
)
from ip2p_lib.triplets.cost import Budget, Price, find_price
from ip2p_lib.triplets.errors import ServiceError, explain
from ip2p_lib.triplets.ledger import Ledger, LedgerError
from ip2p_lib.triplets.record import Reply, Triplet
from ip2p_lib.triplets.run import recall
from ip2p_lib.triplets.service import connect

if TYPE_CHECKING:
    from openai import OpenAI

MOST_REQUESTS = 50_000  # that the service takes in one batch
_ROUNDS = 3  # batches that a caption is in before it is left unanswered
_DONE = ("completed", "expired", "cancelled", "failed")


def ask_in_batches(
    captions: Sequence[str],
    *,
    model: str,
    ledger: Ledger,
    client: OpenAI | None = None,
    examples: Sequence[Triplet] = (),
    ceiling: float | None = None,
    price: Price | None = None,
    poll_seconds: float = 60.0,
    most_requests: int = MOST_REQUESTS,
    **options: Any,
) -> Iterator[Reply]:
    """Like ``ask_service``, at half the price; after a kill, call it again.

    Args:
        captions, model, client, examples, options: see ``ask_service``.
        ledger: on disk; its run names the batches, its folder holds their files.
        ceiling: dollars that the ledger's run may cost at most.
        price: outside batches; what the price table takes off is taken off.
        poll_seconds: between two looks at a batch.
        most_requests: in one batch.

    Raises:
        ServiceError: the service refuses; nothing is lost, call it again.
        CeilingError: all captions together might exceed it; no more was sent.
        LedgerError: the ledger is not on disk, or its run had other captions.
    """
    price = find_price(model, price, ceiling).batched()
    request = {"model": model, "response_format": response_format()}
    request |= with_defaults(options, price.effort)
    files = BatchFiles(ledger, captions, request, lead(examples), price)
    job = _Job(client or connect(), ledger, files)
    for left in reversed(range(_ROUNDS)):
        job.work(ceiling, most_requests, poll_seconds, final=not left)
    yield from _replies(captions, ledger)


def _replies(captions: Sequence[str], ledger: Ledger) -> Iterator[Reply]:
    for place, caption in enumerate(captions):
        known = ledger.find(place, caption)
        missing = Reply(caption, "", reason="unanswered")
        yield recall(caption, known) if known else missing


@dataclass(frozen=True)
class _Job:
    """One run at the service."""

    client: OpenAI
    ledger: Ledger
    files: BatchFiles

    def work(
        self, ceiling: float | None, most: int, poll_seconds: float, *, final: bool
    ) -> None:
        """One round: plan what is left, then submit and collect all parts."""
        self.plan(ceiling, most)
        fault = _fault_of(lambda: self._send_and_wait(poll_seconds, final))
        if fault is not None:
            words = explain(fault, self.files.request["model"])
            raise ServiceError(words + " Nothing is lost: run it again.")

    def _send_and_wait(self, poll_seconds: float, final: bool) -> None:
        batches = {part: self.submit(part) for part in self.ledger.parts()}
        for part, batch in batches.items():
            self.collect(part, batch, poll_seconds, final)

    def plan(self, ceiling: float | None, most_requests: int) -> None:
        """Put every caption without an answer into a part, if all can be paid."""
        rest = self._unplanned()
        read = sum(self.files.most_read(place) for place in rest)
        budget = Budget(self.files.price, ceiling, self.ledger.totals())
        budget.reserve(read, len(rest) * longest_reply(self.files.request))
        while rest:
            # A file's number is never used again, even if its part came to nothing.
            part = next(n for n in count() if not self.files.path(n).exists())
            taken = self.files.write(part, rest[:most_requests])
            costs = ((p, self.files.most_cost(p)) for p in rest[:taken])
            captions = self.files.captions
            self.ledger.intend((p, captions[p], cost, part) for p, cost in costs)
            rest = rest[taken:]

    def _unplanned(self) -> list[int]:
        for part in self.ledger.parts():
            if not self.files.path(part).exists():  # deleted: planned again
                self.ledger.withdraw(self.ledger.waiting(part))
        waiting = {p for part in self.ledger.parts() for p in self.ledger.waiting(part)}
        if max(waiting, default=-1) >= len(self.files.captions):
            raise LedgerError("Batches of this run are about more captions than these.")
        return [
            place
            for place, caption in enumerate(self.files.captions)
            if self.ledger.find(place, caption) is None and place not in waiting
        ]

    def submit(self, part: int) -> Any:
        """The batch of this part: the service's, or made now."""
        return self._find(part) or self._create(part, self._upload(part))

    def _find(self, part: int) -> Any:
        tags = self.files.tags(part)
        batches = self.client.batches.list(limit=100)  # and further pages
        return next((batch for batch in batches if batch.metadata == tags), None)

    def _upload(self, part: int) -> str:
        """The service's name of the file, which may be there from an earlier start."""
        name = f"{self.files.tags(part)['file']}.jsonl"
        for file in self.client.files.list(purpose="batch"):
            if file.filename == name:
                return file.id
        with self.files.path(part).open("rb") as content:
            file = self.client.files.create(file=(name, content), purpose="batch")
        return file.id

    def _create(self, part: int, file: str) -> Any:
        # Sent once only: if its answer got lost, a repetition would be a second batch.
        return self.client.with_options(max_retries=0).batches.create(
            input_file_id=file,
            endpoint=URL,
            completion_window="24h",
            metadata=self.files.tags(part),
        )

    def collect(self, part: int, batch: Any, poll_seconds: float, final: bool) -> None:
        """Wait for a part and write down its answers; what has none is free again."""
        while batch.status not in _DONE:
            time.sleep(poll_seconds)
            batch = self.client.batches.retrieve(batch.id)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            self._settle(part, self.client.files.content(file).content, final)
        self.ledger.withdraw(self.ledger.waiting(part))
        if batch.status == "failed":
            raise ServiceError(
                f"The service did not accept the batch {batch.id!r}. Its page there "
                "says why; for a limit on queued tokens, lower most_requests."
            )

    def _settle(self, part: int, content: bytes, final: bool) -> None:
        """Write down answers; those that lack the form only in the last round."""
        waiting = set(self.ledger.waiting(part))
        results = {result[0]: result for result in self.files.read(content, waiting)}
        again = {p for p, (_, a, _) in results.items() if a.reason == "schema"}
        again = set() if final else again
        self.ledger.settle(r for p, r in results.items() if p not in again)
        self.ledger.settle((results[p] for p in again), final=False)


def _fault_of(step: Callable[[], None]) -> Exception | None:
    """What the service's client raises, if it does; in it may be part of the key."""
    import openai

    try:
        step()
    except openai.APIError as error:
        return error
    return None
