"""How a training job uses its device: memory options, micro-batch size, compiling."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Integral, Real
from typing import Any

import torch

from ip2p_lib.checks import check_number
from ip2p_lib.device import pick_autocast
from ip2p_lib.distributed import world_size
from ip2p_lib.training.compiled import MODES
from ip2p_lib.training.state import TrainingOptions

FLAGS = ("gradient_checkpointing", "ema_on_cpu")


@dataclass(frozen=True)
class TrainingPlan:
    """What the flags and the device come to."""

    options: TrainingOptions
    micro_batch: int | None  # examples at once on a device; None is as many as fit
    compile_mode: str


def number(kind: type, low: float, **limits: Any) -> Callable[[str], Any]:
    """A type of ``argparse``: what ``check_number`` lets pass with these limits."""

    def parse(text: str) -> Any:
        """Convert the text, or say what range it must lie in."""
        value: Any = text  # which is no number
        with suppress(ValueError):
            value = kind(text)
        try:
            numbers = Integral if kind is int else Real
            check_number("it", value, low, kind=numbers, **limits)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return parse


positive = number(int, 1)
non_negative = number(int, 0)
above_zero = number(float, 0, above=True)


def multiple_of_8(text: str) -> int:
    """Parse a side in pixels that a latent can have."""
    if (side := positive(text)) % 8:
        raise argparse.ArgumentTypeError(f"must be a multiple of 8, not {text}")
    return int(side)


def assignment(text: str) -> tuple[str, str]:
    """Parse ``OURS=THEIRS``."""
    ours, equals, theirs = text.partition("=")
    if not (ours and equals and theirs):
        raise argparse.ArgumentTypeError(f"must be OURS=THEIRS, not {text}")
    return ours, theirs


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags on memory and compiling."""
    add = parser.add_argument_group("memory and speed").add_argument
    for name in FLAGS:
        add(f"--{name.replace('_', '-')}", action="store_true", help="saves memory")
    add("--lora-rank", type=positive, help="train LoRA of this rank; saves memory")
    add("--micro-batch", type=positive, help="examples at once on a device")
    modes = "of the U-Net; default: blocks on a GPU, none on a CPU"
    add("--compile", choices=MODES, help=modes)


def even_micro_batch(examples: int, at_most: int) -> int:
    """Micro-batch size that cuts a batch into equal parts, which are compiled once.

    It is the largest divisor of ``examples`` up to ``at_most``; or ``at_most`` if that
    divisor is below half of it: then the last part is compiled once more.
    """
    at_most = min(at_most, examples)
    even = next(n for n in range(at_most, 0, -1) if examples % n == 0)
    return even if 2 * even > at_most else at_most


def make_plan(
    args: argparse.Namespace, batch_size: int, device: torch.device
) -> TrainingPlan:
    """Decide how to train.

    Args:
        args: the command line.
        batch_size: examples of a step, on all processes.
        device: of this process.
    """
    flags = {name: getattr(args, name) for name in (*FLAGS, "lora_rank")}
    options = TrainingOptions(**flags, autocast=pick_autocast(device))
    micro_batch = args.micro_batch and even_micro_batch(
        -(-batch_size // world_size()), args.micro_batch
    )
    compilable = device.type == "cuda" and find_spec("triton")
    mode = args.compile or ("blocks" if compilable else "none")
    return TrainingPlan(options, micro_batch, mode)
