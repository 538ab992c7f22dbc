"""Tells before training starts what fits a card, and what it costs (3.2; ours).

    plan = recommend(unet.config, memory=memory_of(device), batch_size=64)
    print(plan.sentence)
    state = training.start(unet, settings, plan.economy)
    state.micro_batch = plan.micro_batch

Nothing here is looked up: sizes come from the U-Net's own configuration, activations
from ``memory_trace``. How long it takes, ``training_time`` tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import psutil
import torch

from ip2p_lib.training.lora import add_editor_lora
from ip2p_lib.training.memory_trace import Timeline, trace
from ip2p_lib.training.optimizer import bytes_kept
from ip2p_lib.training.options import Economy

GIB = 2**30
# torch hands memory out in blocks, between which some stays unused; cuBLAS and cuDNN
# take some for themselves.
FRAGMENTS, LIBRARIES = 0.07, 64 * 2**20
TOKENS = 77  # of an instruction, for CLIP's text encoder
ENOUGH = 16  # examples at once that keep a GPU busy: with fewer it waits for launches
# From the freest to the most frugal. LoRA is last: it alone changes what is learnt.
LADDER = (
    Economy(),
    Economy(ema_on_cpu=True),
    Economy(eight_bit=True, ema_on_cpu=True),
    Economy(lora_rank=16),
)


@dataclass(frozen=True)
class Plan:
    """What training takes of a card, in bytes, under one ``Economy``."""

    economy: Economy
    memory: int  # that there is
    batch_size: int
    weights: int
    optimizer: int  # what AdamW keeps
    average: int  # on the card; 0 if it lies on the host
    gradients: int
    copies: int  # of weights in half precision, which wait for the backward pass
    activations: int  # of one example, which wait for it too
    flops: int  # of one example, forward and backward
    micro_batch: int = 0  # examples at once, the most that fit; 0 if not even one does
    peak: int = 0  # with ``micro_batch`` examples; with one, if none fits

    @property
    def accumulation(self) -> int:
        """Micro-batches whose gradients are added up to a step."""
        return -(-self.batch_size // max(self.micro_batch, 1))

    @property
    def static(self) -> int:
        """Bytes that are taken all the time."""
        return self.weights + self.optimizer + self.average

    @property
    def workspace(self) -> int:
        """What the backward pass adds at the peak: gradients, and work in hand."""
        waiting = self.copies + max(self.micro_batch, 1) * self.activations
        return self.peak - self.static - waiting

    @property
    def sentence(self) -> str:
        """The plan in words."""
        if not self.micro_batch:
            return (
                f"{self.economy.words}: one example takes {_room(self.peak)}, and "
                f"there are {_room(self.memory)}."
            )
        parts, times = "at once", self.accumulation
        if times > 1:
            parts = f"in {times} parts of at most {self.micro_batch}"
        return (
            f"{self.economy.words}: {self.batch_size} examples {parts} take "
            f"{_room(self.peak)} of {_room(self.memory)}: weights "
            f"{_room(self.weights)}, AdamW {_room(self.optimizer)}, average "
            f"{_room(self.average)}, copies in half precision {_room(self.copies)}, "
            f"activations {self.micro_batch} x {_room(self.activations)}, gradients "
            f"and work {_room(self.workspace)}."
        )


def _room(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size > GIB / 2 else f"{size / 2**20:.0f} MiB"


def memory_of(device: torch.device | str) -> int:
    """Bytes that new tensors may take on a device: all that is free, or permitted."""
    device = torch.device(device)
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    ours = torch.cuda.memory_allocated(device)
    idle = torch.cuda.memory_reserved(device) - ours
    share = torch.cuda.get_per_process_memory_fraction(device.index)  # "cuda" fails
    return min(free + idle, int(share * total) - ours)


def plan_training(
    config: Mapping[str, Any],
    economy: Economy,
    *,
    memory: int,
    batch_size: int,
    resolution: int = 256,
    at_most: int | None = None,
) -> Plan:
    """Count what one way of training takes, and how many examples fit at once.

    Args:
        config: of a U-Net, as ``unet.config`` has it, widened or not.
        economy: the way.
        memory: bytes for all of it, as ``memory_of`` says before the U-Net is there.
        batch_size: examples of a step.
        resolution: of the pictures, in pixels.
        at_most: examples at once; None is the whole batch.
    Raises:
        ValueError: the batch is below 1, or the resolution is not a multiple of 8.
    """
    if batch_size < 1 or resolution < 8 or resolution % 8:
        raise ValueError(
            f"A plan needs a batch of at least 1 and a resolution of a multiple of 8, "
            f"not {batch_size} and {resolution}."
        )
    how = (economy.lora_rank, economy.autocast, economy.checkpointing)
    sizes, timeline = _measure(_widened(config), resolution, *how)
    empty = Plan(
        economy,
        memory,
        batch_size,
        weights=sizes.weights,
        copies=timeline.saved[0],
        activations=timeline.saved[1],
        flops=timeline.flops,
        **_of_trained(economy, sizes.trained),
    )
    return _fitted(empty, timeline, min(at_most or batch_size, batch_size))


def _widened(config: Mapping[str, Any]) -> str:
    """The configuration with the editor's channels, as JSON."""
    # Of arguments left at their defaults, from_config would not let us change any.
    changed = {"in_channels": 2 * config["out_channels"], "_use_default_values": []}
    return json.dumps({**config, **changed}, default=str)


