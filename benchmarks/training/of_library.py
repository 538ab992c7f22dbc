"""What a training step takes in the library, and the pairs that it is fed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.full_size import full_size
from benchmarks.training.of_diffusers import Pairs
from ip2p_lib.config import HELD_OUT, Training, preset
from ip2p_lib.device import pick_autocast
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion, load_stable_diffusion
from ip2p_lib.miniature.render import render
from ip2p_lib.miniature.world import sample_edit, sample_scene
from ip2p_lib.training import train as training
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.latents import (
    Latents,
    add_instructions,
    encode_pairs,
    gather_batch,
)
from ip2p_lib.training.state import TrainingOptions, TrainState
from ip2p_lib.training.surgery import widen_conv_in


@dataclass(frozen=True)
class Case:
    """What is trained on, and in which portions."""

    pixels: int  # side of an image
    pairs: int
    batch: int  # examples of a step, ours and tuned
    micro_batch: int  # of them at once, ours
    tuned: int  # of them at once, tuned
    compiled: str  # a mode of ``compile_unet``
    host: bool = False  # latents on the host and token ids, as ``jobs.train`` has them


def networks(size: str, device: torch.device) -> StableDiffusion:
    """The frozen networks, in half precision on a GPU, and a U-Net to be trained."""
    half = pick_autocast(device)
    source = preset("miniature").backbone
    backbone = load_stable_diffusion(source, device=device, dtype=half)
    if size == "sd15":
        with device:  # draws the weights there, which a host does slowly
            backbone = full_size(backbone.tokenizer, device.type)
    for part in (backbone.vae, backbone.text_encoder):
        part.requires_grad_(False)
    unet = widen_conv_in(backbone.unet).float().train()
    return replace(backbone, unet=unet.to(memory_format=torch.contiguous_format))


def prepare(case: Case, backbone: StableDiffusion) -> tuple[Pairs, Latents]:
    """Pairs of the miniature world, as images and as stored latents."""
    seeds = range(HELD_OUT, HELD_OUT + case.pairs)
    scenes = [sample_scene(seed) for seed in seeds]
    edits = [
        sample_edit(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)
    ]
    texts, pictures = [edit.instruction for edit in edits], []
    for wanted in (scenes, [edit.target for edit in edits]):
        parts = [wanted[i : i + 128] for i in range(0, case.pairs, 128)]
        drawn = torch.cat([render(part, device=backbone.device) for part in parts])
        pictures.append(F.interpolate(drawn, case.pixels, mode="bilinear"))
    ids, empty = (backbone.tokenize(t, truncate=True) for t in (texts, [""]))
    parts = zip(*(side.split(case.micro_batch) for side in pictures), strict=True)
    encoded = encode_pairs(backbone, parts)
    if case.host:
        encoded = {name: tensor.cpu() for name, tensor in encoded.items()}
    latents = add_instructions(backbone, encoded, texts, as_tokens=case.host)
    return Pairs(*pictures, ids, empty), latents


class Ours:
    """The library's step, called as ``jobs.train`` calls it."""

    def __init__(self, backbone: StableDiffusion, latents: Latents, case: Case) -> None:
        """Compile as the case says."""
        self.backbone, self.latents, self.case = backbone, latents, case
        self.unet, self.half = backbone.unet, pick_autocast(backbone.device)
        compile_unet(self.unet, case.compiled)

    def encode(self, ids: Tensor) -> Tensor:
        """Hidden states of instructions that are stored as token ids."""
        states: Tensor = self.backbone.text_encoder(ids).last_hidden_state
        return states

    def loss(self, sample_ids: Tensor, drop: float) -> Tensor:
        """Of a micro-batch in the first step."""
        device, first = self.backbone.device, {"run_seed": 0, "step": 0}
        encode = self.encode if self.case.host else None
        batch = gather_batch(
            self.latents, sample_ids, device=device, encode=encode, **first
        )
        with torch.autocast(device.type, self.half, enabled=bool(self.half)):
            schedule = self.backbone.schedule.to(device)
            losses, _ = training.example_losses(
                self.unet, schedule, batch, drop, **first
            )
            return losses.mean()

    def steps(self) -> Iterator[training.TrainStep]:
        """Optimiser steps without end."""
        settings = Training(steps=10**9, batch_size=self.case.batch)
        state = TrainState.create(
            self.unet, settings, TrainingOptions(autocast=self.half)
        )
        state.micro_batch = self.case.micro_batch
        encode = self.encode if self.case.host else None
        return training.train(
            state,
            self.latents,
            self.backbone.schedule,
            settings,
            run_seed=0,
            encode=encode,
        )
