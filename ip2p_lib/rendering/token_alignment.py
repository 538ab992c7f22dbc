"""Which token of one caption stands for which token of another.

Prompt-to-Prompt (Hertz et al., arXiv 2208.01626, section 3.2) borrows attention maps
word by word. A map has a column a token, so borrowing takes a ``Routing`` of columns.

Captions are aligned by their CLIP tokens, not by their words: a language that writes
no spaces has tokens too. CLIP marks the last token of a word, so "cat" in "cat" and
in "caterpillar" are different tokens, and a word is rarely matched with half of one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class Block(NamedTuple):
    """Tokens i1 to i2 of the first caption face j1 to j2 of the second, ends excluded.

    ``kind`` is "equal"; "replace", "delete", "insert" as ``difflib`` has them; or
    "end", the last block: the end marker and all the padding after it.
    """

    kind: str
    i1: int
    i2: int
    j1: int
    j2: int


@dataclass(frozen=True)
class Routing:
    """How the edited caption's maps are made of two: ``M0 @ route + M1 * own``.

    M0 and M1 (places, L) are the maps of the first picture and of the second one.

    Attributes:
        route: (L, L); row i says where column i of M0 goes.
        own: (L,); 1 where a token keeps its own map, 0 where it does not.
    """

    route: Tensor
    own: Tensor


def align(before: Sequence[int], after: Sequence[int], end: int) -> list[Block]:
    """Align two captions' token ids, longest common stretch first.

    Args:
        before, after: ids of equal number, padding included.
        end: id of the end marker, after which the padding begins.
    Returns:
        Blocks that cover both captions in order.
    Raises:
        ValueError: a caption has no end marker, or their lengths differ.
    """
    if end not in before or end not in after or len(before) != len(after):
        raise ValueError(
            f"Align captions that end with token {end} and are padded to one length, "
            f"not {len(before)} and {len(after)} ids."
        )
    n, m, length = before.index(end), after.index(end), len(before)
    found = SequenceMatcher(None, before[:n], after[:m], autojunk=False).get_opcodes()
    return [*(Block(*code) for code in found), Block("end", n, length, m, length)]


def replacement(blocks: Sequence[Block]) -> Routing:
    """Word swap (Hertz et al., section 3.2): every map comes from the first picture.

    As in the released ``seq_aligner.py``, a word of several tokens hands the sum of
    their maps in equal parts to the tokens of its successor; one token or equally many
    are handed over one to one. So the attention each place pays still sums to one.

    Raises:
        ValueError: words were added or left out, so that some have no counterpart.
    """
    if {"insert", "delete"} & {block.kind for block in blocks}:
        raise ValueError("'replace' needs a word for a word; 'refine' does not.")
    route = _shared(blocks)
    for _, i1, i2, j1, j2 in (b for b in blocks if b.kind == "replace"):
        equal = i2 - i1 == j2 - j1
        route[i1:i2, j1:j2] = torch.eye(i2 - i1) if equal else 1 / (j2 - j1)
    return Routing(route, torch.zeros(len(route)))


def refinement(blocks: Sequence[Block]) -> Routing:
    """Added phrase (Hertz et al., section 3.2): shared tokens' maps are borrowed.

    A token without a counterpart, A(j) = None there, keeps its own map. Equal captions
    have none: the second picture then borrows every map, as re-weighting does.
    """
    route = _shared(blocks)
    own = torch.zeros(len(route))
    for block in blocks:
        if block.kind in ("replace", "insert"):
            own[block.j1 : block.j2] = 1
    return Routing(route, own)


def _shared(blocks: Sequence[Block]) -> Tensor:
    """(L, L) that hands equal tokens and the ends over, and nothing else."""
    length = blocks[-1].i2
    route = torch.zeros(length, length)
    for kind, i1, i2, j1, _ in blocks:
        if kind in ("equal", "end"):
            # A longer caption has less padding: its last token takes what is left.
            i = torch.arange(i1, i2)
            route[i, (i - i1 + j1).clamp(max=length - 1)] = 1
    return route


def changed(blocks: Sequence[Block]) -> tuple[list[int], list[int]]:
    """Positions of the tokens of either caption that the other does not have."""
    new = [b for b in blocks if b.kind not in ("equal", "end")]
    before = [i for b in new for i in range(b.i1, b.i2)]
    return before, [j for b in new for j in range(b.j1, b.j2)]


def positions(tokenizer: CLIPTokenizer, caption: str, phrase: str) -> list[int]:
    """Where in a caption's ids a phrase is written, each time it comes.

    A token of the phrase and of its neighbour counts as well: Chinese has such.

    Args:
        tokenizer: any CLIP tokenizer; only its pieces are read, no offsets.
        caption: any text, not truncated.
        phrase: one or several words; case does not count, nor how they are spaced.
    Raises:
        ValueError: the caption does not contain the phrase as whole words, or the
            tokenizer has no pieces for some of its letters.
    """
    text = unicodedata.normalize("NFC", caption).lower()
    ids = tokenizer(caption).input_ids[1:-1]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    # A piece has one letter for each byte of the text, and none for spaces.
    sizes = [len(piece.removesuffix("</w>")) for piece in pieces]
    edges = list(accumulate(sizes, initial=0))
    if edges[-1] != _bytes(text):
        raise ValueError(f"The tokenizer does not know every letter of {caption!r}.")
    spans = [
        (_bytes(text[: match.start()]), _bytes(text[: match.end()]))
        for match in re.finditer(_whole_words(phrase), text)
    ]
    if not spans:
        raise ValueError(f"{phrase!r} is not in {caption!r}; name words it has.")
    return [
        position
        for position, (start, end) in enumerate(pairwise(edges), start=1)
        if any(start < b and a < end for a, b in spans)
    ]


def _bytes(text: str) -> int:
    return len("".join(text.split()).encode())


def _whole_words(phrase: str) -> str:
    words = unicodedata.normalize("NFC", phrase).lower().split()
    if not words:
        raise ValueError("A phrase needs at least one word.")
    # \b would ask for a border between Chinese words as well.
    return r"(?<![a-z0-9])" + r"\s+".join(map(re.escape, words)) + r"(?![a-z0-9])"