def _of_trained(economy: Economy, numbers: Sequence[int]) -> dict[str, int]:
    """Bytes that hang on the weights that are trained, of so many numbers each."""
    float32 = 4 * sum(numbers)
    kept = sum(bytes_kept(n, eight_bit=economy.eight_bit) for n in numbers)
    average = 0 if economy.ema_on_cpu else float32
    return {"gradients": float32, "optimizer": kept, "average": average}


def _fitted(plan: Plan, timeline: Timeline, at_most: int) -> Plan:
    """Find the largest micro-batch; more than one of them also hold gradients."""
    for n in range(at_most, 0, -1):
        work = timeline.peak(n, accumulating=n < plan.batch_size)
        peak = plan.static + work + LIBRARIES
        if peak * (1 + FRAGMENTS) <= plan.memory:
            return replace(plan, micro_batch=n, peak=peak)
    return replace(plan, peak=peak)


@dataclass(frozen=True)
class _Sizes:
    weights: int  # bytes of all
    trained: tuple[int, ...]  # numbers in each that is trained


@lru_cache(maxsize=16)
def _measure(
    config: str,
    resolution: int,
    lora_rank: int | None,
    autocast: torch.dtype | None,
    checkpointing: bool,
) -> tuple[_Sizes, Timeline]:
    """Build the U-Net without numbers and trace a step of it: some seconds."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config))
    if lora_rank:
        add_editor_lora(unet, rank=lora_rank, frozen=autocast)
    timeline = trace(
        unet,
        latent=(unet.config.in_channels, resolution // 8, resolution // 8),
        text=(TOKENS, unet.config.cross_attention_dim),
        autocast=autocast,
        checkpointing=checkpointing,
    )
    weights = list(unet.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return _Sizes(size, tuple(w.numel() for w in weights if w.requires_grad)), timeline


def recommend(
    config: Mapping[str, Any],
    *,
    memory: int,
    batch_size: int,
    resolution: int = 256,
    autocast: torch.dtype | None = None,
    economies: Iterable[Economy] = LADDER,
) -> Plan:
    """Choose the first economy that keeps the card busy, with checkpoints if it must.

    Args:
        config, memory, batch_size, resolution: as ``plan_training``.
        autocast: from ``precision.choose_precision``.
        economies: to be tried in this order, each also with checkpointed activations.
    Returns:
        The first plan with ``ENOUGH`` examples at once, or all of a smaller batch; if
        there is none, the one with the most.
    Raises:
        ValueError: not one example fits in any of these ways.
    """
    plans = []
    for economy in economies:
        for checkpointing in (False, True):
            way = replace(economy, autocast=autocast, checkpointing=checkpointing)
            plan = plan_training(
                config, way, memory=memory, batch_size=batch_size, resolution=resolution
            )
            if plan.micro_batch >= min(batch_size, ENOUGH):
                return plan
            plans.append(plan)
    best = max(plans, key=lambda plan: plan.micro_batch)
    if not best.micro_batch:
        least = min(plans, key=lambda plan: plan.peak)
        raise ValueError(
            f"Training at {resolution} px does not fit. The most frugal way tried: "
            f"{least.sentence} Use a smaller resolution or a larger card."
        )
    return best
