"""The average of the weights over training, which is what edits (section 3.2).

Noise in the gradient makes the newest weights jump about; their exponential moving
average does not. Source: the released ``ldm/modules/ema.py``. It updates once a
micro-batch there, so that accumulating gradients shortens the average; here it updates
once an optimiser step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def named_weights(unet: nn.Module) -> dict[str, Tensor]:
    """Name weights alike whether or not the U-Net is compiled or distributed."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): weight
        for name, weight in unet.named_parameters()
    }


class EMA:
    """Exponential moving average: w <- d w + (1 - d) weight, d rising up to ``decay``.

    With n updates done, d = min(decay, (1 + n) / (10 + n)): a young average forgets
    its random start quickly.
    """

    def __init__(self, unet: nn.Module, decay: float) -> None:
        """Start from a copy of the weights of ``unet``.

        Raises:
            ValueError: ``decay`` is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {decay}; paper 0.9999.")
        self.decay, self.updates = decay, 0
        self.weights = {k: w.detach().clone() for k, w in named_weights(unet).items()}

    @torch.no_grad()
    def update(self, unet: nn.Module) -> None:
        """Move a little towards the weights of ``unet``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = list(named_weights(unet).values())
        torch._foreach_lerp_(list(self.weights.values()), weights, 1 - decay)

    @torch.no_grad()
    def copy_to(self, unet: nn.Module) -> None:
        """Overwrite the weights of ``unet`` by the average."""
        for name, weight in named_weights(unet).items():
            weight.copy_(self.weights[name])
