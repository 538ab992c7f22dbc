"""Device and dtype suit the machine."""

import pytest
import torch

from ip2p_lib.device import (
    pick_autocast,
    pick_device,
    pick_dtype,
    to_device_async,
    without_cudnn_attention,
)

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("Tesla T4", (7, 5), torch.float16),
        ("A100", (8, 0), torch.bfloat16),
        ("H100", (9, 0), torch.bfloat16),
    ],
)
def test_a_card_trains_in_the_half_precision_it_has(
    monkeypatch, name, capability, dtype
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_device() == GPU
    assert pick_autocast("cuda") is dtype
    assert pick_autocast("cuda", torch.float32) is None
    assert pick_autocast("cuda", torch.float16) is pick_dtype(GPU) is torch.float16
    for pick in (pick_autocast, pick_dtype):
        if dtype is torch.bfloat16:
            assert pick(GPU, torch.bfloat16) is torch.bfloat16
        else:  # it would emulate it
            with pytest.raises(ValueError, match="bfloat16"):
                pick(GPU, torch.bfloat16)


def test_a_cpu_trains_in_bfloat16_only_in_hardware(monkeypatch):
    features = {"amx_bf16": True, "avx512_f": True, "cpu_name": "new"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert pick_autocast(CPU) is None
    assert pick_autocast(CPU, torch.bfloat16) is torch.bfloat16
    with pytest.raises(ValueError, match="use a GPU"):
        pick_autocast(CPU, torch.float16)
    features["amx_bf16"] = False
    with pytest.raises(ValueError, match="slower than float32"):
        pick_autocast(CPU, torch.bfloat16)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.13
    with pytest.raises(ValueError, match="slower than float32"):
        pick_autocast(CPU, torch.bfloat16)


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


def test_cudnn_attention_is_off_inside_alone_and_after_an_error_too():
    enabled = torch.backends.cuda.cudnn_sdp_enabled

    @without_cudnn_attention()
    def inside():
        assert not enabled()
        raise ArithmeticError

    before = enabled()
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            inside()
        assert enabled() == before
