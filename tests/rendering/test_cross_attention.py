"""Fused attention on routed values is Hertz et al.'s editing of maps, to 1e-12."""

import copy
from contextlib import ExitStack

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib import rng
from ip2p_lib.rendering.cross_attention import (
    EditedCrossAttention,
    edited_attention,
    map_grid,
    word_control,
)
from ip2p_lib.rendering.shared_attention import (
    SharedSelfAttention,
    sharing,
    source_rows,
)
from ip2p_lib.rendering.word_edits import LocalBlend, WordEdit, plan
from tests.support.materialised_words import MaterialisedWords, Pair

STEPS = 10
EXACT = 1e-12


def same(*words):
    return [(word, word) for word in words]


# Each with the share of steps in which it is active.
SWAP = Pair([*same("a", "photo", "of", "the"), ("cat", "elephant")], "replace"), 0.3
LONGER = Pair([*same("a", "photo", "of", "the"), ("zebra", "cat")], "replace"), 0.7
ADDED = Pair([*same("the", "dog"), (None, "wearing"), (None, "hats"), *same("in")]), 0.7
CHANGED = Pair([("turn", "sit"), *same("the", "house"), ("bird", None)]), 1.0
REWEIGHTED = Pair(same("the", "dog", "in", "tree"), weights={"tree": -2, "dog": 0.5}), 1
WEIGHED_SWAP = Pair([("cat", "dog"), *same("on", "tree")], "replace", {"tree": 3}), 1.0
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


def planned(backbone, cases, **blend):
    """The library's plan for pairs that were written by hand."""
    edits, captions = [], []
    for pair, tau in cases:
        weights = tuple(pair.weights.items()) if pair else ()
        local = LocalBlend(**blend) if blend and pair else None
        edits.append(pair and WordEdit(pair.kind, tau, weights, local))
        captions.append(pair.captions if pair else ("a cat", "a dog"))
    return plan(backbone, edits, *zip(*captions, strict=True))


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize(
    "cases",
    [
        *([case] for case in (SWAP, LONGER, ADDED, CHANGED, REWEIGHTED, WEIGHED_SWAP)),
        MIXED,
    ],
    ids=["swap", "longer", "added", "changed", "reweighted", "weighed", "mixed"],
)
def test_it_equals_materialised_maps(tiny_backbone, unet, cases, size):
    rows = 4 * len(cases)
    reference = MaterialisedWords(tiny_backbone.tokenizer, [c[0] for c in cases], 0)
    made = planned(tiny_backbone, cases)
    ours = {}
    with word_control(unet, made, STEPS, size) as control:
        for step in (0, 5):
            control.begin(step)
            ours[step] = predict(unet, rows, size)
    reference.install(unet)
    for step, found in ours.items():
        reference.active = [tau > step / (STEPS - 1) for _, tau in cases]
        assert (found - predict(unet, rows, size)).abs().max() < EXACT


def test_self_attention_may_be_shared_as_well(
    tiny_backbone, unet, materialised_sharing
):
    active = [True, False, True, True]
    with (
        sharing(unet) as shared,
        word_control(unet, planned(tiny_backbone, MIXED), STEPS, (8, 8)) as control,
    ):
        shared.source = source_rows(torch.tensor(active))
        control.begin(1)
        ours = predict(unet, 16)
    pairs = [pair for pair, _ in MIXED]
    reference = MaterialisedWords(tiny_backbone.tokenizer, pairs, 0)
    reference.active = [pair is not None for pair in pairs]
    materialised_sharing.active = active
    materialised_sharing.install(unet)
    reference.install(unet)
    assert (ours - predict(unet, 16)).abs().max() < EXACT


def test_only_the_conditional_rows_of_active_pairs_change(tiny_backbone, unet):
    unet.set_attn_processor(AttnProcessor2_0())
    plain = predict(unet, 16)
    with word_control(unet, planned(tiny_backbone, MIXED), STEPS, (8, 8)) as control:
        control.begin(5)  # the swap is over
        edited = predict(unet, 16)
    changed = (edited - plain).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [False] * 12 + [False, False, True, True]


