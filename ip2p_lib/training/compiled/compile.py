"""Compile a U-Net for training: the blocks that it repeats, or the whole (3.2; ours).

    state = training.start(compile_unet(unet, "blocks"), settings)

A GPU computes Stable Diffusion's U-Net faster if its operations are joined to fewer and
its pictures lie channels last (see ``compiled_layers``). Compiling the whole takes
minutes; its blocks are alike, and those of one shape are compiled once. Both change how
a module is called and nothing else: names of weights, checkpoints and averages stay,
and a copy of the module is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ip2p_lib.training.compiled.layers import compilable

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

WAYS = ("none", "blocks", "whole")
LIMIT = 64  # forms of one block's code: Stable Diffusion's have some twenty
# The layers say how pictures lie; left to Inductor, attention's heads would lie so too.
OPTIONS: dict[str, bool] = {"layout_optimization": False}


def compile_unet(
    unet: UNet2DConditionModel,
    way: str = "blocks",
    *,
    backend: str | Callable[..., Any] = "inductor",
    channels_last: bool | None = None,
) -> UNet2DConditionModel:
    """Have a U-Net compiled at its first call, for the one shape that it meets there.

    Another shape is another compilation, so give it batches of one size: ``even_part``.

    Args:
        unet: on its device, with LoRA if it is to have it, and before AdamW is laid
            out like it; changed in place. Torch's limit is raised for the process.
        way: ``"blocks"`` are its ``ResnetBlock2D`` and ``Transformer2DModel``;
            ``"whole"`` is it alone, ``"none"`` leaves it as it is.
        backend: as for ``torch.compile``.
        channels_last: lay the convolutions' weights out like pictures on a GPU; None
            does so on a GPU. The 8-bit AdamW has no use for it: it lays them out anew.
    Returns:
        ``unet``.
    Raises:
        ValueError: there is no such way.
    """
    if way not in WAYS:
        raise ValueError(f"There is no way {way!r} to compile; choose from {WAYS}.")
    if way == "none":
        return unet
    for_gpu = bool(channels_last) or unet.device.type == "cuda"
    if for_gpu if channels_last is None else channels_last:
        unet.to(memory_format=torch.channels_last)
    # Many blocks share one code, and past its limit torch goes on without compiling.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, LIMIT)
    options = OPTIONS if for_gpu and backend == "inductor" else None
    for module in compiled_parts(unet, way):
        if for_gpu:
            compilable(module)
        module.compile(dynamic=False, backend=backend, options=options)
    return unet


def compiled_parts(unet: UNet2DConditionModel, way: str) -> list[nn.Module]:
    """The modules of a U-Net that a way compiles."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    if way != "blocks":
        return [unet] if way == "whole" else []
    repeated = (ResnetBlock2D, Transformer2DModel)
    return [module for module in unet.modules() if isinstance(module, repeated)]


def even_part(examples: int, at_most: int) -> int:
    """Examples at once that cut a batch into parts of one size, compiled once.

    Args:
        examples: of a batch, on one device; at least 1.
        at_most: that fit at once; at least 1.
    Returns:
        The largest part of this kind. If it is below half of what fits, ``at_most``:
        then the last part of a batch is smaller, which is compiled once more.
    """
    at_most = min(at_most, examples)
    even = next(n for n in range(at_most, 0, -1) if examples % n == 0)
    return even if 2 * even > at_most else at_most
