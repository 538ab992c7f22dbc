"""Stable Diffusion 1.5's noise schedule and three samplers.

The paper builds on latent diffusion (section 3.2): a latent x_0 is hidden in noise,
x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, and a network learns to predict e from x_t. A
sampler walks back from pure noise, asking for e once a step. Read ``add_noise``, then
``ddim``, the shortest walk; the others change how far a step goes and whether noise is
added. They are generators, so plots and progress stay with the caller.

    a_t (alphas_cumprod)  share of signal at timestep t     e (eps)  unit normal noise
    x (x_t)  latent of unit variance at every t             x0       clean, as predicted
    sigma = sqrt((1 - a) / a)   noise level of x * sqrt(1 + sigma^2): signal weight one
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, t (B,)) -> eps, shaped like x_t
StepNoise = Callable[[int], Tensor]  # index of the step -> unit normal, shaped like x_t


@dataclass(frozen=True)
class Schedule:
    """``alphas_cumprod``, (T,) float64: share of signal, from nearly 1 to nearly 0."""

    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Schedule:
        """Stable Diffusion's schedule: sqrt(beta_t) rises linearly over T timesteps.
        Raises ValueError unless T >= 2 and 0 < beta_start <= beta_end < 1.
        """
        if T < 2 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"No schedule from {T=}, {beta_start=}, {beta_end=}.")
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls((1 - root**2).cumprod(0))

    @property
    def sigmas(self) -> Tensor:
        """(T,) float64 noise levels, rising with t."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def to(self, device: torch.device | str) -> Schedule:
        """This schedule on another device."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))


@dataclass(frozen=True)
class Step:
    """What a sampler knows after a step."""

    index: int  # 0 first
    t: Tensor  # (B,) timestep at which the network was asked
    x: Tensor  # (B, C, H, W) latent after the step
    x0: Tensor  # (B, C, H, W) clean latent, as predicted in this step


def _weights(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply x; sigma is linear between t."""
    low = t.long()
    high = (low + 1).clamp(max=len(schedule.alphas_cumprod) - 1)
    sigma = torch.lerp(schedule.sigmas[low], schedule.sigmas[high], t.double() - low)
    signal = (1 + sigma**2).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
    return signal.to(x.dtype), (1 - signal**2).sqrt().to(x.dtype)


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Hide a latent in noise, x_t (B, C, H, W): input of the loss of Eq. 1 (3.2).

    Args:
        schedule: on the device of ``t``.
        x0: (B, C, H, W) clean latent, scaled to unit variance.
        noise: (B, C, H, W) unit normal.
        t: (B,) timesteps in [0, T - 1]; real numbers are allowed, see ``timesteps``.
    """
    signal, rest = _weights(schedule, t, x0)
    return signal * x0 + rest * noise


def predict_x0(schedule: Schedule, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Solve ``add_noise`` for x_0 (B, C, H, W), given the noise ``eps`` in ``x_t``."""
    signal, rest = _weights(schedule, t, x_t)
    return (x_t - rest * eps) / signal


