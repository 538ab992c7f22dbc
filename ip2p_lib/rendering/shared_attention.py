"""Shared self-attention, which makes the two images of a pair match (3.1.2).

Sampling two captions from one noise gives two different layouts. Prompt-to-Prompt
(Hertz et al.) injects attention maps of the first image into the second. The paper's
main text speaks of cross-attention (see ``cross_attention``). Its appendix A.2 and the
released code (``stable_diffusion/ldm/modules/attention.py``), which we follow, inject
the *self*-attention of every layer: the first image's scores, before the softmax.

Scores are q k^T, so to copy them is to use the first image's q and k:

    softmax(q0 k0^T / sqrt(d)) v1  ==  attention(q[source], k[source], v),

and no score map is ever stored. ``source`` gives, for every row of the U-Net's batch,
the row whose q and k it uses, so that each pair has its own fraction p of shared steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

SELF_ATTENTION = "attn1.processor"  # how diffusers names it in a transformer block
CROSS_ATTENTION = "attn2.processor"


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_out(attn: Any, x: Tensor) -> Tensor:
    """(rows, heads, tokens, d) through the layer's last projection and dropout."""
    out: Tensor = attn.to_out[1](attn.to_out[0](x.transpose(1, 2).flatten(2)))
    return out


class SharedSelfAttnProcessor:
    """An attention processor for ``diffusers``: each row's q and k are a source row's.

    Attributes:
        source: (rows,) int64 row indices, or None for plain attention. Set it before a
            call of the U-Net. In a compiled one its shape must not change, so a row
            that shares nothing points to itself.
    """

    source: Tensor | None = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Self-attention of a transformer block: (rows, tokens, C) to the same shape.

        Raises ValueError if ``source`` has another number of rows.
        """
        x, source = hidden_states, self.source
        q, k, v = (
            split_heads(to(x), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v)
        )  # each (rows, heads, tokens, C / heads)
        if source is not None:
            if len(source) != len(x):
                raise ValueError(f"source has {len(source)} rows, the batch {len(x)}.")
            q, k = q[source], k[source]
        return project_out(attn, F.scaled_dot_product_attention(q, k, v))


@contextmanager
def use_attention_processor(
    unet: UNet2DConditionModel, name_ending: str, processor: Any
) -> Iterator[None]:
    """Set the processor of all self- or cross-attention layers in a ``with`` block.

    These are the layers called ``SELF_ATTENTION`` or ``CROSS_ATTENTION`` in Stable
    Diffusion 1.5's transformer blocks; ValueError if the U-Net has none. The old
    processors return at exit, also on errors.
    """
    old = dict(unet.attn_processors)
    names = [name for name in old if name.endswith(name_ending)]
    if not names:
        raise ValueError(f"This U-Net has no transformer block with {name_ending}.")
    try:
        unet.set_attn_processor(old | dict.fromkeys(names, processor))
        yield
    finally:
        unet.set_attn_processor(dict(old))


@contextmanager
def share_self_attention(
    unet: UNet2DConditionModel,
) -> Iterator[SharedSelfAttnProcessor]:
    """Let a U-Net share self-attention between rows inside a ``with`` block.

    Yields the processor of all its self-attention layers, at first for plain attention;
    errors as ``use_attention_processor``.
    """
    processor = SharedSelfAttnProcessor()
    with use_attention_processor(unet, SELF_ATTENTION, processor):
        yield processor


def is_active(p: Tensor, step: int, steps: int) -> Tensor:
    """(N,) bool, whether pairs still share attention at a step (released code's rule).

    ``p`` (N,) is the fraction of steps with shared attention, in [0, 1]. With 100
    steps, of which the first is 0, p = 0.1 is active for 10.
    """
    return p > step / max(steps - 1, 1)


def source_rows(active: Tensor) -> Tensor:
    """Row indices (4N,) for a batch of N pairs in four blocks, [u0 | u1 | c0 | c1].

    u is the unconditional half, c the conditional one, 0 and 1 the images of a pair.
    Where ``active``, (N,) bool, image 1 points to image 0 of its own half; every other
    row points to itself.
    """
    n = len(active)
    rows = torch.arange(4 * n, device=active.device).reshape(2, 2, n)
    rows[:, 1] -= n * active
    return rows.flatten()
