"""Train the editor's U-Net by LoRA, for cards that cannot hold its AdamW (3.2; ours).

The paper trains all 860 M weights. Here attention layers get matrices of low rank
instead (see ``lora``), and the widened first convolution is trained whole: its new
weights start at zero, so that nothing of the picture could be seen through it else.

    unet = add_editor_lora(widen_conv_in(unet), rank=16)   # then ``training.start``
    save_editor_lora(unet, "runs/editor", base)            # some MB
    unet = load_editor_lora(text_to_image_unet, "runs/editor", base)
    merge_editor_lora(unet).save_pretrained(...)           # a stock U-Net
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from ip2p_lib.diffusion.adapters import WEIGHTS, load_lora, save_lora
from ip2p_lib.diffusion.lora import add_lora, lora_layers, merge_lora
from ip2p_lib.files import atomic_write
from ip2p_lib.training.surgery import widen_conv_in

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from ip2p_lib.config import Source

CONV_IN = "conv_in.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_editor_lora(
    unet: UNet2DConditionModel,
    *,
    rank: int = 16,
    alpha: float | None = None,
    everywhere: bool = False,
    frozen: torch.dtype | None = None,
    run_seed: int = 0,
) -> UNet2DConditionModel:
    """Freeze a widened U-Net but for ``conv_in``, and give it matrices to train.

    Until the first step it computes what it did before, bit for bit.

    Args:
        unet: from ``widen_conv_in``; changed in place.
        rank: of the matrices.
        alpha: their product counts alpha / rank times; None is once.
        everywhere: on all linear layers and convolutions, not only on attention.
        frozen: precision in which to keep the frozen weights, such as the autocast's;
            it halves their memory and rounds them once. None leaves them as they are.
        run_seed: another seed draws other matrices.
    Returns:
        ``unet``.
    Raises:
        ValueError: the U-Net was not widened, or as ``lora.add_lora``.
    """
    _require_widened(unet)
    if frozen is not None:
        nn.Module.to(unet, dtype=frozen)
    layers = _all_layers(unet) if everywhere else ATTENTION
    add_lora(unet, rank=rank, alpha=alpha or rank, targets=layers, run_seed=run_seed)
    return _with_conv_in(unet)


def _require_widened(unet: Any) -> None:
    if unet.config.in_channels == unet.config.out_channels:
        raise ValueError(
            "This U-Net reads no picture yet: pass it through widen_conv_in first."
        )


def _all_layers(unet: nn.Module) -> list[str]:
    """Names of all linear layers and convolutions but the first."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "conv_in"
    ]


def _with_conv_in(unet: Any) -> Any:
    """The first convolution is trained, so it is float32."""
    unet.conv_in.float().requires_grad_(True)
    return unet


def save_editor_lora(unet: Any, folder: str | Path, base: str | Path | Source) -> Path:
    """Write what was trained: an adapter as ``save_lora`` writes it, and ``conv_in``.

    Args:
        unet: from ``add_editor_lora``; for the average, ``state.ema.copy_to`` first.
        folder: made if missing; an adapter there is replaced.
        base: what the text-to-image U-Net was loaded from.
    Returns:
        ``folder``.
    Raises:
        ValueError: there is no LoRA, or the folder holds a whole model.
    """
    folder = save_lora(unet, folder, base)
    first = unet.conv_in.state_dict().items()
    weights = {name: weight.detach().cpu().contiguous() for name, weight in first}
    with atomic_write(folder / CONV_IN) as file:
        file.write(save(weights, {"format": "pt", "adapter": _digest(folder)}))
    return folder


def _digest(folder: Path) -> str:
    """SHA-256 of the adapter's weights, which ``conv_in`` was trained with."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def load_editor_lora(
    unet: UNet2DConditionModel, folder: str | Path, base: str | Path | Source
) -> UNet2DConditionModel:
    """Widen a text-to-image U-Net and put a trained adapter onto it.

    Args:
        unet: the one that was trained, not widened; it stays as it is.
        folder: written by ``save_editor_lora``.
        base: what ``unet`` was loaded from.
    Returns:
        A new U-Net with LoRA, to be trained further, used or merged.
    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the files are not of one saving, or of another base; or as
            ``widen_conv_in``.
    """
    folder = Path(folder)
    if not (folder / CONV_IN).is_file():
        raise FileNotFoundError(
            f"There is no editor's adapter in {folder}: it lacks {CONV_IN}. Check the "
            "path, or train one and save_editor_lora it."
        )
    wide = load_lora(widen_conv_in(unet), folder, base)
    with safe_open(folder / CONV_IN, "pt") as file:
        adapter = (file.metadata() or {}).get("adapter")
    if adapter != _digest(folder):
        raise ValueError(
            f"The files in {folder} are not of one saving. Use another copy of it."
        )
    _with_conv_in(wide).conv_in.load_state_dict(load_file(folder / CONV_IN))
    return wide


def merge_editor_lora(unet: Any) -> UNet2DConditionModel:
    """Add the matrices to the weights for good, in float32: a stock 8-channel U-Net.

    Args:
        unet: from ``add_editor_lora`` or ``load_editor_lora``; changed in place.
    Returns:
        ``unet``, all of which may be trained.
    Raises:
        ValueError: it has no LoRA.
    """
    if lora_layers(unet):
        nn.Module.to(unet, dtype=torch.float32)
    return merge_lora(unet)
