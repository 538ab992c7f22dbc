"""The estimate is near, the ceiling holds, and the receipt is the bill."""

from __future__ import annotations

import json
import random
from datetime import date

import pytest

from ip2p_lib.triplets.chat_format import longest_reply, with_defaults
from ip2p_lib.triplets.cost import (
    DOLLAR,
    PRICES,
    Budget,
    CeilingError,
    Price,
    likely_tokens,
    most_tokens,
    price_of,
    read_prices,
    receipt,
)
from ip2p_lib.triplets.ledger import Ledger, Totals
from ip2p_lib.triplets.record import Triplet
from ip2p_lib.triplets.service import (
    Patience,
    ask_service,
    connect,
    estimate_cost,
)
from tests.support.service import COUNTS, StandInServer
from tests.support.service_protocol import FORMS, failure

PRICE = Price("m", read=0.10, written=0.50, checked=date(2026, 11, 22))
HASTE = Patience(tries=6, first=0.001, longest=0.01)

# Sixty of our captions and answers, with the tokens that o200k_base makes of them.
QUESTIONS = [text for text in COUNTS if text.startswith('{"caption"')]
ANSWERS = [text for text in COUNTS if text.startswith('{"instruction"')]
CAPTIONS = [json.loads(text)["caption"] for text in QUESTIONS]


def examples(n: int) -> list[Triplet]:
    rows = [json.loads(text) for text in ANSWERS[:n]]
    pairs = zip(CAPTIONS, rows, strict=False)
    return [Triplet(c, r["instruction"], r["edited_caption"]) for c, r in pairs]


def test_the_price_table_says_where_it_is_from_and_when() -> None:
    price = price_of("gpt-6-luna")
    assert (price.read, price.written, price.effort) == (0.10, 0.50, "none")
    assert price.checked == date(2026, 11, 22)
    assert price.batched().cost(10**6, 10**6) == 0.3 * DOLLAR
    with pytest.raises(ValueError, match=r"no price of 'gpt-7'.*gpt-6-luna"):
        price_of("gpt-7")


@pytest.mark.parametrize("model", sorted(read_prices()))
def test_each_row_of_the_price_table_is_well_formed(model) -> None:
    row = json.loads(PRICES.read_text())["models"][model]
    assert list(row) == ["read", "written", "batch", "effort", "shutdown"]
    price = price_of(model)
    assert 0 < price.read <= price.written <= 100  # dollars per million tokens
    assert price.batch == 0.5 and price.effort in (None, "none", "minimal", "low")
    assert price.shutdown is None or price.shutdown > price.checked
    assert price.batched().cost(10**6, 10**6) * 2 == price.cost(10**6, 10**6)


@pytest.mark.parametrize(
    ("model", "read", "written"),
    [
        ("gpt-4o-mini", 0.15, 0.60),
        ("gpt-4.1-mini", 0.40, 1.60),
        ("gpt-4.1", 2.00, 8.00),
        ("gpt-4o", 2.50, 10.00),
    ],
)
def test_older_models_are_in_the_table_for_as_long_as_they_last(
    model, read, written
) -> None:
    price = price_of(model)
    assert (price.read, price.written, price.effort) == (read, written, None)
    assert price.shutdown == date(2027, 1, 14)


@pytest.mark.parametrize("dollars", [0.0, 0.05, 0.1, 0.3, 1.1, 2.5, 0.000123])
def test_money_adds_up_without_rounding(dollars) -> None:
    price = Price("m", read=dollars, written=0.0)
    assert price.cost(10**6, 0) == round(dollars * DOLLAR)
    assert price.cost(7, 0) * 1000 == price.cost(7000, 0)


@pytest.mark.parametrize("kind", [QUESTIONS, ANSWERS])
def test_likely_tokens_are_near_those_of_openai(kind) -> None:
    counted = sum(map(likely_tokens, kind))
    assert counted == pytest.approx(sum(COUNTS[text] for text in kind), rel=0.10)


def test_no_text_has_more_tokens_than_the_bound() -> None:
    for text, count in COUNTS.items():
        messages = [{"role": "user", "content": text}]
        assert count + 16 < most_tokens({"messages": messages})
    chinese = {"messages": [{"role": "user", "content": "一只猫" * 100}]}
    assert most_tokens(chinese) > 900


def test_a_ceiling_is_reserved_before_and_settled_after() -> None:
    budget = Budget(PRICE, ceiling=0.001)  # a thousandth: 10,000 tokens read
    first = budget.reserve(6000, 0)
    with pytest.raises(CeilingError, match=r"0\.001000.*0\.000600.*0\.000500"):
        budget.reserve(5000, 0)
    budget.release(first, PRICE.cost(2000, 0))
    budget.release(budget.reserve(8000, 0))
    budget.reserve(8000, 0)
    with pytest.raises(CeilingError):
        budget.reserve(1, 0)
    Budget(PRICE, ceiling=None).reserve(10**12, 10**12)


