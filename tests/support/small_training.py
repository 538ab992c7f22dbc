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


LATENTS = Latents(
    target_mean=random(6, 2, 4, 8, 8, seed=1) * 4,
    target_logvar=random(6, 2, 4, 8, 8, seed=2) - 6,
    condition=random(6, 2, 4, 8, 8, seed=3) * 4,
    text_row=torch.arange(6) % 3,
    text=random(3, 77, 16, seed=4),
    null_text=random(1, 77, 16, seed=5),
    scaling_factor=0.18215,
)
