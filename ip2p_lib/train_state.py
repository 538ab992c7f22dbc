"""All that training changes, by name: what a checkpoint must hold (section 3.2).

Draws need no place here: they are functions of the step (see ``draws``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ip2p_lib.ema import EMA, named_weights


@dataclass
class TrainState:
    """All that training changes; ``step`` counts the optimiser steps taken."""

    unet: nn.Module
    optimizer: torch.optim.AdamW
    ema: EMA
    failed: Tensor  # first step that was not finite, -1 so far; on the U-Net's device
    step: int = 0
    micro_batch: int | None = None  # halved when memory runs out; None is all at once

    def check(self) -> None:
        """Raise FloatingPointError if a step was not finite; waits for the GPU."""
        failed = int(self.failed)
        if failed >= 0:
            self.step = failed
            raise FloatingPointError(
                f"Step {failed + 1} was refused: its loss or gradient is NaN or "
                "infinite. Likely the learning rate is too high, or the autocast is "
                "float16, whose gradients overflow (none is scaled here). Resume from "
                "the last checkpoint, which is finite, with a lower rate, or with "
                "bfloat16 or no autocast."
            )

    def tensors(self) -> dict[str, Tensor]:
        """Name every tensor a run depends on; these are the live ones, not copies."""
        tensors: dict[str, Tensor] = {}
        for name, weight in named_weights(self.unet).items():
            tensors |= {f"unet/{name}": weight, f"ema/{name}": self.ema.weights[name]}
            for kind, tensor in self.optimizer.state[weight].items():
                tensors[f"{kind}/{name}"] = tensor
        return tensors

    def require_finite(self) -> None:
        """Raise FloatingPointError if anything to be saved is not finite.

        ``check`` sees losses and gradients; a huge rate makes infinite weights of
        finite gradients, and the loss shows that a step later.
        """
        self.check()
        tensors = self.tensors()
        norms = torch._foreach_norm(list(tensors.values()), float("inf"))
        if not torch.stack(norms).isfinite().all():
            pairs = zip(tensors, norms, strict=True)
            name = next(name for name, norm in pairs if not norm.isfinite())
            raise FloatingPointError(
                f"After step {self.step} {name} is NaN or infinite, so nothing was "
                "saved. Resume from the last checkpoint with a lower learning rate."
            )

    def facts(self) -> dict[str, Any]:
        """What is no tensor: the numbers that a checkpoint's manifest holds."""
        updates, parts = self.ema.updates, self.micro_batch
        return {"step": self.step, "ema_updates": updates, "micro_batch": parts}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over what ``tensors`` and ``facts`` once gave.

        Raises:
            ValueError: they are of another U-Net.
        """
        own = self.tensors()
        shapes = [{k: v.shape for k, v in t.items()} for t in (own, tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError("The checkpoint is of a U-Net with other weights.")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.step, self.ema.updates = facts["step"], facts["ema_updates"]
        self.micro_batch = facts.get("micro_batch")
        self.failed.fill_(-1)
