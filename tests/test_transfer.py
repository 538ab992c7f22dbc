"""What a GPU needs is sent from memory that it fetches from by itself."""

import pytest
import torch
from torch import Tensor

from ip2p_lib.device import to_device_async


def test_numbers_arrive_and_a_tensor_that_is_there_is_not_copied() -> None:
    tensor = torch.arange(3)
    assert to_device_async(tensor, "cpu") is tensor
    assert to_device_async([0.5, 2.0], "cpu").tolist() == [0.5, 2.0]


def test_a_gpu_fetches_from_pinned_memory_and_nobody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []

    def pin(tensor: Tensor) -> Tensor:
        done.append("pinned")
        return tensor

    def to(tensor: Tensor, device: str, non_blocking: bool = False) -> Tensor:
        done.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    to_device_async([1, 2], "cuda")
    assert done == ["pinned", ("cuda", True)]
