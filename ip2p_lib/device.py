"""Choose the device and the precision, and copy tensors to the device (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BF16_CAPABILITY = (8, 0)  # older cards emulate bfloat16, and still claim to support it
# What makes a CPU multiply bfloat16 by itself, as torch.cpu.get_capabilities names it.
CPU_FEATURES = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or for None the GPU where there is one.

    Raises:
        ValueError: the name is no device, or asks for a GPU that torch cannot use.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device; use 'cpu' or 'cuda'.") from error
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but torch sees no GPU here; use 'cpu'.")
    return picked


def pick_dtype(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """The precision asked for, or float32 on a CPU and float16 on a GPU.

    Raises:
        ValueError: half precision on a CPU (slow, and partly missing), or bfloat16 on
            a GPU before Ampere, which only emulates it.
    """
    if device.type == "cpu":
        if dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{dtype} is for GPUs; leave dtype out on a CPU.")
        return dtype or torch.float32
    old = torch.cuda.get_device_capability(device) < BF16_CAPABILITY
    if dtype is torch.bfloat16 and old:
        raise ValueError("This GPU has no bfloat16; use torch.float16.")
    return dtype or torch.float16


def to_device_async(
    values: Tensor | Sequence[Any], device: torch.device | str
) -> Tensor:
    """Copy numbers to a device; the host does not wait.

    Args:
        values: a tensor, or numbers as ``torch.as_tensor`` takes them.
        device: where they are needed. What is there already is not copied.
    """
    tensor = torch.as_tensor(values)
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Precision:
    """What to give ``Economy`` as ``autocast``, and the reason in a sentence."""

    autocast: torch.dtype | None
    why: str


def choose_precision(
    device: str | torch.device | None = None, asked: torch.dtype | None = None
) -> Precision:
    """Choose how to train on a device, or check what was asked for.

    Args:
        device: None is the GPU where there is one.
        asked: ``torch.bfloat16``, ``float16`` or ``float32``; None takes bfloat16 on
            GPUs from Ampere up, float16 on older ones, and float32 on a CPU.

    Raises:
        ValueError: the device has no hardware for what was asked; or no such device.
    """
    place = pick_device(device)
    if asked is torch.float32:
        return Precision(None, "float32, as asked.")
    if place.type == "cpu":
        return _on_cpu(asked, _cpu_features())
    if place.type != "cuda":
        return _on_another(place, asked)
    name = torch.cuda.get_device_name(place)
    return _on_gpu(asked, name, torch.cuda.get_device_capability(place))


def _cpu_features() -> Mapping[str, Any]:
    """What torch knows of this CPU; torch before 2.13 may know nothing."""
    ask = getattr(torch.cpu, "get_capabilities", dict)
    features: Mapping[str, Any] = ask()
    return features


def _on_cpu(asked: torch.dtype | None, features: Mapping[str, Any]) -> Precision:
    if asked is None:
        return Precision(None, "float32: on a CPU it gives the same bits every time.")
    if asked is torch.float16:
        raise ValueError(
            "Training in float16 is for GPUs. On a CPU leave the precision out."
        )
    if not any(features.get(name) for name in CPU_FEATURES):
        raise ValueError(
            "This CPU is not known to multiply bfloat16 in hardware; torch emulates "
            "it, 14 to 28 times slower than float32. Leave the precision out, or use a "
            "GPU."
        )
    return Precision(torch.bfloat16, "bfloat16, as asked: this CPU multiplies it.")


def _on_gpu(
    asked: torch.dtype | None, name: str, capability: tuple[int, int]
) -> Precision:
    if capability >= BF16_CAPABILITY:
        kind = asked or torch.bfloat16
        why = "as asked" if asked else "the range of float32, so no loss is scaled"
        return Precision(kind, f"{str(kind)[6:]} on {name}: {why}.")
    if asked is torch.bfloat16:
        raise ValueError(
            f"{name} is older than Ampere and has no bfloat16 hardware; torch would "
            "emulate it. Leave the precision out: float16 with a scaled loss is taken."
        )
    why = "it is older than Ampere and would emulate bfloat16, so the loss is scaled"
    return Precision(torch.float16, f"float16 on {name}: {why}.")


def _on_another(place: torch.device, asked: torch.dtype | None) -> Precision:
    if asked is not None:
        raise ValueError(
            f"Half precision is not tried on {place.type}. Leave the precision out."
        )
    return Precision(None, f"float32: half precision is not tried on {place.type}.")
