"""A compiled U-Net takes the same steps, and its layers compute the same as before."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ip2p_lib.training.compiled import (
    LAYERS,
    PlainAttnProcessor,
    compile_unet,
    modules_to_compile,
    replace_layers,
)
from ip2p_lib.training.model_card import save_editor
from ip2p_lib.training.resume import resume, save
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.surgery import add_editor_lora, widen_conv_in
from ip2p_lib.training.train import train
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

# Torch hides these warnings where they are printed, not where they are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated"),
]
STEPS = replace(SETTINGS, steps=2)


@pytest.fixture(autouse=True)
def forgotten():
    """What other tests compiled counts towards no limit here, and its limit stays."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.recompile_limit = before


def wide(backbone, lora=None):
    unet = widen_conv_in(backbone.unet)
    return add_editor_lora(unet, rank=lora) if lora else unet


def begun(unet, parts=2, **options):
    state = TrainState.create(unet, SETTINGS, TrainingOptions(**options))
    state.micro_batch = parts
    return state


def trained(unet, **options):
    state = begun(unet, **options)
    list(train(state, LATENTS, SCHEDULE, STEPS, run_seed=7))
    return state


def assert_alike(found, expected, gap=1e-4):
    """Same names in the same order; AdamW divides rounding by tiny gradients."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=gap)


@pytest.mark.parametrize("mode", ["blocks", "whole"])
def test_what_a_compiled_run_saves_goes_on_and_opens_without_compiling(
    tiny_backbone, mode, tmp_path
):
    """With the backward pass compiled too, and laid out as on a GPU."""
    plain, unet = trained(wide(tiny_backbone)), wide(tiny_backbone)
    compile_unet(unet, mode, backend="aot_eager", channels_last=True)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    state = trained(unet)
    assert_alike(state.tensors(), plain.tensors())
    assert_alike(unet.state_dict(), plain.unet.state_dict())
    save(tmp_path / "run", state)
    fresh = begun(wide(tiny_backbone))
    resume(tmp_path / "run", fresh)
    assert_alike(fresh.tensors(), state.tensors(), gap=0)
    saved = save_editor(tmp_path / "editor", state, "card", dtype=torch.float32)
    back = UNet2DConditionModel.from_pretrained(saved / "unet")
    average = back.load_state_dict(state.ema.weights, strict=False)
    assert average.unexpected_keys == [] and average.missing_keys == []


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"lora_rank": 4}]
)
def test_it_goes_with_what_saves_memory(tiny_backbone, options):
    lora = options.get("lora_rank")
    plain = trained(wide(tiny_backbone, lora), **options)
    unet = wide(tiny_backbone, lora)
    compile_unet(unet, "blocks", backend="aot_eager", channels_last=True)
    assert_alike(trained(unet, **options).tensors(), plain.tensors())


@pytest.mark.parametrize(("parts", "sizes"), [(2, 1), (4, 1), (3, 2)])
def test_it_is_compiled_in_the_first_step_once_for_each_size(
    tiny_backbone, parts, sizes
):
    counter = CompileCounterWithBackend("eager")
    unet = compile_unet(wide(tiny_backbone), "whole", backend=counter)
    state, counts = begun(unet, parts), []
    for _ in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7):
        counts.append(counter.frame_count)
    assert len(counts) == SETTINGS.steps and set(counts) == {sizes}


@pytest.mark.parametrize(("mode", "outside"), [("blocks", True), ("whole", False)])
def test_only_layers_that_are_compiled_are_exchanged(tiny_backbone, mode, outside):
    unet = wide(tiny_backbone)
    kinds = {type(module) for module in unet.modules()}
    assert kinds > LAYERS.keys()
    compile_unet(unet, mode, backend="eager", channels_last=True)
    inner = {type(m) for part in modules_to_compile(unet, mode) for m in part.modules()}
    assert not inner & LAYERS.keys()
    assert (type(unet.conv_in) is torch.nn.Conv2d) is outside


def test_a_copy_is_not_compiled_and_neither_is_the_mode_none(tiny_backbone):
    unet = compile_unet(wide(tiny_backbone), "none", channels_last=True)
    assert modules_to_compile(unet, "none") == []
    assert unet.conv_in.weight.is_contiguous() and unet._compiled_call_impl is None
    compile_unet(unet, "whole", backend="eager")
    assert unet._compiled_call_impl is not None
    assert deepcopy(unet)._compiled_call_impl is None
    with pytest.raises(ValueError, match=r"no mode 'half'"):
        compile_unet(unet, "half")


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
