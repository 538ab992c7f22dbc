"""Training to a time budget, resumable: the loop that every pretraining stage uses.

Several processes may run it together, each with its share of a batch (``parallel``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ip2p_lib import checkpoint
from ip2p_lib.distributed import (
    all_reduce_sum,
    broadcast_scalar,
    broadcast_tensors,
    rank,
    world_size,
)

_LOOK_EVERY = 50  # steps between looks at clock and loss: a look waits for a GPU
_SAVE_EVERY = 180.0  # seconds


@dataclass(frozen=True)
class Budget:
    """How long and how fast one stage learns."""

    seconds: float  # wall time of all sittings together, compilation included
    learning_rate: float
    warmup: int = 200  # steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Progress:
    """Where a stage stands."""

    step: int
    seconds: float
    loss: float


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{index}/{name}": v for name, v in moments.items()}
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


@torch.no_grad()
def _restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    learned = list(model.parameters())
    for name, value in tensors.items():
        kind, rest = name.split("/", 1)
        if kind == "model":
            weights[rest] = value
            continue
        index, moment = rest.split("/")
        if value.dim():  # a file has lost the weight's layout, which AdamW insists on
            value = torch.empty_like(learned[int(index)]).copy_(value)
        moments.setdefault(int(index), {})[moment] = value
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _learning_rate(budget: Budget, step: int, seconds: float) -> float:
    """Linear warm-up by steps, then a half cosine over the time that is left."""
    share = min(seconds / budget.seconds, 1.0)
    decay = 0.5 * (1 + math.cos(math.pi * share))
    return budget.learning_rate * min(1.0, (step + 1) / budget.warmup) * decay


def fit(
    model: nn.Module, loss_of: Callable[[int], Tensor], budget: Budget, work: Path
) -> Iterator[Progress]:
    """Train until the budget is spent, going on from ``work`` if it holds a state.

    Args:
        model: everything that learns, in float32; changed in place.
        loss_of: the loss of one step, given its number; draws its own batch, of which
            each process takes a share of one size.
        budget: time and learning rate.
        work: folder of resumable states; one is written every few minutes and at the
            end.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    device = next(model.parameters()).device
    every = _LOOK_EVERY if device.type == "cuda" else 1
    optimizer = _adamw(model, budget)
    step, spent = _resume(model, optimizer, work)
    broadcast_tensors(list(model.parameters()))
    budget = replace(budget, seconds=broadcast_scalar(budget.seconds, device))
    start, saved = time.monotonic() - spent, spent
    while spent < budget.seconds:
        optimizer.param_groups[0]["lr"] = _learning_rate(budget, step, spent)
        loss = _step(model, optimizer, partial(loss_of, step), budget.max_grad_norm)
        step += 1
        if step % every:
            continue
        spent = broadcast_scalar(time.monotonic() - start, device)
        yield _look(step, spent, loss)
        if rank() == 0 and (spent - saved > _SAVE_EVERY or spent >= budget.seconds):
            facts = {"step": step, "seconds": spent}
            state = _state(model, optimizer)
            checkpoint.save(work / f"step-{step:07d}", state, facts)
            checkpoint.prune(work, keep=1)
            saved = spent


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    max_grad_norm: float,
) -> Tensor:
    """One update from the gradients of all processes; the loss is theirs, too."""
    gpu = next(model.parameters()).is_cuda
    with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
        loss = loss_of() / world_size()
    loss.backward()
    total = loss.detach()
    all_reduce_sum([total, *(weight.grad for weight in model.parameters())])
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _adamw(model: nn.Module, budget: Budget) -> torch.optim.AdamW:
    decay, betas = budget.weight_decay, (0.9, 0.99)
    return torch.optim.AdamW(
        model.parameters(), weight_decay=decay, betas=betas, fused=True
    )


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, work: Path
) -> tuple[int, float]:
    """Step and seconds to go on from, after loading the newest state if any."""
    found = checkpoint.latest(work)
    if found is None:
        return 0, 0.0
    _restore(model, optimizer, found.tensors)
    return found.state["step"], found.state["seconds"]


def _look(step: int, seconds: float, loss: Tensor) -> Progress:
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(
            f"The loss became {value} in step {step}. Lower the learning rate and "
            "start again from the last saved state."
        )
    return Progress(step, seconds, value)
