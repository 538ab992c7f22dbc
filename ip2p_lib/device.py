"""Choose device and dtype, and copy tensors to the device asynchronously."""

from collections.abc import Sequence
from contextlib import ContextDecorator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16_CAPABILITY = (8, 0)  # older cards emulate bfloat16, and still claim to support it


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """Check a device; None chooses the GPU if there is one, else the CPU.

    Raises ValueError for a name of no device, or of a GPU that torch cannot use.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{device!r} is no device; use 'cpu' or 'cuda'.") from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(picked)!r}, but torch sees no GPU; use 'cpu'.")
    if picked.index and picked.index >= (there := torch.cuda.device_count()):
        raise ValueError(f"device={str(picked)!r}, but torch sees {there} GPUs.")
    if picked.type not in ("cpu", "cuda") and not _works(picked):
        raise ValueError(f"torch cannot use {str(picked)!r} here; use 'cpu'.")
    return picked


def _works(device: torch.device) -> bool:
    """Whether a number can be read back from a device, such as Apple's "mps"."""
    try:
        return bool(torch.ones(1, device=device).item())
    except (RuntimeError, NotImplementedError, AssertionError):
        return False


def pick_dtype(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """Check a dtype for inference; None chooses float32 on a CPU, float16 on a GPU.

    Raises:
        ValueError: half precision on a CPU (slow, and partly missing), or bfloat16 on
            a GPU before Ampere, which only emulates it.
    """
    if device.type == "cpu":
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{dtype} is for GPUs; leave dtype out on a CPU.")
        return dtype or torch.float32
    if dtype is torch.bfloat16 and half_precision(device) is not dtype:
        raise ValueError("This GPU has no bfloat16; use torch.float16.")
    return dtype or torch.float16


def to_device_async(
    values: Tensor | Sequence[Any], device: torch.device | str
) -> Tensor:
    """Copy numbers to a device from pinned memory, without waiting for the copy.

    ``values`` is what ``torch.as_tensor`` takes; a tensor already there is not copied.
    """
    tensor = torch.as_tensor(values)
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def without_cudnn_attention() -> ContextDecorator:
    """Decorate a function that is called with batches of many sizes.

    cuDNN, which torch prefers on a Hopper GPU, makes an attention plan for every new
    shape, and that takes longer than a batch of CLIP. The other kernels need no plan.
    """
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    decorator: ContextDecorator = sdpa_kernel([*fused, SDPBackend.MATH])
    return decorator


def pick_autocast(device: str | torch.device | None = None) -> torch.dtype | None:
    """The autocast dtype for training on a device; None is float32 throughout.

    ``device`` None is the GPU where there is one; errors as ``pick_device``.
    """
    picked = pick_device(device)
    return half_precision(picked) if picked.type == "cuda" else None


def half_precision(gpu: torch.device) -> torch.dtype:
    """bfloat16 from Ampere on (it has the range of float32), float16 on older cards."""
    new = torch.cuda.get_device_capability(gpu) >= BF16_CAPABILITY
    return torch.bfloat16 if new else torch.float16