@pytest.mark.parametrize("step", [None, STEPS - 1])
def test_when_nothing_is_active_attention_is_plain_to_the_last_bit(
    tiny_backbone, unet, step
):
    unet.set_attn_processor(AttnProcessor2_0())
    for dtype in (torch.float64, torch.float32):
        unet.to(dtype)
        x, t, text = (i.to(dtype) for i in inputs(16, (8, 8)))
        made = planned(tiny_backbone, MIXED)
        with torch.no_grad(), word_control(unet, made, STEPS, (8, 8)) as control:
            if step is not None:
                control.begin(step)
            ours = unet(x, t, text).sample
        with torch.no_grad():
            assert torch.equal(ours, unet(x, t, text).sample)


def test_routing_all_or_nothing():
    q, k, v = (
        rng.normal(rng.key("qkv", name), torch.arange(4), (2, 6, 4)).double()
        for name in "qkv"
    )
    nothing, everything = torch.zeros(1, 6, 6).double(), torch.eye(6).double()[None]
    attention = torch.nn.functional.scaled_dot_product_attention
    own = edited_attention(q, k, v, nothing, torch.ones(1, 6).double())
    assert torch.equal(own, attention(q, k, v))
    borrowed = edited_attention(q, k, v, everything, torch.zeros(1, 6).double())
    assert torch.equal(borrowed[3], attention(q[2:3], k[2:3], v[3:])[0])
    assert torch.equal(borrowed[:3], attention(q, k, v)[:3])


def test_every_cross_attention_and_no_other_is_replaced(tiny_backbone, unet):
    before = dict(unet.attn_processors)
    made = planned(tiny_backbone, MIXED)
    with word_control(unet, made, STEPS, (8, 8)):
        for name, processor in unet.attn_processors.items():
            edited = isinstance(processor, EditedCrossAttention)
            assert edited == ("attn2" in name)
            assert edited or processor is before[name]


@pytest.mark.parametrize("inner", ["words", "sharing"])
def test_the_old_processors_return(tiny_backbone, unet, inner):
    """Also on errors, and whichever of the two kinds was entered last."""
    before = unet.attn_processors
    made = planned(tiny_backbone, MIXED)
    both = [sharing(unet), word_control(unet, made, STEPS, (8, 8))]
    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        for context in both if inner == "words" else both[::-1]:
            stack.enter_context(context)
        kinds = {type(processor) for processor in unet.attn_processors.values()}
        assert kinds == {SharedSelfAttention, EditedCrossAttention}
        raise KeyboardInterrupt
    after = unet.attn_processors
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_batch_of_another_size_is_refused(tiny_backbone, unet):
    with word_control(unet, planned(tiny_backbone, [SWAP]), STEPS, (8, 8)) as control:
        control.begin(0)
        with pytest.raises(ValueError, match=r"1 pairs are planned.* has 8 rows"):
            predict(unet, 8)


def test_a_new_step_compiles_nothing_again(tiny_backbone, unet):
    counter = CompileCounterWithBackend("eager")
    block = unet.down_blocks[2].attentions[0].transformer_blocks[0].attn2
    compiled = torch.compile(block, backend=counter)
    x = rng.normal(rng.key("tokens"), torch.arange(16), (4, 16)).double()
    text = inputs(16, (8, 8))[2]
    made = planned(tiny_backbone, [SWAP, PLAIN, CHANGED, LONGER], threshold=0.3)
    with torch.no_grad(), word_control(unet, made, STEPS, (8, 8)) as control:
        for step in range(0, STEPS, 3):
            control.begin(step)
            eager = block(x, text)
            once = control.heat.clone()
            control.heat.zero_()
            torch.testing.assert_close(compiled(x, text), eager)
            torch.testing.assert_close(control.heat, once)
            control.heat.zero_()
    assert once[0].sum() > 0 and counter.frame_count == 1


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_the_words_maps_are_summed_over_layers_and_steps(tiny_backbone, unet, size):
    pair = copy.deepcopy(SWAP[0])
    pair.marks = {"cat"}, {"the", "elephant"}
    grid = map_grid(unet, size)
    cases = [(pair, 0.3), PLAIN]
    words = {"before": ("cat",), "after": ("the elephant",)}
    with word_control(
        unet, planned(tiny_backbone, cases, **words), STEPS, size
    ) as control:
        for step in (1, 7):
            control.begin(step)
            predict(unet, 8, size)
        ours = control.heat.clone()
    reference = MaterialisedWords(
        tiny_backbone.tokenizer, [pair, None], grid[0] * grid[1]
    )
    reference.install(unet)
    for step in (1, 7):
        reference.active = [step < 3, False]
        predict(unet, 8, size)
    assert ours.sum() > 0
    assert (ours - reference.heat.flatten(0, 1)).abs().max() < EXACT
