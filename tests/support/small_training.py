"""A training of six steps on noise: its settings, its schedule and its latents."""

import torch

from ip2p_lib.config import Training
from ip2p_lib.diffusion.schedule import Schedule
from ip2p_lib.training.latents import Latents

SETTINGS = Training(
    steps=6, batch_size=4, learning_rate=1e-3, warmup=4, ema_decay=0.99, drop=0.05
)
SCHEDULE = Schedule.scaled_linear()


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_latents(n=6, length=77, width=16):
    return Latents(
        target_mean=random(n, 2, 4, 8, 8, seed=1) * 4,
        target_logvar=random(n, 2, 4, 8, 8, seed=2) - 6,
        condition=random(n, 2, 4, 8, 8, seed=3) * 4,
        instruction=torch.arange(n) % 3,
        text=random(3, length, width, seed=4),
        null_text=random(1, length, width, seed=5),
        scaling_factor=0.18215,
    )


LATENTS = make_latents()
