"""Device and dtype suit the machine."""

import pytest
import torch

from ip2p_lib.device import pick_autocast, pick_device, pick_dtype, to_device_async

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_card_trains_in_the_half_precision_it_has(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_device() == GPU
    assert pick_autocast("cuda") is dtype
    assert pick_autocast("cpu") is None and pick_dtype(GPU) is torch.float16
    if dtype is torch.bfloat16:
        assert pick_dtype(GPU, dtype) is dtype
    else:  # it would emulate it
        with pytest.raises(ValueError, match="bfloat16"):
            pick_dtype(GPU, torch.bfloat16)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_cpu_does_not_infer_in_half_precision(half):
    assert pick_dtype(CPU) is torch.float32
    with pytest.raises(ValueError, match="is for GPUs"):
        pick_dtype(CPU, half)


def test_the_device_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="no GPU"):
        pick_device("cuda")
    for name, says in (("gpu", "no device"), (1.5, "no device"), ("meta", "use 'cpu'")):
        with pytest.raises(ValueError, match=says):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:7', but torch sees 2 GPUs"):
        pick_device("cuda:7")


def test_numbers_arrive_and_a_tensor_that_is_there_is_not_copied():
    tensor = torch.arange(3)
    assert to_device_async(tensor, "cpu") is tensor
    assert to_device_async([0.5, 2.0], "cpu").tolist() == [0.5, 2.0]
