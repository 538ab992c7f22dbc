"""LoRA for the editor begins as the text-to-image model and ends a stock U-Net."""

import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from ip2p_lib.diffusion.lora import count_parameters, lora_weights
from ip2p_lib.rng import key, normal
from ip2p_lib.training.lora import (
    add_editor_lora,
    load_editor_lora,
    merge_editor_lora,
    save_editor_lora,
)
from ip2p_lib.training.options import Economy
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import resume, save, start, train
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS

LORA = Economy(lora_rank=4)
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


X, PICTURE = random("x", 2, 4, 8, 8), random("picture", 2, 4, 8, 8)


def trained(plain, **options):
    unet = add_editor_lora(widen_conv_in(plain), rank=4, **options)
    state = start(unet, LEARNING, LORA)
    steps = list(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    return state, steps


@pytest.mark.parametrize("everywhere", [False, True])
def test_before_the_first_step_it_is_the_text_to_image_model(plain, everywhere):
    before = predict(plain, X)
    unet = add_editor_lora(widen_conv_in(plain), everywhere=everywhere)
    assert torch.equal(predict(unet, X, 100 * PICTURE), before)


@pytest.mark.parametrize(("everywhere", "fewest"), [(False, 10), (True, 60)])
def test_the_matrices_and_the_first_convolution_learn_and_nothing_else_does(
    plain, everywhere, fewest
):
    state, steps = trained(plain, everywhere=everywhere)
    fresh = add_editor_lora(widen_conv_in(plain), rank=4, everywhere=everywhere)
    before = dict(fresh.named_parameters())
    after = dict(state.unet.named_parameters())
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    # One position attends to itself, whatever q and k are: B stays zero there.
    alone = "mid_block.attentions.0.transformer_blocks.0.attn1.to_{}.lora_B"
    matrices = {
        name
        for name in after
        if ".lora_" in name
        and not name.startswith((alone.format("q"), alone.format("k")))
    }
    assert changed == matrices | {"conv_in.weight", "conv_in.bias"}
    assert state.ema.weights.keys() >= changed
    assert len(lora_weights(state.unet)) >= 2 * fewest
    assert state.unet.conv_in.weight[:, 4:].abs().min() > 0, "it sees the picture"
    total = sum(w.numel() for w in state.ema.weights.values())
    assert count_parameters(state.unet)[0] == total
    assert all(step.loss.isfinite() for step in steps)


def test_a_resumed_run_ends_in_the_same_bits_and_saves_little(plain, tmp_path):
    straight, _ = trained(plain)
    half = start(add_editor_lora(widen_conv_in(plain), rank=4), LEARNING, LORA)
    for step in train(half, LATENTS, SCHEDULE, LEARNING, run_seed=7):
        if step.step == 3:
            break
    save(tmp_path, half)
    fresh = start(add_editor_lora(widen_conv_in(plain), rank=4), LEARNING, LORA)
    resume(tmp_path, fresh)
    list(train(fresh, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    for name, tensor in straight.tensors().items():
        assert torch.equal(fresh.tensors()[name], tensor), name
    whole = start(widen_conv_in(plain), SETTINGS).tensors()
    assert len(straight.tensors()) < len(whole)


def test_merged_it_is_a_stock_u_net_that_predicts_the_same(plain, tmp_path):
    unet = trained(plain)[0].unet
    before = predict(unet, X, PICTURE)
    merge_editor_lora(unet).save_pretrained(tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path)
    assert stock.config.in_channels == 8
    assert stock.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(predict(stock, X, PICTURE), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, predict(plain, X), atol=1e-3), "nothing learnt"


def test_what_was_saved_goes_onto_the_base_and_learns_on(plain, base, tmp_path):
    unet = trained(plain)[0].unet
    folder = save_editor_lora(unet, tmp_path / "adapter", base)
    assert len(list(folder.iterdir())) == 3
    back = load_editor_lora(plain, folder, base)
    assert torch.equal(predict(back, X, PICTURE), predict(unet, X, PICTURE))
    state = start(back, LEARNING, LORA)
    next(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=8))
    assert plain.config.in_channels == 4, "the given U-Net is left alone"


def test_an_adapter_of_another_base_or_of_two_savings_is_refused(
    plain, base, tiny_sd_folder, tmp_path
):
    first = save_editor_lora(trained(plain)[0].unet, tmp_path / "1", base)
    other = add_editor_lora(widen_conv_in(plain), rank=4, run_seed=1)
    second = save_editor_lora(other, tmp_path / "2", base)
    with pytest.raises(ValueError, match="was trained on sha256"):
        load_editor_lora(plain, first, tiny_sd_folder / "vae")
    shutil.copy(first / "conv_in.safetensors", second)
    with pytest.raises(ValueError, match="not of one saving"):
        load_editor_lora(plain, second, base)
    (second / "conv_in.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks conv_in.safetensors"):
        load_editor_lora(plain, second, base)


def test_frozen_weights_may_lie_in_half_precision_and_what_is_trained_may_not(plain):
    unet = add_editor_lora(widen_conv_in(plain), rank=4, frozen=torch.bfloat16)
    kinds = {name: weight.dtype for name, weight in unet.named_parameters()}
    for name, weight in unet.named_parameters():
        half = torch.float32 if weight.requires_grad else torch.bfloat16
        assert kinds[name] is half, name
    economy = replace(LORA, autocast=torch.bfloat16)
    state = start(unet, LEARNING, economy)
    next(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    merged = merge_editor_lora(unet)
    assert {weight.dtype for weight in merged.parameters()} == {torch.float32}


def test_checkpointed_activations_change_no_bit(plain):
    economy = replace(LORA, checkpointing=True)
    unet = add_editor_lora(widen_conv_in(plain), rank=4)
    state = start(unet, LEARNING, economy)
    list(train(state, LATENTS, SCHEDULE, LEARNING, run_seed=7))
    assert unet.is_gradient_checkpointing
    for name, tensor in trained(plain)[0].tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_a_u_net_that_reads_no_picture_is_refused(plain):
    with pytest.raises(ValueError, match="widen_conv_in first"):
        add_editor_lora(plain)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_editor_lora(plain)
    with pytest.raises(ValueError, match=r"all weights.*has LoRA"):
        start(add_editor_lora(widen_conv_in(plain)), SETTINGS)
