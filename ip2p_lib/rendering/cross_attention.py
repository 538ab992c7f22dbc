"""Cross-attention edited word by word: the original Prompt-to-Prompt.

Hertz et al. (arXiv 2208.01626, section 3.2) give the second picture a map made of two,
each the softmax of scores between places and words, their equation 1:

    Edit(M0, M1) = M0 R + M1 diag(b)        M = softmax(q k^T / sqrt(d))

    word swap       R moves every word's map to its successor, b = 0
    added phrase    R moves the shared words' maps, b = 1 for the new ones
    re-weighting    column j of R, and b_j, are multiplied by c

A map is there to be multiplied by v1, and M0 R v1 is attention with other values:

    Edit(M0, M1) v1  ==  attention(q0, k0, R v1) + attention(q1, k1, b v1),

so no map is stored here either. The same holds for the map of a word, which says where
``LocalBlend`` may change the picture: it is attention with 1 as the word's value.

Rows are the released InstructPix2Pix code's, [u0 | u1 | c0 | c1]. As in the original,
only the conditional half is edited, so c1 borrows from c0 and nothing else changes.
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
    installed,
    is_active,
    project_out,
    split_heads,
)
from ip2p_lib.rendering.word_edits import Plan

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


class WordControl:
    """What the edited layers read and write: call ``begin`` before each U-Net call.

    Attributes:
        route, own: (N, L, L) and (N, L) of this step; None is plain attention. Their
            shapes never change, so that a compiled U-Net is not compiled again.
        words: (2N, L), 1 for the words whose maps are summed in ``heat``, or None.
        heat: (2N, places) the words' maps of c0 and c1, summed over all steps so far
            and over the layers that have ``grid`` places.
        grid: (h, w) of those maps.
    """

    def __init__(
        self,
        plan: Plan,
        steps: int,
        grid: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        active = [is_active(plan.tau, i, steps) for i in range(steps)]
        self._active = torch.stack(active).to(device)  # (steps, N)
        self._route, self._own = (
            plan.route.to(device, dtype),
            plan.own.to(device, dtype),
        )
        self._threshold = plan.threshold.to(device)
        self.route: Tensor | None = None
        self.own: Tensor | None = None
        self.words = plan.words.to(device, dtype) if plan.blends else None
        self.grid = grid
        precise = torch.promote_types(dtype, torch.float32)
        size = len(plan.words), grid[0] * grid[1]
        self.heat = torch.zeros(size, device=device, dtype=precise)

    def begin(self, step: int) -> None:
        """Edit the pairs whose tau has not passed; the others get plain attention."""
        active = self._active[step]
        self.route = self._route * active[:, None, None]
        self.own = torch.where(active[:, None], self._own, 1.0)

    def mask(self, size: tuple[int, int]) -> Tensor:
        """(N, 1, H, W) bool, where the second pictures may differ after a step.

        Args:
            size: (H, W) of the latents.
        """
        return blend_mask(self.heat, self.grid, size, self._threshold)


class EditedCrossAttention:
    """An attention processor for ``diffusers``: the equation above, for rows c1."""

    def __init__(self, control: WordControl) -> None:
        self.control = control

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Cross-attention of a transformer block: (4N, places, C) to the same shape.

        Raises:
            ValueError: the batch has not four rows a pair.
        """
        control = self.control
        q = split_heads(attn.to_q(hidden_states), attn.heads)
        k = split_heads(attn.to_k(encoder_hidden_states), attn.heads)
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        if control.route is None or control.own is None:
            return project_out(attn, F.scaled_dot_product_attention(q, k, v))
        if 4 * len(control.route) != len(q):
            raise ValueError(
                f"{len(control.route)} pairs are planned, 4 rows each, the batch has "
                f"{len(q)} rows."
            )
        if control.words is not None and q.shape[2] == control.heat.shape[1]:
            half = len(q) // 2
            control.heat.add_(word_maps(q[half:], k[half:], control.words))
        return project_out(attn, edited_attention(q, k, v, control.route, control.own))


