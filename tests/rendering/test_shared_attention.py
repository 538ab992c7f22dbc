"""Swapping q and k is the released code's copying of score maps, to 1e-12."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering.shared_attention import (
    SharedSelfAttnProcessor,
    is_active,
    share_self_attention,
    source_rows,
)
from tests.support.materialised_attention import MaterialisedSelfAttention


@pytest.fixture
def unet(tiny_backbone):
    return copy.deepcopy(tiny_backbone.unet).double()


@torch.no_grad()
def predict(unet, rows, size=(8, 8)):
    ids = torch.arange(rows)
    x = rng.normal(rng.key("p2p", "x"), ids, (4, *size)).double()
    text = rng.normal(rng.key("p2p", "text"), ids, (77, 16)).double()
    return unet(x, torch.tensor(500), text).sample


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("active", [[True], [True, False, True], [False, False]])
def test_it_equals_materialised_maps(unet, active, size):
    rows = 4 * len(active)
    with share_self_attention(unet) as state:
        state.source = source_rows(torch.tensor(active))
        ours = predict(unet, rows, size)
    MaterialisedSelfAttention(unet).active = active
    assert (ours - predict(unet, rows, size)).abs().max() < 1e-12


def test_sharing_changes_the_second_image_and_only_it(unet):
    plain = predict(unet, 8)
    with share_self_attention(unet) as state:
        state.source = source_rows(torch.tensor([True, False]))
        shared = predict(unet, 8)
    changed = (shared - plain).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False] * 2


@pytest.mark.parametrize("source", [None, torch.arange(8)])
def test_without_a_source_it_is_plain_attention(unet, source):
    unet.set_attn_processor(AttnProcessor2_0())
    plain = predict(unet, 8)
    with share_self_attention(unet) as state:
        assert state.source is None
        state.source = source
        assert (predict(unet, 8) - plain).abs().max() < 1e-13


def test_every_self_attention_and_no_cross_attention_is_replaced(unet):
    old = unet.attn_processors
    with pytest.raises(KeyboardInterrupt), share_self_attention(unet):
        for name, processor in unet.attn_processors.items():
            shared = isinstance(processor, SharedSelfAttnProcessor)
            assert shared == ("attn1" in name)
            assert shared or processor is old[name]
        raise KeyboardInterrupt
    new = unet.attn_processors
    assert old.keys() == new.keys()
    assert all(new[name] is old[name] for name in old), "they return, also on errors"


def test_a_source_of_another_size_is_refused(unet):
    with share_self_attention(unet) as state:
        state.source = source_rows(torch.tensor([True]))
        with pytest.raises(ValueError, match="rows"):
            predict(unet, 8)


def test_a_unet_without_transformer_blocks_is_refused():
    unet = SimpleNamespace(attn_processors={})
    with pytest.raises(ValueError, match="transformer"), share_self_attention(unet):
        pass


def test_a_new_source_at_each_step_compiles_nothing_again(unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(8), (64, 8)).double()
    with share_self_attention(unet) as state, torch.no_grad():
        for active in ([1, 1], [1, 0], [0, 0]):
            state.source = source_rows(torch.tensor(active))
            torch.testing.assert_close(block(x), compiled(x))
    assert counter.frame_count == 1


def test_rows_are_four_blocks_and_point_within_their_half():
    active = torch.tensor([True, False, True])
    assert source_rows(active).tolist() == [
        *[0, 1, 2],  # u0
        *[0, 4, 2],  # u1: pairs 0 and 2 use u0
        *[6, 7, 8],  # c0
        *[6, 10, 8],  # c1: and c0
    ]


def test_p_is_the_fraction_of_steps_that_share_and_they_come_first():
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    active = torch.stack([is_active(p, i, 100) for i in range(100)]).int()
    assert active.sum(dim=0).tolist() == [0, 10, 50, 90, 99]
    assert (active.diff(dim=0) <= 0).all()
    assert is_active(p[1:], 0, 1).all(), "a single step is shared"
