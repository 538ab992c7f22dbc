"""A compiled U-Net takes the same steps under the same names, and is compiled once."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from ip2p_lib.training.compiled import (
    LAYERS,
    compile_unet,
    modules_to_compile,
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


class Counter:
    """A backend that computes as without one, and counts what it is given."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


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
    counter = Counter()
    unet = compile_unet(wide(tiny_backbone), "whole", backend=counter)
    state, counts = begun(unet, parts), []
    for _ in train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=7):
        counts.append(counter.graphs)
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