def timesteps(schedule: Schedule, steps: int, sampler: str) -> list[float]:
    """The ``steps`` timesteps at which a sampler asks the network, noisiest first.

    Spaced as ``diffusers`` does: "ddim" in whole multiples of T // steps plus 1,
    "dpm_solver_pp" rounded from T - 1 down to but without 0, "euler_ancestral" in
    real numbers from T - 1 to 0 (one step alone is from T - 1, as in k-diffusion).
    Raises ValueError for an unknown sampler, or steps that do not fit in T.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"Unknown sampler {sampler!r}; choose from {list(SAMPLERS)}.")
    T = len(schedule.alphas_cumprod)
    if not 1 <= steps < T:
        raise ValueError(f"steps must be 1 to {T - 1} for {T} timesteps, not {steps}.")
    if sampler == "ddim":
        return [1.0 + T // steps * i for i in reversed(range(steps))]
    if sampler == "dpm_solver_pp":
        return [float(round((steps - i) * ((T - 1) / steps))) for i in range(steps)]
    return [T - 1 - i * (T - 1) / max(steps - 1, 1) for i in range(steps)]


def _sigmas_at(schedule: Schedule, ts: list[float]) -> list[float]:
    """sigma at each timestep, linear in between, and 0 at the end of the walk."""
    # As numbers of Python, before the first step: no step then waits for a GPU.
    known = [*schedule.sigmas.tolist(), 0.0]  # the last one needs a neighbour too
    return [(1 - t % 1) * known[int(t)] + t % 1 * known[int(t) + 1] for t in ts] + [0.0]


def euler_ancestral(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    step_noise: StepNoise,
    *,
    start: int = 0,
) -> Iterator[Step]:
    """Step past the target, then add fresh noise back up to it: the paper's sampler.

    Source: k-diffusion's ``sample_euler_ancestral``, called by the released code. The
    appendix credits Karras' schedule, but that code spaces evenly in t, and so do we.

    Args:
        denoise: predicts the noise in x_t; called once a step.
        noise: (B, C, H, W) unit normal; or, if ``start`` > 0, x_t at that step.
        schedule: on any device.
        steps: of the whole walk.
        step_noise: unit normal noise of a step, shaped like ``noise``.
        start: first step taken. SDEdit enters with the ``add_noise`` of
            ``timesteps(schedule, steps, "euler_ancestral")[start]``.
    Yields the ``steps - start`` steps; the last one's ``x`` is the sample.
    """
    ts = timesteps(schedule, steps, "euler_ancestral")
    sigmas = _sigmas_at(schedule, ts)
    # y = x sqrt(1 + sigma^2); the first is noise alone, as in k-diffusion.
    y = noise * (math.hypot(1, sigmas[start]) if start else sigmas[0])
    for i in range(start, steps):
        sigma, target = sigmas[i], sigmas[i + 1]
        t = y.new_full(y.shape[:1], ts[i])
        eps = denoise(y / math.hypot(1, sigma), t)
        x0 = y - sigma * eps
        up = target * math.sqrt(1 - (target / sigma) ** 2)
        y = y + (math.sqrt(target**2 - up**2) - sigma) * eps
        if up > 0:
            y = y + up * step_noise(i)
        yield Step(i, t, y / math.hypot(1, target), x0)


def ddim(
    denoise: Denoiser, noise: Tensor, schedule: Schedule, steps: int, *, start: int = 0
) -> Iterator[Step]:
    """Predict x_0, then noise it again, less, with the same noise. No randomness.

    Source: Song et al., arXiv 2010.02502, Eq. 12; the last step goes to a_0, as Stable
    Diffusion's does, not to 1. Arguments and yields as in ``euler_ancestral``.
    """
    alphas, ts = schedule.alphas_cumprod.tolist(), timesteps(schedule, steps, "ddim")
    x = noise
    for i in range(start, steps):
        here, there = int(ts[i]), max(int(ts[i]) - len(alphas) // steps, 0)
        t = x.new_full(x.shape[:1], ts[i])
        eps = denoise(x, t)
        x0 = (x - math.sqrt(1 - alphas[here]) * eps) / math.sqrt(alphas[here])
        x = math.sqrt(alphas[there]) * x0 + math.sqrt(1 - alphas[there]) * eps
        yield Step(i, t, x, x0)


def dpm_solver_pp(
    denoise: Denoiser, noise: Tensor, schedule: Schedule, steps: int
) -> Iterator[Step]:
    """DPM-Solver++(2M): extrapolate the last two predictions of x_0 half a step.

    Source: Lu et al., arXiv 2211.01095, Algorithm 2. Arguments and yields as in
    ``euler_ancestral``, without entry midway: a step needs the one before.
    """
    ts = timesteps(schedule, steps, "dpm_solver_pp")
    sigmas = _sigmas_at(schedule, ts)
    x, x0_before, h_before = noise, noise, math.inf
    for i in range(steps):
        sigma, target = sigmas[i], sigmas[i + 1]
        t = x.new_full(x.shape[:1], ts[i])
        eps = denoise(x, t)
        x0 = x * math.hypot(1, sigma) - sigma * eps
        h = math.log(sigma / target) if target else math.inf
        # The first step has none before it and the last is infinite: both go straight.
        ahead = 0.0 if math.isinf(h) else h / (2 * h_before)
        line = x0 + ahead * (x0 - x0_before)
        y = target / sigma * math.hypot(1, sigma) * x - math.expm1(-h) * line
        x = y / math.hypot(1, target)
        x0_before, h_before = x0, h
        yield Step(i, t, x, x0)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "euler_ancestral": euler_ancestral,
    "ddim": ddim,
    "dpm_solver_pp": dpm_solver_pp,
}


def trajectory(
    sampler: str,
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    *,
    step_noise: StepNoise | None = None,
    start: int = 0,
) -> Iterator[Step]:
    """Start a sampler by name; arguments as in ``euler_ancestral``.

    Raises ValueError if sampler or steps are unfit (see ``timesteps``), if ``start`` is
    outside [0, steps) or given to "dpm_solver_pp", or "euler_ancestral" lacks noise.
    """
    timesteps(schedule, steps, sampler)
    if not 0 <= start < steps or (start and sampler == "dpm_solver_pp"):
        raise ValueError(f"{sampler} of {steps} steps cannot start at step {start}.")
    options: dict[str, object] = {"start": start} if start else {}
    if sampler == "euler_ancestral":
        if step_noise is None:
            raise ValueError(f"{sampler} needs noise at each step: pass step_noise.")
        options["step_noise"] = step_noise
    return SAMPLERS[sampler](denoise, noise, schedule, steps, **options)


def sample(
    sampler: str,
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    **options: Any,
) -> Tensor:
    """Walk to the end: the last (B, C, H, W) latent. Arguments as in ``trajectory``."""
    walk = trajectory(sampler, denoise, noise, schedule, steps, **options)
    return deque(walk, maxlen=1)[0].x
