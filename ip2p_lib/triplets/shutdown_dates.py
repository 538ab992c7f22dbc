"""How long a service will have a model (section 3.1.1).

The GPT-3 that the authors fine-tuned is gone, and its successors go within a few years,
with all that was fine-tuned on them. A service says when in its list of models; where
it does not, the price table may know.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from ip2p_lib.triplets.chat_format import decoded
from ip2p_lib.triplets.cost import read_prices
from ip2p_lib.triplets.errors import Patience, ServiceError, patiently

if TYPE_CHECKING:
    from openai import OpenAI

_BRIEF = Patience(tries=2)
# ``ft:gpt-4o-mini-2024-07-18:team::id`` goes when ``gpt-4o-mini`` does.
_NAME = re.compile(r"(?:ft:)?([^:]+?)(?:-\d{4}-\d{2}-\d{2})?(?::.*)?")


def check_model(client: OpenAI, model: str, *, today: date | None = None) -> str:
    """Say how long a model will be there; call it before a run.

    Args:
        client: from ``connect``.
        model: the service's name of it.
        today: ``None`` is the day it is, in UTC.

    Raises:
        ServiceError: the model is gone, or the service refuses or does not answer.
    """
    today, day = today or datetime.now(UTC).date(), shutdown_date(client, model)
    if day is None:
        return (
            f"When {model} is shut down is not known, neither from the service nor "
            "from data/prices.json."
        )
    advice = f"choose {_lasting(day)}."
    if day <= today:
        raise ServiceError(f"{model} was shut down on {day}; {advice}")
    days = (day - today).days
    return f"{model} is shut down on {day}, in {days} days; for later runs {advice}"


def _lasting(day: date) -> str:
    prices = read_prices().values()
    names = [p.model for p in prices if p.shutdown is None or p.shutdown > day]
    return " or ".join(names) or "another model"


def shutdown_date(client: OpenAI, model: str) -> date | None:
    """The day a model is shut down, from the service or else from the price table.

    Args:
        client: from ``connect``.
        model: the service's name of it; a model fine-tuned there has its base's date.

    Returns:
        ``None`` where no date is known.

    Raises:
        ServiceError: the service refuses, does not answer, or gives what is no date.
    """
    return _by_service(client, model) or _by_table(model)


def _by_service(client: OpenAI, model: str) -> date | None:
    models = client.with_options(max_retries=0).models.with_raw_response
    try:
        body = decoded(patiently(models.list, model, _BRIEF).text)
    except ServiceError as error:
        # Servers of one's own may have no list, or fail to make one.
        if error.status == 404 or (error.status or 0) >= 500:
            return None
        raise
    match body:
        case {"data": [*rows]}:
            for row in rows:
                match row:
                    case {"id": str(name), "shutdown_date": day} if name == model:
                        return None if day is None else _to_date(day, model)
    return None


def _to_date(value: Any, model: str) -> date:
    """Read a date: ISO 8601, as OpenAI writes it, or seconds since 1970."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).date()
        return datetime.fromtimestamp(value, UTC).date()
    except (ValueError, TypeError, OverflowError, OSError):
        said = repr(value)[:40]
    raise ServiceError(
        f"The service says that {model} is shut down at {said}, which is no date. Look "
        "it up there, and leave this check out."
    )


def _by_table(model: str) -> date | None:
    name, prices = _NAME.fullmatch(model), read_prices()
    price = prices.get(model) or prices.get(name[1] if name else "")
    return price.shutdown if price else None
