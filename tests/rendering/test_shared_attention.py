"""Swapping q and k is the released code's copying of score maps, to 1e-12."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering.shared_attention import (
    is_active,
    share_self_attention,
    source_rows,
)
from tests.support.materialised_attention import MaterialisedSelfAttention
from tests.support.small_rendering import predict


@pytest.fixture
def unet(tiny_backbone):
    return copy.deepcopy(tiny_backbone.unet).double()


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("active", [[True], [True, False, True], [False, False]])
def test_it_equals_materialised_maps(unet, active, size):
    rows = 4 * len(active)
    with share_self_attention(unet) as processor:
        processor.source = source_rows(torch.tensor(active))
        ours = predict(unet, rows, size)
    MaterialisedSelfAttention(unet).active = active
    assert (ours - predict(unet, rows, size)).abs().max() < 1e-12


def test_a_source_of_another_size_and_a_unet_without_attention_are_refused(unet):
    with share_self_attention(unet) as processor:
        processor.source = source_rows(torch.tensor([True]))
        with pytest.raises(ValueError, match="rows"):
            predict(unet, 8)
    unet = SimpleNamespace(attn_processors={})
    with pytest.raises(ValueError, match="transformer"), share_self_attention(unet):
        pass


def test_a_new_source_at_each_step_compiles_nothing_again(unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(8), (64, 8)).double()
    with share_self_attention(unet) as processor, torch.no_grad():
        for active in ([1, 1], [1, 0], [0, 0]):
            processor.source = source_rows(torch.tensor(active))
            torch.testing.assert_close(block(x), compiled(x))
    assert counter.frame_count == 1


def test_p_is_the_fraction_of_steps_that_share_and_they_come_first():
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    active = torch.stack([is_active(p, i, 100) for i in range(100)]).int()
    assert active.sum(dim=0).tolist() == [0, 10, 50, 90, 99]
    assert (active.diff(dim=0) <= 0).all()
    assert is_active(p[1:], 0, 1).all(), "a single step is shared"
