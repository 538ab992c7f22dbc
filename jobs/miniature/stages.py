"""The stages of pretraining: what each trains, on which batches, for how long.

Budgets are for one GPU with 80 GB; what the shipped weights took stands in
``data/results``. The stage of the U-Net, on stored latents, is in ``unet_stage``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ip2p_lib.miniature.corpus import Corpus
from ip2p_lib.miniature.render import load_sprites, render_codes
from ip2p_lib.rng import integers, key, normal
from jobs.miniature import models
from jobs.miniature.loop import Budget, Progress, fit
from jobs.miniature.losses import clip_loss, decoder_loss, vae_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPModel, CLIPTokenizer

_TEXT = 48  # tokens of a caption while CLIP trains; later positions only hold padding
_CRITIC = 0.3  # pull of the critic on the decoder, relative to the picture's
_CRITIC_ALONE = 500  # steps over which that pull grows: first the critic must learn


@dataclass(frozen=True)
class Stage:
    """Budget and batch of one stage."""

    budget: Budget
    batch: int


STAGES = {
    "clip": Stage(Budget(seconds=120, learning_rate=1e-3), batch=768),
    "vae": Stage(Budget(seconds=370, learning_rate=1e-3), batch=192),
    "decoder": Stage(Budget(seconds=300, learning_rate=5e-4), batch=192),
    # Many rows, or a GPU waits between its kernels for the next one to be launched.
    "unet": Stage(Budget(seconds=600, learning_rate=1.2e-3, warmup=200), batch=2048),
}


@torch.no_grad()
def render_bank(codes: Tensor, device: torch.device, batch: int = 512) -> Tensor:
    """Render codes once, (n, 3, 128, 128) uint8 on ``device``."""
    sprites = load_sprites().to(device)
    bank = torch.empty(len(codes), 3, 128, 128, dtype=torch.uint8, device=device)
    for start in range(0, len(codes), batch):
        part = codes[start : start + batch].to(device)
        bank[start : start + batch] = to_bytes(render_codes(part, sprites))
    return bank


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to 0 .. 255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_unit(x: Tensor) -> Tensor:
    """0 .. 255 to [-1, 1]."""
    return x.float() / 127.5 - 1


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], length: int) -> Tensor:
    """Token ids of many texts, (n, length) int16, padded; fast for millions."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    pad = tokenizer.pad_token_id
    encoded = (row.ids[:length] for row in backend.encode_batch(texts))
    rows = [ids + [pad] * (length - len(ids)) for ids in encoded]
    return torch.tensor(rows, dtype=torch.int16)


def train_clip(
    corpus: Corpus, bank: Tensor, stage: Stage, work: Path
) -> tuple[CLIPModel, CLIPTokenizer, Iterator[Progress]]:
    """Prepare the ``clip`` stage.

    Args:
        corpus: n edits.
        bank: (2n, 3, 128, 128) uint8, the corpus rendered before, then after.
        stage: budget and batch size (edits a step).
        work: folder of the resumable state.

    Returns:
        The model and tokenizer, and the progress whose consumption trains them.
    """
    device, n = bank.device, len(corpus)
    texts = [*corpus.captions, *corpus.edited_captions, *corpus.instructions]
    # Every text of few scenes teaches the tokenizer as much as all texts do.
    tokenizer = models.train_tokenizer(texts[:: max(1, len(texts) // 60_000)])
    ids = token_ids(tokenizer, texts, _TEXT).to(device)
    clip = models.new_clip(tokenizer).to(device)

    def loss_of(step: int) -> Tensor:
        rows = integers(key("clip", step), _ids(stage.batch, device), n)
        pairs = torch.cat([rows, n + rows])
        pixels = to_unit(bank[pairs])
        captions, instructions = ids[pairs].long(), ids[2 * n + rows].long()
        return clip_loss(clip, pixels, captions, instructions)

    return clip, tokenizer, fit(clip, loss_of, stage.budget, work)


def _ids(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device)


def train_vae(
    bank: Tensor, stage: Stage, work: Path
) -> tuple[AutoencoderKL, Iterator[Progress]]:
    """Prepare the ``vae`` stage; arguments as in ``train_clip``."""
    device = bank.device
    vae = models.new_vae().to(device)
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)

    def loss_of(step: int) -> Tensor:
        ids = _ids(stage.batch, device)
        rows = integers(key("vae", step), ids, len(bank))
        x = to_unit(bank[rows]).contiguous(memory_format=torch.channels_last)
        return vae_loss(vae, x, normal(key("vae noise", step), ids, (4, 16, 16)))

    return vae, fit(vae, loss_of, stage.budget, work)


def train_decoder(
    vae: AutoencoderKL, bank: Tensor, stage: Stage, work: Path
) -> Iterator[Progress]:
    """Prepare the ``decoder`` stage, which sharpens a trained autoencoder's decoder.

    Args:
        vae: changed in place; its encoder, hence every latent, stays as it is.
        bank, stage, work: as in ``train_clip``.
    """
    device = bank.device
    vae.requires_grad_(False)
    critic = models.new_critic()
    for network in (vae, critic):
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = nn.ModuleList([vae.post_quant_conv, vae.decoder, critic])
    learner.requires_grad_(True)
    if device.type == "cuda":
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)

    def loss_of(step: int) -> Tensor:
        """Loss of one batch; its draws hang on the step alone."""
        ids = _ids(stage.batch, device)
        rows = integers(key("decoder", step), ids, len(bank))
        x = to_unit(bank[rows]).contiguous(memory_format=torch.channels_last)
        noise = normal(key("decoder noise", step), ids, (4, 16, 16))
        share = _CRITIC * min(1.0, step / _CRITIC_ALONE)
        return decoder_loss(vae, critic, x, noise, share)

    return fit(learner, loss_of, stage.budget, work)


@torch.no_grad()
def store_latents(vae: AutoencoderKL, bank: Tensor, batch: int = 512) -> Tensor:
    """Mode of every picture's latent, unscaled: (n, 4, 16, 16) half precision."""
    parts = []
    for rows in bank.split(batch):
        with torch.autocast(bank.device.type, torch.bfloat16, bank.is_cuda):
            moments = vae.quant_conv(vae.encoder(to_unit(rows)))
        parts.append(moments[:, :4].half())
    return torch.cat(parts)
