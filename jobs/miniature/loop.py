"""The training loop of every network of the miniature, with a budget of wall time.

GPUs are rented by the minute, so a budget is in seconds, compilation included.
Several processes may train together, each on its own rows of a batch (see
``ip2p_lib.distributed``).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ip2p_lib.distributed import (
    all_reduce_sum,
    broadcast_scalar,
    broadcast_tensors,
    rank,
    world_size,
)

_CHECK_EVERY = 50  # steps between two reads of clock and loss, which wait for the GPU


@dataclass(frozen=True)
class Budget:
    """How long and how fast a network is trained."""

    seconds: float  # wall time
    learning_rate: float
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Progress:
    """State of a training run at one of its checks."""

    step: int
    seconds: float
    loss: float


def fit(
    model: nn.Module, loss_of: Callable[[int], Tensor], budget: Budget
) -> Iterator[Progress]:
    """Train with AdamW until the budget is spent: warm-up, then half a cosine.

    Args:
        model: everything that learns, in float32; changed in place.
        loss_of: the loss of a step, given its number; each process takes its own rows
            of the batch, the same number in each.
        budget: time and learning rate.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    start = time.monotonic()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=budget.learning_rate,
        weight_decay=budget.weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )
    broadcast_tensors(list(model.parameters()))
    seconds = broadcast_scalar(budget.seconds, device)
    step, spent = 0, 0.0  # so that the first step is the same in every run
    while spent < seconds:
        decay = 0.5 * (1 + math.cos(math.pi * min(spent / seconds, 1.0)))
        rate = budget.learning_rate * min(1.0, (step + 1) / budget.warmup) * decay
        optimizer.param_groups[0]["lr"] = rate
        loss = _take_step(model, optimizer, loss_of, step, budget.max_grad_norm)
        step += 1
        if step % _CHECK_EVERY == 0 or device.type == "cpu":
            spent = broadcast_scalar(time.monotonic() - start, device)
            yield Progress(step, spent, _finite(loss, step))


def _take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    step: int,
    max_grad_norm: float,
) -> Tensor:
    """One update from the gradients of all processes; returns their mean loss."""
    gpu = next(model.parameters()).is_cuda
    with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
        loss = loss_of(step) / world_size()
    loss.backward()
    total = loss.detach()
    all_reduce_sum([total, *(weight.grad for weight in model.parameters())])
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _finite(loss: Tensor, step: int) -> float:
    if not math.isfinite(value := float(loss)):
        raise FloatingPointError(
            f"The loss became {value} in step {step}. Lower the learning rate."
        )
    return value


def follow(progress: Iterator[Progress], name: str) -> Progress:
    """Train to the end, printing every ten seconds where the run stands."""
    last, printed = Progress(0, 0.0, float("nan")), -10.0
    for last in progress:
        if last.seconds - printed >= 10 and rank() == 0:
            text = f"{name} {last.seconds:.0f} s step {last.step} loss {last.loss:.4f}"
            print(text, flush=True)
            printed = last.seconds
    return last
