"""How long training will take: guessed before it starts, measured after 20 steps (3.2).

Nobody can know beforehand what share of its speed a card brings into a U-Net, so the
guess is rough. A run's own steps are all alike, so a few of them tell the rest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

WARM_UP = 3  # steps in which a GPU's libraries and compilers make up their minds
# Of a card's speed in large products. An H100 that may use 15 GiB trains Stable
# Diffusion 1.5's U-Net, not compiled, at a tenth of it (``results/memory-cuda.json``).
SHARE = 0.1


def product_speed(
    device: torch.device | str, dtype: torch.dtype | None = None, size: int = 4096
) -> float:
    """Measure the operations a second of matrix products, for a fraction of a second.

    Args:
        device: the one that will train.
        dtype: that it will compute in; None is float32.
        size: of the square matrices; less on a CPU.
    """
    matrix = torch.ones(size, size, device=device, dtype=dtype or torch.float32)
    seconds = []
    for _ in range(WARM_UP + 3):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[WARM_UP:])


def guess_seconds(flops: int, speed: float, steps: int = 1) -> float:
    """Seconds that steps may take, if nothing is known but the speed of products.

    For Stable Diffusion 1.5 on a GPU, ``ENOUGH`` examples at once. A small U-Net, or a
    few examples, take several times as long: the device waits for the next operation.

    Args:
        flops: of a step: those of an example (``Plan.flops``) times the batch.
        speed: from ``product_speed``.
        steps: how many.
    """
    return steps * flops / (SHARE * speed)


def time_left(seconds: Sequence[float], steps: int) -> float:
    """Seconds that the rest of a run takes, judged by its first steps.

    Args:
        seconds: that each step so far took, the device being waited for; 20 are plenty.
            The first ``WARM_UP`` do not count.
        steps: still to be taken.

    Raises:
        ValueError: there are too few to judge by.
    """
    if len(seconds) <= WARM_UP:
        raise ValueError(
            f"{len(seconds)} steps say nothing: the first {WARM_UP} are slower. Ask "
            "again after 20."
        )
    return steps * statistics.median(seconds[WARM_UP:])


def duration(seconds: float) -> str:
    """A time in words, to two figures at least: ``"40 s"``, ``"2.5 h"``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{seconds:.0f} s"
