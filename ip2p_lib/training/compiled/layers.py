"""Layers of a U-Net, written for a GPU's compiler (section 3.2; ours).

A GPU's convolutions want a picture's channels side by side (channels last). Torch's
compiler can lay out a whole graph like that, but then the heads of attention, which
have four dimensions too, are copied to and fro. So the layers that work on pictures say
themselves how they lie, and the compiler leaves the rest alone.

Small networks are bound by memory: what counts is how often a picture is read and
written. Each layer here computes what the one does that it takes the place of, and
holds the same weights under the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ip2p_lib.diffusion.attention import attend


class _Laid(torch.autograd.Function):
    """The same picture, channels last, and so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Copy only what lies otherwise."""
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Copy only what lies otherwise."""
        return grads[0].contiguous(memory_format=torch.channels_last)


def laid(x: Tensor) -> Tensor:
    """Lay out a picture (B, C, H, W), and later its gradient, channels last."""
    result: Tensor = _Laid.apply(x)
    return result


class Convolution(nn.Conv2d):
    """Takes and gives pictures and gradients channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        form = self.kernel_size, self.stride, self.padding, self.groups
        if form != ((1, 1), (1, 1), (0, 0), 1):
            return laid(super().forward(laid(x)))
        # A product at each place, which adds the bias as it goes.
        places = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return places.permute(0, 3, 1, 2)


def _kept(parts: Iterable[Tensor]) -> list[Tensor]:
    """Numbers of each channel (B, G, C / G), written down to meet (B, H, W, C).

    A strided view is one of memory, so the compiler computes them once. Else it would
    repeat their arithmetic at every place, and then, to repeat no more than that, write
    down the whole picture before it in float32.
    """
    flat = (part.flatten(1) for part in parts)
    return [part.as_strided(part.shape, part.stride())[:, None, None] for part in flat]


class _Normed(torch.autograd.Function):
    """A group norm in two readings of the picture, and its gradient in two of both."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype; sums are float32 at least."""
        exact = torch.promote_types(x.dtype, torch.float32)
        places, form = x.permute(0, 2, 3, 1), (groups, -1)
        parts = torch.var_mean(places.to(exact), (1, 2), correction=0)
        var, mean = (part.unflatten(1, form) for part in parts)  # of each channel
        var = var.mean(2, keepdim=True) + mean.var(2, correction=0, keepdim=True)
        mean, inverse = mean.mean(2, keepdim=True), (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = weight.unflatten(0, form) * inverse
        shift = bias.unflatten(0, form) - mean * scale
        scale, shift = _kept((scale, shift))
        return (places * scale + shift).to(x.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With n = (x - mean) / deviation: mean(g w) and mean(g w n) are taken off."""
        x, weight, mean, inverse = ctx.saved_tensors
        places, grad = (t.permute(0, 2, 3, 1) for t in (x, grads[0]))
        exact, form = mean.dtype, (mean.shape[1], -1)
        w = weight.unflatten(0, form)
        # Of each channel: the gradient's sum, and its sum with the normed picture.
        sums = grad.sum((1, 2), dtype=exact), (grad * places.to(exact)).sum((1, 2))
        plain, normed = (part.unflatten(1, form) for part in sums)
        normed = inverse * (normed - mean * plain)
        count = x[0, 0].numel() * w.shape[1]
        slope = -(inverse**2) * (w * normed).sum(2, keepdim=True) / count
        level = -inverse * (w * plain).sum(2, keepdim=True) / count - slope * mean
        parts = (w * inverse, slope.expand_as(plain), level.expand_as(plain))
        scale, slope, level = _kept(parts)
        own = (grad * scale + places * slope + level).to(x.dtype).permute(0, 3, 1, 2)
        return own, normed.sum(0).flatten(), plain.sum(0).flatten(), None, None


class Norm(nn.GroupNorm):
    """The same norm as one factor and one summand a channel, which fuse."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and, under autocast too, dtype."""
        if x.ndim != 4:
            return super().forward(x)
        numbers = self.weight, self.bias, self.num_groups, self.eps
        result: Tensor = _Normed.apply(x, *numbers)
        return result


class Gate(GEGLU):
    """Two products instead of one that is cut, whose gradient would be joined again."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D)."""
        if type(self.proj) is not nn.Linear:  # with LoRA
            whole: Tensor = super().forward(hidden_states)
            return whole
        halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        value, gate = (F.linear(hidden_states, *half) for half in halves)
        return value * F.gelu(gate)


class Doubling(Upsample2D):
    """Repeats rows and columns: the gradient is a sum, where torch's is scattered."""

    def forward(
        self, hidden_states: Tensor, output_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, C, H, W) -> (B, D, 2 H, 2 W), unless another size is asked for."""
        if output_size is not None:
            other: Tensor = super().forward(hidden_states, output_size)
            return other
        doubled: Tensor = self.conv(
            hidden_states.repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        return doubled


class Heads(AttnProcessor2_0):
    """Attention as a transformer's block has it: nothing masked, normed or rescaled."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x, text = hidden_states, encoder_hidden_states
        source = x if text is None else text
        q, k, v = attn.to_q(x), attn.to_k(source), attn.to_v(source)
        q, k, v = (t.unflatten(2, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = attn.to_out[0](mixed)
        return result


def _is_plain(attn: Attention) -> bool:
    """Whether ``Heads`` computes what this attention does."""
    norms = attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k
    more = any(norms) or attn.norm_cross or attn.residual_connection or attn.dropout
    usual = type(attn.processor) is AttnProcessor2_0
    return usual and not more and attn.rescale_output_factor == 1


Net = TypeVar("Net", bound=nn.Module)
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Convolution,
    nn.GroupNorm: Norm,
    GEGLU: Gate,
    Upsample2D: Doubling,
}


def compilable(net: Net) -> Net:
    """Exchange the layers of a U-Net for those of this module.

    Args:
        net: Stable Diffusion's U-Net, with LoRA or without; changed in place.
    Returns:
        ``net``.
    """
    for module in net.modules():
        module.__class__ = LAYERS.get(type(module), type(module))
        if isinstance(module, Attention) and _is_plain(module):
            module.processor = Heads()
    return net
