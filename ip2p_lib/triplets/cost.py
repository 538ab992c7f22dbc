"""What a run costs: estimated before, bounded while it runs, added up after (3.1.1).

A service bills the tokens that it reads and the tokens that it writes. How it cuts text
into tokens is known only to itself, so two numbers are computed here:

- ``most_tokens``, an upper bound: a byte-level tokenizer never makes more tokens than
  there are bytes. The ceiling is kept by this one. Before a request is sent, the most
  that it can cost is reserved; if that does not fit, nothing is sent.
- ``likely_tokens``, what it will be about: words, numbers and signs, counted. On
  captions it is within 10 % of OpenAI's ``o200k_base``. Estimates are made of this one.

``tiktoken`` would count exactly, but fetches its tables from the network when first
used, and nobody outside knows the tokenizer of a new model.
Money is whole millionths of a millionth of a dollar, which add up without rounding.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ip2p_lib.config import DATA
from ip2p_lib.triplets.ledger import Totals

PRICES = DATA / "prices.json"
DOLLAR = 10**12  # money is counted in millionths of a millionth
_PIECES = re.compile(r"[A-Za-z]{1,9}|\d{1,3}|[^\x00-\x7f]|[^\sA-Za-z0-9]+")
_NOTHING = Totals()
MARKUP, _MOST_MARKUP = 4, 16  # tokens round each message: usual, and more than ever


class CeilingError(RuntimeError):
    """The next request could cost more than is left; it was not sent."""


@dataclass(frozen=True)
class Price:
    """What a model costs (dollars per million tokens), and what is known of it."""

    model: str
    read: float
    written: float
    batch: float = 0.5  # share of the price that a batch costs
    effort: str | None = None  # the least reasoning effort
    shutdown: date | None = None
    checked: date | None = None

    def batched(self) -> Price:
        """The price in a batch."""
        read, written = self.read * self.batch, self.written * self.batch
        return replace(self, read=read, written=written, batch=1.0)

    def cost(self, read: int, written: int) -> int:
        """The cost of so many tokens, in whole units."""
        return read * _units(self.read) + written * _units(self.written)


def _units(dollars: float) -> int:
    """Units a token, at dollars a million; rounded up, but for the noise of floats."""
    return math.ceil(round(dollars * DOLLAR / 10**6, 3))


def read_prices(path: str | Path = PRICES) -> dict[str, Price]:
    """The price table, by model."""
    table = json.loads(Path(path).read_text(encoding="utf-8"))
    checked = date.fromisoformat(table["checked"])
    return {
        model: _to_price(model, row, checked) for model, row in table["models"].items()
    }


def _to_price(model: str, row: Mapping[str, Any], checked: date) -> Price:
    shutdown = row["shutdown"] and date.fromisoformat(row["shutdown"])
    return Price(model=model, checked=checked, **{**row, "shutdown": shutdown})


def price_of(model: str) -> Price:
    """Look a model up in the price table.

    Raises:
        ValueError: the table does not have it.
    """
    prices = read_prices()
    if model not in prices:
        raise ValueError(
            f"There is no price of {model!r} in data/prices.json, which has "
            f"{', '.join(prices)}. Add it there, or pass price=Price(...)."
        )
    return prices[model]


def find_price(model: str, price: Price | None, ceiling: float | None) -> Price:
    """The price given, or the table's; nothing for a model that nobody bounds.

    Raises:
        ValueError: there is a ceiling but no price.
    """
    if price is not None:
        return price
    if ceiling is not None:
        return price_of(model)
    return read_prices().get(model, Price(model, 0.0, 0.0))


def most_tokens(request: Mapping[str, Any]) -> int:
    """More tokens than any service can read in a request: its bytes, and markup.

    Args:
        request: ``messages`` or a ``prompt``, and whatever else is sent, such as
            ``response_format``.
    """
    size = len(json.dumps(request, ensure_ascii=False).encode("utf-8"))
    return size + _MOST_MARKUP * (len(request.get("messages", ())) + 1)


def likely_tokens(text: str) -> int:
    """About how many tokens a text has: pieces of words, numbers and signs."""
    return len(_PIECES.findall(text))


@dataclass(frozen=True)
class Estimate:
    """What a run will likely cost; ``str`` says it in a sentence."""

    model: str
    captions: int
    read: int  # tokens
    written: int
    dollars: float
    batch_dollars: float
    checked: date | None

    def __str__(self) -> str:
        return (
            f"{self.captions:,} captions with {self.model}: about {self.read:,} tokens "
            f"read and {self.written:,} written, about ${self.dollars:,.4f}, or "
            f"${self.batch_dollars:,.4f} in a batch (prices of {self.checked})."
        )


def estimate(
    questions: Iterable[str], price: Price, beside: int, longer: float
) -> Estimate:
    """Estimate a run before its first request.

    Args:
        questions: what is asked, one text a request; each is read once.
        price: the model's.
        beside: tokens that a request has beside its question.
        longer: tokens by which an answer is longer than its question.
    """
    count = size = 0
    for text in questions:
        count, size = count + 1, size + likely_tokens(text)
    read, written = count * beside + size, round(count * longer) + size
    return Estimate(
        model=price.model,
        captions=count,
        read=read,
        written=written,
        dollars=price.cost(read, written) / DOLLAR,
        batch_dollars=price.batched().cost(read, written) / DOLLAR,
        checked=price.checked,
    )


class Budget:
    """A ceiling that many threads share and that is never exceeded.

    Args:
        price: of what is bought.
        ceiling: dollars; ``None`` is no limit.
        before: of the run so far; what may have been lost counts as spent.
    """

    def __init__(
        self, price: Price, ceiling: float | None, before: Totals = _NOTHING
    ) -> None:
        self.price = price
        self._ceiling = None if ceiling is None else math.floor(ceiling * DOLLAR)
        self._taken = before.spent + before.lost + before.held
        self._lock = threading.Lock()

    def reserve(self, read: int, written: int) -> int:
        """Set aside the most that a request can cost.

        Raises:
            CeilingError: it does not fit under the ceiling; nothing is set aside.
        """
        most = self.price.cost(read, written)
        with self._lock:
            if self._ceiling is not None and self._taken + most > self._ceiling:
                raise CeilingError(
                    f"The ceiling is ${self._ceiling / DOLLAR:,.6f}, of which "
                    f"${self._taken / DOLLAR:,.6f} is spent or reserved; the next "
                    f"request could cost ${most / DOLLAR:,.6f}. It was not sent."
                )
            self._taken += most
        return most

    def release(self, reserved: int, cost: int = 0) -> None:
        """Give back what a request did not cost."""
        with self._lock:
            self._taken += cost - reserved


def receipt(totals: Totals) -> str:
    """What a run cost, in words, from ``Ledger.totals``."""
    lines = (
        f"{totals.answers:,} answers: {totals.read:,} tokens read, "
        f"{totals.written:,} written, ${totals.spent / DOLLAR:,.6f}."
    )
    if totals.lost:
        lines += f" Lost answers may have cost up to ${totals.lost / DOLLAR:,.6f} more."
    return lines
