"""Estimate what a run with a paid service will cost (section 3.1.1).

Prices are in ``data/prices.json``. Tokens are estimated: a service's tokenizer is not
public or has to be downloaded.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ip2p_lib.checks import check_number, each_text
from ip2p_lib.config import DATA
from ip2p_lib.files import read_json
from ip2p_lib.triplets.chat_format import SCHEMA, caption_message, few_shot_messages
from ip2p_lib.triplets.record import Triplet

_TOKEN = re.compile(r"[A-Za-z]{1,9}|\d{1,3}|[^\x00-\x7f]|[^\sA-Za-z0-9]+")


@dataclass(frozen=True)
class Price:
    """Price of a model, in dollars per million tokens; ValueError if it is none."""

    model: str
    input: float
    output: float
    batch: float = 0.5  # factor on both in the Batch API
    reasoning_effort: str | None = None  # the lowest, of models that reason
    shutdown: str | None = None  # date, if one is announced
    checked: str | None = None  # date on which the price was read

    def __post_init__(self) -> None:
        """Refuse what is no number of dollars."""
        for name in ("input", "output", "batch"):
            check_number(name, getattr(self, name), high=1e6)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


def read_prices() -> dict[str, Price]:
    """Read the price table, by model; ValueError if it is damaged."""
    path = DATA / "prices.json"
    try:
        table = read_json(path)
        checked, rows = table["checked"], table["models"].items()
        return {model: Price(model, checked=checked, **row) for model, row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        advice = "git checkout data/prices.json brings it back"
        raise ValueError(f"{path} is no price table ({error}); {advice}.") from error


def price_of(model: str) -> Price:
    """The price of a model in the table; ValueError if it has none."""
    prices = read_prices()
    if model not in prices:
        raise ValueError(
            f"data/prices.json has no price of {model!r}, but of {', '.join(prices)}. "
            "Add it there, or pass price=Price(...)."
        )
    return prices[model]


@dataclass(frozen=True)
class Estimate:
    """Expected tokens and cost of a run; ``str`` gives a sentence."""

    captions: int
    input_tokens: int
    output_tokens: int
    price: Price

    @property
    def cost(self) -> float:
        """Dollars; times ``price.batch`` through the Batch API."""
        return self.price.cost(self.input_tokens, self.output_tokens)

    def __str__(self) -> str:
        end = self.price.shutdown
        return (
            f"{self.captions:,} captions with {self.price.model}: about "
            f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens, "
            f"${self.cost:,.4f} (price of {self.price.checked})."
        ) + (f" The model shuts down on {end}." if end else "")


def estimate_cost(
    captions: Iterable[str],
    *,
    model: str,
    examples: Sequence[Triplet] = (),
    price: Price | None = None,
) -> Estimate:
    """Estimate the cost of ``ask_service`` with the same arguments; sends nothing.

    Raises ValueError without a price, given or in the table, or for one lone text.
    """
    price = price or price_of(model)
    sizes = [
        count_tokens(caption_message(caption)["content"])
        for caption in each_text("captions", captions)
    ]
    prompt = [count_tokens(m["content"]) for m in few_shot_messages(examples)]
    overhead = sum(prompt) + 4 * (len(prompt) + 1) + count_tokens(SCHEMA)
    # By how much a reply is longer than its caption: as in the examples, or in our set.
    longer = (sum(prompt[2::2]) - sum(prompt[1::2])) / max(len(examples), 1)
    output = sum(sizes) + round(len(sizes) * (longer if examples else 11.0))
    return Estimate(len(sizes), sum(sizes) + len(sizes) * overhead, output, price)


def count_tokens(text: str) -> int:
    """About how many tokens a text has; within 10 % of ``o200k_base`` on captions."""
    return len(_TOKEN.findall(text))
