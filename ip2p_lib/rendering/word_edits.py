"""Prompt-to-Prompt's edits of cross-attention, per pair of captions (Hertz et al.).

A ``WordEdit`` says how the second image of a pair uses the first one's cross-attention.
``build_edit_tensors`` turns the edits of a batch into tensors for ``cross_attention``.

    M0, M1   cross-attention maps of the two images   tau   fraction of steps, the first
    w, w*    a word of the first and of the second caption   c     weight of a word
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.stable_diffusion import StableDiffusion
from ip2p_lib.rendering.token_alignment import (
    Block,
    ColumnMapping,
    align,
    changed_tokens,
    find_tokens,
    get_refinement_mapper,
    get_replacement_mapper,
)

MAPPERS = {"replace": get_replacement_mapper, "refine": get_refinement_mapper}
NO_BLEND = -1.0  # a threshold that every position exceeds


@dataclass(frozen=True)
class LocalBlend:
    """Keep the first image outside the words' region (Hertz et al., 3.2, Algorithm 1).

    Attributes:
        before, after: words w and w* of the two captions, whose maps select the region
            to change. With neither, all words in which the captions differ.
        threshold: k, fraction of a map's maximum above which a position is selected.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    threshold: float = 0.3


@dataclass(frozen=True)
class WordEdit:
    """How one image of a pair uses the other's cross-attention (Hertz et al., 3.2).

    Attributes:
        mode: "replace", words swapped one for one, all columns are M0's; or "refine",
            words added or changed, which keep their columns of M1.
        tau: fraction of the steps with edited attention, in [0, 1], the first ones.
        weights: (w*, c) pairs: the column of w* is multiplied by c, which Hertz et al.
            take from [-2, 2]. Between equal captions this alone is re-weighting.
        blend: None lets the whole image change.
        source: whose maps are injected: "before", as in Hertz et al., or "after"; then
            the image before is the edited one, and weights are of its caption's words.
    """

    mode: str
    tau: float = 0.8
    weights: tuple[tuple[str, float], ...] = ()
    blend: LocalBlend | None = None
    source: str = "before"

    def __post_init__(self) -> None:
        if self.mode not in MAPPERS:
            raise ValueError(f"mode is one of {list(MAPPERS)}, not {self.mode!r}.")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau is a fraction in [0, 1], not {self.tau}.")
        if self.source not in ("before", "after"):
            raise ValueError(f"source is 'before' or 'after', not {self.source!r}.")

    def swapped(self) -> WordEdit:
        """The same edit with the two captions exchanged, hence also the source."""
        source = "before" if self.source == "after" else "after"
        b = self.blend
        blend = b and replace(b, before=b.after, after=b.before)
        return replace(self, blend=blend, source=source)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the record of a pair."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        # Stored data sets name these two "kind" and "lead".
        values["kind"], values["lead"] = values.pop("mode"), values.pop("source")
        return values


@dataclass(frozen=True)
class EditTensors:
    """The edits of N pairs with captions of L tokens. A pair without one has tau 0.

    Attributes:
        tau: (N,) float64.
        mapper, keep: (N, L, L) and (N, L), as in ``ColumnMapping``, times the weights.
        blend_tokens: (2N, L), 1 for the tokens whose maps select the region to change,
            first captions first.
        threshold: (N,); ``NO_BLEND`` where nothing is blended.
    """

    tau: Tensor
    mapper: Tensor
    keep: Tensor
    blend_tokens: Tensor
    threshold: Tensor


def build_edit_tensors(
    backbone: StableDiffusion,
    edits: Sequence[WordEdit | None],
    before: Sequence[str],
    after: Sequence[str],
) -> EditTensors:
    """Align N pairs of captions and write their edits as tensors, on the CPU.

    There are N edits, None for a pair with plain cross-attention, and N captions each.

    Raises:
        ValueError: "replace" for captions that differ by more than swapped words, a
            word to re-weight or to blend that its caption lacks, a blend between equal
            captions that names no words, or a caption too long.
    """
    ids = backbone.tokenize([*before, *after])
    n, length = len(edits), ids.shape[1]
    tensors = EditTensors(
        tau=torch.tensor([e.tau if e else 0.0 for e in edits], dtype=torch.float64),
        mapper=torch.zeros(n, length, length),
        keep=torch.ones(n, length),
        blend_tokens=torch.zeros(2 * n, length),
        threshold=torch.full((n,), NO_BLEND),
    )
    for i, edit in enumerate(edits):
        if edit is None:
            continue
        captions, end = (before[i], after[i]), backbone.tokenizer.eos_token_id
        blocks = align(ids[i].tolist(), ids[n + i].tolist(), end)
        columns = _map_columns(backbone, edit, captions, blocks)
        tensors.mapper[i], tensors.keep[i] = columns.mapper, columns.keep
        if edit.blend:
            tensors.threshold[i] = edit.blend.threshold
            first, second = _blend_tokens(backbone, edit.blend, captions, blocks)
            tensors.blend_tokens[i, first] = 1
            tensors.blend_tokens[n + i, second] = 1
    return tensors


def _map_columns(
    backbone: StableDiffusion,
    edit: WordEdit,
    captions: tuple[str, str],
    blocks: Sequence[Block],
) -> ColumnMapping:
    """Columns of one pair's edited maps, weights multiplied in."""
    try:
        columns = MAPPERS[edit.mode](blocks)
    except ValueError as error:
        raise ValueError(f"{error} Captions: {captions}.") from error
    weight = torch.ones(len(columns.keep))
    for word, c in edit.weights:
        weight[find_tokens(backbone.tokenizer, captions[1], word)] = c
    return ColumnMapping(columns.mapper * weight, columns.keep * weight)


def _blend_tokens(
    backbone: StableDiffusion,
    blend: LocalBlend,
    captions: tuple[str, str],
    blocks: Sequence[Block],
) -> tuple[list[int], list[int]]:
    """Indices in either caption of the tokens that select the region to change."""
    if not blend.before and not blend.after:
        changed = changed_tokens(blocks)
        if not any(changed):
            raise ValueError(f"{captions[0]!r} stays as it is: name words to blend by.")
        return changed
    tokenizer, (before, after) = backbone.tokenizer, captions
    first = [i for w in blend.before for i in find_tokens(tokenizer, before, w)]
    return first, [i for w in blend.after for i in find_tokens(tokenizer, after, w)]
