"""One training run on several devices: each process takes its share of every batch.

``torchrun`` or ``accelerate launch`` start the processes, ``join`` introduces them to
each other and ``leave`` parts them; every function here does nothing in a run of one
process. Draws hang on the example, not on the process (see ``draws``), so a run on two
devices takes the steps of a run on one, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> torch.device:
    """Meet the other processes of this run, if a launcher started any.

    Returns:
        This process's device: its own GPU where there are GPUs.
    """
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def leave() -> None:
    """Part from the other processes, once all work is done.

    Their connections have threads of their own, which must have ended before Python
    does: a process that exits with one running may abort.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 for the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(rows: Tensor) -> Tensor:
    """This process's part of the rows of a batch (B, ...), equal up to one row.

    Raises:
        ValueError: there are more processes than rows.
    """
    if len(rows) < processes():
        raise ValueError(
            f"A batch of {len(rows)} is too small for {processes()} processes: each "
            "needs a row. Raise batch_size, or start fewer processes."
        )
    return rows.tensor_split(processes())[rank()]


@torch.no_grad()
def add_up(tensors: Iterable[Tensor | None]) -> None:
    """Replace each tensor by its sum over all processes, in place.

    All travel as one flat buffer: a call for each of hundreds would only wait.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if processes() == 1 or not given:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in given])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in given])
    views = [part.view_as(t) for t, part in zip(given, parts, strict=True)]
    torch._foreach_copy_(given, views)


@torch.no_grad()
def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor by that of process 0, in place."""
    if processes() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def agree(value: float, device: torch.device) -> float:
    """The number that process 0 holds, such as its clock; waits for it."""
    if processes() == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(told, src=0)
    return float(told)
