"""Compiles a U-Net's training step ahead of time, while its data is still being made.

Compilation takes as long as rendering the pictures does, and the two need different
parts of a machine. On a CPU nothing is compiled: there it takes longer than it saves.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from ip2p_lib.training.compiled.compile import compile_unet
from jobs.miniature.models import TEXT_WIDTH

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_UNTIMED, _TIMED = 4, 40  # steps on a GPU: its first ones are slow, compiled or not


def begin(unet: UNet2DConditionModel, rows: int, device: torch.device) -> Future[float]:
    """Move a U-Net to its device and compile its training step in the background.

    Args:
        unet: changed in place; use it only after the result is there.
        rows: of a batch, on this device.
        device: where it will be trained.

    Returns:
        The result is the number of steps a second, of forward and backward pass alone.
    """
    unet.to(device).train().requires_grad_(True)
    compile_unet(unet, "whole" if device.type == "cuda" else "none")
    worker = ThreadPoolExecutor(max_workers=1)
    rate = worker.submit(steps_a_second, unet, rows, device)
    worker.shutdown(wait=False)
    return rate


def steps_a_second(
    unet: UNet2DConditionModel, rows: int, device: torch.device
) -> float:
    """Time steps on zeros, shaped as training's batches are, after a few untimed ones.

    The first step is the one that compiles, if nothing has compiled the U-Net yet.

    Args:
        unet: on ``device``, in training mode; its gradients are set to none.
        rows: of a batch, on this device.
        device: where it is trained.
    """
    gpu, began = device.type == "cuda", 0.0
    untimed, timed = (_UNTIMED, _TIMED) if gpu else (1, 1)
    size = unet.config.sample_size
    sample = torch.zeros(rows, unet.config.in_channels, size, size, device=device)
    text = torch.zeros(rows, 77, TEXT_WIDTH, device=device)
    t = torch.zeros(rows, dtype=torch.int64, device=device)
    for step in range(1, untimed + timed + 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            eps = unet(sample, t, encoder_hidden_states=text, return_dict=False)[0]
            loss = eps.float().square().mean()
        loss.backward()
        unet.zero_grad()
        if step == untimed:
            _ = loss.item()  # waits for the GPU
            began = time.monotonic()
    _ = loss.item()
    return timed / (time.monotonic() - began)
