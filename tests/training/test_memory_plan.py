"""What the planner foretells is what torch then takes, and it says so in words."""

from collections import namedtuple
from copy import deepcopy
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.cuda._utils import _get_device_index as get_device_index

from ip2p_lib.checkpoint import size_of
from ip2p_lib.training import memory_plan
from ip2p_lib.training.lora import add_editor_lora
from ip2p_lib.training.memory_plan import LADDER, memory_of, plan_training, recommend
from ip2p_lib.training.options import Economy
from ip2p_lib.training.surgery import widen_conv_in
from ip2p_lib.training.train import start, train
from tests.support.small_training import LATENTS, SCHEDULE, SETTINGS
from tests.support.small_unet import SMALL

GIB, MIB = 2**30, 2**20
SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}


@pytest.mark.parametrize(
    ("checkpointing", "saved", "flops"), [(False, 452, 0.537), (True, 74, 0.665)]
)
def test_stable_diffusions_numbers_are_the_known_ones(checkpointing, saved, flops):
    """At 256 px in float32, measured elsewhere on real tensors; 17.2 GB are static."""
    economy = Economy(checkpointing=checkpointing)
    plan = plan_training(SD15, economy, memory=80 * GIB, batch_size=1024)
    assert plan.activations / MIB == pytest.approx(saved, rel=0.01)
    assert plan.flops / 1e12 == pytest.approx(flops, rel=0.02)
    assert (plan.static + plan.gradients) / 1e9 == pytest.approx(17.2, rel=0.01)
    assert plan.weights == pytest.approx(4 * 859.53e6, rel=1e-4)
    assert 100 < plan.micro_batch < 160 or checkpointing


def small_plan(memory=2 * GIB, batch_size=64, **economy):
    how = Economy(**economy)
    return plan_training(
        SMALL, how, memory=memory, batch_size=batch_size, resolution=128
    )


@pytest.mark.parametrize("economy", [*LADDER, Economy(checkpointing=True)])
def test_more_memory_is_a_larger_micro_batch_and_never_more_than_there_is(economy):
    sizes = [n * MIB for n in (90, 100, 130, 160, 240, 400, 700, 2000)]
    plans = [
        plan_training(SMALL, economy, memory=m, batch_size=64, resolution=128)
        for m in sizes
    ]
    micro = [plan.micro_batch for plan in plans]
    assert micro == sorted(micro) and micro[-1] == 64 and len(set(micro)) > 3
    for plan in plans:
        assert plan.peak <= plan.memory or plan.micro_batch == 0
        if 0 < plan.micro_batch < 64:
            room = plan.memory / 1.07 - plan.peak
            assert room < 4 * plan.activations, "one more would have fitted"
        parts = plan.accumulation * max(plan.micro_batch, 1)
        assert 64 <= parts < 64 + max(plan.micro_batch, 1)


@pytest.mark.parametrize("economy", LADDER[:2])
def test_what_is_static_is_what_training_then_holds(tiny_backbone, economy):
    unet = widen_conv_in(tiny_backbone.unet)
    plan = plan_training(tiny_backbone.unet.config, economy, memory=GIB, batch_size=4)
    tensors = start(unet, SETTINGS, economy).tensors()
    average = plan.gradients if economy.ema_on_cpu else 0
    assert plan.static + average == size_of(tensors)
    assert plan.average == plan.gradients - average


def test_a_u_net_left_at_its_defaults_is_widened_as_any_other():
    """diffusers' from_config passes over arguments that were never given."""
    given = {name: value for name, value in SMALL.items() if name != "in_channels"}
    with torch.device("meta"):
        config = UNet2DConditionModel(**given).config
    options = {"memory": GIB, "batch_size": 4, "resolution": 128}
    for economy in (Economy(), Economy(lora_rank=4)):
        plan = plan_training(config, economy, **options)
        assert plan == plan_training(SMALL, economy, **options)


def test_no_more_at_once_than_is_asked_for():
    plan = plan_training(
        SMALL, Economy(), memory=2 * GIB, batch_size=64, resolution=128, at_most=8
    )
    assert (plan.micro_batch, plan.accumulation) == (8, 8)
    assert plan.peak < small_plan().peak


