"""AdamW for the weights that are trained (section 3.2), its averages in 32 or 8 bits.

AdamW keeps two averages of every gradient, twice what the weights take. The package
``bitsandbytes`` keeps them as 8-bit numbers, each block of them with a scale of its own
("8-bit optimizers via block-wise quantization", arXiv 2110.02861): for Stable Diffusion
1.5 that is 1.8 GB instead of 6.9. It saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK, SMALLEST = 256, 4096  # of bitsandbytes: numbers that share a scale; else 32 bits


def adamw(
    weights: Sequence[Tensor], weight_decay: float, *, eight_bit: bool = False
) -> torch.optim.Optimizer:
    """Prepare AdamW, its state included, so that a resumed run has what to fill.

    Args:
        weights: float32, where they will be trained.
        weight_decay: of every weight alike, as the released code has it.
        eight_bit: needs the extra ``gpu``.

    Raises:
        ImportError: ``bitsandbytes`` is not installed.
    """
    if eight_bit:
        return _in_eight_bits(weights, weight_decay)
    optimizer = torch.optim.AdamW(weights, weight_decay=weight_decay, fused=True)
    for weight in weights:  # as the first step would
        kept = {k: torch.zeros_like(weight) for k in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weight] = {"step": weight.new_zeros(()).detach(), **kept}
    return optimizer


def _in_eight_bits(weights: Sequence[Tensor], weight_decay: float) -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "8-bit AdamW needs bitsandbytes, which is not installed. Install the extra "
            'gpu in the folder of this project (pip install -e ".[gpu]"), or train '
            "with LoRA, or with eight_bit=False."
        ) from error
    optimizer = AdamW8bit(weights, weight_decay=weight_decay)
    (group,) = optimizer.param_groups
    for i, weight in enumerate(weights):
        optimizer.init_state(group, weight, 0, i)
    return optimizer


def step_unless(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step, or change nothing.

    Args:
        bad: a scalar, bool, on the weights' device. The fused AdamW reads it there, as
            it does under GradScaler; for the 8-bit one the GPU must be waited for.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        optimizer.step()


def kept_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """What AdamW keeps of one weight and changes, by name: the live tensors."""
    return {
        name: tensor
        for name, tensor in optimizer.state[weight].items()
        if isinstance(tensor, Tensor) and not name.startswith("qmap")  # a constant
    }


def steps_taken(optimizer: torch.optim.Optimizer) -> int | None:
    """Steps that AdamW counts as a number, not as a tensor: one for all weights."""
    counts = {state["step"] for state in optimizer.state.values()}
    number = next(iter(counts), None)
    return number if isinstance(number, int) else None


def set_steps_taken(optimizer: torch.optim.Optimizer, number: int) -> None:
    """Go on counting from another number; the opposite of ``steps_taken``."""
    for state in optimizer.state.values():
        state["step"] = number


def bytes_kept(numel: int, *, eight_bit: bool = False) -> int:
    """Bytes that AdamW keeps of a weight of ``numel`` numbers."""
    if not eight_bit or numel < SMALLEST:
        return 8 * numel + 4 * (not eight_bit)
    return 2 * numel + 2 * 4 * -(-numel // BLOCK)
