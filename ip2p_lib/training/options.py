"""What a training gives up so that it fits a card (section 3.2; ours).

The authors trained on eight cards of 40 GB. AdamW in float32 with the average beside it
takes 17 GB for Stable Diffusion 1.5 before the first activation; ``memory_plan`` tells
which of these a smaller card needs, ``training.start`` does what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Economy:
    """Choices that trade speed or freedom for memory; the default gives up nothing.

    None of them but ``lora_rank`` and ``eight_bit`` changes a step by more than
    rounding. The weights that are trained, and their gradients, are always float32.
    """

    lora_rank: int | None = None  # train matrices of this rank beside a frozen U-Net
    eight_bit: bool = False  # AdamW's two averages in 8 bits instead of 32
    checkpointing: bool = False  # compute activations twice instead of keeping them
    ema_on_cpu: bool = False  # the average of the weights lies on the host
    autocast: torch.dtype | None = None  # from ``precision``; None computes in float32

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled, as float16's gradients need it."""
        return self.autocast is torch.float16

    @property
    def _precision(self) -> str | None:
        return next((name for name, t in HALVES.items() if t is self.autocast), None)

    def facts(self) -> dict[str, Any]:
        """The choices as JSON values, for the manifest of a checkpoint."""
        return vars(self) | {"autocast": self._precision}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Economy:
        """The opposite of ``facts``."""
        half = facts["autocast"]
        return cls(**{**facts, "autocast": HALVES[half] if half else None})

    @property
    def words(self) -> str:
        """What is done, in a few words."""
        kind = f"LoRA of rank {self.lora_rank}" if self.lora_rank else "all weights"
        parts = [
            kind,
            "8-bit AdamW" if self.eight_bit else "AdamW",
            self._precision or "float32",
        ]
        parts += ["checkpointed activations"] * self.checkpointing
        parts += ["average on the CPU"] * self.ema_on_cpu
        return ", ".join(parts)
