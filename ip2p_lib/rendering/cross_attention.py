"""Cross-attention edited token by token: the original Prompt-to-Prompt.

Hertz et al. (arXiv 2208.01626, section 3.2) give the second image a map made of two,
each the softmax of scores between spatial positions and tokens, their equation 1:

    Edit(M0, M1) = M0 R + M1 diag(b)        M = softmax(q k^T / sqrt(d))

    word swap       R maps every word's column to its successor, b = 0
    added phrase    R maps the columns of common tokens, b = 1 for the new ones
    re-weighting    column j of R, and b_j, are multiplied by c

A map is only ever multiplied by v1, and M0 R v1 is attention with other values:

    Edit(M0, M1) v1  ==  attention(q0, k0, R v1) + attention(q1, k1, b v1),

so no map is stored here either. The same holds for a token's map, by which
``LocalBlend`` selects a region: it is attention with 1 as the token's value.

Rows are in the released InstructPix2Pix code's order, [u0 | u1 | c0 | c1]. As in the
original, only the conditional half is edited: c1 uses c0, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p_lib.rendering.shared_attention import (
    CROSS_ATTENTION,
    is_active,
    project_out,
    split_heads,
    use_attention_processor,
)
from ip2p_lib.rendering.word_edits import EditTensors

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class EditedCrossAttnProcessor:
    """An attention processor for ``diffusers``: the equation above, for rows c1.

    Call ``set_step`` before each call of the U-Net.

    Attributes:
        mapper, keep: (N, L, L) and (N, L) of this step, at first of step 0. Their
            shapes never change, so that a compiled U-Net is not compiled again.
        blend_tokens: (2N, L), 1 for the tokens of ``attention_sum``, or None.
        attention_sum: (2N, positions) attention of c0 and c1 to those tokens, mean over
            heads, summed over the tokens, over all steps so far and over the layers
            with ``grid`` (h, w) positions.
        threshold: (N,), of the edits.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        edits: EditTensors,
        steps: int,
        grid: tuple[int, int],
    ) -> None:
        device, dtype = unet.device, unet.dtype
        active = [is_active(edits.tau, i, steps) for i in range(steps)]
        self._active = torch.stack(active).to(device)  # (steps, N)
        self._mapper = edits.mapper.to(device, dtype)
        self._keep = edits.keep.to(device, dtype)
        self.threshold = edits.threshold.to(device)
        self.set_step(0)
        tokens = edits.blend_tokens.to(device, dtype)
        self.blend_tokens = tokens if edits.blend_tokens.any() else None
        self.grid = grid
        precise = torch.promote_types(dtype, torch.float32)
        size = len(tokens), grid[0] * grid[1]
        self.attention_sum = torch.zeros(size, device=device, dtype=precise)

    def set_step(self, step: int) -> None:
        """Edit the pairs whose tau has not passed; the others get plain attention."""
        active = self._active[step]
        self.mapper = self._mapper * active[:, None, None]
        self.keep = torch.where(active[:, None], self._keep, 1.0)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Cross-attention of a transformer block: (4N, positions, C) to the same shape.

        Raises ValueError if the batch has not four rows a pair.
        """
        q = split_heads(attn.to_q(hidden_states), attn.heads)
        k = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        if (n := 4 * len(self.mapper)) != len(q):
            raise ValueError(f"The edits have {n} rows, but the batch {len(q)} rows.")
        tokens, total = self.blend_tokens, self.attention_sum
        if tokens is not None and q.shape[2] == total.shape[1]:
            half = len(q) // 2  # rows c0 and c1 are the second one
            value = tokens[:, None, :, None].expand(-1, attn.heads, -1, -1)
            maps = F.scaled_dot_product_attention(q[half:], k[half:], value)
            total.add_(maps.mean(1).squeeze(-1))
        return project_out(attn, edited_attention(q, k, v, self.mapper, self.keep))


def edited_attention(
    q: Tensor, k: Tensor, v: Tensor, mapper: Tensor, keep: Tensor
) -> Tensor:
    """Attention whose last quarter of rows has maps M0 R + M1 diag(b).

    Args:
        q, k, v: (4N, heads, positions, d); and (4N, heads, L, d) each.
        mapper, keep: (N, L, L) the matrices R; (N, L) the vectors b. R = 0, b = 1 is
            plain attention, to the last bit.
    Returns:
        (4N, heads, positions, d).
    """
    c0, c1 = (slice(i * len(mapper), (i + 1) * len(mapper)) for i in (2, 3))
    values = torch.cat((v[: c1.start], keep[:, None, :, None] * v[c1]))
    out = F.scaled_dot_product_attention(q, k, values)
    mapped = mapper[:, None] @ v[c1]
    injected = F.scaled_dot_product_attention(q[c0], k[c0], mapped)
    return torch.cat((out[: c1.start], out[c1] + injected))


def blend_mask(
    attention: Tensor, grid: tuple[int, int], size: tuple[int, int], threshold: Tensor
) -> Tensor:
    """Where the second image may differ: B of Algorithm 1, for both words.

    As in the released code each map is dilated by one position and divided by its
    maximum. We enlarge it to the latent's size bilinearly, that code by repetition.

    Args:
        attention: (2N, positions), of first captions, then of second ones.
        grid, size: (h, w) of ``attention``, and (H, W) of the latent.
        threshold: (N,) k.
    Returns:
        (N, 1, H, W) bool, where either map exceeds k.
    """
    maps = F.max_pool2d(attention.unflatten(1, (1, *grid)), 3, stride=1, padding=1)
    maps = F.interpolate(maps, size, mode="bilinear")
    peak = maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    before, after = (maps / peak).chunk(2)
    k = threshold[:, None, None, None]
    return (before > k) | (after > k)


def attention_resolution(
    unet: UNet2DConditionModel, size: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of the maps that ``LocalBlend`` uses, for latents of a size.

    These are the coarsest of the U-Net's outer blocks: 16 x 16 positions for Stable
    Diffusion 1.5 at 512 px, as in the released code.
    """
    blocks = unet.config.down_block_types
    level = max(i for i, name in enumerate(blocks) if "CrossAttn" in name)
    height, width = (-(-side // 2**level) for side in size)
    return height, width


@contextmanager
def edit_cross_attention(
    unet: UNet2DConditionModel, edits: EditTensors, steps: int, size: tuple[int, int]
) -> Iterator[EditedCrossAttnProcessor]:
    """Let a U-Net edit cross-attention inside a ``with`` block.

    ``edits`` are those of the N pairs in the batch, which has 4N rows; ``steps`` is the
    number of all steps, ``size`` (h, w) of the latents. Yields the processor of all
    cross-attention layers; errors as ``use_attention_processor``.
    """
    grid = attention_resolution(unet, size)
    processor = EditedCrossAttnProcessor(unet, edits, steps, grid)
    with use_attention_processor(unet, CROSS_ATTENTION, processor):
        yield processor
