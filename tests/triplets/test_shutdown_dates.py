"""A model that is shut down is named in time, by the service or by the price table."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from ip2p_lib.triplets.cost import read_prices
from ip2p_lib.triplets.service import ServiceError, connect
from ip2p_lib.triplets.shutdown_dates import check_model, shutdown_date
from tests.support.service_protocol import KEY, failure

TODAY = date(2026, 11, 24)
END = date(2027, 1, 14)
DATED = {model: p.shutdown for model, p in read_prices().items() if p.shutdown}


def listed(**dates) -> list[dict]:
    rows = [{"id": name, "shutdown_date": day} for name, day in dates.items()]
    facts = {"object": "model", "created": 0, "owned_by": "m"}
    return [{**facts, "id": "other"}, *(facts | row for row in rows)]


@pytest.mark.parametrize("model", sorted(DATED))
def test_each_date_of_the_price_table_is_used(client, model) -> None:
    day = DATED[model]
    assert shutdown_date(client, model) == day
    for days in (1, 51):
        said = check_model(client, model, today=day - timedelta(days=days))
        assert said == (
            f"{model} is shut down on {day}, in {days} days; for later runs choose "
            "gpt-6-luna."
        )
    for days in (0, 1):
        with pytest.raises(ServiceError, match=f"was shut down on {day}; choose gpt-6"):
            check_model(client, model, today=day + timedelta(days=days))


def test_four_models_end_on_the_same_day_and_go_by_several_names(client) -> None:
    assert set(DATED) == {"gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini"}
    assert set(DATED.values()) == {END}
    tuned = "ft:gpt-4o-mini-2024-07-18:team:captions:abc"
    for name in (tuned, "gpt-4o-mini-2024-07-18", "ft:gpt-4.1:team::x"):
        assert shutdown_date(client, name) == END
    for name in ("gpt-4o-tiny", "my-gpt-4o", "/models/gpt-4o/last", "gpt-6-luna", ""):
        assert shutdown_date(client, name) is None


@pytest.mark.parametrize(
    ("value", "day"),
    [
        ("2027-03-01", date(2027, 3, 1)),
        ("2027-03-01T23:30:00Z", date(2027, 3, 1)),
        (int(datetime(2027, 3, 1, tzinfo=UTC).timestamp()), date(2027, 3, 1)),
        (datetime(2027, 3, 1, 23, 59, tzinfo=UTC).timestamp(), date(2027, 3, 1)),
        (None, END),  # not announced there: the table may know
    ],
)
def test_the_service_knows_best(server, client, value, day) -> None:
    server.models = listed(**{"gpt-4o-mini": value, "gpt-4o": "2030-01-01"})
    assert shutdown_date(client, "gpt-4o-mini") == day
    assert str(day) in check_model(client, "gpt-4o-mini", today=TODAY)
    assert set(server.calls) == {"list models"}


@pytest.mark.parametrize("value", ["soon", "", [], {}, 10**30, "2027-13-01"])
def test_a_date_that_is_none_is_said_to_be_none(server, client, value) -> None:
    server.models = listed(m=value)
    with pytest.raises(ServiceError, match=r"shut down at .*, which is no date"):
        check_model(client, "m")


@pytest.mark.parametrize("models", [None, [], listed(m=None), [3, {}, {"id": 3}]])
def test_a_model_of_no_known_end_is_said_to_be_one(server, client, models) -> None:
    server.models = models
    assert check_model(client, "m").startswith("When m is shut down is not known")


def test_a_server_that_fails_to_list_leaves_the_table(server, client) -> None:
    server.listing_fault = failure(500)
    assert shutdown_date(client, "gpt-4o") == END


def test_a_refused_key_and_silence_are_said_in_words(server, client) -> None:
    server.listing_fault = failure(401, message=f"Incorrect API key: {KEY}.")
    with pytest.raises(ServiceError, match="refuses the API key") as caught:
        check_model(client, "gpt-4o")
    assert KEY[9:15] not in str(caught.value)
    with (
        connect("http://127.0.0.1:9/v1") as silent,
        pytest.raises(ServiceError, match="does not answer"),
    ):
        check_model(silent, "gpt-4o")