def edited_attention(
    q: Tensor, k: Tensor, v: Tensor, route: Tensor, own: Tensor
) -> Tensor:
    """Attention whose last quarter of rows has maps M0 R + M1 diag(b).

    Args:
        q: (4N, heads, places, d).
        k, v: (4N, heads, L, d).
        route: (N, L, L) the matrices R.
        own: (N, L) the vectors b. R = 0, b = 1 is plain attention, to the last bit.
    Returns:
        (4N, heads, places, d).
    """
    c0, c1 = (slice(i * len(route), (i + 1) * len(route)) for i in (2, 3))
    mixed = torch.cat((v[: c1.start], own[:, None, :, None] * v[c1]))
    out = F.scaled_dot_product_attention(q, k, mixed)
    routed = route[:, None] @ v[c1]
    borrowed = F.scaled_dot_product_attention(q[c0], k[c0], routed)
    return torch.cat((out[: c1.start], out[c1] + borrowed))


def word_maps(q: Tensor, k: Tensor, words: Tensor) -> Tensor:
    """Where words are looked for: (rows, places), summed over words, mean over heads.

    Args:
        q: (rows, heads, places, d).
        k: (rows, heads, L, d).
        words: (rows, L), 1 for each token of the words.
    """
    value = words[:, None, :, None].expand(-1, q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, value).mean(1).squeeze(-1)


def blend_mask(
    heat: Tensor, grid: tuple[int, int], size: tuple[int, int], threshold: Tensor
) -> Tensor:
    """Places where the second picture may differ: B of Algorithm 1, for both words.

    As in the released code each map is widened by a place all around and divided by its
    maximum. It is enlarged to the latent's size linearly; that code repeats places.

    Args:
        heat: (2N, places), of first captions, then of second ones.
        grid: (h, w) of ``heat``, h * w places.
        size: (H, W) of the latent.
        threshold: (N,) k.
    Returns:
        (N, 1, H, W) bool, where either map exceeds k.
    """
    maps = F.max_pool2d(heat.unflatten(1, (1, *grid)), 3, stride=1, padding=1)
    maps = F.interpolate(maps, size, mode="bilinear")
    peak = maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    before, after = (maps / peak).chunk(2)
    k = threshold[:, None, None, None]
    return (before > k) | (after > k)


def keep_outside(mask: Tensor, latents: Tensor) -> Tensor:
    """Put picture 0 back where no word points (Algorithm 1's last line).

    Args:
        mask: (N, 1, h, w) bool.
        latents: (2N, C, h, w), all first pictures first; so is the result.
    """
    before, after = latents.chunk(2)
    return torch.cat((before, torch.where(mask, after, before)))


def map_grid(unet: UNet2DConditionModel, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the maps that ``LocalBlend`` reads.

    These are the coarsest of the U-Net's outer blocks: 16 x 16 places for Stable
    Diffusion 1.5 at 512 px, as in the released code.

    Args:
        unet: Stable Diffusion 1.5's architecture.
        size: (h, w) of the latent.
    """
    kinds = unet.config.down_block_types
    level = max(i for i, kind in enumerate(kinds) if "CrossAttn" in kind)
    height, width = (-(-side // 2**level) for side in size)
    return height, width


@contextmanager
def word_control(
    unet: UNet2DConditionModel, plan: Plan, steps: int, size: tuple[int, int]
) -> Iterator[WordControl]:
    """Let a U-Net edit cross-attention inside a ``with`` block.

    Args:
        unet: with Stable Diffusion 1.5's transformer blocks.
        plan: of the N pairs in the batch, which has 4N rows.
        steps: of the whole walk.
        size: (h, w) of the latent.
    Yields:
        The ``WordControl`` that all layers read; plain attention before ``begin``. The
        old processors return at exit, also on errors.
    Raises:
        ValueError: the U-Net has no cross-attention.
    """
    grid = map_grid(unet, size)
    control = WordControl(plan, steps, grid, unet.device, unet.dtype)
    with installed(unet, CROSS_ATTENTION, EditedCrossAttention(control)):
        yield control
