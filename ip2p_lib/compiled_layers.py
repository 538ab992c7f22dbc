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

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


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


class Norm(nn.GroupNorm):
    """The same norm as one factor and one summand a channel, which fuse."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and, under autocast too, dtype.

        Sums are float32 at least.
        """
        exact, groups = torch.promote_types(x.dtype, torch.float32), self.num_groups
        places = x.permute(0, 2, 3, 1).to(exact)
        parts = torch.var_mean(places, (1, 2), correction=0)  # of each channel
        var, mean = (part.unflatten(1, (groups, -1)) for part in parts)
        var = var.mean(2, keepdim=True) + mean.var(2, correction=0, keepdim=True)
        mean = mean.mean(2, keepdim=True)
        scale = self.weight.unflatten(0, (groups, -1)) * (var + self.eps).rsqrt()
        shift = self.bias.unflatten(0, (groups, -1)) - mean * scale
        scale, shift = (part.flatten(1)[:, None, None] for part in (scale, shift))
        return (places * scale + shift).to(x.dtype).permute(0, 3, 1, 2)


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
    return net
