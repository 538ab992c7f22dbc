"""Weights of the training loss by timestep, for ``train(weights=...)`` (section 3.2).

The paper weighs all timesteps alike; ``LOSS_WEIGHTINGS`` holds alternatives. In all of
them SNR = a / (1 - a) with a = alphas_cumprod, that is sigma ** -2.
"""

from collections.abc import Callable

from torch import Tensor

from ip2p_lib.diffusion.schedule import Schedule


def min_snr(schedule: Schedule, gamma: float = 5.0) -> Tensor:
    """Min-SNR weights, min(SNR, gamma) / SNR (Hang et al., arXiv 2303.09556).

    (T,) float64 in (0, 1]. They lower the weight of small timesteps, whose latents are
    almost clean and would take most of the gradient.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, not {gamma}; the paper's is 5.")
    snr = schedule.sigmas**-2
    return snr.clamp(max=gamma) / snr


def truncated_snr(schedule: Schedule, maximum: float = 30.0) -> Tensor:
    """Truncated SNR weights, max(SNR, 1) / SNR (Salimans and Ho, arXiv 2202.00512).

    (T,) float64, clamped at ``maximum`` and then scaled to mean 1. They turn the error
    of the noise into the error of x0 where noise prevails (SNR < 1), and so raise the
    weight of large timesteps, where an image gets its layout.
    """
    snr = schedule.sigmas**-2
    weights = (snr.clamp(min=1) / snr).clamp(max=maximum)
    return weights / weights.mean()


LOSS_WEIGHTINGS: dict[str, Callable[[Schedule], Tensor]] = {
    "min-snr": min_snr,
    "truncated-snr": truncated_snr,
}
