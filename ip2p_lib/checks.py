"""Checks of what callers pass: each raises one ValueError, before any work is done."""

from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any
from unicodedata import category


def check_whole(name: str, value: Any, low: int = 1, high: int = 2**63 - 1) -> None:
    """Raise ValueError unless ``value`` is a whole number in [low, high]."""
    check_number(name, value, low, high, Integral)


def check_number(
    name: str, value: Any, low: float = 0, high: float = 3e38, kind: type = Real
) -> None:
    """Raise ValueError unless ``value`` is in [low, high], by default of float32."""
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a number" if kind is Real else "a whole number"
        raise ValueError(f"{name} must be {what}, not {value!r}.")
    number: Any = value
    if not low <= number <= high:  # NaN fails too
        end = "finite" if high >= 2**63 - 1 else f"at most {high:g}"
        raise ValueError(f"{name} must be at least {low:g} and {end}, not {value}.")


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
