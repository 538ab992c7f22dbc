"""Prompt-to-Prompt as Hertz et al. meant it: what to do with a caption's words.

A ``WordEdit`` says how the second picture of a pair borrows cross-attention; ``plan``
turns the edits of a batch, each with two captions of its own, into tensors that
``cross_attention`` applies. The paper's section 3.1.2 describes this method, its
appendix A.2 and the released code use another (see ``prompt_to_prompt``).

    M0, M1   cross-attention maps of the two pictures       tau   share of the steps
    w, w*    a word of the first and of the second caption  c     weight of a word
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p_lib.rendering.token_alignment import (
    align,
    changed,
    positions,
    refinement,
    replacement,
)

if TYPE_CHECKING:
    from ip2p_lib.diffusion.stable_diffusion import Backbone

ROUTINGS = {"replace": replacement, "refine": refinement}
EVERYWHERE = -1.0  # a threshold that every place passes


@dataclass(frozen=True)
class LocalBlend:
    """Keep the first picture outside the words' places (section 3.2, Algorithm 1).

    Attributes:
        before, after: words w and w* of the two captions, whose maps mark the places to
            change. With neither, all words in which the captions differ.
        threshold: k, share of a map's maximum from which a place is marked.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    threshold: float = 0.3


@dataclass(frozen=True)
class WordEdit:
    """How the second picture uses the first one's cross-attention (section 3.2).

    Attributes:
        kind: "replace", words swapped one for one, all maps are M0's; or "refine",
            words added or changed, which keep their columns of M1.
        tau: share of steps in which it does so, in [0, 1], the first ones.
        weights: (w*, c) pairs: the map of w* is multiplied by c, which Hertz et al.
            take from [-2, 2]. Alone, between equal captions, this is re-weighting.
        blend: None changes the whole picture.
        lead: whose picture lends its maps: "before", as Hertz et al. have it, or
            "after", and then the picture before is the one that borrows, by the
            weights of words of its caption.
    """

    kind: str
    tau: float = 0.8
    weights: tuple[tuple[str, float], ...] = ()
    blend: LocalBlend | None = None
    lead: str = "before"

    def __post_init__(self) -> None:
        if self.kind not in ROUTINGS:
            raise ValueError(f"kind is one of {list(ROUTINGS)}, not {self.kind!r}.")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau is a share of steps in [0, 1], not {self.tau}.")
        if self.lead not in ("before", "after"):
            raise ValueError(f"lead is 'before' or 'after', not {self.lead!r}.")

    def turned(self) -> WordEdit:
        """The same edit with the captions, and what leads, exchanged."""
        lead = "before" if self.lead == "after" else "after"
        b = self.blend
        blend = b and replace(b, before=b.after, after=b.before)
        return replace(self, blend=blend, lead=lead)

    def facts(self) -> dict[str, Any]:
        """As JSON values, for the record of a pair."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> WordEdit:
        """The edit that ``facts`` told of."""
        weights = tuple((word, c) for word, c in facts["weights"])
        told = facts["blend"]
        blend = told and LocalBlend(
            tuple(told["before"]), tuple(told["after"]), told["threshold"]
        )
        return cls(**{**facts, "weights": weights, "blend": blend})


@dataclass(frozen=True)
class Plan:
    """The edits of N pairs with captions of L tokens. A pair without has tau 0.

    Attributes:
        tau: (N,) float64.
        route, own: (N, L, L) and (N, L), as in ``Routing``, the weights multiplied in.
        words: (2N, L), 1 for the words that mark places, first captions first.
        threshold: (N,); where it is ``EVERYWHERE`` nothing is blended.
        blends: whether any pair blends.
    """

    tau: Tensor
    route: Tensor
    own: Tensor
    words: Tensor
    threshold: Tensor
    blends: bool


def plan(
    backbone: Backbone,
    edits: Sequence[WordEdit | None],
    before: Sequence[str],
    after: Sequence[str],
) -> Plan:
    """Align N pairs of captions and write their edits as tensors, on the CPU.

    Args:
        backbone: its tokenizer is used.
        edits: N, None for a pair with plain cross-attention.
        before, after: N captions each.
    Raises:
        ValueError: "replace" for captions that differ by more than swapped words, a
            word to weigh or to blend that its caption lacks, a blend between equal
            captions that names no words, or a caption too long.
    """
    ids = backbone.tokenize([*before, *after]).tolist()
    n = len(edits)
    rows = [
        _plan_one(backbone, edit, (before[i], after[i]), ids[i], ids[n + i])
        for i, edit in enumerate(edits)
    ]
    route, own, first, second = (torch.stack(part) for part in zip(*rows, strict=True))
    blends = [edit.blend if edit else None for edit in edits]
    thresholds = [blend.threshold if blend else EVERYWHERE for blend in blends]
    return Plan(
        tau=torch.tensor([e.tau if e else 0.0 for e in edits], dtype=torch.float64),
        route=route,
        own=own,
        words=torch.cat((first, second)),
        threshold=torch.tensor(thresholds),
        blends=any(blends),
    )


def _plan_one(
    backbone: Backbone,
    edit: WordEdit | None,
    captions: tuple[str, str],
    before: list[int],
    after: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """route (L, L), own (L,), and the marking words of either caption, (L,) each."""
    length = len(before)
    nothing = torch.zeros(length)
    if edit is None:
        return torch.zeros(length, length), torch.ones(length), nothing, nothing
    blocks = align(before, after, backbone.tokenizer.eos_token_id)
    try:
        routing = ROUTINGS[edit.kind](blocks)
    except ValueError as error:
        raise ValueError(f"{error} Captions: {captions}.") from error
    weight = torch.ones(length)
    for word, c in edit.weights:
        weight[positions(backbone.tokenizer, captions[1], word)] = c
    first, second = nothing, nothing
    if edit.blend:
        marked = _marking(backbone, edit.blend, captions, changed(blocks))
        first, second = (
            nothing.index_fill(0, torch.tensor(at).long(), 1) for at in marked
        )
    return routing.route * weight, routing.own * weight, first, second


def _marking(
    backbone: Backbone,
    blend: LocalBlend,
    captions: tuple[str, str],
    differing: tuple[list[int], list[int]],
) -> list[list[int]]:
    """Positions in either caption of the words that mark what may change."""
    if not blend.before and not blend.after:
        if not any(differing):
            raise ValueError(f"{captions[0]!r} stays as it is: name words to blend by.")
        return list(differing)
    return [
        [i for word in words for i in positions(backbone.tokenizer, caption, word)]
        for words, caption in zip((blend.before, blend.after), captions, strict=True)
    ]
