"""Device and dtype suit the machine; copies to a GPU are asynchronous."""

import pytest
import torch
from torch import Tensor

from ip2p_lib.device import (
    pick_autocast,
    pick_device,
    pick_dtype,
    to_device_async,
    without_cudnn_attention,
)


@pytest.fixture
def card(monkeypatch):
    """Pretend that this machine has a GPU of some kind."""

    def pretend(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: capability
        )

    return pretend


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("Tesla T4", (7, 5), torch.float16),
        ("A100", (8, 0), torch.bfloat16),
        ("H100", (9, 0), torch.bfloat16),
    ],
)
def test_a_card_gets_the_half_precision_it_has(card, name, capability, dtype):
    card(name, capability)
    assert pick_autocast("cuda") is dtype
    assert pick_autocast("cuda", torch.float32) is None
    assert pick_autocast("cuda", torch.float16) is torch.float16


def test_bfloat16_is_refused_where_a_card_emulates_it(card):
    card("Tesla T4", (7, 5))
    with pytest.raises(ValueError, match="T4 is older than Ampere"):
        pick_autocast("cuda", torch.bfloat16)


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_cpu_computes_in_bfloat16_only_in_hardware(monkeypatch, feature):
    features = {feature: False, "avx512_f": True, "cpu_name": "old"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    with pytest.raises(ValueError, match="slower than float32"):
        pick_autocast("cpu", torch.bfloat16)
    features[feature] = True
    assert pick_autocast("cpu", torch.bfloat16) is torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.13
    with pytest.raises(ValueError, match="slower than float32"):
        pick_autocast("cpu", torch.bfloat16)


def test_a_cpu_trains_in_float32_unless_told_and_never_in_float16():
    assert pick_autocast("cpu") is None
    with pytest.raises(ValueError, match="use a GPU"):
        pick_autocast("cpu", torch.float16)


def test_numbers_arrive_and_a_tensor_that_is_there_is_not_copied():
    tensor = torch.arange(3)
    assert to_device_async(tensor, "cpu") is tensor
    assert to_device_async([0.5, 2.0], "cpu").tolist() == [0.5, 2.0]


def test_a_copy_to_a_gpu_is_asynchronous_from_pinned_memory(monkeypatch):
    calls = []

    def pin(tensor):
        calls.append("pinned")
        return tensor

    def to(tensor, device, non_blocking=False):
        calls.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    to_device_async([1, 2], "cuda")
    assert calls == ["pinned", ("cuda", True)]


def test_the_device_is_checked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        pick_device("cuda")
    with pytest.raises(ValueError, match="'gpu' is no device"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_on_a_cpu(half):
    with pytest.raises(ValueError, match="is for GPUs"):
        pick_dtype(torch.device("cpu"), half)


def test_precision_on_a_gpu_follows_its_generation(monkeypatch):
    gpu, capability = torch.device("cuda"), (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_dtype(gpu) == torch.float16
    with pytest.raises(ValueError, match="no bfloat16"):
        pick_dtype(gpu, torch.bfloat16)
    capability = (8, 0)
    assert pick_dtype(gpu, torch.bfloat16) == torch.bfloat16


def test_cudnn_attention_is_off_inside_alone_and_after_an_error_too():
    enabled = torch.backends.cuda.cudnn_sdp_enabled

    @without_cudnn_attention()
    def inside(fails):
        assert not enabled()
        if fails:
            raise ArithmeticError

    before = enabled()
    inside(False)
    assert enabled() == before
    with pytest.raises(ArithmeticError):
        inside(True)
    assert enabled() == before
