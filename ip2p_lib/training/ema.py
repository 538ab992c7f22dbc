"""Exponential moving average of the weights: the weights that edit (section 3.2).

Single steps are noisy, and the average of many is not. Source: the released
``ldm/modules/ema.py``, which updates the average once a micro-batch, so that gradient
accumulation shortens it; here it is updated once an optimiser step.
"""

import torch
from torch import Tensor, nn

CHUNK = 64  # tensors averaged by one call, and at most copied to the host at a time


def named_weights(unet: nn.Module, *, frozen: bool = False) -> dict[str, Tensor]:
    """Name the trained weights; the same names if ``unet`` is compiled or wrapped.

    ``frozen`` includes those that are not trained.
    """
    return {
        name.removeprefix("_orig_mod.").removeprefix("module."): weight
        for name, weight in unet.named_parameters()
        if weight.requires_grad or frozen
    }


class EMA:
    """Exponential moving average, w <- d w + (1 - d) weight, d rising to ``decay``.

    After n updates d = min(decay, (1 + n) / (10 + n)), so that a young average soon
    forgets its start.
    """

    def __init__(
        self, unet: nn.Module, decay: float, device: torch.device | str | None = None
    ) -> None:
        """Start from a copy of the trained weights of ``unet``.

        ``device`` is that of the average; None is that of the weights. On the CPU it
        takes no GPU memory, and each update copies the weights there.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {decay}; paper 0.9999.")
        weights = named_weights(unet).items()
        self.weights = {k: w.detach().to(device, copy=True) for k, w in weights}
        self.decay = decay
        anywhere = next(iter(self.weights.values()))
        self.updates = torch.zeros((), device=anywhere.device)  # float32, a count

    @torch.no_grad()
    def update(self, unet: nn.Module, taken: Tensor) -> None:
        """Move the average towards the weights of ``unet``.

        If the scalar ``taken`` is 0 instead of 1, nothing changes; it is read on its
        device, so that the host need not wait for a GPU.
        """
        step = taken.to(self.updates.device)
        self.updates += step
        rate = step * (9 / (10 + self.updates)).clamp(min=1 - self.decay)  # 1 - d
        average, weights = [*self.weights.values()], [*named_weights(unet).values()]
        for i in range(0, len(average), CHUNK):
            old, new = average[i : i + CHUNK], weights[i : i + CHUNK]
            new = [weight.to(a.device) for weight, a in zip(new, old, strict=True)]
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, rate)
            torch._foreach_add_(old, change)

    @torch.no_grad()
    def copy_to(self, unet: nn.Module) -> None:
        """Overwrite weights of ``unet``, trained or frozen, with their average."""
        own = named_weights(unet, frozen=True)
        for name, average in self.weights.items():
            own[name].copy_(average)
