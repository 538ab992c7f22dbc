"""To a GPU without waiting for it (ours): what it will need is sent while it works.

A copy from ordinary memory waits until a GPU has done all that was asked of it before,
since that memory may be swapped meanwhile. From pinned memory the GPU fetches by
itself, so the host prepares the next step while this one is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def sent(values: Tensor | Sequence[Any], device: torch.device | str) -> Tensor:
    """Copy numbers to a device; the host does not wait.

    Args:
        values: a tensor, or numbers as ``torch.as_tensor`` takes them.
        device: where they are needed. What is there already is not copied.
    """
    tensor = torch.as_tensor(values)
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
