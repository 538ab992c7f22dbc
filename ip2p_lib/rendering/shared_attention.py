"""Attention sharing, which makes two renderings of one scene match (3.1.2).

Rendering two captions from one noise gives two different layouts. Prompt-to-Prompt
(Hertz et al.) lets the second picture look where the first one looks. What the released
InstructPix2Pix code shares is the *self*-attention of every layer, by copying the
first picture's scores, before the softmax, over the second's
(``stable_diffusion/ldm/modules/attention.py``); the main text of the paper speaks of
cross-attention, its appendix A.2 and the code do not use it, and we follow the code.
The original, which edits cross-attention word by word, is in ``cross_attention``.

Scores are q k^T, so to copy them is to use the first picture's q and k:

    softmax(q0 k0^T / sqrt(d)) v1  ==  attention(q[source], k[source], v),

and no score map is ever stored. ``source`` names, for every row of the U-Net's batch,
the row whose q and k it uses, so that each pair has its own share p of shared steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

SELF_ATTENTION = "attn1.processor"  # how diffusers names it in a transformer block
CROSS_ATTENTION = "attn2.processor"


@dataclass
class Sharing:
    """Which row's attention each row uses; set it before a call of the U-Net.

    Attributes:
        source: (rows,) int64 row indices, or None for plain attention. Under
            ``torch.compile``, keep its shape constant and let a row that shares nothing
            point to itself: changing the values costs nothing, changing to None does.
    """

    source: Tensor | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_out(attn: Any, x: Tensor) -> Tensor:
    """(rows, heads, tokens, d) through the layer's last projection and dropout."""
    out: Tensor = attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))
    return out


class SharedSelfAttention:
    """An attention processor for ``diffusers``, its q and k from ``sharing.source``."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Self-attention of a transformer block: (rows, tokens, C) to the same shape.

        Raises:
            ValueError: ``sharing.source`` has another number of rows.
        """
        x, source = hidden_states, self.sharing.source
        q, k, v = (
            split_heads(to(x), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v)
        )  # each (rows, heads, tokens, C / heads)
        if source is not None:
            if len(source) != len(x):
                raise ValueError(
                    f"Sharing.source names {len(source)} rows, the batch has {len(x)}."
                )
            q, k = q[source], k[source]
        return project_out(attn, F.scaled_dot_product_attention(q, k, v))


@contextmanager
def installed(
    unet: UNet2DConditionModel, ending: str, processor: Any
) -> Iterator[None]:
    """Give the attention layers of one kind a processor inside a ``with`` block.

    Args:
        unet: with Stable Diffusion 1.5's transformer blocks.
        ending: of the layers' names, ``SELF_ATTENTION`` or ``CROSS_ATTENTION``.
        processor: for all of them; the old ones return at exit, also on errors.
    Raises:
        ValueError: the U-Net has no such layer.
    """
    old = dict(unet.attn_processors)
    chosen = [name for name in old if name.endswith(ending)]
    if not chosen:
        kind = "self" if ending == SELF_ATTENTION else "cross"
        raise ValueError(f"This U-Net has no {kind}-attention in a transformer block.")
    try:
        unet.set_attn_processor(old | dict.fromkeys(chosen, processor))
        yield
    finally:
        unet.set_attn_processor(dict(old))


@contextmanager
def sharing(unet: UNet2DConditionModel) -> Iterator[Sharing]:
    """Let a U-Net share self-attention inside a ``with`` block.

    Args:
        unet: with Stable Diffusion 1.5's transformer blocks.
    Yields:
        The ``Sharing`` that all its self-attention layers read; None is set at first,
        which is plain attention. The old processors return at exit, also on errors.
    Raises:
        ValueError: the U-Net has no transformer block.
    """
    state = Sharing()
    with installed(unet, SELF_ATTENTION, SharedSelfAttention(state)):
        yield state


def is_active(p: Tensor, step: int, steps: int) -> Tensor:
    """Whether a pair still shares attention at a step (released code's rule).

    Args:
        p: (N,) share of steps with shared attention, in [0, 1].
        step: index of the step, 0 first.
        steps: of the whole walk.
    Returns:
        (N,) bool, p > step / (steps - 1): with 100 steps p = 0.1 is active for 10.
    """
    return p > step / max(steps - 1, 1)


def source_rows(active: Tensor) -> Tensor:
    """Row indices for a batch of N pairs in four blocks, [u0 | u1 | c0 | c1].

    u is the unconditional half, c the conditional one, 0 and 1 the pictures of a pair.

    Args:
        active: (N,) bool, which pairs share.
    Returns:
        (4N,) int64: where active, picture 1 points to picture 0 of its own half;
        every other row points to itself.
    """
    n = len(active)
    rows = torch.arange(4 * n, device=active.device).reshape(2, 2, n)
    rows[:, 1] -= n * active
    return rows.flatten()
