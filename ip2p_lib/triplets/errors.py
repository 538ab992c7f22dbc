"""What goes wrong between us and a paid service, and how long to wait (section 3.1.1).

Three kinds of fault, because three different things should happen:

- *passing*: busy, overloaded, no connection. Wait, as long as the service asks or else
  twice as long each time, and send again.
- *of one caption*: the service will not take this request (too long, say). Leave it.
- *of all*: wrong key, no credit, no such model. Stop after this one request.

``explain`` says each in words that hold neither the key nor the request.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any, TypeVar

T = TypeVar("T")
_PASSING = (408, 409, 425, 429)  # and 500 or more
_OF_ONE = (400, 413, 422)
_OF_THE_ACCOUNT = ("insufficient_quota", "billing_hard_limit_reached")


class ServiceError(RuntimeError):
    """A service that cannot go on: said in words, without the key.

    ``status`` is that of its answer, where it gave one and it matters.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Patience:
    """How often a request is sent, and the waiting between (seconds)."""

    tries: int = 6
    first: float = 0.5  # doubled each time
    longest: float = 30.0
    asked: float = 120.0  # a service that asks for more is left for another day


PATIENCE = Patience()


def patiently(send: Callable[[], T], model: str, patience: Patience = PATIENCE) -> T:
    """Send what costs nothing, and again while the fault may pass.

    Args:
        send: by a client that does not itself send again (``max_retries=0``).
        model: that it concerns.
        patience: the limits.

    Returns:
        What ``send`` returns.

    Raises:
        ServiceError: the fault does not pass, in words.
    """
    tries = 0
    while True:
        tries += 1
        result, fault = _tried(send)
        if fault is None:
            return result
        if not is_passing(fault) or tries >= patience.tries:
            status = getattr(fault, "status_code", None)
            raise ServiceError(explain(fault, model), status)
        time.sleep(pause(fault, tries, 0, patience))


def _tried(send: Callable[[], Any]) -> tuple[Any, Exception | None]:
    import openai

    try:
        return send(), None
    except openai.APIError as error:
        return None, error


def is_passing(error: Any) -> bool:
    """Whether the same request may succeed in a while."""
    status = getattr(error, "status_code", None)
    if status is None:  # no answer at all, or none that could be read
        return True
    return _is_passing_status(status) and error.code not in _OF_THE_ACCOUNT


def _is_passing_status(status: int) -> bool:
    return status in _PASSING or status >= 500


def concerns_one(error: Any) -> bool:
    """Whether another caption may fare better."""
    return getattr(error, "status_code", None) in _OF_ONE


def may_have_been_paid(error: Any) -> bool:
    """Whether the service may have answered all the same, and sent a bill.

    A status says that it turned the request down; silence says nothing, and a gateway
    that gave up waiting (408, 502, 504) knows no more than we do.
    """
    return getattr(error, "status_code", None) in (None, 408, 502, 504)


def pause(error: Any, attempt: int, place: int, patience: Patience) -> float:
    """How long to wait before a request is sent again.

    Args:
        error: what the ``openai`` package raised.
        attempt: how often the request was sent.
        place: of the caption; with the attempt it decides the jitter, which keeps
            requests that failed together from coming back together.
        patience: the limits.

    Returns:
        Seconds: what the service asks for, if it does, and the jitter on top.

    Raises:
        ServiceError: it asks for more than ``patience.asked``.
    """
    response = getattr(error, "response", None)
    asked = requested_pause(getattr(response, "headers", {}))
    if asked is not None and asked > patience.asked:
        raise ServiceError(
            f"The service asks to wait for {asked:.0f} seconds, longer than the "
            f"{patience.asked:.0f} that this run waits. Go on later."
        )
    own = min(patience.longest, patience.first * 2.0 ** (attempt - 1))
    jitter = _jitter(attempt, place)
    return asked + patience.first * jitter if asked else own * (0.5 + jitter / 2)


def _jitter(attempt: int, place: int) -> float:
    # Imported here: torch takes seconds, and most runs never wait.
    import torch

    from ip2p_lib.rng import key, uniform

    return uniform(key("pause", attempt), torch.tensor([place])).item()


def requested_pause(headers: Mapping[str, str]) -> float | None:
    """Read ``Retry-After``, in milliseconds, seconds or as a date.

    Returns:
        Seconds, 0 or more; ``None`` where nothing sensible is asked for.
    """
    seconds = _number(headers.get("retry-after-ms"), 1000.0)
    if seconds is None:
        seconds = _number(headers.get("retry-after"))
    if seconds is None:
        seconds = _seconds_until(headers.get("retry-after", ""))
    return seconds if seconds is None else max(0.0, seconds)


def _number(text: str | None, unit: float = 1.0) -> float | None:
    try:
        number = float(text or "") / unit
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds_until(date: str) -> float | None:
    parts = parsedate_tz(date)
    try:
        return None if parts is None else mktime_tz(parts) - time.time()
    except (ValueError, OverflowError):  # the year 100000
        return None


def explain(error: Any, model: str) -> str:
    """What went wrong, and what to do about it.

    Only the kind of error and its status are used: the service's own message names the
    request and part of the key.
    """
    status = getattr(error, "status_code", None)
    if status is None:
        return "The service does not answer. Check the network and the base_url."
    if status in (401, 403):
        return (
            "The service refuses the API key, or the key may not use the model "
            f"{model!r}. Check OPENAI_API_KEY."
        )
    if status == 404:
        return (
            f"The service has no model {model!r}, or does not let it be asked in this "
            "way. Choose another model."
        )
    if error.code in _OF_THE_ACCOUNT:
        return "The account has no credit left. Add some, then go on."
    if status == 429:
        return "The service is busy or limits the rate. Wait a minute, then go on."
    return (
        f"The service failed with status {status}. If it is 400, the model "
        f"{model!r} or one of the options does not suit it; otherwise try again later."
    )
