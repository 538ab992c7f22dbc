"""Checks of what callers pass: each raises one ValueError, before any work is done."""

from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any
from unicodedata import category


def check_whole(name: str, value: Any, low: int = 1, high: int = 2**63 - 1) -> None:
    """Raise ValueError unless ``value`` is a whole number in [low, high]."""
    check_number(name, value, low, high, Integral)


def check_number(
    name: str,
    value: Any,
    low: float = 0,
    high: float = 3e38,
    kind: type = Real,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Raise ValueError unless ``value`` is in [low, high], by default of float32.

    ``above`` leaves out ``low``, and ``below`` leaves out ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a number" if kind is Real else "a whole number"
        raise ValueError(f"{name} must be {what}, not {value!r}.")
    number: Any = value
    inside = low <= number <= high  # NaN is not
    if not inside or (above and number == low) or (below and number == high):
        start = f"{'above' if above else 'at least'} {low:g}"
        end = f"{'below' if below else 'at most'} {high:g}"
        end = "finite" if high >= 2**63 - 1 else end
        raise ValueError(f"{name} must be {start} and {end}, not {value}.")


def each_text(name: str, texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on; ValueError for a lone one, of which each letter would count."""
    if isinstance(texts, str):
        raise ValueError(f"{name} is one text; put it into a list: [{texts[:40]!r}].")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{number}] is no text but {text!r}.")
        yield text


def is_visible(text: str) -> bool:
    """Whether a text has a letter, number, sign or symbol, and not only what hides."""
    return any(category(letter)[0] in "LNPS" for letter in text)
