"""What a training step takes in diffusers' example, to be timed beside the library's.

The example is examples/instruct_pix2pix/train_instruct_pix2pix.py. This follows what it
does from the pictures to the average of the weights, in its order and with its options;
where its loader would decode and crop, the pictures are at hand.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ip2p_lib.config import Training
from ip2p_lib.device import pick_autocast
from ip2p_lib.diffusion.stable_diffusion import StableDiffusion

DROP = Training().drop
SCHEDULER = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")


class Drawn(NamedTuple):
    """Of a micro-batch, whatever is random: (B,) or (B, 4, h, w)."""

    rows: Tensor
    flip: Tensor
    noise: Tensor
    spread: Tensor  # of the target within the VAE's Gaussian
    t: Tensor
    u: Tensor  # decides what is dropped

    def cut(self, size: int) -> list[Drawn]:
        """The same in smaller micro-batches."""
        parts = zip(*(drawn.split(size) for drawn in self), strict=True)
        return [Drawn(*part) for part in parts]


class Pairs(NamedTuple):
    """Pictures (N, 3, H, W) in [-1, 1] and instructions as token ids (N, L)."""

    before: Tensor
    after: Tensor
    ids: Tensor
    empty: Tensor  # (1, L), of the empty text


class Script:
    """The step, after examples/instruct_pix2pix/train_instruct_pix2pix.py."""

    def __init__(self, backbone: StableDiffusion, pairs: Pairs) -> None:
        """Train a copy of the U-Net by the AdamW that the script takes."""
        self.backbone, self.pairs = backbone, pairs
        self.unet = copy.deepcopy(backbone.unet)
        self.half = pick_autocast(backbone.device)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-4)
        self.random = torch.Generator(backbone.device).manual_seed(0)

    def loss(
        self, drawn: Drawn, half: torch.dtype | None, drop: float = DROP
    ) -> Tensor:
        """Both pictures pass the VAE, the text its encoder, whenever they are met."""
        vae, encoder, pairs = self.backbone.vae, self.backbone.text_encoder, self.pairs
        flip, kind = drawn.flip.bool()[:, None, None, None], half or torch.float32
        before, after = (
            torch.where(flip, x.flip(-1), x).to(vae.dtype)
            for x in (pairs.before[drawn.rows], pairs.after[drawn.rows])
        )
        gaussian, image = (vae.encode(x).latent_dist for x in (after, before))
        target = gaussian.mean + gaussian.std * drawn.spread
        target, noise = (
            (target * self.backbone.scaling_factor).to(kind),
            drawn.noise.to(kind),
        )
        noisy = SCHEDULER.add_noise(target, noise, drawn.t)
        text, null = encoder(pairs.ids[drawn.rows])[0], encoder(pairs.empty)[0]
        text = torch.where((drawn.u < 2 * drop)[:, None, None], null, text).to(kind)
        kept = ((drawn.u < drop) | (drawn.u >= 3 * drop))[:, None, None, None]
        sample = torch.cat([noisy, kept * image.mode().to(kind)], dim=1)
        with torch.autocast(self.backbone.device.type, half, enabled=bool(half)):
            eps = self.unet(sample, drawn.t, text).sample
        return F.mse_loss(eps.float(), noise.float())

    def draw(self, n: int) -> Drawn:
        """Draw a micro-batch as the script does, from torch's generator."""
        options: Any = {"device": self.random.device, "generator": self.random}
        side = self.pairs.before.shape[-1] // 8
        rows, flip, t = (
            torch.randint(high, (n,), **options)
            for high in (len(self.pairs.ids), 2, len(SCHEDULER.alphas_cumprod))
        )
        noise, spread = (torch.randn(n, 4, side, side, **options) for _ in range(2))
        return Drawn(rows, flip, noise, spread, t, torch.rand(n, **options))

    def checkpoint(self, on: bool) -> None:
        """Whether to compute activations twice instead of keeping them."""
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def steps(self, at_once: int, times: int, *, readme: bool) -> Iterator[Tensor]:
        """Optimiser steps without end, each of ``times`` micro-batches."""
        average = None if readme else EMAModel(self.unet.parameters())
        while True:
            if self.unet.is_gradient_checkpointing != readme:  # two ways share it
                self.checkpoint(readme)
            for _ in range(times):
                loss = self.loss(self.draw(at_once), self.half)
                float(loss.detach())  # the script logs it, so it waits
                (loss / times).backward()
            nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if average:
                average.step(self.unet.parameters())
            yield loss.detach()
