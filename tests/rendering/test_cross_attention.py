"""Attention with mapped values is Hertz et al.'s editing of maps, to 1e-12."""

from contextlib import ExitStack

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering import LocalBlend, WordEdit
from ip2p_lib.rendering.cross_attention import (
    attention_resolution,
    blend_mask,
    edit_cross_attention,
)
from ip2p_lib.rendering.shared_attention import share_self_attention
from ip2p_lib.rendering.word_edits import NO_BLEND, build_edit_tensors
from tests.support.materialised_attention import (
    MaterialisedCrossAttention,
    Pair,
    mask,
    same,
)
from tests.support.small_rendering import exact_stable_diffusion, predict, unet_inputs

STEPS = 10
EXACT = 1e-12

# Each with the fraction of steps in which it is active.
SWAP = Pair([*same("a", "photo", "of", "the"), ("cat", "elephant")], "replace"), 0.3
LONGER = Pair([*same("a", "photo", "of", "the"), ("zebra", "cat")], "replace"), 0.7
ADDED = Pair([*same("the", "dog"), (None, "wearing"), (None, "hats"), *same("in")]), 0.7
CHANGED = Pair([("turn", "sit"), *same("the", "house"), ("bird", None)]), 1.0
REWEIGHTED = Pair(same("the", "dog", "in", "tree"), weights={"tree": -2, "dog": 0.5}), 1
WEIGHTED = Pair([("cat", "dog"), *same("on", "tree")], "replace", {"tree": 3}), 1.0
PLAIN = None, 0.0
MIXED = [SWAP, PLAIN, ADDED, REWEIGHTED]


@pytest.fixture
def unet(tiny_sd_folder):
    return exact_stable_diffusion(tiny_sd_folder).unet


def edits_of(backbone, cases, **blend):
    """The library's tensors for pairs that were written by hand."""
    edits, captions = [], []
    for pair, tau in cases:
        weights = tuple(pair.weights.items()) if pair else ()
        local = LocalBlend(**blend) if blend and pair else None
        edits.append(pair and WordEdit(pair.mode, tau, weights, local))
        captions.append(pair.captions if pair else ("a cat", "a dog"))
    return build_edit_tensors(backbone, edits, *zip(*captions, strict=True))


@pytest.mark.parametrize(
    ("cases", "size"),
    [
        *(([c], (8, 8)) for c in (SWAP, LONGER, ADDED, CHANGED, REWEIGHTED, WEIGHTED)),
        (MIXED, (8, 8)),
        (MIXED, (8, 12)),
    ],
)
def test_it_equals_materialised_maps(tiny_backbone, unet, cases, size):
    rows, ours = 4 * len(cases), {}
    edits = edits_of(tiny_backbone, cases)
    with edit_cross_attention(unet, edits, STEPS, size) as processor:
        for step in (0, 5):
            processor.set_step(step)
            ours[step] = predict(unet, rows, size)
    pairs = [pair for pair, _ in cases]
    reference = MaterialisedCrossAttention(tiny_backbone.tokenizer, pairs, unet)
    for step, result in ours.items():
        reference.active = [tau > step / (STEPS - 1) for _, tau in cases]
        assert (result - predict(unet, rows, size)).abs().max() < EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_active_edits_attention_is_plain_to_the_last_bit(
    tiny_backbone, unet, dtype
):
    unet.to(dtype).set_attn_processor(AttnProcessor2_0())
    x, t, text = (i.to(dtype) for i in unet_inputs(16))
    edits = edits_of(tiny_backbone, MIXED)
    with torch.no_grad(), edit_cross_attention(unet, edits, STEPS, (8, 8)) as processor:
        processor.set_step(STEPS - 1)
        ours = unet(x, t, text).sample
    with torch.no_grad():
        assert torch.equal(ours, unet(x, t, text).sample)


@pytest.mark.parametrize("order", [1, -1])
def test_layers_are_replaced_by_kind_and_return_on_errors(tiny_backbone, unet, order):
    old, edits, replaced = unet.attn_processors, edits_of(tiny_backbone, MIXED), {}
    editing = edit_cross_attention(unet, edits, STEPS, (8, 8))
    contexts = [("attn1", share_self_attention(unet)), ("attn2", editing)]
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        for kind, context in contexts[::order]:
            replaced[kind] = stack.enter_context(context)
            for name, processor in unet.attn_processors.items():
                assert processor is replaced.get(name.split(".")[-2], old[name])
        raise KeyboardInterrupt
    assert all(unet.attn_processors[name] is old[name] for name in old)


def test_a_batch_of_another_size_is_refused(tiny_backbone, unet):
    edits = edits_of(tiny_backbone, [SWAP])
    with (
        edit_cross_attention(unet, edits, STEPS, (8, 8)),
        pytest.raises(ValueError, match="8 rows"),
    ):
        predict(unet, 8)


def test_a_new_step_compiles_nothing_again(tiny_backbone, unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[2].attentions[0].transformer_blocks[0].attn2
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(16), (4, 16)).double()
    text = unet_inputs(16)[2]
    edits = edits_of(tiny_backbone, [SWAP, PLAIN, CHANGED, LONGER], threshold=0.3)
    with torch.no_grad(), edit_cross_attention(unet, edits, STEPS, (8, 8)) as processor:
        for step in range(0, STEPS, 3):
            processor.set_step(step)
            total = processor.attention_sum.zero_()
            eager, once = block(x, text), total.clone()
            torch.testing.assert_close(compiled(x, text), eager)
            torch.testing.assert_close(total, 2 * once)
    assert once[0].sum() > 0 and counter.frame_count == 1


@pytest.mark.parametrize(
    ("grid", "size"), [((6, 6), (16, 16)), ((5, 6), (10, 12)), ((5, 6), (9, 11))]
)
def test_the_mask_is_that_of_either_word(grid, size):
    ids = torch.arange(6)
    total = rng.uniform(rng.key("heat"), ids, (grid[0] * grid[1],)).double() ** 9
    total[1] = 0  # the second pair has no first word, the third none at all
    total[2] = total[5] = 0
    threshold = torch.tensor([0.5, 0.8, NO_BLEND])
    ours = blend_mask(total, grid, size, threshold)
    assert ours.shape == (3, 1, *size) and ours[2].all()
    for i, k in enumerate((0.5, 0.8)):
        first, second = (mask(total[n], grid, size, k) for n in (i, 3 + i))
        assert torch.equal(ours[i, 0], first | second)
        assert ours[i].any() and not ours[i].all()


def test_maps_have_the_released_codes_resolution():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        sd15 = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    assert attention_resolution(sd15, (64, 64)) == (16, 16)
    assert attention_resolution(sd15, (64, 90)) == (16, 23)
