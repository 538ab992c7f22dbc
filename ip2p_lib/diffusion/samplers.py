"""Three samplers, one formula: DDIM, DPM-Solver++ and Euler ancestral.

A sampler goes from noise to a clean latent in steps, calling the network once a step.
With s the noise level before a step and s' after it, h = sqrt(1 + s^2), and the
predicted clean latent x0 = h x - s eps, each of the three takes the step

    x' = (r h x + (1 - r) (x0 + a (x0 - x0_before)) + u z) / h'

It keeps a share r of the noisy latent, goes to the predicted x0 with the rest,
extrapolates that prediction by a, and adds u of fresh unit normal noise z:

    ddim             r = s'/s    a = 0                    u = 0
    dpm_solver_pp    r = s'/s    a from the last 2 steps  u = 0
    euler_ancestral  r < s'/s    a = 0                    u makes up for the smaller r

Read ``sampler_coefficients`` (which numbers), ``sampler_step`` (the formula above) and
``trajectory`` (the loop). The numbers may differ between the rows of a batch.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ip2p_lib.diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x_t, t (B,)) -> eps, shaped like x_t
StepNoise = Callable[[int], Tensor]  # index of the step -> unit normal, shaped like x_t
Coefficients = list[tuple[float, float, float]]  # (r, a, u) of each step
TIMESTEP, H, S, R, A, U, H_NEXT = range(7)  # columns of ``sampler_coefficients``


def ddim(sigmas: list[float]) -> Coefficients:
    """Predict x_0, then add the same noise again, less of it. No randomness.

    Source: Song et al., arXiv 2010.02502, Eq. 12.
    """
    return [(target / s, 0.0, 0.0) for s, target in pairwise(sigmas)]


def dpm_solver_pp(sigmas: list[float]) -> Coefficients:
    """DPM-Solver++(2M): extrapolate the last two predictions of x_0 half a step.

    Source: Lu et al., arXiv 2211.01095, Algorithm 2. The first step has no prediction
    before it and the last is infinitely long in log sigma: neither extrapolates.
    """
    rows, length_before = [], math.inf
    for s, target in pairwise(sigmas):
        length = math.log(s / target) if target else math.inf
        ahead = 0.0 if math.isinf(length) else length / (2 * length_before)
        rows.append((target / s, ahead, 0.0))
        length_before = length
    return rows


def euler_ancestral(sigmas: list[float]) -> Coefficients:
    """Step below the target noise level, then add fresh noise: the paper's sampler.

    Source: k-diffusion's ``sample_euler_ancestral``, called by the released code. The
    appendix credits Karras' schedule, but that code spaces evenly in t, and so do we.
    """
    rows = []
    for s, target in pairwise(sigmas):
        up = target * math.sqrt(1 - (target / s) ** 2)
        rows.append((math.sqrt(target**2 - up**2) / s, 0.0, up))
    return rows


@dataclass(frozen=True)
class Sampler:
    """An entry of ``SAMPLERS``; what else a sampler needs follows from its numbers."""

    rule: Callable[[list[float]], Coefficients]  # of steps + 1 noise levels
    timesteps: Callable[[int, int], list[float]]  # of T and steps, see ``timesteps``
    begins_without_signal: bool = False  # with noise of level s, not h
    ends_noisy: bool = False  # at the first timestep's noise level, not at zero


# Timesteps are spaced as ``diffusers`` does.
SAMPLERS = {
    "euler_ancestral": Sampler(
        euler_ancestral,  # in real numbers, from T - 1 to 0
        lambda T, n: [T - 1 - i * (T - 1) / max(n - 1, 1) for i in range(n)],
        begins_without_signal=True,  # as in k-diffusion
    ),
    "ddim": Sampler(
        ddim,  # in whole multiples of T // n, plus 1
        lambda T, n: [1.0 + T // n * i for i in reversed(range(n))],
        ends_noisy=True,  # as in Stable Diffusion
    ),
    "dpm_solver_pp": Sampler(
        dpm_solver_pp,  # rounded, from T - 1 down to but without 0
        lambda T, n: [float(round((n - i) * ((T - 1) / n))) for i in range(n)],
    ),
}


def timesteps(schedule: Schedule, steps: int, sampler: str) -> list[float]:
    """The timesteps at which a sampler calls the network, noisiest first.

    Raises ValueError for an unknown sampler, or steps outside [1, T - 1].
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"Unknown sampler {sampler!r}; choose from {list(SAMPLERS)}.")
    T = len(schedule.alphas_cumprod)
    if not 1 <= steps < T:
        raise ValueError(f"steps must be 1 to {T - 1} for {T} timesteps, not {steps}.")
    return SAMPLERS[sampler].timesteps(T, steps)


