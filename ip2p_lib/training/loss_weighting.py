"""What the loss is at each noise level, and what it counts there (section 3.2).

A batch's loss says first of all which timesteps were drawn: with little noise the noise
is hard to guess, with much it is easy (equation 1). So training sums its losses up in
bands of timesteps too, on the device and without waiting for it; a band's mean tells
learning where the batch's mean tells luck. ``min_snr`` weighs the timesteps, which the
paper does not do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ip2p_lib.diffusion.samplers import Schedule

BANDS = 4  # of equal width, from least to most noise


def band_names(T: int = 1000, bands: int = BANDS) -> list[str]:
    """What the bands of T timesteps are called, such as ``"t 0-249"``."""
    edges = [-(-i * T // bands) for i in range(bands + 1)]
    return [f"t {edges[i]}-{edges[i + 1] - 1}" for i in range(bands)]


def by_band(t: Tensor, losses: Tensor, T: int = 1000, bands: int = BANDS) -> Tensor:
    """Sum losses up by band.

    Args:
        t: (B,) timesteps in [0, T - 1].
        losses: (B,) of the same examples.
        T: number of timesteps.
        bands: of equal width.
    Returns:
        (2, bands) float32 on the device of ``losses``: sums, and numbers of examples.
    """
    band = torch.arange(bands, device=t.device)[:, None]
    inside = ((t * bands).long() // T == band).float()
    return torch.stack([inside @ losses.float(), inside.sum(1)])


def band_means(sums: Tensor, window: int = 1) -> Tensor:
    """Mean loss of every band over the last steps.

    Args:
        sums: (n, 2, bands), for each of n steps, at least 1, what ``by_band`` gave.
        window: steps that a mean reaches back, its own included; at least 1.
    Returns:
        (n, bands) float64 on the CPU; NaN where no example has fallen into the band.
    """
    early = sums.new_zeros(min(window, len(sums)) - 1, *sums.shape[1:])
    steps = torch.cat([early, sums]).double().cpu()
    summed, count = steps.unfold(0, len(early) + 1, 1).sum(-1).unbind(1)
    return summed / count


def min_snr(schedule: Schedule, gamma: float = 5.0) -> Tensor:
    """Weights of timesteps that spare those with little noise (Hang et al., 2023).

    min(SNR, gamma) / SNR with SNR = a / (1 - a), for a network that predicts the noise.
    Almost clean latents then no longer take most of the gradient. Section 3.2 has no
    weighting; gamma 5 is the authors' choice.

    Returns:
        (T,) float64 in (0, 1], on the schedule's device.
    Raises:
        ValueError: ``gamma`` is not positive.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, not {gamma}; its authors take 5.")
    a = schedule.alphas_cumprod
    snr = a / (1 - a)
    return snr.clamp(max=gamma) / snr
