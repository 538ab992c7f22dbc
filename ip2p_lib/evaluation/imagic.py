"""Imagic: bend the model to one picture, then ask for another (arXiv 2210.09276).

A baseline that, unlike an instruction editor, is trained anew for every edit, in three
stages:

1. the edited caption's embedding moves until the frozen U-Net knows the picture by it
2. the U-Net learns to draw the picture from the embedding that was found
3. between that embedding and the caption's own, it draws the edit

``fit_imagic`` does the first two, which takes a while; ``Imagic.edit`` is the third,
whose ``eta`` is the dial between the picture and the caption.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from ip2p_lib.diffusion.samplers import add_noise
from ip2p_lib.diffusion.stable_diffusion import Backbone
from ip2p_lib.evaluation.sdedit import (
    denoised,
    prepared,
    require_text_to_image,
    start_noise,
)
from ip2p_lib.images import to_pil
from ip2p_lib.rng import integers, key, normal


@dataclass(frozen=True)
class Stage:
    """How long something is trained, and how fast."""

    steps: int
    learning_rate: float
    batch: int = 4  # noise levels at once


# For the miniature; for Stable Diffusion as in diffusers' community pipeline.
EMBEDDING, UNET = Stage(100, 1e-2), Stage(60, 1e-4)
OF_SD = {"embedding": Stage(500, 1e-3, 1), "unet": Stage(1000, 2e-6, 1)}


@dataclass(frozen=True)
class Imagic:
    """A model that knows one picture; from ``fit_imagic``."""

    backbone: Backbone  # its U-Net is the fine-tuned copy
    wanted: Tensor  # (1, L, D) hidden states of the edited caption
    found: Tensor  # (1, L, D) of the picture
    latent: Tensor  # (1, 4, h, w) the picture's
    losses: tuple[float, ...]  # of all steps, first those of the embedding

    def edit(self, eta: float, *, cfg_scale: float, steps: int, seed: int = 0) -> Image:
        """Draw what lies between the picture (eta 0) and the caption (eta 1), its size.

        Args:
            eta: share of the caption's embedding; the paper has 0.6 to 0.8.
            cfg_scale: guidance by the mixed embedding.
            steps: of the walk from pure noise.
            seed: another seed is another attempt.
        """
        text = torch.lerp(self.found, self.wanted, eta)
        noise = start_noise([seed], self.latent)
        return to_pil(denoised(self.backbone, noise, text, cfg_scale, steps, 0))[0]


def fit_imagic(
    backbone: Backbone,
    image: Image,
    edited_caption: str,
    *,
    embedding: Stage = EMBEDDING,
    unet: Stage = UNET,
    seed: int = 0,
) -> Imagic:
    """Stages 1 and 2. The backbone stays as it is; a copy of its U-Net is trained.

    Args:
        backbone: a text-to-image model; the copy is float32.
        image: fitted to the backbone's resolution, keeping its aspect.
        edited_caption: what the edited picture shows.
        embedding: stage 1.
        unet: stage 2.
        seed: of the noise that is drawn while training.

    Raises:
        ValueError: the U-Net is an editor's.
    """
    require_text_to_image(backbone)
    latent = backbone.scaling * backbone.encode(prepared(backbone, image)).float()
    tuned = copy.deepcopy(backbone.unet).float().requires_grad_(False)
    bent = replace(backbone, unet=tuned)
    wanted = backbone.encode_text([edited_caption]).float()
    found = wanted.clone().requires_grad_()
    losses = [*_train(bent, latent, found, [found], embedding, seed)]
    found = found.detach()
    weights = [*tuned.requires_grad_().parameters()]
    losses += _train(bent, latent, found, weights, unet, seed + 1)
    tuned.requires_grad_(False)
    return Imagic(bent, wanted, found, latent, tuple(losses))


def _train(
    backbone: Backbone,
    latent: Tensor,
    text: Tensor,
    weights: Iterable[Tensor],
    stage: Stage,
    seed: int,
) -> Iterator[float]:
    """Have some weights explain one latent by one text; yields the loss of a step."""
    optimizer = torch.optim.Adam(weights, stage.learning_rate)
    schedule = backbone.schedule.to(latent.device)
    levels = len(schedule.alphas_cumprod)
    rows = latent.expand(stage.batch, -1, -1, -1)
    for step in range(stage.steps):
        ids = torch.arange(stage.batch, device=latent.device)
        t = integers(key("imagic", "timestep", seed, step), ids, levels)
        noise = normal(key("imagic", "noise", seed, step), ids, tuple(latent.shape[1:]))
        told = text.expand(stage.batch, -1, -1)
        x = add_noise(schedule, rows, noise, t)
        guess = backbone.unet(x, t, encoder_hidden_states=told, return_dict=False)[0]
        loss = (guess.float() - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