def sampler_coefficients(schedule: Schedule, steps: int, sampler: str) -> Tensor:
    """The numbers of every step, t, h, s, r, a, u, h': (steps, 7) float64 on the CPU.

    Only "euler_ancestral" has u > 0, in all rows but its last. Errors as ``timesteps``.
    """
    ts = timesteps(schedule, steps, sampler)
    known = [*schedule.sigmas.tolist(), 0.0]  # the last timestep needs a neighbour too
    sigmas = [(1 - t % 1) * known[int(t)] + t % 1 * known[int(t) + 1] for t in ts]
    sigmas.append(known[0] if SAMPLERS[sampler].ends_noisy else 0.0)
    h = [math.hypot(1, s) for s in sigmas]
    rules = zip(*SAMPLERS[sampler].rule(sigmas), strict=True)
    columns = [ts, h[:-1], sigmas[:-1], *rules, h[1:]]
    return torch.tensor(columns, dtype=torch.float64).T.contiguous()


def initial_latent(noise: Tensor, coefficients: Tensor, sampler: str) -> Tensor:
    """The latent at which a trajectory begins, from unit normal noise (B, C, H, W)."""
    h, s = coefficients[0, [H, S]].tolist()
    return noise * (s / h) if SAMPLERS[sampler].begins_without_signal else noise


def sampler_step(
    x: Tensor, eps: Tensor, x0_before: Tensor, z: Tensor | None, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step of any sampler; the rows of a batch may be at different steps.

    Args:
        x, eps: (B, C, H, W) latents, and the noise predicted in them.
        x0_before: (B, C, H, W) predicted x0 of the step before; anything at the first.
        z: (B, C, H, W) unit normal noise; None where no row adds any.
        coefficients: (7,) for all or (B, 7), rows of ``sampler_coefficients``.
    Returns:
        Latents after the step, and the clean latents predicted in it.
    """
    columns = coefficients.to(x).reshape(-1, 7).T[1:]
    h, s, r, a, u, h_next = columns.reshape(6, -1, *[1] * (x.ndim - 1))
    x0 = h * x - s * eps
    y = r * h * x + (1 - r) * (x0 + a * (x0 - x0_before))
    return (y if z is None else y + u * z) / h_next, x0


@dataclass(frozen=True)
class Step:
    """The result of one step."""

    index: int  # 0 first
    t: Tensor  # (B,) timestep at which the network was called
    x: Tensor  # (B, C, H, W) latent after the step
    x0: Tensor  # (B, C, H, W) clean latent, as predicted in this step


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
    """Sample step by step: a generator, so that plots and progress stay outside.

    Args:
        sampler: a key of ``SAMPLERS``.
        denoise: predicts the noise in x_t; called once a step, in order.
        noise: (B, C, H, W) unit normal; or, if ``start`` > 0, x_t at that step.
        schedule, steps: of the whole trajectory.
        step_noise: unit normal noise of a step, if any step adds some.
        start: first step taken, from x_t at ``timesteps(...)[start]`` (SDEdit).
    Returns:
        Iterator of the steps from ``start`` on; the last one's ``x`` is the sample.
    """
    coefficients = sampler_coefficients(schedule, steps, sampler)
    if not 0 <= start < steps or coefficients[start, A]:  # which needs the step before
        raise ValueError(f"{sampler} of {steps} steps cannot start at step {start}.")
    if step_noise is None and coefficients[start:, U].any():
        raise ValueError(f"{sampler} needs noise at each step: pass step_noise.")

    def run() -> Iterator[Step]:
        """Take the steps; a generator of its own, so that bad arguments raise now."""
        x = x0 = noise if start else initial_latent(noise, coefficients, sampler)
        on_device = coefficients.to(x)  # copied once: no step waits for a GPU
        for i in range(start, steps):
            timestep, *_, u, _ = coefficients[i].tolist()
            t = x.new_full(x.shape[:1], timestep)
            z = step_noise(i) if step_noise and u else None
            x, x0 = sampler_step(x, denoise(x, t), x0, z, on_device[i])
            yield Step(i, t, x, x0)

    return run()


def sample(sampler: str, denoise: Denoiser, *args: Any, **options: Any) -> Tensor:
    """The last latent (B, C, H, W) of ``trajectory``; the same arguments."""
    return deque(trajectory(sampler, denoise, *args, **options), maxlen=1)[0].x