def test_what_was_spent_before_counts() -> None:
    half = DOLLAR // 2000
    for before in (Totals(spent=2 * half), Totals(lost=half, held=half)):
        with pytest.raises(CeilingError):
            Budget(PRICE, 0.001, before).reserve(1, 0)


@pytest.mark.parametrize("shown", [0, 3, 8])
def test_the_estimate_is_near_the_bill(monkeypatch, shown) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    of = dict(zip(CAPTIONS, ANSWERS, strict=True))
    captions = CAPTIONS[shown:]
    more = {"model": "m", "price": PRICE, "examples": examples(shown)}
    said = estimate_cost(captions, **more)
    with StandInServer() as server, connect(server.url) as client, Ledger() as ledger:
        server.write = of.__getitem__
        list(ask_service(captions, client=client, ledger=ledger, **more))
        totals = ledger.totals()
    bill = PRICE.cost(server.read, server.written)
    assert totals.spent == bill
    assert said.dollars == pytest.approx(bill / DOLLAR, rel=0.15)
    assert said.batch_dollars == pytest.approx(said.dollars / 2, abs=1e-6)
    assert str(said).startswith(f"{len(captions)} captions with m: about ")
    assert receipt(totals) == (
        f"{len(captions)} answers: {server.read:,} tokens read, {server.written:,} "
        f"written, ${bill / DOLLAR:,.6f}."
    )


def test_100_random_runs_never_exceed_their_ceiling(monkeypatch) -> None:
    """Faults come after the service has written, and billed, its answer."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chance, stopped, bills, tight = random.Random(0), 0, [], 0
    for _ in range(100):
        with StandInServer() as server, connect(server.url) as client:
            bill, ceiling, ended = one_random_run(server, client, chance)
        assert bill <= ceiling
        stopped += ended
        bills.append(bill / ceiling)
        tight += bill > 0.5 * ceiling
    assert 20 <= stopped <= 95  # the ceiling was in the way, and not always
    assert tight >= 10


def one_random_run(server, client, chance) -> tuple[float, float, bool]:
    """The bill and the ceiling in dollars, and whether the ceiling ended the run."""
    price = Price("m", chance.choice([0.1, 0.37]), chance.choice([0.5, 4.2]))
    faults = [chance.choice(["drop", "cut", 503, 429, None, None]) for _ in range(99)]
    length = chance.randrange(1, 400)
    server.write = lambda caption: "word " * length  # never of the form
    server.fault = lambda n: failure(f) if isinstance(f := faults[n % 99], int) else f
    captions = chance.sample(CAPTIONS, chance.randrange(1, 9))
    ceiling = chance.uniform(0.2, 30) * price.cost(1500, 500) / DOLLAR
    more = {"model": "m", "price": price, "patience": HASTE, "ceiling": ceiling}
    form = chance.choice(FORMS)
    limit = {"chat": "max_completion_tokens", "completion": "max_tokens"}[form]
    more |= {"client": client, "form": form, limit: 500}
    ended = False
    with Ledger() as ledger:
        for _ in range(2):  # a second run knows what the first has spent
            try:
                list(ask_service(captions, ledger=ledger, **more))
            except CeilingError:
                ended = True
            except RuntimeError:  # the service seemed gone
                pass
        assert ledger.totals().held == 0
    return price.cost(server.read, server.written) / DOLLAR, ceiling, ended


def test_nothing_is_sent_that_does_not_fit(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    more = {"model": "m", "price": PRICE, "ceiling": 1e-9}
    with StandInServer() as server, connect(server.url) as client:
        with pytest.raises(CeilingError, match="It was not sent"):
            next(ask_service(["a castle"], client=client, **more))
        with pytest.raises(ValueError, match="no price of 'm'"):
            next(ask_service(["a castle"], client=client, model="m", ceiling=1.0))
        assert server.asked == []


def test_a_run_without_counts_is_charged_the_most(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with StandInServer() as server, connect(server.url) as client, Ledger() as ledger:
        server.complete = lambda request: {"choices": [{"message": {"content": "{"}}]}
        more = {"model": "m", "price": PRICE, "attempts": 1}
        list(ask_service(["a castle"], client=client, ledger=ledger, **more))
        limit = longest_reply(with_defaults({}, None))
        assert ledger.totals().spent > PRICE.cost(1000, limit)
