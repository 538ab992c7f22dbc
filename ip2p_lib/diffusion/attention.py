"""Which kernel computes attention on a GPU (ours).

Torch leaves it to cuDNN on a Hopper GPU, which is right for a U-Net that edits or is
rendered with. It is wrong in two cases: cuDNN makes a plan for every new shape, which
takes longer than a batch of CLIP, so batches of all sizes had better do without it
(``of_any_shape``); and it computes the narrowest heads 64 wide, which training a small
U-Net pays for (``attend``).
"""

from __future__ import annotations

from contextlib import ContextDecorator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

WITHOUT_PLANS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
NARROW, FEW = 32, 64  # width of a head, tokens; tried on an H100 with torch 2.11


def of_any_shape() -> ContextDecorator:
    """Decorate what is called with batches of many sizes."""
    chosen: ContextDecorator = sdpa_kernel(WITHOUT_PLANS)
    return chosen


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, heads, N, D) -> the same shape, by the kernel that is fastest."""
    trained = q.is_cuda and q.requires_grad and torch.compiler.is_compiling()
    if trained and q.shape[3] <= NARROW:
        if k.shape[2] != q.shape[2]:  # of a picture and a text
            result: Tensor = flex_attention(q, k, v)
            return result
        if k.shape[2] <= FEW:
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)
