"""The average follows the released recursion and can be put into a U-Net."""

import pytest
import torch
from torch import nn

from ip2p_lib.training.ema import EMA


def test_the_average_is_the_released_recursion():
    layer, decay = nn.Linear(3, 2), 0.5
    ema = EMA(layer, decay)
    expected = layer.weight.detach().double().clone()
    for n in range(1, 12):
        with torch.no_grad():
            layer.weight.add_(0.1 * n)
        ema.update(layer, taken=torch.tensor(1.0))
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * layer.weight.detach().double()
    assert ema.updates == 11
    assert torch.allclose(ema.weights["weight"].double(), expected, atol=1e-6)


def test_an_average_on_the_cpu_has_the_same_numbers():
    layers = nn.Sequential(*(nn.Linear(2, 3) for _ in range(70)))  # more than one call
    near, on_cpu = EMA(layers, 0.9), EMA(layers, 0.9, "cpu")
    for n in range(5):
        with torch.no_grad():
            for weight in layers.parameters():
                weight.mul_(-1.1 + n)
        near.update(layers, taken=torch.tensor(1.0))
        on_cpu.update(layers, taken=torch.tensor(1.0))
    assert len(near.weights) == 140 and near.updates == on_cpu.updates
    for name, weight in near.weights.items():
        torch.testing.assert_close(on_cpu.weights[name], weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_never_settles_is_refused(decay):
    with pytest.raises(ValueError, match="ema_decay"):
        EMA(nn.Linear(1, 1), decay)
