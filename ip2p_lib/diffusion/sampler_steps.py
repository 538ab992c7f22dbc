"""One formula for every sampler's step, so that rows of a batch may be at any step.

The samplers of ``diffusion`` walk a whole batch in step. With the noise level s of a
step and s' of the next, h = sqrt(1 + s^2), and x0 = h x - s e, all three of them are

    x' = (r h x + (1 - r) (x0 + a (x0 - x0_before)) + u z) / h'

They keep a share r of the noisy latent and go to the predicted x0 with the rest. What
differs are the numbers:

    ddim             r = s'/s          a = 0                     u = 0
    dpm_solver_pp    r = s'/s          a from the last two h's   u = 0
    euler_ancestral  r < s'/s, below the target, and u z of fresh noise back up to it

``step_table`` lists them for each step, ``advance`` takes a step of each row's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ip2p_lib.diffusion.samplers import Schedule, timesteps


def step_table(schedule: Schedule, steps: int, sampler: str) -> Tensor:
    """The numbers of every step: (steps, 7) float64, on the CPU.

    Returns:
        Columns t, h, s, r, a, u, h'; the first of u says whether noise is needed.
    Raises:
        ValueError: an unfit sampler or steps, see ``diffusion.timesteps``.
    """
    ts = timesteps(schedule, steps, sampler)
    sigmas = _levels(schedule, ts, sampler)
    rows, width_before = [], math.inf  # of the step before, in log sigma
    for t, s, target in zip(ts, sigmas[:-1], sigmas[1:], strict=True):
        down, up, ahead = target, 0.0, 0.0
        width = math.log(s / target) if target else math.inf
        if sampler == "euler_ancestral":
            up = target * math.sqrt(1 - (target / s) ** 2)
            down = math.sqrt(target**2 - up**2)
        elif sampler == "dpm_solver_pp" and not math.isinf(width):
            ahead = width / (2 * width_before)
        width_before = width
        row = (t, math.hypot(1, s), s, down / s, ahead, up, math.hypot(1, target))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _levels(schedule: Schedule, ts: list[float], sampler: str) -> list[float]:
    """Noise levels at which the steps begin, and the one at which the last ends."""
    known = [*schedule.sigmas.tolist(), 0.0]  # the last one needs a neighbour too
    levels = [(1 - t % 1) * known[int(t)] + t % 1 * known[int(t) + 1] for t in ts]
    # Stable Diffusion's DDIM ends at the first timestep, not at zero noise.
    return [*levels, known[0] if sampler == "ddim" else 0.0]


def begin(noise: Tensor, table: Tensor, sampler: str) -> Tensor:
    """The latent at which a walk begins, from unit normal noise (B, C, H, W)."""
    h, s = table[0, 1:3].tolist()
    # k-diffusion starts from noise of level s alone, without the h of a latent.
    return noise * (s / h) if sampler == "euler_ancestral" else noise


def advance(
    x: Tensor, eps: Tensor, x0_before: Tensor, z: Tensor | None, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step in every row.

    Args:
        x: (B, C, H, W) latents.
        eps: (B, C, H, W) predicted noise.
        x0_before: (B, C, H, W) prediction of the step before; anything at the first.
        z: (B, C, H, W) unit normal noise; None where no row adds any.
        numbers: (B, 7) each row's line of ``step_table``, on the device of ``x``.
    Returns:
        (B, C, H, W) latents after the step, and clean latents as predicted in it.
    """
    columns = numbers.to(x.dtype).T[1:].reshape(6, -1, 1, 1, 1)
    h, s, r, a, u, h_next = columns
    x0 = h * x - s * eps
    line = x0 + a * (x0 - x0_before)
    y = r * h * x + (1 - r) * line
    return (y if z is None else y + u * z) / h_next, x0
