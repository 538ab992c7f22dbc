"""LoRA for the editor begins as the text-to-image model and ends a stock U-Net."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel

from ip2p_lib.diffusion.lora import (
    count_parameters,
    load_lora,
    lora_weights,
    merge_lora,
    save_lora,
)
from ip2p_lib.rng import key, normal
from ip2p_lib.training.model_card import save_editor
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.surgery import add_editor_lora, widen_conv_in
from ip2p_lib.training.train import train
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

LORA = TrainingOptions(lora_rank=4)
LEARNING = replace(SETTINGS, learning_rate=1e-2)


def random(name, *shape):
    return normal(key("editor lora", name), torch.arange(shape[0]), shape[1:])


@pytest.fixture
def plain(tiny_backbone):
    return deepcopy(tiny_backbone.unet)


@pytest.fixture
def base(tiny_sd_folder):
    return tiny_sd_folder / "unet"


@torch.no_grad()
def predict(unet, x, condition=None):
    sample = x if condition is None else torch.cat([x, condition], dim=1)
    text = random("text", len(x), 77, 16)
    return unet.eval()(sample, torch.tensor([999, 3]), text).sample


X, IMAGE = random("x", 2, 4, 8, 8), random("picture", 2, 4, 8, 8)


def trained(plain, **options):
    unet = add_editor_lora(widen_conv_in(plain), rank=4, **options)
    state = TrainState.create(unet, LEARNING, LORA)
    steps = list(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    return state, steps


def test_before_the_first_step_it_is_the_text_to_image_model(plain):
    before = predict(plain, X)
    unet = add_editor_lora(widen_conv_in(plain))
    assert torch.equal(predict(unet, X, 100 * IMAGE), before)


def test_the_matrices_and_the_first_convolution_learn_and_nothing_else_does(plain):
    state, steps = trained(plain)
    fresh = add_editor_lora(widen_conv_in(plain), rank=4)
    before = dict(fresh.named_parameters())
    after = dict(state.unet.named_parameters())
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    # One position attends to itself, whatever q and k are: B need not move there.
    alone = "mid_block.attentions.0.transformer_blocks.0.attn1.to_{}.lora_B"
    matrices = {
        name
        for name in after
        if ".lora_" in name
        and not name.startswith((alone.format("q"), alone.format("k")))
    }
    own = "conv_in.modules_to_save.default."
    assert matrices | {f"{own}weight", f"{own}bias"} <= changed
    assert changed <= {name for name, w in after.items() if w.requires_grad}
    assert state.ema.weights.keys() >= changed
    assert len(lora_weights(state.unet)) >= 20
    assert state.unet.conv_in.weight[:, 4:].abs().min() > 0, "it sees the picture"
    total = sum(w.numel() for w in state.ema.weights.values())
    assert count_parameters(state.unet)[0] == total
    assert all(step.loss.isfinite() for step in steps)


def test_merged_it_is_a_stock_u_net_that_predicts_the_same(plain, tmp_path):
    unet = trained(plain)[0].unet
    before = predict(unet, X, IMAGE)
    merge_lora(unet).save_pretrained(tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path)
    assert stock.config.in_channels == 8
    assert stock.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(predict(stock, X, IMAGE), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, predict(plain, X), atol=1e-3), "nothing learnt"


# peft reads the configuration of a U-Net, which diffusers warns is not how to do it.
@pytest.mark.filterwarnings("ignore")
def test_what_was_saved_goes_onto_the_base_opens_in_peft_and_learns_on(
    plain, base, tmp_path
):
    unet = trained(plain)[0].unet
    folder = save_lora(unet, tmp_path / "adapter", base)
    assert len(list(folder.iterdir())) == 2
    back = load_lora(widen_conv_in(plain), folder, base)
    assert torch.equal(predict(back, X, IMAGE), predict(unet, X, IMAGE))
    theirs = PeftModel.from_pretrained(widen_conv_in(plain), folder)
    torch.testing.assert_close(predict(theirs, X, IMAGE), predict(unet, X, IMAGE))
    state = TrainState.create(back, LEARNING, LORA)
    next(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=8))
    assert plain.config.in_channels == 4, "the given U-Net is left alone"


def test_frozen_weights_may_lie_in_half_precision_and_what_is_trained_may_not(
    plain, tmp_path
):
    unet = add_editor_lora(widen_conv_in(plain), rank=4, frozen=torch.bfloat16)
    kinds = {name: weight.dtype for name, weight in unet.named_parameters()}
    for name, weight in unet.named_parameters():
        half = torch.float32 if weight.requires_grad else torch.bfloat16
        assert kinds[name] is half, name
    options = replace(LORA, autocast=torch.bfloat16)
    state = TrainState.create(unet, LEARNING, options)
    next(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    folder = save_editor(tmp_path / "editor", state, "card", dtype=torch.float32)
    saved = UNet2DConditionModel.from_pretrained(folder / "unet")
    average = state.ema.weights
    ours = average["conv_in.modules_to_save.default.weight"]
    torch.testing.assert_close(saved.conv_in.weight, ours)


def test_a_u_net_that_was_not_widened_is_refused(plain):
    with pytest.raises(ValueError, match="widen_conv_in first"):
        add_editor_lora(plain)
    with pytest.raises(ValueError, match="lora_rank"):
        TrainState.create(add_editor_lora(widen_conv_in(plain)), SETTINGS)
