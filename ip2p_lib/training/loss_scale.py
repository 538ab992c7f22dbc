"""Keeps gradients in float16's range while the editor is trained (section 3.2; ours).

float16 holds nothing between 0 and 6e-8, where many gradients lie, and nothing above
65,504. So the loss is multiplied by a scale before the backward pass and the gradients
are divided by it after; where they overflow, the step is skipped and the scale halved.
The rule is that of ``torch.amp.GradScaler`` ("Mixed precision training", arXiv
1710.03740). Written anew because that one halves for ever, does not count what it
skips, and gives its state only by waiting for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, LEAST = 2.0**16, 1.0  # scales
GROWTH_EVERY = 2000  # steps without an overflow, after which the scale is doubled
TRIES = 3  # steps skipped in a row at the least scale, after which to stop


class LossScale:
    """The scale and its history, as float32 scalars on the weights' device."""

    def __init__(self, device: torch.device | str) -> None:
        """Begin with a scale that the first steps may well have to halve."""
        self.scale = torch.tensor(FIRST, device=device)
        self.good = torch.zeros((), device=device)  # steps since the scale changed
        self.skipped = torch.zeros((), device=device)  # steps in the whole run
        self.stuck = torch.zeros((), device=device)  # skipped in a row at the least

    @property
    def hopeless(self) -> Tensor:
        """Whether smaller scales do not help: a scalar, bool."""
        return self.stuck >= TRIES

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, the live ones: what a checkpoint must hold."""
        return dict(vars(self))

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(gradients, 1 / self.scale)

    def update(self, bad: Tensor) -> None:
        """Choose the next step's scale.

        Args:
            bad: whether this step's gradients were not finite: a scalar, bool.
        """
        self.skipped = self.skipped + bad
        stuck = self.stuck + (self.scale <= LEAST)
        self.stuck = torch.where(bad, stuck, 0.0)
        self.good = torch.where(bad, 0.0, self.good + 1)
        grown = self.good >= GROWTH_EVERY
        self.good = torch.where(grown, 0.0, self.good)
        factor = torch.where(bad, 0.5, torch.where(grown, 2.0, 1.0))
        self.scale = (self.scale * factor).clamp(min=LEAST)
