"""Compile a U-Net for training: its repeated blocks, or all of it (section 3.2; ours).

    state = train.start(compile_unet(unet, "blocks"), settings)

Compiling all of Stable Diffusion's U-Net takes minutes; its blocks are alike, and those
of one shape are compiled once. Both change how a module is called and nothing else:
names of weights, checkpoints and averages stay, and a copy of it is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ip2p_lib.training.compiled.layers import replace_layers

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

MODES = ("none", "blocks", "whole")
RECOMPILE_LIMIT = 64  # variants of one block's code; Stable Diffusion has some twenty
# The layers state their layout; left to Inductor, attention's heads would change too.
OPTIONS: dict[str, bool] = {"layout_optimization": False}


def compile_unet(
    unet: UNet2DConditionModel,
    mode: str = "blocks",
    *,
    backend: str | Callable[..., Any] = "inductor",
    channels_last: bool | None = None,
) -> UNet2DConditionModel:
    """Compile a U-Net at its first call, for the one shape that it meets there.

    Another shape is another compilation, so use batches of one size: see
    ``even_micro_batch``.

    Args:
        unet: on its device, with LoRA if it is to have it, and before AdamW's state is
            laid out like it; changed in place. Raises torch's limit for the process.
        mode: ``"blocks"`` compiles each ``ResnetBlock2D`` and ``Transformer2DModel``,
            ``"whole"`` the U-Net as one, ``"none"`` nothing.
        backend: as for ``torch.compile``.
        channels_last: use the layers for a GPU; None does so on a GPU.
    Returns:
        ``unet``.
    Raises:
        ValueError: there is no such mode.
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
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    if mode != "blocks":
        return [unet] if mode == "whole" else []
    repeated = (ResnetBlock2D, Transformer2DModel)
    return [module for module in unet.modules() if isinstance(module, repeated)]


def even_micro_batch(examples: int, at_most: int) -> int:
    """Micro-batch size that cuts a batch into equal parts, which are compiled once.

    Args:
        examples: of a batch on one device; at least 1.
        at_most: that fit at once; at least 1.
    Returns:
        The largest divisor of ``examples`` up to ``at_most``. If it is below half of
        what fits, ``at_most``: then the last part is smaller, and compiled once more.
    """
    at_most = min(at_most, examples)
    even = next(n for n in range(at_most, 0, -1) if examples % n == 0)
    return even if 2 * even > at_most else at_most
