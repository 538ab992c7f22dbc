"""The average of the weights over training, which is what edits (section 3.2).

Noise in the gradient makes the newest weights jump about; their exponential moving
average does not. Source: the released ``ldm/modules/ema.py``. It updates once a
micro-batch there, so that accumulating gradients shortens the average; here it updates
once an optimiser step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

AT_ONCE = 64  # weights averaged by one call, and at most copied to the host at a time


def named_weights(unet: nn.Module) -> dict[str, Tensor]:
    """Name the weights that are trained, alike if the U-Net is compiled or wrapped."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): weight
        for name, weight in unet.named_parameters()
        if weight.requires_grad
    }


class EMA:
    """Exponential moving average: w <- d w + (1 - d) weight, d rising up to ``decay``.

    With n updates done, d = min(decay, (1 + n) / (10 + n)): a young average forgets
    its random start quickly.
    """

    def __init__(
        self, unet: nn.Module, decay: float, device: torch.device | str | None = None
    ) -> None:
        """Start from a copy of the weights of ``unet`` that are trained.

        Args:
            decay: in [0, 1).
            device: where the average lies; None is beside the weights. On the CPU it
                takes nothing of a card, and every update copies the weights there.

        Raises:
            ValueError: ``decay`` is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {decay}; paper 0.9999.")
        self.decay, self.updates, self.device = decay, 0, device
        weights = named_weights(unet).items()
        self.weights = {k: w.detach().to(device, copy=True) for k, w in weights}

    @torch.no_grad()
    def update(self, unet: nn.Module) -> None:
        """Move a little towards the weights of ``unet``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average = list(self.weights.values())
        weights = list(named_weights(unet).values())
        for i in range(0, len(average), AT_ONCE):
            near = weights[i : i + AT_ONCE]
            if self.device is not None:
                near = _copied(near, self.device)
            torch._foreach_lerp_(average[i : i + AT_ONCE], near, 1 - decay)

    @torch.no_grad()
    def copy_to(self, unet: nn.Module) -> None:
        """Overwrite the weights of ``unet`` by the average."""
        for name, weight in named_weights(unet).items():
            weight.copy_(self.weights[name])


def _copied(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copy tensors; from a GPU through pinned memory, which it writes to by itself."""
    gpu = tensors[0].is_cuda and torch.device(device).type == "cpu"
    copies = [torch.empty_like(t, device=device, pin_memory=gpu) for t in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    if gpu:
        torch.cuda.synchronize(tensors[0].device)
    return copies
