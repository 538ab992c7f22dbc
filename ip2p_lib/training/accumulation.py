"""Take a step in parts that fit into memory, without changing what the step is.

The gradient of a batch is the sum of its parts' gradients, and every draw hangs on the
example (see ``draws``), so a batch cut into smaller parts is the same step up to
rounding: same examples, same noise, same batch size. Hence memory may run out in the
middle of a run. ``memory_plan`` foretells the size that fits; the released code asks
for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ip2p_lib.distributed import add_up
from ip2p_lib.training.state import TrainState

NO_ROOM = (
    "Not even one example fits into memory. Give up more (memory_plan.recommend says "
    "what: Economy(checkpointing=True), 8-bit AdamW or LoRA), use a smaller "
    "resolution, or free what other notebooks hold."
)
LESS_AT_ONCE = (
    "Memory ran out in step {} with {} examples at once. From here on {} at a time: "
    "the same batches and draws, their gradients added up, only slower."
)


def gradients(
    state: TrainState, visits: Tensor, backward: Callable[[Tensor], Tensor]
) -> Tensor:
    """Leave a batch's gradients on the weights, added up over parts and processes.

    If memory runs out, ``state.micro_batch`` is halved and the step begun again; a
    warning says so, once.

    Args:
        state: its weights have no gradients yet.
        visits: (B,) int64 of this process.
        backward: adds the gradients of some visits, and returns their share of the
            batch's loss.

    Returns:
        The loss of the whole batch, a scalar.

    Raises:
        torch.OutOfMemoryError: not even one example fits; says what to do.
    """
    first = size = state.micro_batch or len(visits)
    while (loss := _sum_of_parts(state, visits.split(size), backward)) is None:
        if size == 1:
            raise torch.OutOfMemoryError(NO_ROOM)
        state.micro_batch = size = (size + 1) // 2
    if size < first:
        warnings.warn(LESS_AT_ONCE.format(state.step + 1, first, size), stacklevel=3)
    add_up([loss, *(weight.grad for weight in state.unet.parameters())])
    return loss


def _sum_of_parts(
    state: TrainState,
    parts: tuple[Tensor, ...],
    backward: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """Give the loss of all parts, or None (and no gradients) if memory ran out."""
    try:
        return torch.stack([backward(part) for part in parts]).sum()
    except torch.OutOfMemoryError:
        state.optimizer.zero_grad()
        return None
