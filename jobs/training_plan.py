"""How a training job uses its device: memory options, micro-batch size, compiling."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

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


def number(
    kind: type, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[str], Any]:
    """A type of ``argparse``: a number in [low, high), or in (low, high)."""

    def parse(text: str) -> Any:
        """Convert the text, or say what range it must lie in."""
        try:
            value = kind(text)
        except ValueError as error:
            name = "a whole number" if kind is int else "a number"
            message = f"must be {name}, not {text!r}"
            raise argparse.ArgumentTypeError(message) from error
        if not (low < value if above else low <= value) or not value < high:
            bound = "above" if above else "at least"
            limit = f" and below {high}" if high < math.inf else " and finite"
            message = f"must be {bound} {low}{limit}, not {text}"
            raise argparse.ArgumentTypeError(message)
        return value

    return parse


positive = number(int, 1)
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
