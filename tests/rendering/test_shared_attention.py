"""Swapping q and k is the released code's copying of score maps, to 1e-12."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering.shared_attention import (
    SharedSelfAttention,
    is_active,
    sharing,
    source_rows,
)


@pytest.fixture
def unet(tiny_backbone):
    return copy.deepcopy(tiny_backbone.unet).double()


def inputs(rows, size=(8, 8)):
    ids = torch.arange(rows)
    x = rng.normal(rng.key("p2p", "x"), ids, (4, *size)).double()
    text = rng.normal(rng.key("p2p", "text"), ids, (77, 16)).double()
    return x, torch.tensor(500), text


@torch.no_grad()
def predict(unet, rows, size=(8, 8)):
    return unet(*inputs(rows, size)).sample


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize(
    "active", [[True], [True, False, True], [False, False], [True, True]]
)
def test_it_equals_materialised_maps(unet, materialised_sharing, active, size):
    rows = 4 * len(active)
    with sharing(unet) as state:
        state.source = source_rows(torch.tensor(active))
        ours = predict(unet, rows, size)
    materialised_sharing.active = active
    materialised_sharing.install(unet)
    assert (ours - predict(unet, rows, size)).abs().max() < 1e-12


def test_sharing_changes_the_second_picture_and_only_it(unet):
    plain = predict(unet, 8)
    with sharing(unet) as state:
        state.source = source_rows(torch.tensor([True, False]))
        shared = predict(unet, 8)
    changed = (shared - plain).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False] * 2


@pytest.mark.parametrize("source", [None, torch.arange(8)])
def test_without_a_source_it_is_plain_attention(unet, source):
    unet.set_attn_processor(AttnProcessor2_0())
    plain = predict(unet, 8)
    with sharing(unet) as state:
        assert state.source is None
        state.source = source
        assert (predict(unet, 8) - plain).abs().max() < 1e-13


def test_every_self_attention_and_no_cross_attention_is_replaced(unet):
    cross = [name for name in unet.attn_processors if "attn2" in name]
    old = {name: unet.attn_processors[name] for name in cross}
    with sharing(unet):
        ours = {
            name
            for name, processor in unet.attn_processors.items()
            if isinstance(processor, SharedSelfAttention)
        }
        assert all(unet.attn_processors[name] is old[name] for name in cross)
    assert ours == {name.replace("attn2", "attn1") for name in cross}
    assert len(ours) == 3 * 1 + 1 + 3 * 2  # down, middle and up blocks of this U-Net


def test_the_old_processors_return(unet):
    before = unet.attn_processors
    with pytest.raises(KeyboardInterrupt), sharing(unet):
        raise KeyboardInterrupt
    after = unet.attn_processors
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_source_of_another_size_is_refused(unet):
    with sharing(unet) as state:
        state.source = source_rows(torch.tensor([True]))
        with pytest.raises(ValueError, match="names 4 rows, the batch has 8"):
            predict(unet, 8)


def test_a_unet_without_transformer_blocks_is_refused():
    class Plain:
        attn_processors: dict[str, object] = {}  # noqa: RUF012

    with (
        pytest.raises(ValueError, match="no self-attention in a transformer block"),
        sharing(Plain()),
    ):
        pass


def test_a_new_source_at_each_step_compiles_nothing_again(unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(8), (64, 8)).double()
    expected = []
    with sharing(unet) as state, torch.no_grad():
        sources = [source_rows(torch.tensor(a)) for a in ([1, 1], [1, 0], [0, 0])]
        for source in sources:
            state.source = source
            expected.append((block(x), compiled(x)))
    assert counter.frame_count == 1
    for eager, graph in expected:
        torch.testing.assert_close(eager, graph)


def test_rows_are_four_blocks_and_point_within_their_half():
    active = torch.tensor([True, False, True])
    assert source_rows(active).tolist() == [
        *[0, 1, 2],  # u0
        *[0, 4, 2],  # u1: candidates 0 and 2 look at u0
        *[6, 7, 8],  # c0
        *[6, 10, 8],  # c1: and at c0
    ]


def test_p_is_the_share_of_steps_with_sharing():
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    counts = torch.stack([is_active(p, i, 100) for i in range(100)]).sum(dim=0)
    assert counts.tolist() == [0, 10, 50, 90, 99]


def test_sharing_comes_first_and_one_step_is_shared():
    p = torch.tensor([0.5], dtype=torch.float64)
    steps = [is_active(p, i, 10).item() for i in range(10)]
    assert steps == [True] * 5 + [False] * 5
    assert is_active(p, 0, 1).all()
