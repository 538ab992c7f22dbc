"""Attention with mapped values is Hertz et al.'s editing of maps, to 1e-12."""

import copy
from contextlib import ExitStack

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering import LocalBlend, WordEdit
from ip2p_lib.rendering.cross_attention import (
    EditedCrossAttnProcessor,
    attention_resolution,
    blend_mask,
    edit_cross_attention,
    edited_attention,
    token_attention,
)
from ip2p_lib.rendering.shared_attention import (
    SharedSelfAttnProcessor,
    share_self_attention,
    source_rows,
)
from ip2p_lib.rendering.word_edits import NO_BLEND, build_edit_tensors
from tests.support.materialised_attention import (
    MaterialisedCrossAttention,
    MaterialisedSelfAttention,
    Pair,
    mask,
    same,
)

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
def unet(tiny_backbone):
    """In float64, with attention that matters."""
    unet = copy.deepcopy(tiny_backbone.unet).double()
    for name, weight in unet.named_parameters():
        if "attn" in name:
            weight.data *= 3
    return unet


def inputs(rows, size):
    ids = torch.arange(rows)
    x = rng.normal(rng.key("words", "x"), ids, (4, *size)).double()
    text = rng.normal(rng.key("words", "text"), ids, (77, 16)).double()
    return x, torch.tensor(500), text


@torch.no_grad()
def predict(unet, rows, size=(8, 8)):
    return unet(*inputs(rows, size)).sample


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
    with edit_cross_attention(unet, edits, STEPS, size) as control:
        for step in (0, 5):
            control.set_step(step)
            ours[step] = predict(unet, rows, size)
    pairs = [pair for pair, _ in cases]
    reference = MaterialisedCrossAttention(tiny_backbone.tokenizer, pairs, unet)
    for step, result in ours.items():
        reference.active = [tau > step / (STEPS - 1) for _, tau in cases]
        assert (result - predict(unet, rows, size)).abs().max() < EXACT


def test_self_attention_may_be_shared_as_well(tiny_backbone, unet):
    active, edits = [True, False, True, True], edits_of(tiny_backbone, MIXED)
    with (
        share_self_attention(unet) as shared,
        edit_cross_attention(unet, edits, STEPS, (8, 8)) as control,
    ):
        shared.source = source_rows(torch.tensor(active))
        control.set_step(1)
        ours = predict(unet, 16)
    pairs = [pair for pair, _ in MIXED]
    cross = MaterialisedCrossAttention(tiny_backbone.tokenizer, pairs, unet)
    cross.active = [pair is not None for pair in pairs]
    MaterialisedSelfAttention(unet).active = active
    assert (ours - predict(unet, 16)).abs().max() < EXACT


def test_only_the_conditional_rows_of_active_pairs_change(tiny_backbone, unet):
    unet.set_attn_processor(AttnProcessor2_0())
    plain, edits = predict(unet, 16), edits_of(tiny_backbone, MIXED)
    with edit_cross_attention(unet, edits, STEPS, (8, 8)) as control:
        control.set_step(5)  # the swap is over
        edited = predict(unet, 16)
    changed = (edited - plain).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [False] * 12 + [False, False, True, True]


