"""Compile a U-Net for training: its repeated blocks, or all of it (section 3.2; ours).

    state = TrainState.create(compile_unet(unet, "blocks"), settings)

Compiling all of Stable Diffusion's U-Net takes minutes; its blocks are alike, and those
of one shape are compiled once. Both change how a module is called and nothing else:
names of weights, checkpoints and averages stay, and a copy of it is not compiled.

Below ``compile_unet`` are the layers that it uses on a GPU. Convolutions are fastest
there channels last. Torch's compiler can lay out a whole graph like that, but then it
copies the heads of attention, which have four dimensions too, to and fro. So the layers
that work on images state their own layout, and the compiler leaves the rest alone.
Small networks are bound by memory: what counts is how often an activation is read and
written. Each layer computes what the one does that it replaces, and holds the same
weights under the same names. The training speeds in ``data/results`` rest on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

MODES = ("none", "blocks", "whole")
RECOMPILE_LIMIT = 64  # variants of one block's code; Stable Diffusion has some twenty
# The layers state their layout; left to Inductor, attention's heads would change too.
OPTIONS: dict[str, bool] = {"layout_optimization": False}
# Width of a head and number of tokens up to which cuDNN's attention, torch's choice on
# a Hopper GPU, wastes time: it computes such heads 64 wide. (H100, torch 2.11)
NARROW_HEAD, FEW_TOKENS = 32, 64


def compile_unet(
    unet: UNet2DConditionModel,
    mode: str = "blocks",
    *,
    backend: str | Callable[..., Any] = "inductor",
    channels_last: bool | None = None,
) -> UNet2DConditionModel:
    """Compile a U-Net at its first call, for the shape that it meets there.

    Another shape, such as another micro-batch, is another compilation. Raises torch's
    ``recompile_limit`` for the whole process, to ``RECOMPILE_LIMIT``.

    Args:
        unet: on its device and with LoRA, if any; changed in place and returned.
        mode: ``"blocks"`` compiles each ``ResnetBlock2D`` and ``Transformer2DModel``,
            ``"whole"`` the U-Net as one, ``"none"`` nothing.
        backend: as for ``torch.compile``.
        channels_last: use the layers for a GPU; None does so on a GPU.
    """
    if mode not in MODES:
        raise ValueError(f"There is no mode {mode!r} to compile; choose from {MODES}.")
    if mode == "none":
        return unet
    for_gpu = unet.device.type == "cuda" if channels_last is None else channels_last
    if for_gpu:
        unet.to(memory_format=torch.channels_last)
    # Many blocks share one code, and past its limit torch goes on without compiling.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    options = OPTIONS if for_gpu and backend == "inductor" else None
    for module in modules_to_compile(unet, mode):
        if for_gpu:
            replace_layers(module)
        module.compile(dynamic=False, backend=backend, options=options)
    return unet


def modules_to_compile(unet: UNet2DConditionModel, mode: str) -> list[nn.Module]:
    """The modules of a U-Net that a mode compiles."""
    blocks = (ResnetBlock2D, Transformer2DModel)
    kinds: dict[str, Any] = {"none": (), "blocks": blocks, "whole": type(unet)}
    return [module for module in unet.modules() if isinstance(module, kinds[mode])]


class _ChannelsLast(torch.autograd.Function):
    """Identity whose output and gradient are channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Copy only what has another layout."""
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Copy only what has another layout."""
        return grads[0].contiguous(memory_format=torch.channels_last)


def to_channels_last(x: Tensor) -> Tensor:
    """Lay out activations (B, C, H, W), and later their gradient, channels last."""
    result: Tensor = _ChannelsLast.apply(x)
    return result


