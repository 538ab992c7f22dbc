"""One training run on several devices: each process takes its share of every batch.

``torchrun``, ``accelerate launch`` or, from a notebook, ``launch`` start the processes,
``join`` introduces them to each other and ``leave`` parts them; every other function
here does nothing in a run of one process. Draws hang on the example, not on the process
(see ``draws``), so a run on two devices takes the steps of a run on one, up to
rounding, and no two processes ever draw the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import torch.distributed as dist

# Its functions keep the group there is when they are imported, as a default, and then
# it would outlive ``leave``. AdamW's first step imports them; here there is none yet.
import torch.distributed.nn.functional
from torch import Tensor
from torch.multiprocessing import start_processes


def join(expected: int | None = None) -> torch.device:
    """Meet the other processes of this run, if a launcher started any.

    Args:
        expected: number of processes there must be; None is what the launcher was told.

    Returns:
        This process's device: its own GPU where there are GPUs.

    Raises:
        RuntimeError: there are fewer or more. ``accelerate launch --cpu`` starts a
            single one, whatever its ``--num_processes`` says, and does not tell.
    """
    on_cpu = _is_kept_off_gpus() or not torch.cuda.is_available()
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo" if on_cpu else "nccl")
    if expected is None and "RANK" not in os.environ and not dist.is_initialized():
        expected = _asked_of_the_launcher()
    if expected not in (None, processes()):
        raise RuntimeError(
            f"{expected} processes were asked for, but {processes()} share this run. "
            f"Start it by: torchrun --standalone --nproc_per_node {expected} ..."
        )
    if on_cpu:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def _is_kept_off_gpus() -> bool:
    """Whether accelerate was told to leave the GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def _asked_of_the_launcher() -> int | None:
    """What ``--num_processes`` said to an ``accelerate launch`` that started us."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # accelerate always sets it
        return None
    words = " ".join((psutil.Process().parent() or psutil.Process()).cmdline())
    found = re.search(r"--num[_-]processes[ =](\d+)", words)
    return int(found[1]) if found else None


def launch(work: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Run ``work(*arguments)`` in several processes at once, from a notebook.

    They are copies of this process, so ``work`` may use what the notebook has made;
    what it returns is lost, and it should leave files. On GPUs
    ``accelerate.notebook_launcher`` starts them, one each, and nothing may have touched
    a GPU before, unless it is to be one process, which is this one.

    Raises:
        RuntimeError: the launcher started another number of processes.
        ProcessRaisedException: ``work`` failed in one of them.
    """
    if torch.cuda.is_available() or processes == 1:
        from accelerate import notebook_launcher

        job = (work, processes, *arguments)
        notebook_launcher(_as_one_of, job, num_processes=processes)
        return
    with TemporaryDirectory() as meeting:
        job = (meeting, work, processes, *arguments)
        start_processes(_on_the_cpu, job, processes, start_method="fork")


def _on_the_cpu(index: int, meeting: str, *job: Any) -> None:
    """What every process does that ``launch`` started on the CPU."""
    torch.set_num_threads(1)  # a copied process has lost the others of its threads
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # names of hosts may not resolve
    processes = job[1]
    store = dist.FileStore(f"{meeting}/store", processes)
    dist.init_process_group("gloo", store=store, rank=index, world_size=processes)
    _as_one_of(*job)


def _as_one_of(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """What every launched process does."""
    join(processes)
    try:
        work(*arguments)
    finally:
        leave()


def leave() -> None:
    """Part from the other processes, once all work is done.

    Their connections have threads of their own, which must have ended before Python
    does: a process that exits with one running aborts now and then.
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
