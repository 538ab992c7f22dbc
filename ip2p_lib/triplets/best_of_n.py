"""Of several replies to one caption, the one that its writer is surest of (3.1.1).

The paper asks once. A small model now and then changes another word than its own
instruction names, and it is less sure of itself where it does: the tokens of such an
edited caption are less likely. So ask more than once and choose by that; what is no
triplet is chosen only if nothing is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from torch import Tensor

from ip2p_lib.triplets.record import END, SPLIT, Reply, TripletError, parse_completion


@dataclass(frozen=True)
class Written:
    """A reply, and how likely the model found its edited caption."""

    text: str
    log_likelihood: float  # mean of its tokens; of a reply without one, -infinity


def written(tokenizer: Any, tokens: Tensor, log_likelihoods: Tensor) -> Written:
    """Decode one reply, and find its edited caption: from ``SPLIT`` to ``END``.

    Args:
        tokenizer: of the model that wrote it.
        tokens: (n,) as written, with anything after the end.
        log_likelihoods: (n,) of each token, given the caption and those before.
    """
    decode = partial(
        tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    split, end = (_first_with(mark, decode, tokens) for mark in (SPLIT, END))
    edited = log_likelihoods[split + 1 : end + 1]
    likely = float(edited.mean()) if len(edited) else -math.inf
    return Written(decode(tokens), likely)


def _first_with(mark: str, decode: Callable[[Tensor], str], tokens: Tensor) -> int:
    """Index of the token that completes a mark; of none, how many there are."""

    def is_written(n: int) -> bool:
        """Whether the mark is there after token n; once written, it stays."""
        return mark in decode(tokens[: n + 1])

    return bisect_left(range(len(tokens)), True, key=is_written)


def surest(caption: str, attempts: Sequence[Written]) -> Reply:
    """The triplet whose edited caption is likeliest; if none is, the first reply."""
    replies = [(_read(caption, a.text), a.log_likelihood) for a in attempts]
    good = [both for both in replies if both[0].triplet]
    return max(good or replies[:1], key=itemgetter(1))[0]


def _read(caption: str, text: str) -> Reply:
    if END not in text:
        return Reply(caption, text, reason="unfinished")
    try:
        return Reply(caption, text, parse_completion(caption, text))
    except TripletError as error:
        return Reply(caption, text, reason=error.reason)