@pytest.mark.parametrize("step", [None, STEPS - 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_active_edits_attention_is_plain_to_the_last_bit(
    tiny_backbone, unet, step, dtype
):
    unet.to(dtype).set_attn_processor(AttnProcessor2_0())
    x, t, text = (i.to(dtype) for i in inputs(16, (8, 8)))
    edits = edits_of(tiny_backbone, MIXED)
    with torch.no_grad(), edit_cross_attention(unet, edits, STEPS, (8, 8)) as control:
        if step is not None:
            control.set_step(step)
        ours = unet(x, t, text).sample
    with torch.no_grad():
        assert torch.equal(ours, unet(x, t, text).sample)


def test_mapping_nothing_or_everything():
    q, k, v = (
        rng.normal(rng.key("qkv", name), torch.arange(4), (2, 6, 4)).double()
        for name in "qkv"
    )
    nothing, everything = torch.zeros(1, 6, 6).double(), torch.eye(6).double()[None]
    attention = torch.nn.functional.scaled_dot_product_attention
    plain = edited_attention(q, k, v, nothing, torch.ones(1, 6).double())
    assert torch.equal(plain, attention(q, k, v))
    injected = edited_attention(q, k, v, everything, torch.zeros(1, 6).double())
    assert torch.equal(injected[3], attention(q[2:3], k[2:3], v[3:])[0])
    assert torch.equal(injected[:3], attention(q, k, v)[:3])


@pytest.mark.parametrize("inner", ["cross", "self"])
def test_the_old_processors_return(tiny_backbone, unet, inner):
    """Also on errors, and whichever of the two kinds was entered last."""
    old, edits = unet.attn_processors, edits_of(tiny_backbone, MIXED)
    both = [
        share_self_attention(unet),
        edit_cross_attention(unet, edits, STEPS, (8, 8)),
    ]
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        for context in both if inner == "cross" else both[::-1]:
            stack.enter_context(context)
        for name, processor in unet.attn_processors.items():
            cross = "attn2" in name
            kind = EditedCrossAttnProcessor if cross else SharedSelfAttnProcessor
            assert isinstance(processor, kind)
        raise KeyboardInterrupt
    assert all(unet.attn_processors[name] is old[name] for name in old)


def test_a_batch_of_another_size_is_refused(tiny_backbone, unet):
    edits = edits_of(tiny_backbone, [SWAP])
    with edit_cross_attention(unet, edits, STEPS, (8, 8)) as control:
        control.set_step(0)
        with pytest.raises(ValueError, match="8 rows"):
            predict(unet, 8)


def test_a_new_step_compiles_nothing_again(tiny_backbone, unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[2].attentions[0].transformer_blocks[0].attn2
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(16), (4, 16)).double()
    text = inputs(16, (8, 8))[2]
    edits = edits_of(tiny_backbone, [SWAP, PLAIN, CHANGED, LONGER], threshold=0.3)
    with torch.no_grad(), edit_cross_attention(unet, edits, STEPS, (8, 8)) as control:
        for step in range(0, STEPS, 3):
            control.set_step(step)
            eager = block(x, text)
            once = control.attention_sum.clone()
            control.attention_sum.zero_()
            torch.testing.assert_close(compiled(x, text), eager)
            torch.testing.assert_close(control.attention_sum, once)
            control.attention_sum.zero_()
    assert once[0].sum() > 0 and counter.frame_count == 1


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_attention_to_words_is_summed_over_layers_and_steps(tiny_backbone, unet, size):
    pair = copy.deepcopy(SWAP[0])
    pair.blend_words = {"cat"}, {"the", "elephant"}
    words = {"before": ("cat",), "after": ("the elephant",)}
    edits = edits_of(tiny_backbone, [(pair, 0.3), PLAIN], **words)
    with edit_cross_attention(unet, edits, STEPS, size) as control:
        for step in (1, 7):
            control.set_step(step)
            predict(unet, 8, size)
        ours = control.attention_sum.clone()
    height, width = attention_resolution(unet, size)
    reference = MaterialisedCrossAttention(
        tiny_backbone.tokenizer, [pair, None], unet, height * width
    )
    for step in (1, 7):
        reference.active = [step < 3, False]
        predict(unet, 8, size)
    assert ours.sum() > 0
    assert (ours - reference.total.flatten(0, 1)).abs().max() < EXACT


def test_attention_to_tokens_is_their_columns_of_the_map():
    q, k = (
        rng.normal(rng.key("map", name), torch.arange(3), (2, n, 4)).double()
        for name, n in (("q", 5), ("k", 6))
    )
    tokens = torch.zeros(3, 6).double()
    tokens[0, 2] = tokens[1, [0, 4]] = 1
    maps = (q @ k.mT / 2).softmax(-1).mean(1)
    expected = [maps[0, :, 2], maps[1, :, 0] + maps[1, :, 4], torch.zeros(5)]
    ours = token_attention(q, k, tokens)
    assert (ours - torch.stack(expected)).abs().max() < EXACT


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
