"""One training run on several devices: each process takes a shard of every batch.

``torchrun``, ``accelerate launch`` or, from a notebook, ``launch`` start the processes;
``init`` creates the process group and ``shutdown`` destroys it. In a run of one process
the other functions do nothing. Random draws depend on the example, not on the process
(see ``rng``), so a run on two devices takes the steps of a run on one, up to rounding.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

# Its functions bind the default process group when they are imported, which would then
# outlive ``shutdown``. AdamW's first step imports them; here there is no group yet.
import torch.distributed.nn.functional
from torch import Tensor
from torch.multiprocessing import start_processes


def init(expected: int | None = None) -> torch.device:
    """Join the process group, if a launcher started this process.

    Returns this process's device: its own GPU where there are GPUs. Raises RuntimeError
    if another number of processes than ``expected`` was started: ``accelerate launch
    --cpu`` starts one, whatever its ``--num_processes`` says.
    """
    only_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_cpu = only_cpu or not torch.cuda.is_available()
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo" if on_cpu else "nccl")
    if expected not in (None, world_size()):
        raise RuntimeError(
            f"{expected} processes are needed, but {world_size()} share this run. "
            f"Start it by: torchrun --standalone --nproc_per_node {expected} ..."
        )
    if on_cpu:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def shutdown() -> None:
    """Destroy the process group: its threads may abort a process that exits."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(function: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Run ``function(*arguments)`` in several processes at once, from a notebook.

    They are forks of this process and may use what the notebook has defined; return
    values are lost, so ``function`` should write files. On several GPUs no GPU may have
    been used before. ProcessRaisedException says that one of them failed.
    """
    if torch.cuda.is_available() or processes == 1:
        from accelerate import notebook_launcher

        job = (function, processes, *arguments)
        notebook_launcher(_run_in_group, job, num_processes=processes)
        return
    with TemporaryDirectory() as folder:
        job = (folder, function, processes, *arguments)
        start_processes(_run_on_cpu, job, processes, start_method="fork")


def _run_on_cpu(index: int, folder: str, *job: Any) -> None:
    torch.set_num_threads(1)  # a forked process has lost its other threads
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names may not resolve
    processes = job[1]
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=index, world_size=processes)
    _run_in_group(*job)


def _run_in_group(
    function: Callable[..., None], processes: int, *arguments: Any
) -> None:
    init(processes)
    try:
        function(*arguments)
    finally:
        shutdown()


def rank() -> int:
    """This process's number; process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_shard(rows: Tensor) -> Tensor:
    """This process's rows of a batch (B, ...); shards differ by one row at most.

    Raises ValueError if there are more processes than rows.
    """
    if len(rows) < world_size():
        raise ValueError(
            f"A batch of {len(rows)} is too small for {world_size()} processes: each "
            "needs a row. Raise batch_size, or start fewer processes."
        )
    return rows.tensor_split(world_size())[rank()]


@torch.no_grad()
def all_reduce_sum(tensors: Iterable[Tensor | None]) -> None:
    """Replace each tensor by its sum over all processes, sent as one flat buffer."""
    present = [tensor for tensor in tensors if tensor is not None]
    if world_size() == 1 or not present:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in present])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in present])
    sums = [part.view_as(t) for t, part in zip(present, parts, strict=True)]
    torch._foreach_copy_(present, sums)


@torch.no_grad()
def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite each tensor by that of process 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def broadcast_scalar(value: float, device: torch.device) -> float:
    """Return process 0's ``value``, such as its clock, to every process."""
    if world_size() == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(number, src=0)
    return float(number)
