"""What a training run takes of its device: decided, and said before anything is long.

Without a word on memory ``memory_plan`` decides, and a resumed run keeps what it has.
Words on the command line decide instead, and the plan then tells what they take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch

from ip2p_lib.checkpoint import newest_state
from ip2p_lib.config import Training
from ip2p_lib.device import choose_precision
from ip2p_lib.distributed import agree, processes, rank
from ip2p_lib.training.compiled.compile import WAYS, even_part
from ip2p_lib.training.memory_plan import (
    LADDER,
    Plan,
    memory_of,
    plan_training,
    recommend,
)
from ip2p_lib.training.options import Economy
from ip2p_lib.training.timing import duration, guess_seconds, product_speed, time_left
from ip2p_lib.training.train import TrainStep
from ip2p_lib.training.validation import Look

FLAGS = ("eight_bit", "checkpointing", "ema_on_cpu")
TIMED = 20  # steps, whose time tells the rest


def positive(text: str) -> int:
    """A number of the command line, from 1 up."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the command line may say of memory and of compiling."""
    memory = parser.add_argument_group(
        "memory", "Without any of these the plan decides; a resumed run keeps its own."
    )
    add = memory.add_argument
    for name in FLAGS:
        option = f"--{name.replace('_', '-')}"
        add(option, action="store_true", help="takes less memory")
    add("--lora-rank", type=positive, help="train matrices of this rank")
    add("--micro-batch", type=positive, help="examples at once on a device")
    words = "of the U-Net; default: blocks on a GPU, none on a CPU"
    parser.add_argument("--compile", choices=WAYS, help=words)


def way_to_compile(args: argparse.Namespace, device: torch.device) -> str:
    """What was asked for; else blocks on a GPU whose compiler is installed."""
    usual = "blocks" if device.type == "cuda" and find_spec("triton") else "none"
    return args.compile or usual


def plan_of(
    args: argparse.Namespace,
    config: Mapping[str, Any],
    settings: Training,
    device: torch.device,
) -> Plan:
    """Decide how to train; every process of a run decides alike.

    Args:
        args: the command line.
        config: of the U-Net.
        settings: of the run.
        device: with the frozen networks on it, and not yet what is trained.
    Returns:
        A plan of the economy that was asked for, that the run so far had, or that fits.
    Raises:
        SystemExit: not one example fits, or the device has no hardware for the
            precision of the run so far; says what to do.
    """
    rows = -(-settings.batch_size // processes())
    memory = agree(memory_of(device), device)  # the first process has the least
    size = {
        "memory": int(memory) // (processes() if device.type == "cpu" else 1),
        "batch_size": rows,
        "resolution": settings.resolution,
    }
    economy = _asked(args, device) or _so_far(args, device)
    if economy is None and args.micro_batch:
        economy = Economy(autocast=choose_precision(device).autocast)
    plan = _recommended(config, device, size, economy)
    return plan_training(config, plan.economy, **size, at_most=parts_of(args, plan))


def parts_of(args: argparse.Namespace, plan: Plan) -> int:
    """Examples at once, in parts of one size: as asked for, or as many as fit."""
    return even_part(plan.batch_size, args.micro_batch or plan.micro_batch)


def _asked(args: argparse.Namespace, device: torch.device) -> Economy | None:
    """The economy that the command line names, if it names any."""
    choices = {name: getattr(args, name) for name in (*FLAGS, "lora_rank")}
    half = choose_precision(device).autocast
    return Economy(**choices, autocast=half) if any(choices.values()) else None


def _so_far(args: argparse.Namespace, device: torch.device) -> Economy | None:
    """The economy of the run that goes on, if the device can go on with it."""
    if "economy" not in (facts := _saved(args)):
        return None
    economy = Economy.of(facts["economy"])
    try:
        choose_precision(device, economy.autocast or torch.float32)
    except ValueError as error:
        raise SystemExit(
            f"The run so far is of {economy.words}, and would round otherwise from "
            f"here on. {error} Or name an economy, such as --checkpointing."
        ) from error
    return economy


def _saved(args: argparse.Namespace) -> dict[str, Any]:
    """What the newest checkpoint says of the run so far."""
    return newest_state(*(root for root in (args.out, args.mirror) if root)) or {}


def _recommended(
    config: Mapping[str, Any],
    device: torch.device,
    size: dict[str, int],
    economy: Economy | None,
) -> Plan:
    """The plan of an economy, or of the first that does; SystemExit if none."""
    half = choose_precision(device).autocast
    try:
        if economy is None:
            ways = _possible(device)
            return recommend(config, autocast=half, economies=ways, **size)
        plan = plan_training(config, economy, **size)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not plan.micro_batch:
        raise SystemExit(
            f"It does not fit: {plan.sentence} Give up more, by --checkpointing, "
            "--ema-on-cpu, --eight-bit or --lora-rank 16, or name none of them in a "
            "new folder, and the plan decides."
        )
    return plan


def _possible(device: torch.device) -> list[Economy]:
    """Of the ladder, what makes sense here: a CPU's average is on the CPU anyway."""
    gpu, eight_bit = device.type == "cuda", find_spec("bitsandbytes")
    return [
        economy
        for economy in LADDER
        if (gpu or not economy.ema_on_cpu) and (eight_bit or not economy.eight_bit)
    ]


def told(
    args: argparse.Namespace,
    plan: Plan,
    config: Mapping[str, Any],
    settings: Training,
    device: torch.device,
) -> str:
    """The plan in words: what fits, why no freer way does, and how long it takes."""
    steps = settings.steps - _saved(args).get("step", 0)
    large = 4096 if device.type == "cuda" else 512
    speed = product_speed(device, plan.economy.autocast, large)
    seconds = guess_seconds(plan.batch_size * plan.flops, speed, steps)
    where = f", on each of {processes()} devices" if processes() > 1 else ""
    return (
        f"Plan{where}: {plan.sentence}{_why(args, plan, config, settings)} Steps still "
        f"to be taken: {steps}, in about {duration(seconds)}, guessed from the speed "
        f"of products; the first {TIMED} will tell."
    )


def _why(
    args: argparse.Namespace, plan: Plan, config: Mapping[str, Any], settings: Training
) -> str:
    """What the freest way would take, unless it is this; and what was asked beyond."""
    free = plan_training(
        config,
        Economy(autocast=plan.economy.autocast),
        memory=plan.memory,
        batch_size=plan.batch_size,
        resolution=settings.resolution,
    )
    why = "" if plan.economy == free.economy else f" The freest: {free.sentence}"
    if (parts := parts_of(args, plan)) > plan.micro_batch:
        why += f" {parts} at once are asked for, and do not fit by this plan."
    return why


def with_time_left(
    steps: Iterable[tuple[TrainStep, Look | None]], last: int
) -> Iterator[tuple[TrainStep, Look | None]]:
    """Pass all on; after ``TIMED`` steps the first process says how long the rest is.

    Those steps wait for the device. What the caller does in between does not count.
    """
    seconds, began = list[float](), time.monotonic()
    for step, look in steps:
        if len(seconds) < TIMED:
            float(step.loss)
            seconds.append(time.monotonic() - began)
            left = last - step.step
            if len(seconds) == TIMED and left and rank() == 0:
                words = duration(time_left(seconds, left))
                print(f"{words} left for {left} steps, without saving", flush=True)
        yield step, look
        began = time.monotonic()
