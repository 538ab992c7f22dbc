"""The noise schedule of Stable Diffusion 1.5 (section 3.2).

Latent diffusion adds noise to a latent, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, and
trains a network to predict eps from x_t. The schedule says how much at each timestep.

    a_t (alphas_cumprod)  share of signal at timestep t    eps  unit normal noise
    x_t                   latent of unit variance          x_0  clean latent
    sigma = sqrt((1 - a_t) / a_t)   noise level, noise over signal
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """``alphas_cumprod``, (T,) float64: share of signal, from nearly 1 to nearly 0."""

    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Schedule:
        """Stable Diffusion's schedule: sqrt(beta_t) rises linearly over T timesteps."""
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls((1 - root**2).cumprod(0))

    @property
    def sigmas(self) -> Tensor:
        """(T,) float64 noise levels, rising with t."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def to(self, device: torch.device | str) -> Schedule:
        """This schedule on another device."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Noised latents x_t (B, C, H, W), the input of the training loss (3.2, Eq. 1).

    From clean latents x0 of unit variance, unit normal noise of the same shape, and
    timesteps t (B,) in [0, T - 1], on whose device the schedule is; sigma is linear
    between whole ones.
    """
    signal, rest = _weights(schedule, t, x0)
    return signal * x0 + rest * noise


def predict_x0(schedule: Schedule, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Predicted x_0 (B, C, H, W): ``add_noise`` solved for x_0, given its noise."""
    signal, rest = _weights(schedule, t, x_t)
    return (x_t - rest * eps) / signal


def _weights(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply x."""
    low = t.long()
    high = (low + 1).clamp(max=len(schedule.alphas_cumprod) - 1)
    sigma = torch.lerp(schedule.sigmas[low], schedule.sigmas[high], t.double() - low)
    signal = (1 + sigma**2).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
    return signal.to(x.dtype), (1 - signal**2).sqrt().to(x.dtype)