def test_what_lora_trains_is_what_is_held(tiny_backbone):
    economy = Economy(lora_rank=4)
    unet = add_editor_lora(widen_conv_in(tiny_backbone.unet), rank=4)
    plan = plan_training(tiny_backbone.unet.config, economy, memory=GIB, batch_size=4)
    tensors = start(unet, SETTINGS, economy).tensors()
    frozen = [w for w in unet.parameters() if not w.requires_grad]
    assert plan.static == size_of(tensors) + 4 * sum(w.numel() for w in frozen)


def test_every_economy_takes_less():
    full = small_plan()
    assert small_plan(ema_on_cpu=True).static == full.static - full.average
    assert small_plan(eight_bit=True).optimizer < 0.4 * full.optimizer
    assert small_plan(checkpointing=True).activations < 0.3 * full.activations
    half = small_plan(autocast=torch.float16)
    assert half.activations < full.activations and half.copies > full.copies
    lora = small_plan(lora_rank=4, autocast=torch.float16)
    assert lora.weights < 0.6 * full.weights and lora.gradients < 0.2 * full.gradients


def test_a_plan_says_where_the_memory_goes():
    words = small_plan(memory=160 * MIB, checkpointing=True, ema_on_cpu=True).sentence
    for part in ("all weights, AdamW, float32, checkpointed", "average on the CPU"):
        assert part in words
    assert "64 examples in" in words and "parts of at most" in words
    plan = small_plan()
    assert "64 examples at once" in plan.sentence
    waiting = plan.copies + plan.micro_batch * plan.activations
    assert plan.static + waiting + plan.workspace == plan.peak
    assert plan.workspace > 0


def advice(memory, batch_size=64, **options):
    return recommend(
        SMALL, memory=memory, batch_size=batch_size, resolution=128, **options
    )


def test_the_freest_way_that_keeps_the_card_busy_is_recommended():
    ways = [advice(m * MIB).economy for m in (1000, 200, 120)]
    assert ways[0] == Economy()
    assert ways[1] == Economy(checkpointing=True)
    assert ways[2].lora_rank or ways[2].eight_bit
    assert advice(2 * GIB, autocast=torch.float16).economy.scaled
    alone = advice(130 * MIB, batch_size=1)
    assert alone.micro_batch == 1 and alone.accumulation == 1


def test_an_impossible_card_is_refused_in_words():
    words = (
        r"Training at 128 px does not fit.*one example takes \d\d MiB, and there are"
    )
    with pytest.raises(ValueError, match=words + r" 20 MiB.*smaller resolution"):
        advice(20 * MIB)
    only = [Economy(eight_bit=True)]
    with pytest.raises(ValueError, match="8-bit AdamW, float32, checkpointed"):
        advice(70 * MIB, economies=only)
    assert advice(70 * MIB + 3 * small_plan().static, economies=only)


@pytest.mark.parametrize(("batch", "pixels"), [(0, 128), (4, 100), (4, 0)])
def test_what_cannot_be_planned_is_refused(batch, pixels):
    with pytest.raises(ValueError, match="multiple of 8"):
        plan_training(SMALL, Economy(), memory=GIB, batch_size=batch, resolution=pixels)


def test_the_planned_micro_batch_is_what_training_takes_at_once(tiny_backbone):
    unet = deepcopy(widen_conv_in(tiny_backbone.unet))
    sizes = []
    unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    state = start(unet, SETTINGS)
    state.micro_batch = 3
    next(train(state, LATENTS, SCHEDULE, SETTINGS, run_seed=0))
    assert sizes == [3, 1]


def test_a_cards_memory_is_what_is_free_and_permitted(monkeypatch):
    def pretend(share):
        cuda = {
            "mem_get_info": (9 * GIB, 16 * GIB),
            "memory_allocated": 2 * GIB,
            "memory_reserved": 3 * GIB,
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        name = "get_per_process_memory_fraction"
        monkeypatch.setattr(torch.cuda, name, partial(permitted, share))

    def permitted(share, card):
        """As torch: a device without its number is refused, None is today's card."""
        assert card is None or get_device_index(card) == 0
        return share

    pretend(1.0)
    assert memory_of("cuda") == 10 * GIB, "free, and cached by torch"
    pretend(0.5)
    assert memory_of("cuda:0") == 6 * GIB, "half of the card, less what is taken"
    found = namedtuple("memory", "available")(7 * GIB)
    monkeypatch.setattr(memory_plan.psutil, "virtual_memory", lambda: found)
    assert memory_of("cpu") == 7 * GIB
