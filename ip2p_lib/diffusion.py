"""Stable Diffusion 1.5's noise schedule and three samplers.

The paper builds on latent diffusion (section 3.2): a latent x_0 is hidden in noise,
x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, and a network learns to predict e from x_t. A
sampler walks back from pure noise, asking for e once a step. Read `add_noise`, then
`ddim`, the shortest walk; the other two change how far a step goes and whether fresh
noise is added. Samplers are generators, so plots and progress stay with the caller,
and they read the schedule before the first step, so no step waits for the device.

    a_t (alphas_cumprod)  share of signal at timestep t     e (eps)  unit normal noise
    x (x_t)  latent of unit variance at every t             x0       clean, as predicted
    sigma = sqrt((1 - a) / a)   noise level of x * sqrt(1 + sigma^2), whose signal has
             weight one: the scale in which Karras et al. and k-diffusion sample
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
    """`alphas_cumprod`, (T,) float64: the share of signal, from nearly 1 to nearly 0."""

    alphas_cumprod: Tensor

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Schedule:
        """Stable Diffusion's schedule: sqrt(beta_t) rises linearly over T timesteps.

        Raises:
            ValueError: not 0 < beta_start <= beta_end < 1, or T below 2.
        """
        if T < 2 or not 0 < beta_start <= beta_end < 1:
            wrong = f"T={T}, beta_start={beta_start}, beta_end={beta_end}"
            raise ValueError(f"T >= 2, 0 < beta_start <= beta_end < 1, not {wrong}.")
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls((1 - root**2).cumprod(0))

    @property
    def sigmas(self) -> Tensor:
        """(T,) float64 noise levels, rising with t."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule on another device."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))


@dataclass(frozen=True)
class Step:
    """What a sampler knows after step `index` (0 first).

    `t` (B,) is the timestep the network was asked at, `x` (B, C, H, W) the latent
    after the step and `x0` (B, C, H, W) the clean latent predicted in it.
    """

    index: int
    t: Tensor
    x: Tensor
    x0: Tensor


