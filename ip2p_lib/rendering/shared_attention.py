"""Shared self-attention, which makes the two images of a pair match (3.1.2).

Sampling two captions from one noise gives two different layouts. Prompt-to-Prompt
(Hertz et al.) injects attention maps of the first image into the second. What the
released InstructPix2Pix code injects is the *self*-attention of every layer, by copying
the first image's scores, before the softmax, over the second's
(``stable_diffusion/ldm/modules/attention.py``). The main text of the paper speaks of
cross-attention; its appendix A.2 and the code do not use it, and we follow the code.
The original, which edits cross-attention word by word, is in ``cross_attention``.

Scores are q k^T, so to copy them is to use the first image's q and k:

    softmax(q0 k0^T / sqrt(d)) v1  ==  attention(q[source], k[source], v),

and no score map is ever stored. ``source`` gives, for every row of the U-Net's batch,
the row whose q and k it uses, so that each pair has its own fraction p of shared steps.
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
class SharedAttention:
    """Which row's q and k each row uses; set it before a call of the U-Net.

    Attributes:
        source: (rows,) int64 row indices, or None for plain attention. Under
            ``torch.compile``, keep its shape constant and let a row that shares nothing
            point to itself: new values cost nothing, None means another compilation.
    """

    source: Tensor | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_out(attn: Any, x: Tensor) -> Tensor:
    """(rows, heads, tokens, d) through the layer's last projection and dropout."""
    out: Tensor = attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))
    return out


class SharedSelfAttnProcessor:
    """An attention processor for ``diffusers``, its q and k from ``state.source``."""

    def __init__(self, state: SharedAttention) -> None:
        self.state = state

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Self-attention of a transformer block: (rows, tokens, C) to the same shape.

        Raises:
            ValueError: ``state.source`` has another number of rows.
        """
        x, source = hidden_states, self.state.source
        q, k, v = (
            split_heads(to(x), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v)
        )  # each (rows, heads, tokens, C / heads)
        if source is not None:
            if len(source) != len(x):
                raise ValueError(
                    f"source has {len(source)} rows, but the batch has {len(x)}."
                )
            q, k = q[source], k[source]
        return project_out(attn, F.scaled_dot_product_attention(q, k, v))


@contextmanager
def use_attention_processor(
    unet: UNet2DConditionModel, name_ending: str, processor: Any
) -> Iterator[None]:
    """Set the processor of all self- or cross-attention layers in a ``with`` block.

    Args:
        unet: with Stable Diffusion 1.5's transformer blocks.
        name_ending: of the layers, ``SELF_ATTENTION`` or ``CROSS_ATTENTION``.
        processor: for all of them; the old ones return at exit, also on errors.
    Raises:
        ValueError: the U-Net has no such layer.
    """
    old = dict(unet.attn_processors)
    names = [name for name in old if name.endswith(name_ending)]
    if not names:
        kind = "self" if name_ending == SELF_ATTENTION else "cross"
        raise ValueError(f"This U-Net has no {kind}-attention in a transformer block.")
    try:
        unet.set_attn_processor(old | dict.fromkeys(names, processor))
        yield
    finally:
        unet.set_attn_processor(dict(old))


@contextmanager
def share_self_attention(unet: UNet2DConditionModel) -> Iterator[SharedAttention]:
    """Let a U-Net share self-attention between rows inside a ``with`` block.

    Args:
        unet: with Stable Diffusion 1.5's transformer blocks.
    Yields:
        The ``SharedAttention`` that all its self-attention layers read, at first with
        plain attention. The old processors return at exit, also on errors.
    Raises:
        ValueError: the U-Net has no transformer block.
    """
    state = SharedAttention()
    with use_attention_processor(unet, SELF_ATTENTION, SharedSelfAttnProcessor(state)):
        yield state


def is_active(p: Tensor, step: int, steps: int) -> Tensor:
    """Whether a pair still shares attention at a step (released code's rule).

    Args:
        p: (N,) fraction of steps with shared attention, in [0, 1].
        step: index of the step, 0 first.
        steps: of the whole trajectory.
    Returns:
        (N,) bool, p > step / (steps - 1): with 100 steps p = 0.1 is active for 10.
    """
    return p > step / max(steps - 1, 1)


def source_rows(active: Tensor) -> Tensor:
    """Row indices for a batch of N pairs in four blocks, [u0 | u1 | c0 | c1].

    u is the unconditional half, c the conditional one, 0 and 1 the images of a pair.

    Args:
        active: (N,) bool, which pairs share.
    Returns:
        (4N,) int64: where active, image 1 points to image 0 of its own half; every
        other row points to itself.
    """
    n = len(active)
    rows = torch.arange(4 * n, device=active.device).reshape(2, 2, n)
    rows[:, 1] -= n * active
    return rows.flatten()