class Convolution(nn.Conv2d):
    """Takes and returns activations and gradients channels last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        form = self.kernel_size, self.stride, self.padding, self.groups
        if form != ((1, 1), (1, 1), (0, 0), 1):
            return to_channels_last(super().forward(to_channels_last(x)))
        # 1 x 1: a matrix product at each position, which adds the bias on the way.
        rows = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return rows.permute(0, 3, 1, 2)


def _materialize(parts: Iterable[Tensor]) -> list[Tensor]:
    """Store per-channel values (B, G, C / G) to broadcast against (B, H, W, C).

    A strided view needs memory to view, so Inductor computes the values once. Otherwise
    it would fuse their arithmetic into the loop over positions, and then, to limit that
    recomputation, store the activations before the loop in float32.
    """
    flat = (part.flatten(1) for part in parts)
    return [part.as_strided(part.shape, part.stride())[:, None, None] for part in flat]


class _GroupNorm(torch.autograd.Function):
    r"""Group norm that reads activations twice, and twice more in the backward pass.

    Forward, with mean mu and variance s^2 of a group and weight w, bias b of a channel:

        n = (x - mu) / s        y = w n + b = x (w / s) + (b - mu w / s)

    mu is the mean of the channels' means; s^2 is the mean of their variances plus the
    variance of their means. Backward, with g = dL/dy and means E over a group:

        dL/db = sum g           dL/dw = sum g n
        dL/dx = (w g - E[w g] - n E[w g n]) / s  =  g (w / s) + x dvar + dmean
        dvar  = -E[w g n] / s^2         (what the variance passes back, per unit of x)
        dmean = -E[w g] / s - mu dvar   (what the mean passes back)

    Both directions are one reduction by channel, then one pointwise pass with a scale
    and a shift for each channel.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype; sums are float32 at least."""
        exact = torch.promote_types(x.dtype, torch.float32)
        rows, form = x.permute(0, 2, 3, 1), (groups, -1)  # (B, H, W, C), (G, C / G)
        # First read: the reduction. Means and variances of each channel, then group.
        parts = torch.var_mean(rows.to(exact), (1, 2), correction=0)
        var, mean = (part.unflatten(1, form) for part in parts)  # (B, G, C / G)
        var = var.mean(2, keepdim=True) + mean.var(2, correction=0, keepdim=True)
        mean, inverse = mean.mean(2, keepdim=True), (var + eps).rsqrt()  # 1 / s
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = weight.unflatten(0, form) * inverse
        shift = bias.unflatten(0, form) - mean * scale
        scale, shift = _materialize((scale, shift))
        # Second read: the pointwise pass, which fuses with the layers around it.
        return (rows * scale + shift).to(x.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias, as derived above."""
        x, weight, mean, inverse = ctx.saved_tensors
        rows, grad = (t.permute(0, 2, 3, 1) for t in (x, grads[0]))
        exact, form = mean.dtype, (mean.shape[1], -1)
        w = weight.unflatten(0, form)
        # First read: sum g and sum g x of each channel; sum g n follows from them.
        sums = grad.sum((1, 2), dtype=exact), (grad * rows.to(exact)).sum((1, 2))
        dbias, dweight = (part.unflatten(1, form) for part in sums)
        dweight = inverse * (dweight - mean * dbias)
        count = x[0, 0].numel() * w.shape[1]
        dvar = -(inverse**2) * (w * dweight).sum(2, keepdim=True) / count
        dmean = -inverse * (w * dbias).sum(2, keepdim=True) / count - dvar * mean
        parts = (w * inverse, dvar.expand_as(dbias), dmean.expand_as(dbias))
        scale, dvar, dmean = _materialize(parts)
        # Second read: the pointwise pass.
        dx = (grad * scale + rows * dvar + dmean).to(x.dtype).permute(0, 3, 1, 2)
        return dx, dweight.sum(0).flatten(), dbias.sum(0).flatten(), None, None


class FusableGroupNorm(nn.GroupNorm):
    """Group norm as one scale and one shift for each channel, which fuse."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and, under autocast too, dtype."""
        if x.ndim != 4:
            return super().forward(x)
        numbers = self.weight, self.bias, self.num_groups, self.eps
        result: Tensor = _GroupNorm.apply(x, *numbers)
        return result


class SplitGEGLU(GEGLU):
    """GEGLU by two products instead of one whose output, and gradient, is split."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D)."""
        if type(self.proj) is not nn.Linear:  # with LoRA
            whole: Tensor = super().forward(hidden_states)
            return whole
        halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        value, gate = (F.linear(hidden_states, *half) for half in halves)
        return value * F.gelu(gate)


class NearestUpsample2D(Upsample2D):
    """Upsampling by repeated rows and columns, whose gradient is a sum."""

    def forward(
        self, hidden_states: Tensor, output_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, C, H, W) -> (B, D, 2 H, 2 W), or to ``output_size``."""
        if output_size is not None:
            other: Tensor = super().forward(hidden_states, output_size)
            return other
        doubled: Tensor = self.conv(
            hidden_states.repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        return doubled


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, heads, N, D) -> the same shape, by the kernel that is fastest."""
    trained = q.is_cuda and q.requires_grad and torch.compiler.is_compiling()
    if trained and q.shape[3] <= NARROW_HEAD:
        if k.shape[2] != q.shape[2]:  # of an image and a text
            result: Tensor = flex_attention(q, k, v)
            return result
        if k.shape[2] <= FEW_TOKENS:
            with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class PlainAttnProcessor(AttnProcessor2_0):
    """Attention of a transformer block: without mask, norms or rescaling."""

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
    """Whether ``PlainAttnProcessor`` computes what this attention does."""
    norms = attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k
    more = any(norms) or attn.norm_cross or attn.residual_connection or attn.dropout
    usual = type(attn.processor) is AttnProcessor2_0
    return usual and not more and attn.rescale_output_factor == 1


Net = TypeVar("Net", bound=nn.Module)
LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Convolution,
    nn.GroupNorm: FusableGroupNorm,
    GEGLU: SplitGEGLU,
    Upsample2D: NearestUpsample2D,
}


def replace_layers(net: Net) -> Net:
    """Replace the layers of a U-Net by those of this module, in place; returns it."""
    for module in net.modules():
        module.__class__ = LAYERS.get(type(module), type(module))
        if isinstance(module, Attention) and _is_plain(module):
            module.processor = PlainAttnProcessor()
    return net