def _signal_and_noise(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply x; sigma is linear between t."""
    low = t.long()
    high = (low + 1).clamp(max=len(schedule.alphas_cumprod) - 1)
    sigma = torch.lerp(schedule.sigmas[low], schedule.sigmas[high], t.double() - low)
    signal = (1 + sigma**2).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
    return signal.to(x.dtype), (1 - signal**2).sqrt().to(x.dtype)


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Hide a latent in noise: the input of the latent diffusion loss (3.2, Eq. 1).

    Args:
        schedule: on the device of `t`.
        x0: (B, C, H, W) clean latent, scaled to unit variance.
        noise: (B, C, H, W) unit normal.
        t: (B,) timesteps in [0, T - 1]; real numbers are allowed, see `timesteps`.
    Returns:
        (B, C, H, W) x_t.
    """
    signal, rest = _signal_and_noise(schedule, t, x0)
    return signal * x0 + rest * noise


def predict_x0(schedule: Schedule, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Solve `add_noise` for x_0 (B, C, H, W), given the noise `eps` in `x_t`."""
    signal, rest = _signal_and_noise(schedule, t, x_t)
    return (x_t - rest * eps) / signal


def timesteps(schedule: Schedule, steps: int, sampler: str) -> list[float]:
    """The `steps` timesteps at which a sampler asks the network, noisiest first.

    Each is spaced as `diffusers` spaces it by default: "ddim" in whole multiples of
    T // steps plus an offset of 1, "dpm_solver_pp" rounded from T - 1 down to but
    without 0, "euler_ancestral" in real numbers from T - 1 to 0.

    Raises:
        ValueError: unknown sampler, or a number of steps that does not fit in T.
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
    known = schedule.sigmas.tolist()
    known.append(known[-1])  # a neighbour for the last one, never mixed in
    return [(1 - t % 1) * known[int(t)] + t % 1 * known[int(t) + 1] for t in ts] + [0.0]


def _rows(t: float, x: Tensor) -> Tensor:
    """One timestep for every row: (B,) of x's dtype."""
    return x.new_full(x.shape[:1], t)


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

    Source: k-diffusion's `sample_euler_ancestral` as the released
    `generate_img_dataset.py` and `edit_cli.py` call it. (The appendix credits Karras'
    schedule; the released code spaces evenly in t, and so do we.)

    Args:
        denoise: predicts the noise in x_t.
        noise: (B, C, H, W) unit normal; or, if `start` > 0, x_t at that step.
        schedule: on any device.
        steps: network evaluations of the whole walk.
        step_noise: unit normal noise of a step, shaped like `noise`.
        start: first step taken; SDEdit enters with `add_noise` at
            `timesteps(schedule, steps, "euler_ancestral")[start]`.
    Yields:
        One `Step` per network evaluation; the last one's `x` is the sample.
    """
    ts = timesteps(schedule, steps, "euler_ancestral")
    sigmas = _sigmas_at(schedule, ts)
    # y = x sqrt(1 + sigma^2). The first one is noise alone, as in k-diffusion: it
    # lacks the little signal that x_T has in training.
    y = noise * (math.hypot(1, sigmas[start]) if start else sigmas[0])
    for i in range(start, steps):
        sigma, target, t = sigmas[i], sigmas[i + 1], _rows(ts[i], y)
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

    Source: Song et al., arXiv 2010.02502, Eq. 12 with eta = 0; the last step goes to
    a_0 rather than to 1, as Stable Diffusion's does. Arguments and yields as in
    `euler_ancestral`.
    """
    alphas, ts = schedule.alphas_cumprod.tolist(), timesteps(schedule, steps, "ddim")
    x = noise
    for i in range(start, steps):
        here, there = int(ts[i]), max(int(ts[i]) - len(alphas) // steps, 0)
        t = _rows(ts[i], x)
        eps = denoise(x, t)
        x0 = (x - math.sqrt(1 - alphas[here]) * eps) / math.sqrt(alphas[here])
        x = math.sqrt(alphas[there]) * x0 + math.sqrt(1 - alphas[there]) * eps
        yield Step(i, t, x, x0)


def dpm_solver_pp(
    denoise: Denoiser, noise: Tensor, schedule: Schedule, steps: int
) -> Iterator[Step]:
    """DPM-Solver++(2M): extrapolate the last two predictions of x_0 half a step.

    Source: Lu et al., arXiv 2211.01095, Algorithm 2, ending at sigma 0. Arguments and
    yields as in `euler_ancestral`, but no entry midway: a step needs the one before.
    """
    ts = timesteps(schedule, steps, "dpm_solver_pp")
    sigmas = _sigmas_at(schedule, ts)
    x, x0_before, h_before = noise, noise, math.inf
    for i in range(steps):
        sigma, target, t = sigmas[i], sigmas[i + 1], _rows(ts[i], x)
        eps = denoise(x, t)
        x0 = x * math.hypot(1, sigma) - sigma * eps
        h = math.log(sigma / target) if target else math.inf
        # Neither the first step, with none before it, nor the last, an infinite one,
        # extrapolates.
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
    """Start a sampler by name; arguments as in `euler_ancestral`.

    Raises:
        ValueError: unknown sampler or misfit steps (see `timesteps`); `start` outside
            [0, steps), or given to "dpm_solver_pp"; "euler_ancestral" without noise.
    """
    timesteps(schedule, steps, sampler)
    if not 0 <= start < steps or (start and sampler == "dpm_solver_pp"):
        raise ValueError(f"{sampler} of {steps} steps cannot start at step {start}.")
    options: dict[str, object] = {"start": start} if start else {}
    if sampler == "euler_ancestral":
        if step_noise is None:
            raise ValueError("euler_ancestral adds noise at each step: pass step_noise.")
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
    """Walk to the end: the last latent, (B, C, H, W). Arguments as in `trajectory`."""
    walk = trajectory(sampler, denoise, noise, schedule, steps, **options)
    return deque(walk, maxlen=1)[0].x
