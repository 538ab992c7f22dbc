"""Triplets from any service that speaks the OpenAI protocol (section 3.1.1).

The authors fine-tuned GPT-3 on their examples and asked it about 454,445 captions. Here
a model of today is shown a few examples, or a fine-tuned one is asked as theirs was
(``asking``), about any number of captions and up to eight at a time. Read
``ask_service``, then ``service_run``: the fate of one caption.

Every caption ends in exactly one state. Faults that pass are waited for, faults of one
caption cost that caption, and a fault that concerns all of them stops the run after one
request. A ledger on disk makes a run resumable, a ceiling keeps it affordable.

The ``openai`` package is imported on first use; its versions 2.54 to 3 behave alike.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ip2p_lib.triplets.cost import (
    Budget,
    Estimate,
    Price,
    estimate,
    find_price,
    price_of,
)
from ip2p_lib.triplets.errors import PATIENCE, Patience, ServiceError
from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.record import Reply, Triplet
from ip2p_lib.triplets.requests import FormName, form_of
from ip2p_lib.triplets.run import ServiceRun

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Patience", "ServiceError", "ask_service", "connect", "estimate_cost"]


def connect(base_url: str | None = None) -> OpenAI:
    """A client for OpenAI, or for a compatible server at ``base_url``.

    The key is read from the environment variable ``OPENAI_API_KEY``; a server of one's
    own usually needs none.

    Raises:
        ServiceError: there is neither a key nor a server of one's own, or the key
            holds what no key does.
    """
    from openai import OpenAI

    own_server = base_url or os.environ.get("OPENAI_BASE_URL")
    api_key = os.environ.get("OPENAI_API_KEY", "").strip()  # a line's end was pasted
    if not (api_key or own_server):
        raise ServiceError(
            "There is no API key. Set the environment variable OPENAI_API_KEY, give "
            "the base_url of a compatible server, or use the miniature language model."
        )
    if not re.fullmatch("[!-~]*", api_key):  # a header could not carry it
        raise ServiceError(
            "OPENAI_API_KEY holds a space or a letter that is in no API key. Copy the "
            "key again, whole and alone."
        )
    return OpenAI(api_key=api_key or "none", base_url=base_url, timeout=60.0)


def estimate_cost(
    captions: Iterable[str],
    *,
    model: str,
    form: FormName = "chat",
    examples: Sequence[Triplet] = (),
    price: Price | None = None,
) -> Estimate:
    """What ``ask_service`` would cost, before its first request.

    Raises:
        ValueError: the price table does not have the model, and no price is given; or
            the form does not take examples.
    """
    way = form_of(form, examples)
    questions = (way.question(caption) for caption in captions)
    return estimate(questions, price or price_of(model), *way.sizes())


def ask_service(
    captions: Iterable[str],
    *,
    model: str,
    client: OpenAI | None = None,
    form: FormName = "chat",
    examples: Sequence[Triplet] = (),
    attempts: int = 2,
    in_flight: int = 8,
    ledger: Ledger | None = None,
    ceiling: float | None = None,
    price: Price | None = None,
    patience: Patience = PATIENCE,
    **options: Any,
) -> Iterator[Reply]:
    """Let a service write one triplet for each caption; replies come in order.

    Args:
        captions: any number, read at most twice ``in_flight`` ahead.
        model, price: the service's name, and the price table's price where ``None``.
        client: from ``connect``; made from the environment when ``None``.
        form: ``"chat"``, or ``"completion"`` for a model fine-tuned on triplets.
        examples: triplets shown before each caption (few-shot), in chats only.
        attempts: how often a caption is asked about while replies lack the form.
        in_flight: requests at once; the first goes alone, to try the key.
        ledger: of this run; what it has answered is not asked again.
        ceiling: dollars that the ledger's run may cost at most.
        options: for the service, such as ``temperature=0.7``; the form adds its own.

    Raises:
        ServiceError, CeilingError, LedgerError: no caption can be answered, affordably,
            or in this ledger. Replies yielded before are good.
    """
    client, price = client or connect(), find_price(model, price, ceiling)
    way = form_of(form, examples)
    options = way.defaults(options, price.effort)
    with nullcontext(ledger) if ledger else Ledger() as book:
        budget = Budget(price, ceiling, book.totals())
        run = ServiceRun(client, model, way, options, attempts, book, budget, patience)
        yield from _in_order(run, captions, in_flight)


def _in_order(
    run: ServiceRun, captions: Iterable[str], in_flight: int
) -> Iterator[Reply]:
    pending: deque[Future[Reply]] = deque()
    pool = ThreadPoolExecutor(in_flight, "ask_service")
    try:
        for place, caption in enumerate(captions):
            pending.append(pool.submit(run.answer, place, caption))
            while pending and (not run.answered or len(pending) >= 2 * in_flight):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # What is under way is paid for: its answers are still written down.
        run.stop.set()
        pool.shutdown(cancel_futures=True)
