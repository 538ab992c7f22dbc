"""Align the tokens of two captions, and map attention columns from one to the other.

Prompt-to-Prompt (Hertz et al., arXiv 2208.01626, section 3.2) injects cross-attention
maps token by token: a map has one column per token. Captions are aligned by CLIP tokens
and not by words, since some languages write no spaces. CLIP marks the last token of a
word, so a word is rarely aligned with a part of another one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTokenizerFast


class Block(NamedTuple):
    """Tokens i1 to i2 of the first caption aligned with j1 to j2 of the second.

    The ends are excluded. ``tag`` is one of ``difflib``'s opcodes, "equal", "replace",
    "delete" or "insert"; or "end", the last block: end marker and padding.
    """

    tag: str
    i1: int
    i2: int
    j1: int
    j2: int


@dataclass(frozen=True)
class ColumnMapping:
    """How an edited map is made of two: ``M0 @ mapper + M1 * keep``.

    M0 and M1 (positions, L) are the maps of the first image and of the second one.

    Attributes:
        mapper: (L, L); row i says where column i of M0 goes.
        keep: (L,); 1 where a token keeps its column of M1, 0 where it does not.
    """

    mapper: Tensor
    keep: Tensor


def align(before: Sequence[int], after: Sequence[int], end: int) -> list[Block]:
    """Blocks that cover two captions in order, longest common stretch first.

    The captions are token ids, padded to one length after the end marker ``end``.
    """
    n, m, length = before.index(end), after.index(end), len(before)
    codes = SequenceMatcher(None, before[:n], after[:m], autojunk=False).get_opcodes()
    return [*(Block(*code) for code in codes), Block("end", n, length, m, length)]


def get_replacement_mapper(blocks: Sequence[Block]) -> ColumnMapping:
    """Word swap (Hertz et al., section 3.2): every column comes from the first image.

    As in the released ``seq_aligner.py``, a word of several tokens distributes the sum
    of their columns equally over the tokens of the new word; words of equally many
    tokens are mapped one to one. So each position's attention still sums to one. Raises
    ValueError for words that were added or removed, and so have no counterpart.
    """
    if {"insert", "delete"} & {block.tag for block in blocks}:
        raise ValueError("'replace' needs a word for a word; 'refine' does not.")
    mapper = _map_equal_tokens(blocks)
    for _, i1, i2, j1, j2 in (b for b in blocks if b.tag == "replace"):
        equal = i2 - i1 == j2 - j1
        mapper[i1:i2, j1:j2] = torch.eye(i2 - i1) if equal else 1 / (j2 - j1)
    return ColumnMapping(mapper, torch.zeros(len(mapper)))


def get_refinement_mapper(blocks: Sequence[Block]) -> ColumnMapping:
    """Added phrase (Hertz et al., section 3.2): inject the columns of common tokens.

    A token without a counterpart, A(j) = None there, keeps its own column. Equal
    captions have none: every column is then injected, which is what re-weighting needs.
    """
    mapper = _map_equal_tokens(blocks)
    keep = torch.zeros(len(mapper))
    for block in blocks:
        if block.tag in ("replace", "insert"):
            keep[block.j1 : block.j2] = 1
    return ColumnMapping(mapper, keep)


def _map_equal_tokens(blocks: Sequence[Block]) -> Tensor:
    """(L, L) that maps equal tokens and the ends, and nothing else."""
    length = blocks[-1].i2
    mapper = torch.zeros(length, length)
    for tag, i1, i2, j1, _ in blocks:
        if tag in ("equal", "end"):
            # A longer caption has less padding: its last token takes the remainder.
            i = torch.arange(i1, i2)
            mapper[i, (i - i1 + j1).clamp(max=length - 1)] = 1
    return mapper


def changed_tokens(blocks: Sequence[Block]) -> tuple[list[int], list[int]]:
    """Indices of the tokens of either caption that the other does not have."""
    changed = [b for b in blocks if b.tag not in ("equal", "end")]
    before = [i for b in changed for i in range(b.i1, b.i2)]
    return before, [j for b in changed for j in range(b.j1, b.j2)]


def find_tokens(tokenizer: CLIPTokenizerFast, caption: str, phrase: str) -> list[int]:
    """Indices of a phrase's tokens in a caption, at each occurrence.

    A token that spans the phrase and its neighbour counts too, as in Chinese. Case and
    spacing of the phrase do not matter. Raises ValueError if the caption does not
    contain it as whole words.
    """
    caption, phrase = (unicodedata.normalize("NFC", text) for text in (caption, phrase))
    words = r"\s+".join(map(re.escape, phrase.split()))
    # \b would require a border between Chinese words as well.
    pattern = rf"(?<![a-z0-9]){words}(?![a-z0-9])"
    matches = list(re.finditer(pattern, caption, re.IGNORECASE)) if words else []
    if not matches:
        raise ValueError(f"{phrase!r} is not in {caption!r}; name words it has.")
    offsets = tokenizer(caption, return_offsets_mapping=True).offset_mapping
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if any(start < match.end() and match.start() < end for match in matches)
    ]
