"""Before training, the widened U-Net is the text-to-image U-Net, bit for bit."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from ip2p_lib import rng
from ip2p_lib.training.surgery import widen_conv_in


def random(name, *shape, dtype=torch.float32):
    ids = torch.arange(shape[0])
    return rng.normal(rng.key("surgery", name), ids, shape[1:]).to(dtype)


@pytest.fixture
def unet(tiny_backbone):
    # A copy, since weights read from a file may lie unaligned in memory, and then the
    # CPU sums the same products in another order than for the widened copy. Its bias
    # is large, so that a forgotten bias could not hide.
    unet = copy.deepcopy(tiny_backbone.unet)
    torch.nn.init.constant_(unet.conv_in.bias, 0.7)
    return unet


@torch.no_grad()
def predict(unet, x, scale=1.0, dtype=torch.float32):
    text, t = random("text", len(x), 77, 16, dtype=dtype), torch.tensor([999, 500, 0])
    return unet(x, t[: len(x)], text).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_the_prediction_is_unchanged_for_any_condition(unet, dtype, scale):
    unet = unet.to(dtype)
    x = random("x", 3, 4, 8, 8, dtype=dtype)
    condition = scale * random("condition", 3, 4, 8, 8, dtype=dtype)
    wide = widen_conv_in(unet)
    both = torch.cat([x, condition], dim=1)
    assert torch.equal(predict(wide, both, dtype=dtype), predict(unet, x, dtype=dtype))


def test_the_given_unet_is_untouched(unet):
    before = copy.deepcopy(unet.state_dict())
    wide = widen_conv_in(unet)
    with torch.no_grad():
        wide.conv_in.weight.fill_(3.0)
    assert unet.config.in_channels == 4 and unet.conv_in.in_channels == 4
    after = unet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_frozenness_are_kept(unet, dtype):
    wide = widen_conv_in(unet.to(dtype).requires_grad_(False))
    assert wide.conv_in.weight.dtype == dtype
    assert not wide.conv_in.weight.requires_grad
    assert widen_conv_in(unet.requires_grad_(True)).conv_in.weight.requires_grad


def test_the_new_weights_learn_from_the_first_step(unet):
    wide = widen_conv_in(unet)
    sample = random("x", 2, 8, 8, 8)
    wide(sample, 10, random("text", 2, 77, 16)).sample.square().mean().backward()
    gradient = wide.conv_in.weight.grad[:, 4:]
    assert (gradient.flatten(2).abs().amax(dim=(0, 2)) > 0).all()


def test_a_unet_is_widened_once(unet):
    with pytest.raises(ValueError, match="reads 8 channels and predicts 4"):
        widen_conv_in(widen_conv_in(unet))


@pytest.fixture
def sdxl():
    """A U-Net of SDXL's kind: told sizes and a pooled text beside the hidden states."""
    with torch.random.fork_rng():
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 12,
        )
    for name, weight in unet.named_parameters():
        flat = rng.normal(rng.key("sdxl", name), torch.arange(weight.numel()), ())
        weight.data = flat.reshape(weight.shape) / 4
    return unet


def test_a_network_made_by_its_configuration_is_as_wide(sdxl):
    """Even where the number of channels was left at diffusers' default."""
    made = UNet2DConditionModel.from_config(widen_conv_in(sdxl).config)
    assert made.config.in_channels == made.conv_in.in_channels == 8


def test_sdxl_is_widened_by_the_same_call(sdxl):
    """The identity holds whatever is told beside; the new weights learn at once."""
    x, condition = random("x", 2, 4, 8, 8), random("condition", 2, 4, 8, 8)
    added = {"text_embeds": random("pooled", 2, 12), "time_ids": random("ids", 2, 6)}
    options = {"encoder_hidden_states": random("text", 2, 77, 16)}
    options["added_cond_kwargs"] = added
    wide, t = widen_conv_in(sdxl), torch.tensor([900, 10])
    ours = wide(torch.cat([x, condition], dim=1), t, **options).sample
    assert torch.equal(ours, sdxl(x, t, **options).sample)
    assert wide.config.addition_embed_type == "text_time"
    ours.square().mean().backward()
    assert (wide.conv_in.weight.grad[:, 4:].abs().amax((0, 2, 3)) > 0).all()
    added["text_embeds"] = -added["text_embeds"]
    told_otherwise = wide(torch.cat([x, condition], dim=1), t, **options).sample
    assert not torch.equal(ours, told_otherwise), "the pooled text takes part"
