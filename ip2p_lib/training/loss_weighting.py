"""The training loss by timestep: bins to read it, weights to change it (section 3.2).

A batch's mean loss depends mostly on which timesteps were drawn: noise is hard to
predict at small t and easy at large t. The mean within a bin of timesteps shows
learning. The paper weighs all timesteps alike; ``LOSS_WEIGHTINGS`` holds alternatives,
for ``train(weights=...)``. In all of them SNR = a / (1 - a) with a = alphas_cumprod.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ip2p_lib.diffusion.schedule import Schedule

NUM_BINS = 4  # of equal width, from least to most noise


def bin_names(T: int = 1000, bins: int = NUM_BINS) -> list[str]:
    """Names of the timestep bins, such as ``"t 0-249"``."""
    edges = [-(-i * T // bins) for i in range(bins + 1)]
    return [f"t {edges[i]}-{edges[i + 1] - 1}" for i in range(bins)]


def bin_losses(
    t: Tensor, losses: Tensor, T: int = 1000, bins: int = NUM_BINS
) -> Tensor:
    """Sum the losses (B,) of examples within each bin of their timesteps t (B,).

    Returns:
        (2, bins) float32 on the device of ``losses``: sums, and numbers of examples.
    """
    number = torch.arange(bins, device=t.device)[:, None]
    inside = ((t * bins).long() // T == number).float()
    return torch.stack([inside @ losses.float(), inside.sum(1)])


def bin_means(sums: Tensor, window: int = 1) -> Tensor:
    """Running mean of the loss within each bin.

    Args:
        sums: (n, 2, bins), from ``bin_losses`` for each of n >= 1 steps.
        window: number of steps averaged, the current one included; at least 1.
    Returns:
        (n, bins) float64 on the CPU; NaN where no example fell into the bin.
    """
    early = sums.new_zeros(min(window, len(sums)) - 1, *sums.shape[1:])
    steps = torch.cat([early, sums]).double().cpu()
    total, count = steps.unfold(0, len(early) + 1, 1).sum(-1).unbind(1)
    return total / count


def _snr(schedule: Schedule) -> Tensor:
    return schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)


def min_snr(schedule: Schedule, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights, min(SNR, gamma) / SNR (Hang et al., arXiv 2303.09556).

    They lower the weight of small timesteps, whose latents are almost clean and would
    take most of the gradient.

    Returns:
        (T,) float64 in (0, 1], on the schedule's device.
    Raises:
        ValueError: ``gamma`` is not positive.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, not {gamma}; the paper's is 5.")
    snr = _snr(schedule)
    return snr.clamp(max=gamma) / snr


def truncated_snr(schedule: Schedule, maximum: float = 30.0) -> Tensor:
    """Truncated SNR weights, max(SNR, 1) / SNR (Salimans and Ho, arXiv 2202.00512).

    They turn the error of the noise into the error of x0 where noise prevails (SNR < 1)
    and raise the weight of large timesteps, where an image gets its layout.

    Args:
        schedule: the noise schedule.
        maximum: larger weights are set to this before they are scaled to mean 1.
    Returns:
        (T,) float64 with mean 1, on the schedule's device.
    """
    snr = _snr(schedule)
    weights = (snr.clamp(min=1) / snr).clamp(max=maximum)
    return weights / weights.mean()


LOSS_WEIGHTINGS: dict[str, Callable[[Schedule], Tensor]] = {
    "min-snr": min_snr,
    "truncated-snr": truncated_snr,
}
