"""Layers written for a compiler compute what the layers do whose place they take."""

from copy import deepcopy

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.upsampling import Upsample2D
from torch import nn

from ip2p_lib.training.compiled import (
    LAYERS,
    PlainAttnProcessor,
    attend,
    replace_layers,
)
from ip2p_lib.training.surgery import add_editor_lora, widen_conv_in

IMAGES, TOKENS = (3, 12, 6, 4), (3, 5, 12)
CASES = {
    "convolution": (nn.Conv2d(12, 8, 3, stride=2, padding=1), IMAGES),
    "product": (nn.Conv2d(12, 8, 1), IMAGES),
    "product with a stride": (nn.Conv2d(12, 8, 1, stride=2), IMAGES),
    "without bias": (nn.Conv2d(12, 8, 1, bias=False), IMAGES),
    "norm": (nn.GroupNorm(4, 12, eps=1e-3), IMAGES),
    "norm of channels": (nn.GroupNorm(12, 12), IMAGES),
    "norm of tokens": (nn.GroupNorm(5, 5), TOKENS),
    "geglu": (GEGLU(12, 7), TOKENS),
    "attention": (Attention(12, heads=3, dim_head=4), TOKENS),
    "upsampling": (Upsample2D(12, use_conv=True, out_channels=8), IMAGES),
}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def outcome(layer, x, *args):
    """What it gives, and the gradients of a random projection of it."""
    y = layer(x, *args)
    wanted = (x, *layer.parameters())
    return y, *torch.autograd.grad((y * drawn(*y.shape, seed=1)).sum(), wanted)


@pytest.fixture(params=CASES)
def pair(request):
    """A layer with random weights in float64, its substitute, and an input."""
    layer, shape = CASES[request.param]
    layer = deepcopy(layer).double()
    for seed, weight in enumerate(layer.parameters(), 2):
        weight.data.copy_(drawn(*weight.shape, seed=seed))
    return layer, replace_layers(deepcopy(layer)), 3 + drawn(*shape).requires_grad_()


def test_values_and_gradients_are_the_same_to_rounding(pair):
    layer, other, x = pair
    assert not {type(module) for module in other.modules()} & LAYERS.keys()
    for found, right in zip(outcome(other, x), outcome(layer, x), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("laid_out", [False, True])
def test_a_convolution_gets_images_and_gradients_channels_last(laid_out):
    """Whatever lies around it."""
    seen = []
    layer = replace_layers(nn.Sequential(nn.Identity(), nn.Conv2d(12, 8, 3)).double())
    kind = torch.channels_last if laid_out else torch.contiguous_format
    x = drawn(*IMAGES).contiguous(memory_format=kind).requires_grad_()
    layer[0].register_full_backward_hook(lambda *args: seen.append(args[2][0]))
    y = layer(x)
    y.backward(drawn(*y.shape).contiguous(memory_format=kind))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in [y, *seen])


def test_attention_to_a_text_is_the_same():
    layer = Attention(12, 7, heads=3, dim_head=4, bias=True).double()
    other = replace_layers(deepcopy(layer))
    assert isinstance(other.processor, PlainAttnProcessor)
    given = drawn(*TOKENS).requires_grad_(), drawn(3, 9, 7)
    results = outcome(other, *given), outcome(layer, *given)
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "more",
    [
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"norm_num_groups": 3},
        {"cross_attention_norm": "layer_norm", "cross_attention_dim": 7},
        {"dropout": 0.1},
    ],
)
def test_attention_that_does_more_stays_what_it_is(more):
    attention = Attention(12, heads=3, dim_head=4, **more)
    before = attention.processor
    assert replace_layers(attention).processor is before


def test_a_norm_sums_half_precision_in_float32():
    """Far from zero too, where sums that round would drown what they differ by."""
    layer = nn.GroupNorm(4, 12)
    x, far = 30 + drawn(2, 12, 40, 40), drawn(2, 12, 40, 40, seed=1)
    given = x.bfloat16().requires_grad_()
    found = replace_layers(deepcopy(layer))(given)
    found.backward(far.bfloat16())
    exact = given.detach().double().requires_grad_()
    right = layer.double()(exact)
    right.backward(far.bfloat16().double())
    assert found.dtype == given.grad.dtype == torch.bfloat16
    assert (found - right).abs().max() < 0.02  # half a place of bfloat16 at 3 or so
    assert (given.grad - exact.grad).abs().max() < 0.02


def test_lora_goes_on_beside_them(tiny_backbone):
    unet = add_editor_lora(widen_conv_in(tiny_backbone.unet), rank=4).double()
    inputs = drawn(2, 8, 8, 8), torch.tensor([3, 500])
    width = unet.config.cross_attention_dim
    right = unet(*inputs, drawn(2, 5, width)).sample
    found = replace_layers(unet)(*inputs, drawn(2, 5, width)).sample
    assert PlainAttnProcessor in {type(p) for p in unet.attn_processors.values()}
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keys", [5, 7])
def test_attention_is_that_of_attention_maps(keys):
    q, k, v = (
        drawn(2, 3, 5, 4),
        drawn(2, 3, keys, 4, seed=1),
        drawn(2, 3, keys, 4, seed=2),
    )
    maps = (q @ k.transpose(2, 3) / 2).softmax(-1)
    torch.testing.assert_close(attend(q, k, v), maps @ v, rtol=1e-12, atol=1e-12)
